"""Normalisation over the channels of (A, K, B) on a GPU: two launches each way.

The first launch sums up shares of every channel, the second joins the shares and
computes the result. A block has one channel, or, where B is 1, 32 neighbouring ones.
"""

from math import prod

import numpy

from .cuda_layout import in_memory, like_that, usual
from .cuda_source import (
    VECTOR,
    aligned,
    blocks,
    contiguous,
    empty,
    module,
    types_of,
)
from .device import Array

BLOCK = 256  # threads
BLOCKS = 1024  # enough of them to keep every multiprocessor busy

# The moments of x are taken around an element of it, and joined as in Chan, Golub and
# LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
# 1979: neither a large mean nor an outlier costs digits.
MOMENTS = """
#define INLINE __device__ static inline
struct Moments {  // how many, their mean, the sum of their squared distances from it
    T count, mean, squares;
    __device__ Moments joined(Moments other) const {
        if (other.count == 0) return *this;
        if (count == 0) return other;
        const T all = count + other.count, d = other.mean - mean;
        return {all, mean + d * (other.count / all),
                squares + other.squares + d * d * (count * other.count / all)};
    }
};
struct Gathering {  // moments in the making
    T start, count, sum, squares;
    __device__ void add(T x) {
        if (count == 0) start = x;
        const T d = x - start;
        count += 1, sum += d, squares += d * d;
    }
    __device__ Moments done() const {
        if (count == 0) return {0, 0, 0};
        const T rest = squares - sum * (sum / count);
        return {count, start + sum / count, rest < 0 ? T(0) : rest};
    }
};
"""
_SOURCE = (
    VECTOR
    + MOMENTS
    + """
#define MEMBERS (BLOCK / LANES)
typedef Vector<S, VECTOR> Some;
struct Sums {  // of g, and of g (x - mean) / sqrt(var + eps)
    T plain, along;
    __device__ Sums joined(Sums other) const {
        return {plain + other.plain, along + other.along};
    }
};
// v joined over the threads of a channel, in a fixed order
template <class V> INLINE V joined(V v) {
    __shared__ V parts[BLOCK];
    const int t = threadIdx.x;
    parts[t] = v;
    for (int step = BLOCK / 2; step >= LANES; step /= 2) {
        __syncthreads();
        if (t < step) parts[t] = parts[t].joined(parts[t + step]);
    }
    __syncthreads();
    return parts[t % LANES];
}
#define CHANNEL (I)(blockIdx.x * LANES + threadIdx.x % LANES)
#define FIRST (threadIdx.x < LANES && k < K)
// e counts the elements of a channel; this thread's, VECTOR neighbours at a time
#define EACH(e)                                                               \\
    const I end = k < K ? min((blockIdx.y + 1) * share, A * B) : 0;           \\
    for (I e = blockIdx.y * share + (I)threadIdx.x / LANES * VECTOR; e < end; \\
         e += MEMBERS * VECTOR)
#define PLACE(e) ((e / B * K + k) * B + e % B)
#define LANES_OF(v) _Pragma("unroll") for (int v = 0; v < VECTOR; ++v)
template <class V> INLINE V whole(const V* shares, I k, I K, int count) {
    V all = {};
    for (int n = threadIdx.x / LANES; k < K && n < count; n += MEMBERS)
        all = all.joined(shares[n * K + k]);
    return joined(all);
}

extern "C" __global__ void moments(
    const S* x, T* shares, I A, I K, I B, I share
) {
    const I k = CHANNEL;
    Gathering mine = {};
    EACH(e) {
        const Some v = *(const Some*)(x + PLACE(e));
        LANES_OF(n) mine.add((T)v.at[n]);
    }
    const Moments all = joined(mine.done());
    if (FIRST) ((Moments*)shares)[blockIdx.y * K + k] = all;
}

extern "C" __global__ void standardize(
    const S* x, const T* shares, const P* w, const P* b, S* y, T* mean, T* var,
    I A, I K, I B, I share, int count, double eps
) {
    const I k = CHANNEL;
    const Moments all = whole((const Moments*)shares, k, K, count);
    const T v = all.squares / all.count;
    if (FIRST && blockIdx.y == 0) mean[k] = all.mean, var[k] = v;
    T scale = 1 / sqrt(v + (T)eps), shift = 0;
    if (k < K && w) scale *= (T)w[k];
    if (k < K && b) shift = (T)b[k];
    EACH(e) {
        Some v = *(const Some*)(x + PLACE(e));
        LANES_OF(n) v.at[n] = (S)(((T)v.at[n] - all.mean) * scale + shift);
        *(Some*)(y + PLACE(e)) = v;
    }
}

// The statistics of channel k are those of k / group; of row e / B, if group is 0.
extern "C" __global__ void sums(
    const S* g, const S* x, const T* mean, const T* var, T* shares,
    I A, I K, I B, I share, I group, double eps
) {
    const I k = CHANNEL;
    Sums mine = {};
    EACH(e) {
        const I own = group ? k / group : e / B;
        const T m = mean[own], root = 1 / sqrt(var[own] + (T)eps);
        const Some gs = *(const Some*)(g + PLACE(e)), xs = *(const Some*)(x + PLACE(e));
        LANES_OF(n) {
            mine.plain += (T)gs.at[n];
            mine.along += (T)gs.at[n] * (((T)xs.at[n] - m) * root);
        }
    }
    const Sums all = joined(mine);
    if (FIRST) ((Sums*)shares)[blockIdx.y * K + k] = all;
}

extern "C" __global__ void gradient(
    const S* g, const S* x, const T* shares, const P* w, const T* mean, const T* var,
    S* gx, T* gw, T* gb, I A, I K, I B, I share, int count, double eps
) {
    const I k = CHANNEL;
    const Sums all = whole((const Sums*)shares, k, K, count);
    if (FIRST && blockIdx.y == 0) gw[k] = all.along, gb[k] = all.plain;
    const T m = k < K ? mean[k] : T(0), size = (T)A * (T)B;
    const T root = k < K ? 1 / sqrt(var[k] + (T)eps) : T(0);
    const T scale = k < K && w ? root * (T)w[k] : root;
    const T offset = all.plain / size, along = all.along * root / size;
    EACH(e) {
        Some gs = *(const Some*)(g + PLACE(e));
        const Some xs = *(const Some*)(x + PLACE(e));
        LANES_OF(n) {
            const T d = (T)xs.at[n] - m;
            gs.at[n] = (S)(((T)gs.at[n] - offset - d * along) * scale);
        }
        *(Some*)(gx + PLACE(e)) = gs;
    }
}
"""
)


