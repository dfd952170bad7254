"""Moments and their joining, and normalisation over channels, in CUDA C++."""

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
    MOMENTS
    + """
struct Sums {  // of g, and of g (x - mean) / sqrt(var + eps)
    T plain, along;
    __device__ Sums joined(Sums other) const {
        return {plain + other.plain, along + other.along};
    }
};
extern "C" __global__ void __launch_bounds__(BLOCK, 4) moments(
    const S* x, T* shares, I A, I K, I B, I share
) {
    const I k = CHANNEL;
    Gathering mine[OWN] = {};
    Packed v[AHEAD];
    for (Walk<AHEAD> walk(A, K, B, share, k); walk.next();) {
        walk.load(v, x);
        UNROLLED(u, AHEAD) if (walk.has(u)) {
            const Some xs = unpacked(v[u]);
            UNROLLED(n, VECTOR) mine[n % OWN].add((T)xs.at[n]);
        }
    }
    Moments all[OWN];
    UNROLLED(c, OWN) all[c] = mine[c].done();
    join(all);
    if (FIRST) UNROLLED(c, OWN) ((Moments*)shares)[blockIdx.y * K + k + c] = all[c];
}

// The mean and variance are joined from so many shares, or, of none, given.
extern "C" __global__ void __launch_bounds__(BLOCK, 4) standardize(
    const S* x, const T* shares, const P* w, const P* b, S* y, T* mean, T* var,
    I A, I K, I B, I share, int count, double eps
) {
    const I k = CHANNEL;
    T m[OWN] = {}, scale[OWN] = {}, shift[OWN] = {};
    Moments all[OWN];
    if (count) join(all, (const Moments*)shares, k, K, count);
    if (k < K) UNROLLED(c, OWN) {
        m[c] = count ? all[c].mean : mean[k + c];
        const T spread = count ? all[c].squares / all[c].count : var[k + c];
        if (count && FIRST && blockIdx.y == 0) mean[k + c] = m[c], var[k + c] = spread;
        scale[c] = 1 / sqrt(spread + (T)eps);
        if (w) scale[c] *= (T)w[k + c];
        if (b) shift[c] = (T)b[k + c];
    }
    Packed v[AHEAD];
    for (Walk<AHEAD> walk(A, K, B, share, k); walk.next();) {
        walk.load(v, x);
        UNROLLED(u, AHEAD) if (walk.has(u)) {
            Some xs = unpacked(v[u]);
            UNROLLED(n, VECTOR) {
                const T d = (T)xs.at[n] - m[n % OWN];
                xs.at[n] = (S)(d * scale[n % OWN] + shift[n % OWN]);
            }
            store(y + walk.at[u], xs);
        }
    }
}

// The statistics of channel k are those of k / group; of row e, if group is 0.
extern "C" __global__ void __launch_bounds__(BLOCK, 4) sums(
    const S* g, const S* x, const T* mean, const T* var, T* shares,
    I A, I K, I B, I share, I group, double eps
) {
    const I k = CHANNEL;
    Sums mine[OWN] = {};
    T m[OWN] = {}, root[OWN] = {};
    if (group && k < K) UNROLLED(c, OWN) {
        const I own = (k + c) / group;
        m[c] = mean[own], root[c] = 1 / sqrt(var[own] + (T)eps);
    }
    Packed gs[TWO], xs[TWO];
    for (Walk<TWO> walk(A, K, B, share, k); walk.next();) {
        walk.load(gs, g), walk.load(xs, x);
        UNROLLED(u, TWO) if (walk.has(u)) {
            if (!group) {
                const I row = walk.e + u * STEP;
                const T own = mean[row], scale = 1 / sqrt(var[row] + (T)eps);
                UNROLLED(c, OWN) m[c] = own, root[c] = scale;
            }
            const Some a = unpacked(gs[u]), v = unpacked(xs[u]);
            UNROLLED(n, VECTOR) {
                const T slope = (T)a.at[n], d = (T)v.at[n] - m[n % OWN];
                mine[n % OWN].plain += slope;
                mine[n % OWN].along += slope * (d * root[n % OWN]);
            }
        }
    }
    join(mine);
    if (FIRST) UNROLLED(c, OWN) ((Sums*)shares)[blockIdx.y * K + k + c] = mine[c];
}

// Statistics that are `given` are constants; of no shares, so are the parameters.
extern "C" __global__ void __launch_bounds__(BLOCK, 4) gradient(
    const S* g, const S* x, const T* shares, const P* w, const T* mean, const T* var,
    S* gx, T* gw, T* gb, I A, I K, I B, I share, int count, double eps, int given
) {
    const I k = CHANNEL;
    const T size = (T)A * (T)B;
    T m[OWN] = {}, scale[OWN] = {};
    Sums all[OWN] = {};
    if (count) join(all, (const Sums*)shares, k, K, count);
    if (k < K) UNROLLED(c, OWN) {
        if (count && FIRST && blockIdx.y == 0)
            gw[k + c] = all[c].along, gb[k + c] = all[c].plain;
        const T root = 1 / sqrt(var[k + c] + (T)eps);
        m[c] = mean[k + c], scale[c] = w ? root * (T)w[k + c] : root;
        all[c] = {all[c].plain / size, all[c].along * root / size};
    }
    Packed gs[TWO], xs[TWO];
    for (Walk<TWO> walk(A, K, B, share, k); walk.next();) {
        walk.load(gs, g);
        if (!given) walk.load(xs, x);
        UNROLLED(u, TWO) if (walk.has(u)) {
            Some a = unpacked(gs[u]), v = unpacked(xs[u]);
            UNROLLED(n, VECTOR) {
                T slope = (T)a.at[n];
                if (!given) {
                    const T d = (T)v.at[n] - m[n % OWN];
                    slope = slope - all[n % OWN].plain - d * all[n % OWN].along;
                }
                a.at[n] = (S)(slope * scale[n % OWN]);
            }
            store(gx + walk.at[u], a);
        }
    }
}
"""
)
"""What follows SOURCE of cuda_channels.py."""
