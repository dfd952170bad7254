"""Sums over all but the channels on a GPU, which are the gradients of biases."""

import numpy

from .cuda_channels import Channels, sizes_of
from .cuda_layout import in_memory, like_that, usual
from .cuda_source import empty
from .device import Array

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
