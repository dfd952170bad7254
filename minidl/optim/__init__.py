"""Optimizers: one class a rule, on flat buffers; schedules, clipping, loss scaling."""

from minidl.optim import lr_scheduler
from minidl.optim.adam import Adam, AdamW
from minidl.optim.adam_variants import Adamax, NAdam, RAdam
from minidl.optim.adaptive import Adadelta, Adagrad, RMSprop
from minidl.optim.clip import clip_grad_norm_, clip_grad_value_
from minidl.optim.optimizer import Optimizer
from minidl.optim.scaler import GradScaler
from minidl.optim.sgd import SGD
from minidl.optim.sharded import ShardedAdam

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "GradScaler",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "ShardedAdam",
    "clip_grad_norm_",
    "clip_grad_value_",
    "lr_scheduler",
]
