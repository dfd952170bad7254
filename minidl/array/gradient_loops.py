"""C++ of the gradients of a convolution's weight and bias.

A block of sums (taps x vectors of filters) stays in registers over the positions of
an image; for that, gy is transposed a few rows at a time.
"""

SOURCE = r"""
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
    d.width = (f.out + size - 1) / size * size;
    d.vectors = evenly(d.width / size, REGISTERS / 32 * 2 + 1);
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

// gb = sum of gy over images and positions; MASKED, of g = gy where y > 0, or 0
template <class T, bool MASKED> static void bias_gradient(
    const T* gy, const T* y, T* g, T* gb, I n, I filters, I positions, I threads
) {
    typedef typename Vector<T>::type V;
    const int size = Vector<T>::size;
    #pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (I k = 0; k < filters; ++k) {
        double total = 0;
        for (I i = 0; i < n; ++i) {
            const I at = (i * filters + k) * positions;
            const T *from = gy + at, *made = y + at;
            T* to = g + at;
            V sum[2] = {}, none = {};
            T rest = 0;
            I q = 0;
            for (; q + 2 * size <= positions; q += 2 * size)
                for (int v = 0; v < 2; ++v) {
                    // the same place in the next image
                    const I here = q + v * size, next = here + filters * positions;
                    __builtin_prefetch(from + next);
                    V term = *(const V*)(from + here);
                    if (MASKED) {
                        __builtin_prefetch(made + next);
                        term = *(const V*)(made + here) <= none ? none : term;
                        *(V*)(to + here) = term;
                    }
                    sum[v] += term;
                }
            sum[0] += sum[1];
            for (; q < positions; ++q) {
                const T term = MASKED && made[q] <= 0 ? 0 : from[q];
                if (MASKED) to[q] = term;
                rest += term;
            }
            for (int v = 0; v < size; ++v) rest += sum[0][v];
            total += rest;
        }
        gb[k] = total;
    }
}

#define FOR(T) extern "C" { \
    void bias_gradient_##T(const T* gy, const T* y, T* g, T* gb, I n, I filters, \
        I positions, I threads) { \
        if (y) bias_gradient<T, true>(gy, y, g, gb, n, filters, positions, threads); \
        else bias_gradient<T, false>(gy, y, g, gb, n, filters, positions, threads); } \
    void weight_gradient_##T(const T* x, const T* gy, T* gw, const Images* s, \
        const Filters* f, const Sweep* sweeps, I parts, I threads) { \
        weight_gradient<T>(x, gy, gw, *s, *f, sweeps, parts, threads); } }
FOR(float)
FOR(double)
#undef FOR
"""
