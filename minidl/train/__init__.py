"""Training: the step, the trainer, its reports and the command line."""

from minidl.train.captured import CapturedStep
from minidl.train.profiler import profile, record_function
from minidl.train.progress import Metrics, Progress
from minidl.train.step import train_step
from minidl.train.trainer import DivergedError, Trainer, evaluate

__all__ = [
    "CapturedStep",
    "DivergedError",
    "Metrics",
    "Progress",
    "Trainer",
    "evaluate",
    "profile",
    "record_function",
    "train_step",
]
