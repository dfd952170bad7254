"""The compiled inner loops of `convolution_sweep`: C++ for any host.

One image at a time is copied into a padded buffer, in which every tap of a window
is the same distance away from its output, so that a run of neighbouring outputs
reads runs of neighbouring inputs and no column is ever written. A block of outputs
(channels x three vectors of positions) stays in registers over all taps.
"""

SOURCE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include <type_traits>
#include <vector>
typedef int64_t I;

#if defined(__AVX512F__)
enum { BYTES = 64, REGISTERS = 32 };
#elif defined(__AVX__)
enum { BYTES = 32, REGISTERS = 16 };
#elif defined(__aarch64__)
enum { BYTES = 16, REGISTERS = 32 };
#else
enum { BYTES = 16, REGISTERS = 16 };
#endif
#ifdef __clang__
#define SHUFFLE(a, b, mask) a
enum { SQUARES = 0 };
#else
#define SHUFFLE __builtin_shuffle
enum { SQUARES = 1 };  // whether squares are transposed in registers
#endif
enum { FILTERS = REGISTERS / 4, WIDE = 3 };  // outputs in registers: filters x vectors

template <class T> struct Vector {
    typedef T type __attribute__((vector_size(BYTES), aligned(alignof(T)), may_alias));
    typedef typename std::conditional<sizeof(T) == 4, int32_t, int64_t>::type index;
    typedef index mask __attribute__((vector_size(BYTES)));
    enum { size = BYTES / sizeof(T) };
};

// A thread's own memory, kept from call to call.
template <class T> static T* workspace(int which, I count) {
    static thread_local std::vector<char> kept[2];
    std::vector<char>& room = kept[which];
    if (I(room.size()) < count * I(sizeof(T)) + 64) room.resize(count * sizeof(T) + 64);
    return (T*)((uintptr_t(room.data()) + 63) / 64 * 64);
}

// How images lie in the buffer: padded by `top` and `left`, rows and columns dealt to
// row_split x column_split phases, each of `phase` elements in lines of `line`.
struct Images {
    I n, channels, rows, columns, top, left, row_split, column_split;
    I line, phase, plane;  // plane: elements a channel; 0: read images where they lie
};

template <class T> static void pack(const T* x, T* to, const Images& s) {
    for (I c = 0; c < s.channels; ++c, to += s.plane)
    for (I r = 0; r < s.rows; ++r, x += s.columns) {
        I row = r + s.top, split = s.column_split;
        T* line = to + row % s.row_split * split * s.phase + row / s.row_split * s.line;
        if (split == 1) memcpy(line + s.left, x, s.columns * sizeof(T));
        else for (I j = 0; j < s.columns; ++j)
            line[(j + s.left) % split * s.phase + (j + s.left) / split] = x[j];
    }
}

// A buffer for one image, its padding zero; what a last vector reads beyond, too.
template <class T> static T* buffer(const Images& s) {
    I count = s.channels * s.plane + (WIDE + 1) * Vector<T>::size;
    T* image = workspace<T>(0, count);
    memset(image, 0, count * sizeof(T));
    return image;
}

template <class T> static const T* placed(const T* x, T* to, const Images& s) {
    if (!s.plane) return x;
    pack(x, to, s);
    return to;
}

// A sweep makes outputs (row, column) of `rows` x `columns`, which go to (row0 + row *
// row_step, column0 + column * column_step), of the taps at these distances.
struct Sweep {
    I taps, rows, columns, row0, column0, row_step, column_step;
    I line;  // from one row to the next in the buffer
    const I* distance;  // of each tap in the buffer, from (row, column) in its lines
    const I* tap;       // its place in the kernel
};

struct Filters {
    I groups, out, in;                  // channels a group
    I of_group, of_out, of_in, of_tap;  // strides of the weight
    I rows, columns;                    // of the output's images
};

