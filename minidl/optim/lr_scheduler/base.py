"""What all learning-rate schedules share.

As in PyTorch, a schedule goes on from the learning rate that it finds where that is
possible: schedules may be combined, and the rate changed by hand.
"""

from minidl.autograd.tensor import Tensor
from minidl.optim.optimizer import Optimizer


class LRScheduler:
    """Base of the schedules: after epoch t, `step` sets every group's rate for t + 1.

    A subclass defines `rate(lr, base)`: a group's new rate from its present one and its
    initial one, at `last_epoch`. `last_epoch` other than -1 resumes; groups then have
    an "initial_lr" already. PyTorch's deprecated `step(epoch)` is not offered, but by
    CosineAnnealingWarmRestarts.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"a schedule needs an Optimizer, got {type(optimizer).__name__}"
            )
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", float(group["lr"]))
            elif "initial_lr" not in group:
                raise KeyError(
                    f"to resume at last_epoch={last_epoch}, parameter group {i} needs "
                    "an 'initial_lr': load the optimizer's state first"
                )
        self.optimizer = optimizer
        self.base_lrs = [float(g["initial_lr"]) for g in optimizer.param_groups]
        self.last_epoch = last_epoch
        self.begin()

    def begin(self) -> None:
        """The first step, in which most schedules leave the rate as it is."""
        self._first = True
        self.step()
        self._first = False

    def restart(self) -> None:
        """Back to the initial rates and epoch 0."""
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            set_lr(group, lr)
        self.last_epoch = -1
        self.begin()

    def rate(self, lr: float, base: float) -> float:
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        """The rates at `last_epoch`, computed from the present ones."""
        groups = self.optimizer.param_groups
        return [
            self.rate(float(g["lr"]), base)
            for g, base in zip(groups, self.base_lrs, strict=True)
        ]

    def get_last_lr(self) -> list[float]:
        """The rates that this schedule set last."""
        return self._last_lr

    def step(self) -> None:
        """Go on by one epoch."""
        self.last_epoch += 1
        self._set(self.get_lr())

    def _set(self, rates: list[float]) -> None:
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            set_lr(group, lr)
        self._last_lr = rates

    def state_dict(self) -> dict:
        """All but the optimizer."""
        return {k: v for k, v in vars(self).items() if k != "optimizer"}

    def load_state_dict(self, state_dict: dict) -> None:
        vars(self).update(state_dict)


def set_lr(group: dict, lr: float) -> None:
    """Set a group's rate; one that is a Tensor is written into."""
    if isinstance(group["lr"], Tensor):
        group["lr"].data[...] = lr
    else:
        group["lr"] = lr


def per_group(optimizer: Optimizer, name: str, value) -> list:
    """A value for each group, from one for all or a list."""
    count = len(optimizer.param_groups)
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} needs {count} values, one a group, got {len(value)}")
    return list(value)
