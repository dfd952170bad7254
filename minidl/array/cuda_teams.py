"""Teams of threads, each of which has a row to itself, in CUDA C++.

A team is one thread where rows lie side by side in memory, a part of a warp for short
rows, a block for long ones. What it adds up it adds in the same order each time.
"""

from functools import cache
from math import prod

from .cuda_source import PACKS, aligned, blocks, function, refuse_host, types_of
from .device import Array

BLOCK = 256  # threads, where a team has no more

SOURCE = (
    PACKS
    + """
#define LANE (threadIdx.x % TEAM)
#define ROW ((blockIdx.x * (I)blockDim.x + threadIdx.x) / TEAM)

INLINE T from_lane(T v, int lane) {
    return __shfl_sync(~0u, v, lane, TEAM < 32 ? TEAM : 32);
}
// the values of the team's threads joined: a call for all threads of the block
template <class V> INLINE V team(V v) {
#if TEAM > 1
    for (int step = (TEAM < 32 ? TEAM : 32) / 2; step; step /= 2)
        v = v.joined(v.from(LANE ^ step));
    v = v.from(0);  // the others may have rounded otherwise
#endif
#if TEAM > 32
    __shared__ V parts[TEAM / 32];
    __syncthreads();  // those of the last call have been read
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    v = parts[0];
    for (int k = 1; k < TEAM / 32; ++k) v = v.joined(parts[k]);
#endif
    return v;
}
struct Sum {
    T value;
    __device__ Sum joined(Sum other) const { return {value + other.value}; }
    __device__ Sum from(int lane) const { return {from_lane(value, lane)}; }
};
INLINE T team_sum(T value) { return team(Sum{value}).value; }

// The elements of a row that this thread has, VECTOR neighbours at a time, j and those
// after it; N such packs are loaded at a time, to be under way together.
#define STEP (TEAM * VECTOR)
#define AHEAD (VECTOR > 1 ? 4 : 8)
#define TWO (AHEAD / 2)  // of each of two arrays
#define EACH(N, u, j, count, loads)                                         \\
    for (I first = LANE * VECTOR; first < (count); first += N * STEP)       \\
        if (loads) UNROLLED(u, N)                                           \\
            if (const I j = first + u * STEP; j < (count))
#define LANES(k) UNROLLED(k, VECTOR)
template <int N>
INLINE bool load(Packed (&v)[N], const S* x, I first, I count, I inner = 1) {
    UNROLLED(u, N) v[u] = {};
    UNROLLED(u, N) if (const I j = first + u * STEP; j < count)
        v[u] = *(const Packed*)(x + j * inner);
    return true;
}
template <int N> INLINE bool load(
    Packed (&v)[N], const S* x, Packed (&w)[N], const S* y, I first, I count,
    I inner = 1
) {
    return load(v, x, first, count, inner) && load(w, y, first, count, inner);
}
"""
)
"""Needs the types S of the arrays, T to compute in and I of positions, and the numbers
TEAM and VECTOR."""


def launch(source, name, rows, length, inner, arrays, rest=(), types=()) -> None:
    """Run the kernel on rows of `length` elements that are `inner` apart.

    It takes the arrays, all contiguous, the first of them of type S; then rows, length
    and inner; then the rest. `types` are (name, dtype) of other arrays.
    """
    if not rows:
        return
    refuse_host((*arrays, *rest))
    team, vector = team_of(length, inner, arrays)
    types = (*types_of(arrays[0]), *types)
    numbers = (("TEAM", team), ("VECTOR", vector))
    kernel = function(whole(source), types, numbers, name)
    block = max(BLOCK, team)
    integer = types[2][1].type
    sizes = map(integer, (rows, length, inner))
    kernel((blocks(rows * team, block),), (block,), (*arrays, *sizes, *rest))


@cache
def whole(source: str) -> str:
    """The source with what it needs; one text, so that it is hashed once."""
    return SOURCE + source


def team_of(length: int, inner: int, arrays) -> tuple[int, int]:
    """Threads of a team, and elements that each takes at a time."""
    if inner > 1:
        return 1, 1
    vector = 16 // arrays[0].dtype.itemsize
    if length % vector or not aligned(*arrays):
        vector = 1
    units = blocks(length, vector)
    if units > BLOCK:
        return (BLOCK if units < 16 * BLOCK else 4 * BLOCK), vector
    return min(32, 1 << (units - 1).bit_length()), vector


def rows_of(x: Array, dim: int) -> tuple[int, int, int]:
    """(rows, length, inner) of x along dim."""
    inner = prod(x.shape[dim + 1 :])
    return prod(x.shape[:dim]) * inner, x.shape[dim], inner
