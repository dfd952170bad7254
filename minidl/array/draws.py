"""Random draws in a CUDA graph, which are others in every replay."""

import numpy

from .device import cupy_module
from .errors import CaptureError
from .kernel import Kernel

count_draws = Kernel(
    "count_draws",
    outputs="y",
    scalars="seed draw",
    body="y = where(index == 0, seed, draw + index - 1);",
    compute="uint64",
)


class Draws:
    """The draws that a generator makes in a CUDA graph: as many in every replay."""

    MOST = 4096

    def __init__(self, generator):
        self.generator, self.first = generator, generator.draw - 1
        self.count = 0
        self.numbers = cupy_module().empty(1 + self.MOST, numpy.uint64)

    def scalars(self, draw: int) -> dict:
        """The seed and the number of this draw, once `before` has written them."""
        place = 1 + draw - self.first
        if not 0 < place <= self.MOST:
            raise CaptureError(f"it draws random numbers over {self.MOST} times")
        numbers = self.numbers
        return {"seed": numbers[:1], "draw": numbers[place : place + 1], "start": 0}

    def recorded(self) -> None:
        """Nothing has been drawn yet."""
        self.count = self.generator.draw - self.first
        self.generator.draw = self.first

    def before(self) -> None:
        count_draws(
            out=self.numbers[: 1 + self.count],
            seed=self.generator.seed,
            draw=self.generator.draw,
        )

    def after(self) -> None:
        self.generator.draw += self.count


def rehearsed(seed: int, draw: int) -> dict:
    """The scalars of one draw, as a recording has them: on the device."""
    numbers = cupy_module().empty(2, numpy.uint64)
    count_draws(out=numbers, seed=seed, draw=draw)
    return {"seed": numbers[:1], "draw": numbers[1:], "start": 0}
