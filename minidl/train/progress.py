"""How far a training has come."""

from dataclasses import asdict, dataclass, field
from math import isfinite

import numpy as np

from minidl.array.device import array_module, on_gpu
from minidl.array.kernel import Kernel
from minidl.autograd.tensor import Tensor

LOOK_EVERY = 32  # steps between two looks at what is on a device, each of which waits
add_up = Kernel(
    "add_up",
    outputs="total count",
    scalars="more terms lenient",
    body="""
    auto lost = (lenient > 0) & (isnan(more) | isinf(more));
    total = where(lost, total, total + more);
    count = where(lost, count, count + terms);
    """,
    compute="float64",
)


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


class Tally:
    """Sums of this rank's steps: a total and a count, where they are, and samples.

    On a device they stay there until somebody looks: `found`, the host's copy of all
    three, is as of the last `look`. `due` says whether it is time for one: after the
    first step, then after every LOOK_EVERY; on a CPU, where it costs nothing, always.
    `lost` is the number of steps before the last look with nothing to add.
    """

    def __init__(self, found=(0.0, 0.0, 0.0), lost: int = 0):
        self.found, self.lost = np.array(found, float), lost
        self.unseen = LOOK_EVERY - 1
        self.steps, self.terms = 0, self.found[1]  # since, and as of, the last look
        self.sums = None  # on the device: the total and the count

    def add(
        self, total: Tensor, count: Tensor | float, samples: int, lenient: bool = False
    ) -> None:
        """Add the sum of a batch, of how many terms it is, and its samples.

        A `lenient` tally leaves out a sum that is no finite number.
        """
        self.found[2] += samples
        self.steps += 1
        if not on_gpu(total.data):
            total = total.item()
            if isfinite(total) or not lenient:
                self.found[:2] += total, float(count)
            return
        if self.sums is None:
            self.sums = array_module(total.data).asarray(self.found[:2])
        terms = count.data if isinstance(count, Tensor) else count
        out = self.sums[:1], self.sums[1:]
        add_up(out=out, more=total.data, terms=terms, lenient=lenient)
        self.unseen += 1

    @property
    def due(self) -> bool:
        return self.sums is None or self.unseen >= LOOK_EVERY

    def look(self) -> np.ndarray:
        """Total, count and samples, for which the device is waited for."""
        if self.sums is not None:
            self.found[:2], self.unseen = self.sums.get(), 0
        self.lost = self.lost + self.steps if self.found[1] == self.terms else 0
        self.steps, self.terms = 0, self.found[1]
        return self.found


@dataclass
class Progress:
    """Where a training stands: in which epoch, how far into it, what came before."""

    epoch: int = 1  # under way, the first is 1
    steps: int = 0  # done in this epoch
    total_steps: int = 0  # done in all
    lr: float = 0.0  # at the start of the epoch
    seconds: float = 0.0  # that the epoch has taken
    sums: Tally = field(default_factory=Tally)
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
        self.steps, self.seconds = 0, 0.0
        self.sums = Tally(lost=self.sums.lost)

    def state_dict(self) -> dict:
        """For a checkpoint: all that is the same on every rank."""
        state = {**vars(self), "history": [m.as_dict() for m in self.history]}
        del state["sums"]
        return state

    def load_state_dict(self, state: dict) -> None:
        """Go on from there; `sums` are each rank's own."""
        history = [Metrics(**metrics) for metrics in state["history"]]
        vars(self).update({**state, "history": history})
