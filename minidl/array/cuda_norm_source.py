"""Moments and their joining, and normalisation over channels, in CUDA C++."""

from .cuda_source import VECTOR

# The moments of x are taken around an element of it, and joined as in Chan, Golub and
# LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
# 1979: neither a large mean nor an outlier costs digits.
MOMENTS = """
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
SOURCE = (
    VECTOR
    + MOMENTS
    + """
#define INLINE __device__ static inline
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

// The mean and variance are joined from so many shares, or, of none, given.
extern "C" __global__ void standardize(
    const S* x, const T* shares, const P* w, const P* b, S* y, T* mean, T* var,
    I A, I K, I B, I share, int count, double eps
) {
    const I k = CHANNEL;
    T m = 0, v = 0;
    if (count) {
        const Moments all = whole((const Moments*)shares, k, K, count);
        m = all.mean, v = all.squares / all.count;
        if (FIRST && blockIdx.y == 0) mean[k] = m, var[k] = v;
    } else if (k < K) m = mean[k], v = var[k];
    T scale = 1 / sqrt(v + (T)eps), shift = 0;
    if (k < K && w) scale *= (T)w[k];
    if (k < K && b) shift = (T)b[k];
    EACH(e) {
        Some v = *(const Some*)(x + PLACE(e));
        LANES_OF(n) v.at[n] = (S)(((T)v.at[n] - m) * scale + shift);
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

// Statistics that are `given` are constants; of no shares, so are the parameters.
extern "C" __global__ void gradient(
    const S* g, const S* x, const T* shares, const P* w, const T* mean, const T* var,
    S* gx, T* gw, T* gb, I A, I K, I B, I share, int count, double eps, int given
) {
    const I k = CHANNEL;
    const Sums all = whole((const Sums*)shares, k, K, count);
    if (FIRST && blockIdx.y == 0 && count) gw[k] = all.along, gb[k] = all.plain;
    const T m = k < K ? mean[k] : T(0), size = (T)A * (T)B;
    const T root = k < K ? 1 / sqrt(var[k] + (T)eps) : T(0);
    const T scale = k < K && w ? root * (T)w[k] : root;
    const T offset = all.plain / size, along = all.along * root / size;
    EACH(e) {
        Some gs = *(const Some*)(g + PLACE(e));
        if (given) {
            LANES_OF(n) gs.at[n] = (S)((T)gs.at[n] * scale);
        } else {
            const Some xs = *(const Some*)(x + PLACE(e));
            LANES_OF(n) {
                const T d = (T)xs.at[n] - m;
                gs.at[n] = (S)(((T)gs.at[n] - offset - d * along) * scale);
            }
        }
        *(Some*)(gx + PLACE(e)) = gs;
    }
}
"""
)
"""Needs the types S of the arrays, T to compute in, I of positions and P of parameters,
and the numbers BLOCK, LANES (channels of a block) and VECTOR."""