// panel[block][in][tap][filter], zeros where there is no filter
template <class T>
static void arrange(const T* w, T* panel, const Filters& f, const Sweep& s) {
    for (I k = 0; k < f.out; k += FILTERS)
    for (I c = 0; c < f.in; ++c)
    for (I t = 0; t < s.taps; ++t)
    for (I i = k; i < k + FILTERS; ++i)
        *panel++ = i < f.out ? w[i * f.of_out + c * f.of_in + s.tap[t] * f.of_tap] : 0;
}

// y[filter][position] = sum over in, tap of panel * x, for VECTORS of positions
template <class T, int COUNT, int VECTORS>
static void tile(const T* x, I plane, I in, const Sweep& s, const T* panel, T* y) {
    typedef typename Vector<T>::type V;
    const int size = Vector<T>::size;
    V sum[COUNT][VECTORS] = {};
    for (I c = 0; c < in; ++c, x += plane)
        for (I t = 0; t < s.taps; ++t, panel += FILTERS) {
            const T* from = x + s.distance[t];
            V here[VECTORS];
            for (int v = 0; v < VECTORS; ++v) here[v] = *(const V*)(from + v * size);
            for (int k = 0; k < COUNT; ++k)
                for (int v = 0; v < VECTORS; ++v) sum[k][v] += panel[k] * here[v];
        }
    for (int k = 0; k < COUNT; ++k)
        for (int v = 0; v < VECTORS; ++v) *(V*)(y + (k * WIDE + v) * size) = sum[k][v];
}

// to = from + b in vectors, of which the last may overlap the one before
template <class T, int SIZE> static inline void add(const T* from, T* to, I m, T b) {
    typedef T V __attribute__((vector_size(SIZE * sizeof(T)), aligned(alignof(T))));
    for (I j = 0; j + SIZE < m; j += SIZE) *(V*)(to + j) = *(const V*)(from + j) + b;
    *(V*)(to + m - SIZE) = *(const V*)(from + m - SIZE) + b;
}

// Copy positions [at, stop) of a tile to the outputs that they are.
template <class T> static void leave(
    const T* from, T* y, I count, I at, I stop, const T* bias, const Filters& f,
    const Sweep& s
) {
    const int size = Vector<T>::size;
    const I line = s.line;
    for (I row = at / line; row < s.rows && row * line < stop; ++row) {
        I first = std::max(at, row * line);
        I m = std::min(stop, row * line + s.columns) - first;
        T* target = y + (s.row0 + row * s.row_step) * f.columns
                  + s.column0 + (first - row * line) * s.column_step;
        for (I k = 0; k < count; ++k, target += f.rows * f.columns) {
            const T* source = from + k * WIDE * size + first - at;
            T b = bias ? bias[k] : 0;
            if (s.column_step == 1 && m >= size) add<T, size>(source, target, m, b);
            else if (s.column_step == 1 && m >= size / 2)
                add<T, size / 2>(source, target, m, b);
            else for (I j = 0; j < m; ++j) target[j * s.column_step] = source[j] + b;
        }
    }
}

// One sweep over one group of one image, filters [first, last).
template <class T> static void sweep(
    const T* x, const T* panel, const T* bias, T* y, I first, I last, I plane,
    const Filters& f, const Sweep& s
) {
    const I size = Vector<T>::size, half = FILTERS / 2;
    const I end = (s.rows - 1) * s.line + s.columns, vectors = (end + size - 1) / size;
    const I tiles = (vectors + WIDE - 1) / WIDE;
    alignas(64) T made[FILTERS * WIDE * Vector<T>::size];
    for (I i = 0; i < tiles; ++i) {
        I at = vectors * i / tiles, wide = vectors * (i + 1) / tiles - at;
        I stop = std::min(end, (at + wide) * size);
        at *= size;
        for (I k = first; k < last; k += FILTERS) {
            const T* weights = panel + k * f.in * s.taps;
            I count = std::min(last - k, I(FILTERS));
            #define TILE(N, V) tile<T, N, V>(x + at, plane, f.in, s, weights, made)
            if (count > half) {
                if (wide == 3) TILE(FILTERS, 3);
                else if (wide == 2) TILE(FILTERS, 2);
                else TILE(FILTERS, 1);
            } else {
                if (wide == 3) TILE(FILTERS / 2, 3);
                else if (wide == 2) TILE(FILTERS / 2, 2);
                else TILE(FILTERS / 2, 1);
            }
            leave(made, y + k * f.rows * f.columns, count, at, stop,
                  bias ? bias + k : bias, f, s);
        }
    }
}

