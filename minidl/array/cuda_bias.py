"""Biases of channels on a GPU: added, and their gradients, sums over all else."""

from math import gcd

import numpy

from .cuda_channels import Channels, sizes_of
from .cuda_layout import in_memory, like_that, usual
from .cuda_source import PACKS, aligned, blocks, contiguous, empty, function, types_of
from .device import Array

BLOCK = 256  # threads
_ADDING = (
    PACKS
    + """
// y + b[k], or its ReLU, for y of (A, K, B): NaN stays NaN. A thread has AHEAD packs, a
// block apart, which are on their way together; a pack is of one channel, or of OWN.
extern "C" __global__ void add_bias(S* y, const P* b, I count, I K, I B) {
    const I first = blockIdx.x * (I)(BLOCK * AHEAD) + threadIdx.x;
    Packed v[AHEAD];
    UNROLLED(u, AHEAD) if (const I n = first + u * BLOCK; n < count)
        v[u] = ((const Packed*)y)[n];
    UNROLLED(u, AHEAD) if (const I n = first + u * BLOCK; n < count) {
        Some some = unpacked(v[u]);
        const P* own = b + n / B % K * OWN;
        UNROLLED(k, VECTOR) {
            const T value = (T)some.at[k] + (T)own[k % OWN];
            some.at[k] = (S)(RELU && value <= T(0) ? T(0) : value);
        }
        store(y + n * VECTOR, some);
    }
}
"""
)
_SOURCE = """
struct Total {
    T value;
    __device__ Total joined(Total other) const { return {value + other.value}; }
};
// The sum of g, which goes to `kept` too, 0 where y is given and not above 0.
extern "C" __global__ void __launch_bounds__(BLOCK, 4) totals(
    const S* g, const S* y, S* kept, T* shares, I A, I K, I B, I share
) {
    const I k = CHANNEL;
    Total mine[OWN] = {};
    Packed gs[AHEAD], ys[AHEAD];
    for (Walk<AHEAD> walk(A, K, B, share, k); walk.next();) {
        walk.load(gs, g);
        if (y) walk.load(ys, y);
        UNROLLED(u, AHEAD) if (walk.has(u)) {
            Some a = unpacked(gs[u]), gate = unpacked(ys[u]);
            UNROLLED(n, VECTOR) {
                const T value = y && (T)gate.at[n] <= 0 ? T(0) : (T)a.at[n];
                mine[n % OWN].value += value;
                a.at[n] = (S)value;
            }
            if (y) store(kept + walk.at[u], a);
        }
    }
    join(mine);
    if (FIRST) UNROLLED(c, OWN) shares[blockIdx.y * K + k + c] = mine[c].value;
}
"""


def add_bias(y: Array, b: Array, relu: bool) -> Array:
    """y (N, K, *), contiguous, with b (K) added to it in place, or the ReLU of that."""
    N, K, B = sizes_of(y, False)
    vector = gcd(K if B == 1 else B, 16 // y.itemsize) if aligned(y) else 1
    own = vector if B == 1 else 1
    ahead = 4 if vector > 1 else 8
    numbers = ("VECTOR", vector), ("OWN", own), ("AHEAD", ahead), ("BLOCK", BLOCK)
    types = (*types_of(y), ("P", b.dtype))
    kernel = function(_ADDING, types, (*numbers, ("RELU", int(relu))), "add_bias")
    count = y.size // vector
    sizes = map(types[2][1].type, (count, K // own, B * own // vector))
    kernel((blocks(count, BLOCK * ahead),), (BLOCK,), (y, contiguous(b), *sizes))
    return y


def bias_gradient(
    gy: Array, y: Array | None = None, out: Array | None = None
) -> tuple[Array, Array]:
    """(g, gb): gy (N, K, *), 0 where y is given and not above 0, and that summed over
    all but K, into `out` where that is contiguous and of the type to compute in.

    One launch, and one more to join the shares of large arrays; g lies as y does.
    """
    first, last = in_memory(gy if y is None else y)
    g = first if y is None else like_that(gy, last, y.dtype)
    gate, kept = (0, 0) if y is None else (first, empty(g.shape, g.dtype))
    channels = Channels(*sizes_of(g, last), g.dtype, g, first)
    wide, count = channels.wide, channels.shares
    if out is not None and not (out.dtype == wide and out.flags.c_contiguous):
        out = None
    shares = channels.partial(1) if out is None or count > 1 else out
    channels.launch(_SOURCE, "totals", (g, gate, kept, shares))
    if count > 1:
        out = shares.reshape(count, -1).sum(0, dtype=numpy.dtype(wide), out=out)
    elif out is None:
        out = shares.reshape(-1)
    return usual(g if y is None else kept, last), out
