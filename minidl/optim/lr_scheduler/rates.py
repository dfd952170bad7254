"""Schedules that multiply or add: each is one line of arithmetic."""

from collections import Counter
from collections.abc import Callable, Iterable
from math import cos, pi
from types import BuiltinFunctionType, FunctionType

from minidl.optim.lr_scheduler.base import LRScheduler, per_group
from minidl.optim.optimizer import Optimizer


class LambdaLR(LRScheduler):
    """lr = initial lr_lambda(t); a list has a function for each group.

    Functions are not saved by `state_dict`; callable objects are, by their attributes.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | list[Callable[[int], float]],
        last_epoch: int = -1,
    ):
        self.lr_lambdas = per_group(optimizer, "lr_lambda", lr_lambda)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        pairs = zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [base * function(self.last_epoch) for base, function in pairs]

    def state_dict(self) -> dict:
        saved = [
            None if isinstance(f, FunctionType | BuiltinFunctionType) else dict(vars(f))
            for f in self.lr_lambdas
        ]
        return {**super().state_dict(), "lr_lambdas": saved}

    def load_state_dict(self, state_dict: dict) -> None:
        own = self.lr_lambdas
        super().load_state_dict({**state_dict, "lr_lambdas": own})
        for function, saved in zip(own, state_dict["lr_lambdas"], strict=True):
            if saved is not None:
                vars(function).update(saved)


class StepLR(LRScheduler):
    """lr = lr gamma, every `step_size` epochs."""

    def __init__(
        self,
        optimizer: Optimizer,
        step_size: int,
        gamma: float = 0.1,
        last_epoch: int = -1,
    ):
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, lr, base):
        due = self.last_epoch > 0 and self.last_epoch % self.step_size == 0
        return lr * self.gamma if due else lr


class MultiStepLR(LRScheduler):
    """lr = lr gamma, at each milestone (twice at one that is given twice)."""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ):
        self.milestones, self.gamma = Counter(milestones), gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, lr, base):
        return lr * self.gamma ** self.milestones[self.last_epoch]


class ExponentialLR(LRScheduler):
    """lr = lr gamma, every epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1):
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, lr, base):
        return lr if self._first else lr * self.gamma


class LinearLR(LRScheduler):
    """lr = initial f, with f going from start_factor to end_factor in total_iters."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        if not 0 < start_factor <= 1:
            raise ValueError(f"start_factor must lie in (0, 1], got {start_factor}")
        if not 0 <= end_factor <= 1:
            raise ValueError(f"end_factor must lie in [0, 1], got {end_factor}")
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def rate(self, lr, base):
        t, rise = self.last_epoch, self.end_factor - self.start_factor
        if t == 0:
            return lr * self.start_factor
        if self._first or t > self.total_iters:
            return lr
        before = self.total_iters * self.start_factor + (t - 1) * rise
        return lr * (1 + rise / before)


class PolynomialLR(LRScheduler):
    """lr = initial (1 - t / total_iters)^power, then 0."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int = 5,
        power: float = 1.0,
        last_epoch: int = -1,
    ):
        self.total_iters, self.power = total_iters, power
        super().__init__(optimizer, last_epoch)

    def rate(self, lr, base):
        t, total = self.last_epoch, self.total_iters
        if self._first or t > total:
            return lr
        return lr * ((1 - t / total) / (1 - (t - 1) / total)) ** self.power


class CosineAnnealingLR(LRScheduler):
    """lr = eta_min + (initial - eta_min) (1 + cos(pi t / T_max)) / 2.

    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ):
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, last_epoch)

    def rate(self, lr, base):
        t, T, low = self.last_epoch, self.T_max, self.eta_min
        if self._first:
            return lr
        if (t - 1 - T) % (2 * T) == 0:  # the valley, from which no factor leads up
            return lr + (base - low) * (1 - cos(pi / T)) / 2
        factor = (1 + cos(pi * t / T)) / (1 + cos(pi * (t - 1) / T))
        return factor * (lr - low) + low
