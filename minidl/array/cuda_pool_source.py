"""Pooling forward and back, in CUDA C++."""

from .cuda_source import VECTOR

# Every geometry has three dimensions, the first ones of size 1 where there are fewer,
# and all of it is constant: a division by a constant is a multiplication. A thread has
# ALONG neighbours of the innermost dimension, of DEEP channels each; one of them is 1.
SOURCE = (
    VECTOR
    + """
#define LOWEST (-(T)__int_as_float(0x7f800000))
#define PICK(d, ...) PICK_(d, __VA_ARGS__)
#define PICK_(d, a, b, c) ((d) == 0 ? (a) : (d) == 1 ? (b) : (c))
#define TAP(d) PICK(d, TAPS)
#define STRIDE(d) PICK(d, STRIDES)
#define PADDING(d) PICK(d, PADDINGS)
#define GAP(d) PICK(d, DILATIONS)
#define X(d) PICK(d, SIZE_OF_X)  // a plane of x
#define Y(d) PICK(d, SIZE_OF_Y)
#define REACH(d) ((TAP(d) - 1) * GAP(d))
typedef Vector<S, DEEP> Some;
// ROW > 1: windows lie side by side without gaps, and so many elements are a thread's
typedef Vector<S, ROW> Row;
#define ROW_OF(o, a, b) (ROW == 1 ? Row{} : *(const Row*)( \\
    x + o.in(SIZE(X), WHERE(X, a, b, o.at[2] * TAP(2)))))
INLINE Some one_of(Row row, int n) { return {row.at[n % ROW]}; }

// The first of this thread's elements, in planes of that size that lie one after
// another, or, CHANNELS > 1, side by side.
struct Place {
    I at[3], flat, plane, channel;
    __device__ Place(I n, I height, I width, I size) {
        channel = n % CHANNELS;
        plane = n / CHANNELS / size;
        flat = n / CHANNELS % size;
        at[2] = flat % width;
        at[1] = flat / width % height;
        at[0] = flat / width / height;
    }
    // where element `position` of the same plane lies, of planes of that size
    __device__ I in(I size, I position) const {
        return (plane * size + position) * CHANNELS + channel;
    }
};
#define SIZE(side) (side(0) * side(1) * side(2))
#define WHERE(side, a, b, c) (((a) * side(1) + (b)) * side(2) + (c))
INLINE I first_of(int d, I o) { return o * STRIDE(d) - PADDING(d); }
// the first position in x of window o, which is in the padding if there is none
INLINE I inside(int d, I o) {
    const I at = first_of(d, o), skip = (GAP(d) - 1 - min(at, (I)0)) / GAP(d);
    return at + min(skip, (I)(TAP(d) - 1)) * GAP(d);
}
// what each kernel begins with: this thread's first element n of the result, its place
#define BEGIN(place, side)                                                    \\
    const I n = (blockIdx.x * (I)blockDim.x + threadIdx.x) * (ALONG * DEEP);  \\
    if (n >= count) return;                                                   \\
    const Place place(n, side(1), side(2), SIZE(side));
// the taps of window o that are inside x, at p
#define EACH_TAP(d, k, p, o) \\
    for (int k = 0; k < TAP(d); ++k) \\
        if (const I p = first_of(d, o) + k * GAP(d); p >= 0 && p < X(d))

// Windows that hold any of V neighbours from p on: (p + PADDING) / STRIDE + j, where j
// goes from TOP down to BOTTOM. They hold neighbour k where tap REST + k - j STRIDE is
// one; if STRIDE divides V, and so p, that is known to the compiler.
INLINE bool holds(int d, I rest, I j, int k) {
    const I t = rest + k - j * STRIDE(d);
    return t >= 0 && t <= REACH(d) && t % GAP(d) == 0;
}
#define KNOWN(d, V) ((V) % STRIDE(d) == 0)
#define REST(d, V, p) ((KNOWN(d, V) ? PADDING(d) : (p) + PADDING(d)) % STRIDE(d))
#define TOP(d, V) \\
    (((KNOWN(d, V) ? PADDING(d) % STRIDE(d) : STRIDE(d) - 1) + (V) - 1) / STRIDE(d))
#define BOTTOM(d) (-(REACH(d) / STRIDE(d)))
#define FEW(d, V) (TOP(d, V) - BOTTOM(d) < 4)
constexpr int FEW0 = FEW(0, 1) ? 4 : 1, FEW1 = FEW(1, 1) ? 4 : 1;
constexpr int FEW2 = FEW(2, ALONG) ? 4 : 1;
#define EACH_WINDOW(d, V, j, o, p)                                                 \\
    for (I base##d = (p + PADDING(d)) / STRIDE(d),                                 \\
           j = FEW(d, V) ? (I)TOP(d, V) : min((I)TOP(d, V), Y(d) - 1 - base##d),   \\
           end##d = FEW(d, V) ? (I)BOTTOM(d) : max((I)BOTTOM(d), -base##d);        \\
         j >= end##d; --j)                                                         \\
        if (const I o = base##d + j; o >= 0 && o < Y(d) &&                         \\
            (V > 1 || holds(d, REST(d, V, p), j, 0)))
#define EACH_WINDOW_OF(p, a, b, c, j)                                       \\
    _Pragma("unroll FEW0") EACH_WINDOW(0, 1, j##0, a, p.at[0])              \\
    _Pragma("unroll FEW1") EACH_WINDOW(1, 1, j##1, b, p.at[1])              \\
    _Pragma("unroll FEW2") EACH_WINDOW(2, ALONG, j, c, p.at[2])
INLINE void store(S* to, const T* values) {
    Vector<S, ALONG * DEEP> all;
    UNROLLED(n, ALONG * DEEP) all.at[n] = (S)values[n];
    *(Vector<S, ALONG * DEEP>*)to = all;
}

extern "C" __global__ void max_forward(const S* x, S* y, int* where, I count) {
    BEGIN(o, Y)
    T best[ALONG * DEEP];
    Vector<int, ALONG * DEEP> found;
    UNROLLED(n, ALONG * DEEP) {
        best[n] = LOWEST;
        found.at[n] = WHERE(X, inside(0, o.at[0]), inside(1, o.at[1]),
                            inside(2, o.at[2] + n / DEEP));
    }
    EACH_TAP(0, i, a, o.at[0]) EACH_TAP(1, j, b, o.at[1]) {
        const Row row = ROW_OF(o, a, b);
        for (int k = 0; k < TAP(2); ++k) UNROLLED(w, ALONG) {
            const I c = first_of(2, o.at[2] + w) + k * GAP(2);
            if (ROW == 1 && (c < 0 || c >= X(2))) continue;
            const I here = WHERE(X, a, b, c);
            const Some some = ROW > 1 ? one_of(row, w * TAP(2) + k)
                                      : *(const Some*)(x + o.in(SIZE(X), here));
            UNROLLED(m, DEEP) {
                const T v = (T)some.at[m];
                const int n = w * DEEP + m;
                if (v > best[n] || v != v) best[n] = v, found.at[n] = (int)here;
            }
        }
    }
    store(y + n, best);
    *(Vector<int, ALONG * DEEP>*)(where + n) = found;
}

extern "C" __global__ void max_backward(
    const S* gy, const int* where, S* gx, I count
) {
    BEGIN(p, X)
    T total[ALONG * DEEP] = {};
    const I rest = REST(2, ALONG, p.at[2]);
    EACH_WINDOW_OF(p, a, b, c, j) {
        const I here = p.in(SIZE(Y), WHERE(Y, a, b, c));
        const Some some = *(const Some*)(gy + here);
        const Vector<int, DEEP> from = *(const Vector<int, DEEP>*)(where + here);
        UNROLLED(k, ALONG) if (holds(2, rest, j, k)) UNROLLED(m, DEEP)
            if (from.at[m] == p.flat + k) total[k * DEEP + m] += (T)some.at[m];
    }
    store(gx + n, total);
}

// what a window's sum is divided by
INLINE T divisor(I a, I b, I c) {
    if (DIVISOR) return (T)DIVISOR;
    const I o[] = {a, b, c};
    I all = 1;
    UNROLLED(d, 3) {
        I from = first_of(d, o[d]), to = min(from + TAP(d), (I)(X(d) + PADDING(d)));
        if (!COUNTED) from = max(from, (I)0), to = min(to, (I)X(d));
        all *= to - from;
    }
    return (T)all;
}

extern "C" __global__ void average_forward(const S* x, S* y, I count) {
    BEGIN(o, Y)
    T total[ALONG * DEEP] = {};
    EACH_TAP(0, i, a, o.at[0]) EACH_TAP(1, j, b, o.at[1]) {
        const Row row = ROW_OF(o, a, b);
        for (int k = 0; k < TAP(2); ++k) UNROLLED(w, ALONG) {
            const I c = first_of(2, o.at[2] + w) + k * GAP(2);
            if (ROW == 1 && (c < 0 || c >= X(2))) continue;
            const Some some = ROW > 1
                ? one_of(row, w * TAP(2) + k)
                : *(const Some*)(x + o.in(SIZE(X), WHERE(X, a, b, c)));
            UNROLLED(m, DEEP) total[w * DEEP + m] += (T)some.at[m];
        }
    }
    UNROLLED(k, ALONG * DEEP)
        total[k] /= divisor(o.at[0], o.at[1], o.at[2] + k / DEEP);
    store(y + n, total);
}

extern "C" __global__ void average_backward(const S* gy, S* gx, I count) {
    BEGIN(p, X)
    T total[ALONG * DEEP] = {};
    const I rest = REST(2, ALONG, p.at[2]);
    EACH_WINDOW_OF(p, a, b, c, j) {
        const Some some = *(const Some*)(gy + p.in(SIZE(Y), WHERE(Y, a, b, c)));
        const T size = divisor(a, b, c);
        UNROLLED(m, DEEP) {
            const T each = (T)some.at[m] / size;
            UNROLLED(k, ALONG) if (holds(2, rest, j, k)) total[k * DEEP + m] += each;
        }
    }
    store(gx + n, total);
}
"""
)
"""Needs the types S of the arrays, T to compute in and I of positions, and the macros
that cuda_pool.py defines."""
