"""Arrays of (A, K, B) on a GPU, whose channels K are walked through by blocks.

A block has one channel, or, where B is 1, neighbouring ones that fill 128 bytes; and of
each a share, whose sums another launch joins.
"""

from functools import cache
from math import gcd, prod

import numpy

from .cuda_source import (
    PACKS,
    aligned,
    blocks,
    empty,
    function,
    refuse_host,
    types_of,
)
from .device import Array

BLOCK = 256  # threads
BLOCKS = 528  # four for each multiprocessor of an H200, which can have them at once


class Channels:
    """How arrays of shape (A, K, B), equal in memory, are shared out to blocks."""

    def __init__(self, A: int, K: int, B: int, parameter: numpy.dtype, *arrays):
        itemsize = arrays[0].dtype.itemsize
        vector = min(4, 16 // itemsize) if B == 1 else 16 // itemsize
        vector = gcd(K if B == 1 else B, vector) if aligned(*arrays) else 1
        own = vector if B == 1 else 1
        lanes = min(32, 128 // (vector * itemsize)) if B == 1 else 1
        self.across = blocks(K, lanes * own)
        most = blocks(A * B * own, 4 * vector * BLOCK // lanes)
        shares = max(1, min(most, BLOCKS // self.across))
        unit = vector // own
        share = blocks(blocks(A * B, shares), unit) * unit
        self.shares, self.channels = blocks(A * B, share), K
        types = types_of(arrays[0])
        self.wide, integer = types[1][1], types[2][1].type
        self.sizes = tuple(map(integer, (A, K, B, share)))
        self.integer = integer
        self.types = (*types, ("P", parameter))
        self.numbers = (
            ("BLOCK", BLOCK),
            ("LANES", lanes),
            ("VECTOR", vector),
            ("OWN", own),
            ("AHEAD", 4 if vector > 1 else 8),
        )

    def launch(self, source: str, name: str, arrays: tuple, *rest) -> None:
        """Run the kernel, which takes the arrays, the sizes and the rest."""
        refuse_host((*arrays, *rest))
        kernel = function(whole(source), self.types, self.numbers, name)
        args = (*arrays, *self.sizes, *rest)
        kernel((self.across, self.shares), (BLOCK,), args)

    def partial(self, numbers: int) -> Array:
        """Memory for so many numbers of each channel's shares."""
        return empty((self.shares, self.channels, numbers), self.wide)


def sizes_of(x, last: bool) -> tuple[int, int, int]:
    """(A, K, B)"""
    if last:
        return prod(x.shape[:-1]), x.shape[-1], 1
    return x.shape[0], x.shape[1], prod(x.shape[2:])


@cache
def whole(source: str) -> str:
    """The source with what it needs; one text, so that it is hashed once."""
    return SOURCE + source


SOURCE = (
    PACKS
    + """
#define MEMBERS (BLOCK / LANES)
#define STEP (MEMBERS * (VECTOR / OWN))
// v of OWN channels joined over the threads that have them, in a fixed order
template <class V> INLINE void join(V* v) {
    __shared__ V parts[BLOCK];
    const int t = threadIdx.x;
    UNROLLED(c, OWN) {
        __syncthreads();
        parts[t] = v[c];
        for (int step = BLOCK / 2; step >= LANES; step /= 2) {
            __syncthreads();
            if (t < step) parts[t] = parts[t].joined(parts[t + step]);
        }
        __syncthreads();
        v[c] = parts[t % LANES];
    }
}
template <class V> INLINE void join(V* all, const V* shares, I k, I K, int count) {
    UNROLLED(c, OWN) {
        all[c] = {};
        for (int n = threadIdx.x / LANES; k < K && n < count; n += MEMBERS)
            all[c] = all[c].joined(shares[n * K + k + c]);
    }
    join(all);
}
// the first of this thread's channels, and whether it speaks for its team
#define CHANNEL (I)((blockIdx.x * LANES + threadIdx.x % LANES) * OWN)
#define FIRST (threadIdx.x < LANES && k < K)

// This thread's elements e of its channels, N packs at a time, whose loads are on their
// way together; a pack lies at at[u]. Steps from pack to pack need no division.
template <int N> struct Walk {
    I e, end, B, b, over, far, gap, place, at[N];
    __device__ Walk(I A, I K, I B, I share, I k) : B(B) {
        e = (I)blockIdx.y * share + (I)(threadIdx.x / LANES) * (VECTOR / OWN);
        end = k < K ? min(((I)blockIdx.y + 1) * share, A * B) : I(0);
        b = e % B, over = STEP % B, gap = (K - 1) * B;
        place = (e / B * K + k) * B + b, far = STEP / B * K * B + over;
        e -= N * STEP;
    }
    __device__ bool next() {
        e += N * STEP;
        UNROLLED(u, N) {
            at[u] = place, place += far, b += over;
            if (b >= B) b -= B, place += gap;
        }
        return e < end;
    }
    __device__ bool has(int u) const { return e + u * STEP < end; }
    __device__ void load(Packed* v, const S* x) const {
        UNROLLED(u, N) v[u] = {};
        UNROLLED(u, N) if (has(u)) v[u] = *(const Packed*)(x + at[u]);
    }
};
#define TWO (AHEAD / 2)  // packs ahead of each of two arrays
"""
)
"""Needs the types S of the arrays, T to compute in, I of positions and P of parameters,
and the numbers BLOCK, VECTOR (elements of a pack, neighbours in memory), OWN (channels
that they belong to: 1 or VECTOR), LANES (threads side by side that have channels of
their own) and AHEAD (packs that are loaded at a time)."""
