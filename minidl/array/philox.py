"""Philox4x32-10: random words from a counter and a key, the same bits on every device.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

from .kernel import Kernel

_LOW = 0xFFFFFFFF
_ROUND = f"""
    p = a * {0xD2511F53};
    q = c * {0xCD9E8D57};
    a = (q >> 32) ^ b ^ k0;
    b = q & {_LOW};
    c = (p >> 32) ^ d ^ k1;
    d = p & {_LOW};
    k0 = (k0 + {0x9E3779B9}) & {_LOW};
    k1 = (k1 + {0xBB67AE85}) & {_LOW};
"""
PHILOX = f"""
    auto a = (COUNTER + start) & {_LOW};
    auto b = (COUNTER + start) >> 32;
    auto c = draw & {_LOW};
    auto d = draw >> 32;
    auto k0 = seed & {_LOW};
    auto k1 = seed >> 32;
    auto p = a;
    auto q = a;
    {_ROUND * 10}
"""
"""Four 32-bit words a b c d for counter (COUNTER + start, draw) and key seed."""


def drawn(
    name: str, outputs: str, scalars: str, body: str, counter: str = "index"
) -> Kernel:
    """A kernel that starts with the four words of its element's counter."""
    scalars, text = f"seed draw start {scalars}", PHILOX.replace("COUNTER", counter)
    return Kernel(name, "", outputs, scalars, text + body, compute="uint64")


random_bits = drawn("random_bits", "y", "shift", "y = ((b << 32) | a) >> shift;")
random_pair = drawn("random_pair", "x y", "", "x = a; y = b;")
random_pair_wide = drawn(
    "random_pair_wide",
    "x y",
    "",
    "x = ((b << 32) | a) >> 11; y = ((d << 32) | c) >> 11;",
)
random_mask = drawn(  # four elements share the words of one counter
    "random_mask",
    "mask",
    "threshold",
    """
    auto even = where((index & 2) < 2, a, c);
    auto odd = where((index & 2) < 2, b, d);
    mask = where((index & 1) < 1, even, odd) < threshold;
    """,
    counter="(index >> 2)",
)
random_integers = drawn(  # the upper half of 64 bits times the span
    "random_integers",
    "y",
    "low span",
    "y = ((((a * span) >> 32) + b * span) >> 32) + low;",
)
uniform_from_bits = Kernel(  # `last` is the greatest number below `high`
    "uniform_from_bits",
    "bits",
    "y",
    "low width unit last",
    "y = min(low + width * (bits * unit), last);",
)
normal_from_bits = Kernel(  # Box and Muller, 1958
    "normal_from_bits",
    "first second",
    "y",
    "mean std unit tau",
    """
    auto radius = sqrt(-2 * log((first + 0.5) * unit));
    y = mean + std * (radius * cos(tau * (second * unit)));
    """,
)
