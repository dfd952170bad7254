"""Sums over all but the channels in NumPy, while a block is in cache."""

from math import prod

import numpy as np

from minidl.array.choice import kept
from minidl.array.layout import inverse, memory_order
from minidl.array.loops import PARTED_FROM
from minidl.array.standardize_blocks import BLOCK, summed
from minidl.array.threads import get_num_threads, parallel


def bias_gradient(gy, y=None):
    """(g, gb): gy (N, K, *out), which is 0 where y is given and not above 0, and the
    sum of that over all but K; g lies in memory as y does.

    The sum of half precision is taken in float32. Blocks depend on the shape alone.
    """
    order = memory_order(gy if y is None else y)
    back = inverse(order)
    source, gate = (a if a is None else a.transpose(order) for a in (gy, y))
    g = source if y is None else np.empty(source.shape, gy.dtype)
    dims = tuple(axis for axis in range(gy.ndim) if axis != back[1])
    step = max(1, BLOCK // max(1, prod(g.shape[1:])))
    cuts = [slice(at, at + step) for at in range(0, len(g), step)]

    def work(cut):
        if gate is not None:
            kept(~(gate[cut] <= 0), source[cut], g[cut])
        if g.itemsize < 4:
            return g[cut].sum(dims, np.float32)
        return summed(g[cut], None, dims).reshape(-1)

    share = get_num_threads() if g.size >= PARTED_FROM else 1
    parts = [cuts[i::share] for i in range(share)]
    sums = parallel(lambda cuts: [work(cut) for cut in cuts], parts)
    gb = np.zeros(gy.shape[1], np.promote_types(gy.dtype, np.float32))
    for at, cut in enumerate(cuts):
        channels = cut if back[1] == 0 else slice(None)
        gb[channels] += sums[at % share][at // share]
    return g.transpose(back), gb.astype(gy.dtype, copy=False)