// y = all sweeps over x: a convolution, or the gradient of one's input.
template <class T> static void convolve(
    const T* x, const T* w, const T* bias, T* y, const Images& s, const Filters& f,
    const Sweep* sweeps, I number, I threads
) {
    const I blocks = (f.out + FILTERS - 1) / FILTERS, filters = blocks * FILTERS;
    std::vector<I> begin(number * f.groups + 1);
    for (I i = 0; i < number * f.groups; ++i)
        begin[i + 1] = begin[i] + filters * f.in * sweeps[i % number].taps;
    T* panel = workspace<T>(1, begin.back());
    const I image = s.channels * s.rows * s.columns;
    const I plane = s.plane ? s.plane : s.rows * s.columns;
    // few images: their filters are divided too, never a sum
    const I cuts = s.n < threads ? std::min(blocks, (threads + s.n - 1) / s.n) : 1;
    const I most = s.n * cuts / (4 * threads);
    #pragma omp parallel num_threads(threads) if (threads > 1)
    {
        #pragma omp for schedule(static)
        for (I i = 0; i < number * f.groups; ++i)
            arrange(w + i / number * f.of_group, panel + begin[i], f,
                    sweeps[i % number]);
        T* own = s.plane ? buffer<T>(s) : 0;
        #pragma omp for schedule(dynamic, most < 1 ? 1 : most > 8 ? 8 : most)
        for (I unit = 0; unit < s.n * cuts; ++unit) {
            I n = unit / cuts, cut = unit % cuts;
            I first = blocks * cut / cuts * FILTERS;
            I last = std::min(f.out, blocks * (cut + 1) / cuts * FILTERS);
            const T* from = placed(x + n * image, own, s);
            for (I g = 0; g < f.groups; ++g)
                for (I i = 0; i < number; ++i)
                    sweep(from + g * f.in * plane, panel + begin[g * number + i],
                          bias ? bias + g * f.out : bias,
                          y + (n * f.groups + g) * f.out * f.rows * f.columns,
                          first, last, plane, f, sweeps[i]);
        }
    }
}

// Weight gradient ---------------------------------------------------------------

// Transpose a square of as many rows as a vector is long: after the step, elements
// whose row and column numbers differ in this bit have changed places.
template <class T, int STEP> static inline void transpose(typename Vector<T>::type* row) {
    const int size = Vector<T>::size;
    typename Vector<T>::mask low, high;
    #pragma GCC unroll 16
    for (int i = 0; i < size; ++i) {
        low[i] = i & STEP ? size + i - STEP : i;
        high[i] = i & STEP ? size + i : i + STEP;
    }
    #pragma GCC unroll 16
    for (int i = 0; i < size; ++i) {
        if (i & STEP) continue;
        auto a = row[i], b = row[i + STEP];
        row[i] = SHUFFLE(a, b, low);
        row[i + STEP] = SHUFFLE(a, b, high);
    }
    if constexpr (2 * STEP < size) transpose<T, 2 * STEP>(row);
}

