"""C++ of products whose sums stay in registers, for whatever vectors the host has.

The other `_loops` files are appended to this source.
"""

SOURCE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include <limits>
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
// The longest part of `total` in parts as equal as can be, none longer than `most`.
static inline I evenly(I total, I most) {
    const I parts = (total + most - 1) / most;
    return (total + parts - 1) / parts;
}

// Unrolled, or an array of sums would not stay in registers.
#define EACH(i, COUNT) _Pragma("GCC unroll 16") for (int i = 0; i < COUNT; ++i)
enum { FILTERS = REGISTERS / 4, WIDE = 3 };  // outputs in registers: filters x vectors

template <class T> struct Vector {
    typedef T type __attribute__((vector_size(BYTES), aligned(alignof(T)), may_alias));
    typedef typename std::conditional<sizeof(T) == 4, int32_t, int64_t>::type index;
    typedef index mask __attribute__((vector_size(BYTES)));
    enum { size = BYTES / sizeof(T) };
};

// A thread's own memory, kept from call to call.
template <class T> static T* workspace(int which, I count) {
    static thread_local std::vector<char> kept[3];
    std::vector<char>& room = kept[which];
    if (I(room.size()) < count * I(sizeof(T)) + 64) room.resize(count * sizeof(T) + 64);
    return (T*)((uintptr_t(room.data()) + 63) / 64 * 64);
}

// Outputs end as `above(y, low)`: with ReLU low is 0, otherwise there is none below.
template <class V> static inline V above(V x, V low) { return x <= low ? low : x; }
template <class T> static inline T lowest(I relu) {
    return relu ? T(0) : -std::numeric_limits<T>::infinity();
}

// A sweep makes outputs (row, column) of `rows` x `columns`, which go to (row0 + row *
// row_step, column0 + column * column_step), of the taps at these distances.
struct Sweep {
    I taps, rows, columns, row0, column0, row_step, column_step;
    I line;  // from one row to the next in the buffer
    const I* distance;  // of each tap in the buffer, from (row, column) in its lines
    const I* tap;       // its place in the kernel
};

// y[filter][position] = sum over in, tap of panel * x, for VECTORS of positions.
// Inlined, sums would be spilled.
template <class T, int COUNT, int VECTORS> [[gnu::noinline]]
static void tile(const T* x, I plane, I in, const Sweep& s, const T* panel, T* y) {
    typedef typename Vector<T>::type V;
    const int size = Vector<T>::size;
    V sum[COUNT][VECTORS];
    EACH(k, COUNT) EACH(v, VECTORS) sum[k][v] = V{};
    for (I c = 0; c < in; ++c, x += plane)
        for (I t = 0; t < s.taps; ++t, panel += FILTERS) {
            const T* from = x + s.distance[t];
            V here[VECTORS];
            EACH(v, VECTORS) here[v] = *(const V*)(from + v * size);
            EACH(k, COUNT) EACH(v, VECTORS) sum[k][v] += panel[k] * here[v];
        }
    EACH(k, COUNT) EACH(v, VECTORS) *(V*)(y + (k * WIDE + v) * size) = sum[k][v];
}

// sum[pair][filter] += x * gy over rows x columns, a pair being (channel, tap)
template <class T, int PAIRS, int VECTORS> static void correlate(
    const T* const* pairs, const T* gy, I rows, I columns, I line, T* sum
) {
    typedef typename Vector<T>::type V;
    const int size = Vector<T>::size;
    V total[PAIRS][VECTORS];
    EACH(p, PAIRS) EACH(v, VECTORS) total[p][v] = V{};
    const T* x[PAIRS];
    for (int p = 0; p < PAIRS; ++p) x[p] = pairs[p];
    for (I r = 0; r < rows; ++r) {
        for (I q = 0; q < columns; ++q, gy += VECTORS * size) {
            V here[VECTORS];
            EACH(v, VECTORS) here[v] = *(const V*)(gy + v * size);
            EACH(p, PAIRS) EACH(v, VECTORS) total[p][v] += x[p][q] * here[v];
        }
        EACH(p, PAIRS) x[p] += line;
    }
    EACH(p, PAIRS) EACH(v, VECTORS)
        *(V*)(sum + (p * VECTORS + v) * size) += total[p][v];
}

// Transpose a square of as many rows as a vector is long: after the step, elements
// whose row and column numbers differ in this bit have changed places.
template <class T, int STEP>
static inline void transpose(typename Vector<T>::type* row) {
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

// to = from, in vectors of which the last may overlap the one before
template <class T, int SIZE = Vector<T>::size>
static inline void copy(const T* from, T* to, I count) {
    typedef T V __attribute__((vector_size(SIZE * sizeof(T)), aligned(alignof(T))));
    if (count >= SIZE) {
        for (I i = 0; i + SIZE < count; i += SIZE)
            *(V*)(to + i) = *(const V*)(from + i);
        *(V*)(to + count - SIZE) = *(const V*)(from + count - SIZE);
    } else if constexpr (SIZE > 2) {
        copy<T, SIZE / 2>(from, to, count);
    } else {
        for (I i = 0; i < count; ++i) to[i] = from[i];
    }
}

// Two vectors' elements at even places, and those at odd ones.
template <class T> static inline void halves(const T* x, T* even, T* odd) {
    typedef typename Vector<T>::type V;
    const int size = Vector<T>::size;
    if (!SQUARES) {
        for (int i = 0; i < size; ++i) even[i] = x[2 * i], odd[i] = x[2 * i + 1];
        return;
    }
    typename Vector<T>::mask pick;
    for (int i = 0; i < size; ++i) pick[i] = 2 * i;
    const V a = *(const V*)x, b = *(const V*)(x + size);
    *(V*)even = SHUFFLE(a, b, pick);
    *(V*)odd = SHUFFLE(a, b, pick + 1);
}

// The reverse: elements of a at even places, those of b at odd ones.
template <class T>
static inline void interleave(typename Vector<T>::type a, decltype(a) b, T* to) {
    typedef typename Vector<T>::type V;
    const int size = Vector<T>::size;
    if (!SQUARES) {
        for (int i = 0; i < size; ++i) to[2 * i] = a[i], to[2 * i + 1] = b[i];
        return;
    }
    typename Vector<T>::mask pick;
    for (int i = 0; i < size; ++i) pick[i] = i / 2 + i % 2 * size;
    *(V*)to = SHUFFLE(a, b, pick);
    *(V*)(to + size) = SHUFFLE(a, b, pick + size / 2);
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
            for (int i = 0; i < size; ++i)
                row[i] = *(const V*)(gy + (k + i) * apart + q);
            transpose<T, 1>(row);
            #pragma GCC unroll 16
            for (int i = 0; i < size; ++i) *(V*)(to + (q + i) * width + k) = row[i];
        }
        for (; q < positions; ++q)
            for (I i = 0; i < size; ++i)
                to[q * width + k + i] = i < count ? gy[(k + i) * apart + q] : 0;
    }
}
"""
