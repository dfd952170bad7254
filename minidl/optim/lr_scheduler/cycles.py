"""Schedules of several phases."""

from bisect import bisect_right
from math import cos, floor, log, pi

from minidl.optim.lr_scheduler.base import LRScheduler, per_group, set_lr
from minidl.optim.optimizer import Optimizer


class CosineAnnealingWarmRestarts(LRScheduler):
    """lr = eta_min + (initial - eta_min) (1 + cos(pi T_cur / T_i)) / 2, where T_cur
    counts from the last restart and T_i, the length of a cycle, grows by T_mult.

    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ):
        for name, value in (("T_0", T_0), ("T_mult", T_mult)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value}")
        self.T_0, self.T_i, self.T_mult = T_0, T_0, T_mult
        self.eta_min, self.T_cur = eta_min, last_epoch
        super().__init__(optimizer, last_epoch)

    def rate(self, lr, base):
        turn = cos(pi * self.T_cur / self.T_i)
        return self.eta_min + (base - self.eta_min) * (1 + turn) / 2

    def step(self, epoch: float | None = None) -> None:
        """Go on by one epoch, or to a given one, which may be a fraction."""
        if epoch is not None or self.last_epoch < 0:
            epoch = epoch or 0
            self.go_to(epoch)
        else:
            epoch = self.last_epoch + 1
            self.T_cur += 1
            if self.T_cur >= self.T_i:
                self.T_cur %= self.T_i
                self.T_i *= self.T_mult
        self.last_epoch = floor(epoch)
        self._set(self.get_lr())

    def go_to(self, epoch: float) -> None:
        """Find the cycle of an epoch."""
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}")
        mult, first = self.T_mult, self.T_0
        if epoch < first:
            self.T_cur, self.T_i = epoch, first
        elif mult == 1:
            self.T_cur = epoch % first
        else:
            cycles = int(log(epoch / first * (mult - 1) + 1, mult))
            self.T_cur = epoch - first * (mult**cycles - 1) / (mult - 1)
            self.T_i = first * mult**cycles


class OneCycleLR(LRScheduler):
    """lr rises from max_lr / div_factor to max_lr in the first `pct_start` of all
    steps, then falls to max_lr / div_factor / final_div_factor, in one phase or, with
    `three_phase`, first as it rose; momentum (or beta1) goes the other way.

    To be called after each batch. Smith and Topin, "Super-Convergence: Very Fast
    Training of Neural Networks Using Large Learning Rates", 2018.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ):
        self.total_steps = count_steps(total_steps, epochs, steps_per_epoch)
        if not 0 <= pct_start <= 1:
            raise ValueError(f"pct_start must lie in [0, 1], got {pct_start}")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                f"anneal_strategy must be 'cos' or 'linear', got {anneal_strategy!r}"
            )
        settings = optimizer.param_groups[0]
        if cycle_momentum and not ("momentum" in settings or "betas" in settings):
            raise ValueError(
                f"{type(optimizer).__name__} has no momentum to cycle: "
                "set cycle_momentum=False"
            )
        self.anneal_strategy, self.cycle_momentum = anneal_strategy, cycle_momentum
        peak = pct_start * self.total_steps
        # (last step, rates and momenta by their names in a group)
        up = (peak - 1, "initial_lr", "max_lr", "max_momentum", "base_momentum")
        down = (2 * peak - 2, "max_lr", "initial_lr", "base_momentum", "max_momentum")
        middle = ("initial_lr", "max_lr")[not three_phase]
        momentum = ("max_momentum", "base_momentum")[not three_phase]
        end = (self.total_steps - 1, middle, "min_lr", momentum, "max_momentum")
        self.phases = [up, down, end] if three_phase else [up, end]
        if last_epoch == -1:
            columns = (
                per_group(optimizer, "max_lr", max_lr),
                per_group(optimizer, "base_momentum", base_momentum),
                per_group(optimizer, "max_momentum", max_momentum),
            )
            for group, top, low, high in zip(
                optimizer.param_groups, *columns, strict=True
            ):
                first = top / div_factor
                group.update(initial_lr=first, max_lr=top)
                group.update(min_lr=first / final_div_factor)
                if cycle_momentum:
                    group.update(base_momentum=low, max_momentum=high)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        if self.last_epoch > self.total_steps:
            raise ValueError(
                f"this schedule has {self.total_steps} steps, and was asked for step "
                f"{self.last_epoch}"
            )
        return [self.between(group) for group in self.optimizer.param_groups]

    def between(self, group: dict) -> float:
        """The group's rate; its momentum is set."""
        start = 0.0
        for phase in self.phases:
            if self.last_epoch <= phase[0] or phase is self.phases[-1]:
                break
            start = phase[0]
        end, *names = phase
        part = (self.last_epoch - start) / (end - start)
        if self.cycle_momentum:
            momentum = self.anneal(group[names[2]], group[names[3]], part)
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum
        return self.anneal(group[names[0]], group[names[1]], part)

    def anneal(self, start: float, end: float, part: float) -> float:
        if self.anneal_strategy == "linear":
            return (end - start) * part + start
        return end + (start - end) / 2 * (cos(pi * part) + 1)


def count_steps(total_steps, epochs, steps_per_epoch) -> int:
    """The number of steps of a cycle, from what of it is given."""
    if total_steps is None and (epochs is None or steps_per_epoch is None):
        raise ValueError("OneCycleLR needs total_steps, or epochs and steps_per_epoch")
    given = [epochs, steps_per_epoch] if total_steps is None else [total_steps, 1]
    for number in given:
        if not isinstance(number, int) or number < 1:
            raise ValueError(
                f"steps and epochs must be positive integers, got {number}"
            )
    return given[0] * given[1]


class SequentialLR(LRScheduler):
    """One schedule after another; each but the first starts anew at its milestone."""

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: list[LRScheduler],
        milestones: list[int],
        last_epoch: int = -1,
    ):
        if not schedulers:
            raise ValueError("SequentialLR needs at least one schedule")
        if any(s.optimizer is not optimizer for s in schedulers):
            raise ValueError("the schedules of a SequentialLR must share its optimizer")
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"{len(schedulers)} schedules need {len(schedulers) - 1} milestones, "
                f"got {len(milestones)}"
            )
        self.optimizer, self.last_epoch = optimizer, last_epoch
        self.base_lrs = [float(g["initial_lr"]) for g in optimizer.param_groups]
        self._schedulers, self._milestones = list(schedulers), list(milestones)
        for group, lr in zip(optimizer.param_groups, self.base_lrs, strict=True):
            set_lr(group, lr)
        self.begin()

    def begin(self) -> None:
        """Take back the first steps of all schedules but the one that begins."""
        self.last_epoch += 1
        for schedule in self._schedulers:
            schedule.last_epoch -= 1
        first = self._schedulers[bisect_right(self._milestones, 0)]
        first.begin()
        self._last_lr = first.get_last_lr()

    def step(self) -> None:
        self.last_epoch += 1
        number = bisect_right(self._milestones, self.last_epoch)
        schedule = self._schedulers[number]
        if number and self._milestones[number - 1] == self.last_epoch:
            schedule.restart()
        else:
            schedule.step()
        self._last_lr = schedule.get_last_lr()

    def state_dict(self) -> dict:
        states = [schedule.state_dict() for schedule in self._schedulers]
        return {**super().state_dict(), "_schedulers": states}

    def load_state_dict(self, state_dict: dict) -> None:
        own = self._schedulers
        super().load_state_dict({**state_dict, "_schedulers": own})
        for schedule, saved in zip(own, state_dict["_schedulers"], strict=True):
            schedule.load_state_dict(saved)