class Channels:
    """How arrays of shape (A, K, B), equal in memory, are shared out to blocks."""

    def __init__(self, A: int, K: int, B: int, parameter: numpy.dtype, *arrays):
        dtype = arrays[0].dtype
        vector = 16 // dtype.itemsize
        if B % vector or not aligned(*arrays):
            vector = 1
        lanes = 32 if B == 1 else 1
        self.across = blocks(K, lanes)
        most = blocks(A * B, 4 * vector * BLOCK // lanes)
        shares = max(1, min(most, blocks(BLOCKS, self.across)))
        share = blocks(blocks(A * B, shares), vector) * vector
        self.shares, self.channels = blocks(A * B, share), K
        types = types_of(arrays[0])
        self.wide, integer = types[1][1], types[2][1].type
        self.sizes = tuple(map(integer, (A, K, B, share)))
        self.integer = integer
        self.types = (*types, ("P", parameter))
        self.numbers = ("BLOCK", BLOCK), ("LANES", lanes), ("VECTOR", vector)

    def launch(self, name: str, arrays: tuple, *rest) -> None:
        """Run the kernel, which takes the arrays, the sizes and the rest."""
        function = module(_SOURCE, self.types, self.numbers).get_function(name)
        args = (*arrays, *self.sizes, *rest)
        function((self.across, self.shares), (BLOCK,), args)

    def partial(self, numbers: int) -> Array:
        """Memory for so many numbers of each channel's shares."""
        return empty((self.shares, self.channels, numbers), self.wide)


def forward(x: Array, w, b, dims, eps: float) -> tuple | None:
    """(y, mean, var), as `standardize` gives them, over all but dim 1."""
    if not _serves(x, (w, b), dims):
        return None
    x, last = in_memory(x)
    channels = Channels(*_sizes(x, last), _kind(x, w, b), x)
    w, b = (_parameter(p, channels) for p in (w, b))
    mean, var = (empty(_shape(x, last), channels.wide) for _ in range(2))
    y, shares = empty(x.shape, x.dtype), channels.partial(3)
    channels.launch("moments", (x, shares))
    count = numpy.int32(channels.shares)
    channels.launch("standardize", (x, shares, w, b, y, mean, var), count, eps)
    return tuple(usual(a, last) for a in (y, mean, var))


def backward(g: Array, x: Array, w, mean, var, dims, eps: float) -> tuple | None:
    """The gradients of x, w and b, those of w and b with an element a channel."""
    if not _serves(x, (w,), dims):
        return None
    x, last = in_memory(x)
    g = like_that(g, last, x.dtype)
    channels = Channels(*_sizes(x, last), _kind(x, w, None), g, x)
    w = _parameter(w, channels)
    gw, gb = (empty(_shape(x, last), channels.wide) for _ in range(2))
    gx, shares = empty(x.shape, x.dtype), channels.partial(2)
    one, count = channels.integer(1), numpy.int32(channels.shares)
    channels.launch("sums", (g, x, mean, var, shares), one, eps)
    arrays = (g, x, shares, w, mean, var, gx, gw, gb)
    channels.launch("gradient", arrays, count, eps)
    return tuple(usual(a, last) for a in (gx, gw, gb))


def _serves(x, parameters, dims) -> bool:
    channels = x.shape[1] if x.ndim > 1 else None
    return (
        tuple(dims) == (0, *range(2, x.ndim))
        and x.size > 0
        and all(
            p is None or p.shape[-x.ndim + 1 :] == (channels, *[1] * (x.ndim - 2))
            for p in parameters
        )
    )


def _sizes(x, last: bool) -> tuple[int, int, int]:
    """(A, K, B)"""
    if last:
        return prod(x.shape[:-1]), x.shape[-1], 1
    return x.shape[0], x.shape[1], prod(x.shape[2:])


def _shape(x, last: bool) -> tuple[int, ...]:
    """That of the statistics."""
    ones = [1] * (x.ndim - 2)
    return (1, *ones, x.shape[-1]) if last else (1, x.shape[1], *ones)


def _kind(x, w, b) -> numpy.dtype:
    """The parameters' type."""
    return next((p.dtype for p in (w, b) if p is not None), x.dtype)


def _parameter(p, channels):
    """An array of that type; 0 is the null pointer."""
    return 0 if p is None else contiguous(p, channels.types[-1][1])
