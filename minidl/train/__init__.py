"""Training: the step, the trainer, its reports and the command line."""

from minidl.train.step import train_step
from minidl.train.trainer import DivergedError, Metrics, Trainer, evaluate

__all__ = ["DivergedError", "Metrics", "Trainer", "evaluate", "train_step"]
