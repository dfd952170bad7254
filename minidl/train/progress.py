"""How far a training has come."""

from dataclasses import asdict, dataclass, field

import numpy as np


@dataclass(frozen=True)
class Metrics:
    """One epoch, over all ranks: losses are means over samples, time is in seconds."""

    epoch: int
    train_loss: float
    test_loss: float
    test_accuracy: float
    samples: int
    seconds: float
    samples_per_second: float
    lr: float

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass
class Progress:
    """Where a training stands: in which epoch, how far into it, what came before."""

    epoch: int = 1  # under way, the first is 1
    steps: int = 0  # done in this epoch
    total_steps: int = 0  # done in all
    lr: float = 0.0  # at the start of the epoch
    seconds: float = 0.0  # that the epoch has taken
    sums: np.ndarray = field(default_factory=lambda: np.zeros(3))
    """This rank's in this epoch: the loss's total and count, and samples."""
    history: list[Metrics] = field(default_factory=list)  # of the epochs done

    def __str__(self) -> str:
        if self.steps == 0:
            return f"after epoch {self.epoch - 1}"
        return f"after step {self.steps} of epoch {self.epoch}"

    def finish(self, metrics: Metrics) -> None:
        """An epoch is done; the next begins."""
        self.history.append(metrics)
        self.epoch += 1
        self.steps, self.seconds, self.sums = 0, 0.0, np.zeros(3)

    def state_dict(self) -> dict:
        """For a checkpoint: all that is the same on every rank."""
        state = {**vars(self), "history": [m.as_dict() for m in self.history]}
        del state["sums"]
        return state

    def load_state_dict(self, state: dict) -> None:
        """Go on from there; `sums` are each rank's own."""
        history = [Metrics(**metrics) for metrics in state["history"]]
        vars(self).update({**state, "history": history})
