"""Learning-rate schedules, with PyTorch's names and numbers."""

from minidl.optim.lr_scheduler.base import LRScheduler
from minidl.optim.lr_scheduler.cycles import (
    CosineAnnealingWarmRestarts,
    OneCycleLR,
    SequentialLR,
)
from minidl.optim.lr_scheduler.rates import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)

__all__ = [
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "PolynomialLR",
    "SequentialLR",
    "StepLR",
]