// gy (filters, positions) -> (positions, width): filters side by side, then zeros
template <class T>
static void turn(const T* gy, I filters, I apart, I positions, I width, T* to) {
    typedef typename Vector<T>::type V;
    const I size = Vector<T>::size;
    I k = 0, whole = SQUARES ? positions / size * size : 0;
    for (; k < filters; k += size) {
        const I count = std::min(size, filters - k);
        I q = 0;
        for (; count == size && q < whole; q += size) {
            V row[Vector<T>::size];
            #pragma GCC unroll 16
            for (int i = 0; i < size; ++i) row[i] = *(const V*)(gy + (k + i) * apart + q);
            transpose<T, 1>(row);
            #pragma GCC unroll 16
            for (int i = 0; i < size; ++i) *(V*)(to + (q + i) * width + k) = row[i];
        }
        for (; q < positions; ++q)
            for (I i = 0; i < size; ++i)
                to[q * width + k + i] = i < count ? gy[(k + i) * apart + q] : 0;
    }
}

// sum[pair][filter] += x * gy over rows x columns, a pair being (channel, tap)
template <class T, int PAIRS, int VECTORS> static void correlate(
    const T* const* pairs, const T* gy, I rows, I columns, I line, T* sum
) {
    typedef typename Vector<T>::type V;
    const int size = Vector<T>::size;
    V total[PAIRS][VECTORS] = {};
    const T* x[PAIRS];
    for (int p = 0; p < PAIRS; ++p) x[p] = pairs[p];
    for (I r = 0; r < rows; ++r) {
        for (I q = 0; q < columns; ++q, gy += VECTORS * size) {
            V here[VECTORS];
            for (int v = 0; v < VECTORS; ++v) here[v] = *(const V*)(gy + v * size);
            for (int p = 0; p < PAIRS; ++p)
                for (int v = 0; v < VECTORS; ++v) total[p][v] += x[p][q] * here[v];
        }
        for (int p = 0; p < PAIRS; ++p) x[p] += line;
    }
    for (int p = 0; p < PAIRS; ++p)
        for (int v = 0; v < VECTORS; ++v)
            *(V*)(sum + (p * VECTORS + v) * size) += total[p][v];
}

struct Gradient {
    I parts, width, vectors, pairs;  // vectors: at most, of filters side by side
    I chunk;                         // rows that are turned at a time
};

// One image's share; sum is [group][filters / vectors][pair][vectors].
template <class T> static void correlate_image(
    const T* x, const T* gy, T* sum, T* turned, I plane, const Filters& f,
    const Sweep& s, const Gradient& d
) {
    const I size = Vector<T>::size, total = f.in * s.taps;
    const I padded = (total + d.pairs - 1) / d.pairs * d.pairs;
    for (I g = 0; g < f.groups; ++g)
    for (I r = 0; r < s.rows; r += d.chunk) {
        I rows = std::min(d.chunk, s.rows - r);
        const I all = s.rows * s.columns, here = rows * s.columns;
        const T* from = gy + g * f.out * all + r * s.columns;
        T* to = sum + g * padded * d.width;
        for (I v = 0, wide; v < d.width / size; v += wide) {
            wide = std::min(d.vectors, d.width / size - v);
            turn(from + v * size * all, std::min(f.out - v * size, wide * size), all,
                 here, wide * size, turned);
            for (I p = 0; p < padded; p += d.pairs, to += d.pairs * wide * size) {
                const T* pairs[9];
                for (I i = 0; i < d.pairs; ++i) {
                    I pair = std::min(p + i, total - 1);  // the rest is not used
                    pairs[i] = x + (g * f.in + pair / s.taps) * plane
                             + s.distance[pair % s.taps] + r * s.line;
                }
                #define CORRELATE(P, N) correlate<T, P, N>( \
                    pairs, turned, rows, s.columns, s.line, to)
                if (d.pairs == 9) {
                    if (wide == 3) CORRELATE(9, REGISTERS / 32 * 2 + 1);
                    else if (wide == 2) CORRELATE(9, REGISTERS / 32 + 1);
                    else CORRELATE(9, 1);
                } else {
                    if (wide == 3) CORRELATE(8, REGISTERS / 32 * 2 + 1);
                    else if (wide == 2) CORRELATE(8, REGISTERS / 32 + 1);
                    else CORRELATE(8, 1);
                }
            }
        }
    }
}

