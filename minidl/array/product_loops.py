"""C++ of matrix products, in the register blocks of `register_loops`.

Both matrices are copied in the order in which a block of outputs (rows x three vectors
of columns) reads them, some hundred of the terms of its sums at a time. Each output
is summed in the order of its terms, so results are the same for any number of
threads. The arrangement is that of Goto and van de Geijn, "Anatomy of
High-Performance Matrix Multiplication", 2008.
"""

SOURCE = r"""
// c (m, n) = sum over `stacks` of a (m, k) b (k, n), + bias for each column, then ReLU
// if there is one; strides from one stack, row and column to the next
struct Product { I stacks, m, n, k, as, ar, ac, bs, br, bc, relu; };
enum { TERMS = 512, ROWS = 8 * FILTERS };  // packed at a time; of a thread's unit
enum { SLAB = 2048 };                      // rows packed at a time, at most
template <class T> struct Group {  // rows that are packed together
    enum { size = Vector<T>::size, rows = size > FILTERS ? size : FILTERS };
};

// panel[term][line] of `terms` and `count` lines, and zeros up to `width` lines
template <class T> static void pack(
    const T* from, I term, I line, I terms, I count, I width, T* panel
) {
    if (term == 1 && line != 1) return turn(from, count, line, terms, width, panel);
    for (; terms; --terms, from += term, panel += width) {
        if (line == 1) copy(from, panel, count);
        else for (I i = 0; i < count; ++i) panel[i] = from[i * line];
        for (I i = count; i < width; ++i) panel[i] = 0;
    }
}

// Terms [from, stop) of a, GROUP rows: panel[block of FILTERS rows][term][row]
template <class T>
static void pack_rows(const T* a, const Product& s, I group, I from, I stop, T* panel) {
    enum { WIDTH = Group<T>::rows };
    const I first = group * WIDTH, count = std::min(s.m - first, I(WIDTH));
    T turned[64 * WIDTH];
    for (I t = from, terms; t < stop; t += terms) {
        terms = std::min(std::min(I(64), stop - t), s.k - t % s.k);
        pack(a + first * s.ar + t / s.k * s.as + t % s.k * s.ac, s.ac, s.ar, terms,
             count, I(WIDTH), turned);
        for (I b = 0; b < WIDTH / FILTERS; ++b) {
            T* to = panel + (b * (stop - from) + t - from) * FILTERS;
            for (I q = 0; q < terms; ++q)
                for (int i = 0; i < FILTERS; ++i)
                    to[q * FILTERS + i] = turned[q * WIDTH + b * FILTERS + i];
        }
    }
}

// Terms [from, stop) of b, `width` columns from `first` on: panel[term][column]
template <class T> static void pack_columns(
    const T* b, const Product& s, I first, I width, I from, I stop, T* panel
) {
    const I count = std::min(s.n - first, width);
    for (I t = from, terms; t < stop; t += terms, panel += terms * width) {
        terms = std::min(stop - t, s.k - t % s.k);
        pack(b + first * s.bc + t / s.k * s.bs + t % s.k * s.br, s.br, s.bc, terms,
             count, width, panel);
    }
}

// Rows of a block from `made` to c, or added to it; `low` as in `above`.
template <class T> static void put(
    const T* made, T* c, I n, I rows, I width, const T* bias, T low, bool first
) {
    typedef typename Vector<T>::type V;
    const int size = Vector<T>::size;
    const V none = V{} + low;
    for (I i = 0; i < rows; ++i, c += n, made += WIDE * size) {
        const T* more = first ? bias : c;
        I j = 0;
        for (; j + size <= width; j += size) {
            V sum = *(const V*)(made + j);
            if (more) sum += *(const V*)(more + j);
            *(V*)(c + j) = above(sum, none);
        }
        for (; j < width; ++j) c[j] = above(more ? made[j] + more[j] : made[j], low);
    }
}

// At most SLAB rows of a.
template <class T> static void multiply_slab(
    const T* a, const T* b, const T* bias, T* c, const Product& s, I threads
) {
    const I size = Vector<T>::size, vectors = (s.n + size - 1) / size;
    const I group = Group<T>::rows, groups = (s.m + group - 1) / group;
    const I strips = (vectors + WIDE - 1) / WIDE;
    const I total = s.stacks * s.k, parts = std::max(I(1), (total + TERMS - 1) / TERMS);
    const I most = (total + parts - 1) / parts;
    const bool own = strips >= 16 * threads;  // a thread packs what it alone will read
    const I high = own ? s.m : ROWS, heights = (s.m + high - 1) / high;
    T* left = workspace<T>(0, groups * group * most);
    T* right = own ? 0 : workspace<T>(1, vectors * size * most);
    std::vector<I> distance(WIDE * most);
    for (I w = 1; w <= WIDE; ++w)
        for (I t = 0; t < most; ++t) distance[(w - 1) * most + t] = t * w * size;
    #pragma omp parallel num_threads(threads) if (threads > 1)
    for (I part = 0; part < parts; ++part) {
        const I from = total * part / parts, stop = total * (part + 1) / parts;
        const I terms = stop - from;
        const T low = lowest<T>(s.relu && part == parts - 1);
        #pragma omp for schedule(static) nowait
        for (I i = 0; i < groups; ++i)
            pack_rows(a, s, i, from, stop, left + i * group * terms);
        #pragma omp for schedule(static)
        for (I j = 0; j < (own ? 0 : strips); ++j) {
            const I at = vectors * j / strips, wide = vectors * (j + 1) / strips - at;
            pack_columns(b, s, at * size, wide * size, from, stop,
                         right + at * size * terms);
        }
        #pragma omp for schedule(dynamic, 1)
        for (I unit = 0; unit < strips * heights; ++unit) {
            const I j = unit / heights, h = unit % heights;
            const I at = vectors * j / strips, wide = vectors * (j + 1) / strips - at;
            T* x = own ? workspace<T>(2, WIDE * size * most)
                       : right + at * size * terms;
            if (own) pack_columns(b, s, at * size, wide * size, from, stop, x);
            Sweep once = {terms};
            once.distance = distance.data() + (wide - 1) * most;
            alignas(64) T made[FILTERS * WIDE * Vector<T>::size];
            for (I r = h * high; r < std::min(s.m, (h + 1) * high); r += FILTERS) {
                const T* panel = left + r * terms;
                const I rows = std::min(s.m - r, I(FILTERS));
                const bool few = rows <= FILTERS / 2;
                #define OF(N, V) tile<T, N, V>(x, 0, 1, once, panel, made)
                #define TILE(V) few ? OF(FILTERS / 2, V) : OF(FILTERS, V)
                if (wide == 3) TILE(3);
                else if (wide == 2) TILE(2);
                else TILE(1);
                put(made, c + r * s.n + at * size, s.n, rows,
                    std::min(s.n - at * size, wide * size),
                    bias ? bias + at * size : bias, low, part == 0);
            }
        }
    }
}

template <class T> static void multiply(
    const T* a, const T* b, const T* bias, T* c, const Product& s, I threads
) {
    Product slab = s;
    for (I first = 0; first < s.m; first += SLAB) {
        slab.m = std::min(s.m - first, I(SLAB));
        multiply_slab(a + first * s.ar, b, bias, c + first * s.n, slab, threads);
    }
}

#define FOR(T) extern "C" void multiply_##T( \
    const T* a, const T* b, const T* bias, T* c, const Product* s, I threads \
) { multiply<T>(a, b, bias, c, *s, threads); }
FOR(float)
FOR(double)
#undef FOR
"""
