"""Random numbers by counter, from the same words on every device.

Element i of draw d under a seed is a function of (seed, d, i) alone: no state is
carried from element to element, so nothing depends on threads, ranks or order.
"""

import hashlib
import math
import threading

import numpy

from .device import (
    Array,
    array_module,
    canonical_device,
    cupy_module,
    use_device,
)
from .draws import Draws, rehearsed
from .dtypes import is_floating_point
from .graph import recording_graph, rehearsing
from .philox import (
    normal_from_bits,
    random_bits,
    random_integers,
    random_mask,
    random_pair,
    random_pair_wide,
    uniform_from_bits,
)


def key(*names: object) -> int:
    """64 bits for these names: a seed for, say, (seed, parameter) or (seed, epoch)."""
    text = "\0".join(f"{type(name).__name__}:{name}" for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class Generator:
    """A sequence of draws: `state` is (seed, number of draws made)."""

    def __init__(self, seed: int = 0):
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> "Generator":
        """Start again from this seed, an integer of up to 64 bits."""
        if isinstance(seed, bool) or not isinstance(seed, int | numpy.integer):
            raise TypeError(f"a seed is an integer, got {type(seed).__name__}")
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"a seed has at most 64 bits, got {seed}")
        self.seed, self.draw = int(seed) % 2**64, 0
        return self

    @property
    def state(self) -> tuple[int, int]:
        return self.seed, self.draw

    @state.setter
    def state(self, state: tuple[int, int]) -> None:
        self.manual_seed(state[0])
        self.draw = int(state[1])

    def next(self, device: str | None = "cpu") -> dict:
        """The scalars of the next draw, for the kernels of philox.py.

        Numbers; while a CUDA graph is recorded, one-element arrays on the device that
        each replay finds set to the draws that are then the next. So in a rehearsal,
        for the kernels that then will be launched are those that take arrays.
        """
        graph, draw = recording_graph(), self.draw
        self.draw += 1
        if graph is not None:
            return graph.companion(self, Draws).scalars(draw)
        if rehearsing() and device not in (None, "cpu"):
            return rehearsed(self.seed, draw)
        return {"seed": self.seed, "draw": draw, "start": 0}


_default = threading.local()  # ranks simulated by threads have one each


def default_generator() -> Generator:
    """This thread's generator; its seed is 0 until `manual_seed`."""
    if not hasattr(_default, "generator"):
        _default.generator = Generator()
    return _default.generator


def manual_seed(seed: int) -> Generator:
    """Seed this thread's generator and return it."""
    return default_generator().manual_seed(seed)


def _scalars(generator: Generator | None, device: str | None) -> dict:
    return (generator or default_generator()).next(device)


def empty(shape, dtype, device: str | None = "cpu") -> Array:
    """An array with whatever the memory holds."""
    device = canonical_device(device)
    if device == "cpu":
        return numpy.empty(shape, dtype)
    with use_device(device):
        return cupy_module().empty(shape, dtype)


def real(dtype) -> numpy.dtype:
    """The floating-point type; RuntimeError for any other."""
    dtype = numpy.dtype(dtype)
    if not is_floating_point(dtype):
        raise RuntimeError(
            f"these random numbers are floating point, not {dtype}: use randint"
        )
    return dtype


def uniform(
    shape,
    low: float = 0.0,
    high: float = 1.0,
    dtype=numpy.float32,
    device: str | None = "cpu",
    generator: Generator | None = None,
) -> Array:
    """Uniform in [low, high): 24 random bits, 53 for float64; alike on all devices."""
    dtype = real(dtype)
    bits = 53 if dtype == numpy.float64 else 24
    width = numpy.uint64 if bits == 53 else numpy.uint32
    words = empty(shape, width, device)
    random_bits(out=words, shift=64 - bits, **_scalars(generator, device))
    return uniform_from_bits(
        words,
        out=empty(shape, dtype, device),
        low=low,
        width=high - low,
        unit=2.0**-bits,
        last=float(numpy.nextafter(dtype.type(high), dtype.type(low))),
    )


def normal(
    shape,
    mean: float = 0.0,
    std: float = 1.0,
    dtype=numpy.float32,
    device: str | None = "cpu",
    generator: Generator | None = None,
) -> Array:
    """Normal: std sqrt(-2 log u) cos(2 pi v) + mean.

    Devices differ by the rounding of their log and cos.
    """
    dtype = real(dtype)
    wide = dtype == numpy.float64
    words = [empty(shape, numpy.uint64 if wide else numpy.uint32, device) for _ in "uv"]
    pair = random_pair_wide if wide else random_pair
    pair(out=tuple(words), **_scalars(generator, device))
    return normal_from_bits(
        *words,
        out=empty(shape, dtype, device),
        mean=mean,
        std=std,
        unit=2.0 ** (-53 if wide else -32),
        tau=2 * math.pi,
    )


def integers(
    low: int,
    high: int,
    shape,
    dtype=numpy.int64,
    device: str | None = "cpu",
    generator: Generator | None = None,
) -> Array:
    """Integers in [low, high): floor(64 random bits * (high - low) / 2**64) + low.

    The probabilities differ by less than (high - low) / 2**64. Raises ValueError
    if there are none or more than 2**32 integers to choose from.
    """
    if not 0 < high - low <= 2**32:
        raise ValueError(f"integers need 0 < high - low <= 2**32, got [{low}, {high})")
    return random_integers(
        out=empty(shape, dtype, device),
        low=low % 2**64,
        span=high - low,
        **_scalars(generator, device),
    )


def permutation(
    n: int, device: str | None = "cpu", generator: Generator | None = None
) -> Array:
    """The integers 0 to n - 1 in random order: the order of n words of 64 bits."""
    words = empty((n,), numpy.uint64, device)
    random_bits(out=words, shift=0, **_scalars(generator, device))
    return array_module(words).argsort(words, kind="stable").astype(numpy.int64)


def bernoulli(
    shape,
    p: float,
    dtype=numpy.bool_,
    device: str | None = "cpu",
    generator: Generator | None = None,
) -> Array:
    """One with probability p (to 2**-32), else zero: the mask of dropout."""
    if not 0 <= p <= 1:
        raise ValueError(f"a probability is between 0 and 1, got {p}")
    return random_mask(
        out=empty(shape, dtype, device),
        threshold=round(p * 2**32),
        **_scalars(generator, device),
    )