// gw = sum over images in parts whose number depends on the shapes alone.
template <class T> static void weight_gradient(
    const T* x, const T* gy, T* gw, const Images& s, const Filters& f,
    const Sweep* sweeps, I parts, I threads
) {
    const Sweep& w = sweeps[0];
    const I size = Vector<T>::size, total = f.in * w.taps;
    Gradient d;
    d.pairs = w.taps % 9 ? 8 : 9;
    d.vectors = REGISTERS / 32 * 2 + 1;
    d.width = (f.out + size - 1) / size * size;
    d.chunk = std::min(w.rows, std::max(I(1), I(256) / w.columns));
    const I padded = (total + d.pairs - 1) / d.pairs * d.pairs;
    const I room = f.groups * padded * d.width;
    T* sums = workspace<T>(1, parts * room);
    const I image = s.channels * s.rows * s.columns;
    const I plane = s.plane ? s.plane : s.rows * s.columns;
    const I out = f.groups * f.out * w.rows * w.columns;
    #pragma omp parallel num_threads(threads) if (threads > 1)
    {
        I kept = s.plane ? s.channels * s.plane + (WIDE + 1) * size : 0;
        T* own = workspace<T>(0, kept + size + d.chunk * w.columns * d.vectors * size);
        if (s.plane) buffer<T>(s);
        T* turned = own + (kept + size - 1) / size * size;
        #pragma omp for schedule(dynamic, 1)
        for (I part = 0; part < parts; ++part) {
            T* sum = sums + part * room;
            memset(sum, 0, room * sizeof(T));
            for (I n = s.n * part / parts; n < s.n * (part + 1) / parts; ++n)
                correlate_image(placed(x + n * image, own, s), gy + n * out, sum,
                                turned, plane, f, w, d);
        }
        #pragma omp for schedule(static)
        for (I i = 0; i < room; ++i)
            for (I part = 1; part < parts; ++part) sums[i] += sums[part * room + i];
        #pragma omp for schedule(static)
        for (I i = 0; i < f.groups * f.out; ++i) {
            I k = i % f.out, at = k / (d.vectors * size) * d.vectors * size;
            I wide = std::min(d.vectors * size, d.width - at);
            T* from = sums + (i / f.out * d.width + at) * padded + k - at;
            for (I p = 0; p < total; ++p) gw[i * total + p] = from[p * wide];
        }
    }
}

// gb = sum of gy over images and positions
template <class T> static void bias_gradient(
    const T* gy, T* gb, I n, I filters, I positions, I threads
) {
    typedef typename Vector<T>::type V;
    const int size = Vector<T>::size;
    #pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (I k = 0; k < filters; ++k) {
        double total = 0;
        for (I i = 0; i < n; ++i) {
            const T* from = gy + (i * filters + k) * positions;
            V sum[2] = {};
            T rest = 0;
            I q = 0;
            for (; q + 2 * size <= positions; q += 2 * size)
                for (int v = 0; v < 2; ++v) sum[v] += *(const V*)(from + q + v * size);
            sum[0] += sum[1];
            for (; q < positions; ++q) rest += from[q];
            for (int v = 0; v < size; ++v) rest += sum[0][v];
            total += rest;
        }
        gb[k] = total;
    }
}

#define FOR(T) extern "C" { \
    void bias_gradient_##T(const T* gy, T* gb, I n, I filters, I positions, \
        I threads) { bias_gradient<T>(gy, gb, n, filters, positions, threads); } \
    void convolve_##T(const T* x, const T* w, const T* b, T* y, const Images* s, \
        const Filters* f, const Sweep* sweeps, I number, I threads) { \
        convolve<T>(x, w, b, y, *s, *f, sweeps, number, threads); } \
    void weight_gradient_##T(const T* x, const T* gy, T* gw, const Images* s, \
        const Filters* f, const Sweep* sweeps, I parts, I threads) { \
        weight_gradient<T>(x, gy, gw, *s, *f, sweeps, parts, threads); } }
FOR(float)
FOR(double)
"""
