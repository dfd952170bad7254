"""C++ of convolutions that write no columns.

One image at a time is copied into a padded buffer, in which every tap of a window
is the same distance away from its output, so that a run of neighbouring outputs
reads runs of neighbouring inputs. A block of outputs (channels x three vectors of
positions) stays in registers over all taps.
"""

SOURCE = r"""
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
        else if (split == 2) {  // neighbours go to two phases: a vector loop
            T* a = line + s.left % 2 * s.phase + s.left / 2;
            T* b = line + (s.left + 1) % 2 * s.phase + (s.left + 1) / 2;
            for (I j = 0; j < s.columns / 2; ++j) a[j] = x[2 * j], b[j] = x[2 * j + 1];
            if (s.columns % 2) a[s.columns / 2] = x[s.columns - 1];
        }
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

// to = above(from + b, low) in vectors, of which the last may overlap the one before
template <class T, int SIZE>
static inline void add(const T* from, T* to, I m, T b, T low) {
    typedef T V __attribute__((vector_size(SIZE * sizeof(T)), aligned(alignof(T))));
    const V none = V{} + low;
    for (I j = 0; j + SIZE < m; j += SIZE)
        *(V*)(to + j) = above(*(const V*)(from + j) + b, none);
    *(V*)(to + m - SIZE) = above(*(const V*)(from + m - SIZE) + b, none);
}

// Copy positions [at, stop) of a tile to the outputs that they are.
template <class T> static void leave(
    const T* from, T* y, I count, I at, I stop, const T* bias, T low, const Filters& f,
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
            if (s.column_step == 1 && m >= size)
                add<T, size>(source, target, m, b, low);
            else if (s.column_step == 1 && m >= size / 2)
                add<T, size / 2>(source, target, m, b, low);
            else for (I j = 0; j < m; ++j)
                target[j * s.column_step] = above(source[j] + b, low);
        }
    }
}

// One sweep over one group of one image, filters [first, last).
template <class T> static void sweep(
    const T* x, const T* panel, const T* bias, T low, T* y, I first, I last,
    I plane, const Filters& f, const Sweep& s
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
                  bias ? bias + k : bias, low, f, s);
        }
    }
}

// y = all sweeps over x: a convolution, or the gradient of one's input.
template <class T> static void convolve(
    const T* x, const T* w, const T* bias, T* y, const Images& s, const Filters& f,
    const Sweep* sweeps, I number, I relu, I threads
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
        #pragma omp for schedule(dynamic, most < 1 ? 1 : most > 8 ? 8 : most) nowait
        for (I unit = 0; unit < s.n * cuts; ++unit) {
            I n = unit / cuts, cut = unit % cuts;
            I first = blocks * cut / cuts * FILTERS;
            I last = std::min(f.out, blocks * (cut + 1) / cuts * FILTERS);
            const T* from = placed(x + n * image, own, s);
            for (I g = 0; g < f.groups; ++g)
                for (I i = 0; i < number; ++i)
                    sweep(from + g * f.in * plane, panel + begin[g * number + i],
                          bias ? bias + g * f.out : bias, lowest<T>(relu),
                          y + (n * f.groups + g) * f.out * f.rows * f.columns,
                          first, last, plane, f, sweeps[i]);
        }
    }
}

#define FOR(T) extern "C" void convolve_##T( \
    const T* x, const T* w, const T* b, T* y, const Images* s, const Filters* f, \
    const Sweep* sweeps, I number, I relu, I threads \
) { convolve<T>(x, w, b, y, *s, *f, sweeps, number, relu, threads); }
FOR(float)
FOR(double)
#undef FOR
"""
