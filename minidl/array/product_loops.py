"""C++ of matrix products and of sums of columns, with `register_loops`.

A strip of b, three vectors of columns wide, is copied in the order in which it is
read, by the thread that needs it; rows of a are read where they lie, some thousand
terms of their sums at a time. A thread mostly goes down one strip after the other,
which then stays in its cache; what is left at the end is shared out in small units.
Each output is summed in the order of its terms, so results are the same for any
number of threads. After Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication", 2008; they copy a as well, which vectors this long do not need.
"""

SOURCE = r"""
// c (m, n) = sum over `stacks` of a (m, k) b (k, n), + bias for each column, then ReLU
// if there is one; strides from one stack, row and column to the next
struct Product { I stacks, m, n, k, as, ar, ac, bs, br, bc, relu; };
enum { TERMS = 1024, ROWS = 2 * FILTERS };  // at most, of a strip; of a thread's unit
enum { SLAB = 1024 };  // rows of a that are read again for each strip, at most

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

// made[row][column] = sum of terms [from, stop) of a and the panel, for COUNT rows; if
// there are fewer, the last one stands for the rest. Inlined, sums would be spilled.
template <class T, int COUNT, int VECTORS> [[gnu::noinline]] static void block(
    const T* a, const T* panel, const Product& s, I rows, I from, I stop, T* made
) {
    typedef typename Vector<T>::type V;
    const int size = Vector<T>::size;
    V sum[COUNT][VECTORS];
    EACH(i, COUNT) EACH(v, VECTORS) sum[i][v] = V{};
    a += from / s.k * s.as;
    for (I first = from % s.k; from < stop; a += s.as, first = 0) {
        const I terms = std::min(stop - from, s.k - first);
        from += terms;
        const T* row[COUNT];
        EACH(i, COUNT) row[i] = a + std::min(I(i), rows - 1) * s.ar + first * s.ac;
        if (from < stop)  // the next stack lies elsewhere: it is not read ahead
            for (I t = 0; t < terms; t += size)
                EACH(i, COUNT) __builtin_prefetch(row[i] + s.as + t * s.ac);
        for (I t = 0, at = 0; t < terms; ++t, at += s.ac, panel += VECTORS * size) {
            V here[VECTORS];
            EACH(v, VECTORS) here[v] = *(const V*)(panel + v * size);
            EACH(i, COUNT) EACH(v, VECTORS) sum[i][v] += row[i][at] * here[v];
        }
    }
    EACH(i, COUNT) EACH(v, VECTORS) *(V*)(made + (i * WIDE + v) * size) = sum[i][v];
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

// Rows [row, end) of c, columns of one strip: `wide` vectors from `at` on
template <class T> static void multiply_strip(
    const T* a, const T* panel, const T* bias, T* c, const Product& s, I row, I end,
    I at, I wide, I from, I stop
) {
    const I size = Vector<T>::size, total = s.stacks * s.k;
    const T low = lowest<T>(s.relu && stop == total);
    alignas(64) T made[FILTERS * WIDE * Vector<T>::size];
    for (; row < end; row += FILTERS) {
        const I rows = std::min(end - row, I(FILTERS));
        const bool few = rows <= FILTERS / 2;
        const T* mine = a + row * s.ar;
        #define OF(N, V) block<T, N, V>(mine, panel, s, rows, from, stop, made)
        #define BLOCK(V) few ? OF(FILTERS / 2, V) : OF(FILTERS, V)
        if (wide == 3) BLOCK(3);
        else if (wide == 2) BLOCK(2);
        else BLOCK(1);
        put(made, c + row * s.n + at * size, s.n, rows,
            std::min(s.n - at * size, wide * size), bias ? bias + at * size : bias,
            low, from == 0);
    }
}

template <class T> static void multiply(
    const T* a, const T* b, const T* bias, T* c, const Product& s, I threads
) {
    const I size = Vector<T>::size, vectors = (s.n + size - 1) / size;
    const I strips = (vectors + WIDE - 1) / WIDE, total = s.stacks * s.k;
    const I parts = (total + TERMS - 1) / TERMS;
    #pragma omp parallel num_threads(threads) if (threads > 1)
    for (I top = 0; top < s.m; top += SLAB)
    for (I part = 0; part < parts; ++part) {
        const I from = total * part / parts, stop = total * (part + 1) / parts;
        const I bottom = std::min(s.m, top + SLAB);
        const I heights = (bottom - top + ROWS - 1) / ROWS;
        T* panel = workspace<T>(0, WIDE * size * (stop - from));
        I packed = -1;  // the strip that this thread's panel holds
        #pragma omp for schedule(guided)
        for (I unit = 0; unit < strips * heights; ++unit) {
            const I j = unit / heights, row = top + unit % heights * ROWS;
            const I at = vectors * j / strips, wide = vectors * (j + 1) / strips - at;
            if (j != packed)
                pack_columns(b, s, at * size, wide * size, from, stop, panel);
            packed = j;
            multiply_strip(a, panel, bias, c, s, row, std::min(bottom, row + ROWS), at,
                           wide, from, stop);
        }
    }
}

// sums = sum of gy (rows, columns) over rows; MASKED, of g = gy where y > 0, or 0.
// Parts of the rows are summed, then these, whose number depends on the shape alone.
template <class T, bool MASKED> static void sum_columns(
    const T* gy, const T* y, T* g, T* sums, I rows, I columns, I threads
) {
    const I parts = std::min(I(16), rows);
    T* made = workspace<T>(0, parts * columns);
    #pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (I part = 0; part < parts; ++part) {
        T* sum = made + part * columns;
        std::fill(sum, sum + columns, T(0));
        for (I i = rows * part / parts; i < rows * (part + 1) / parts; ++i) {
            const T *from = gy + i * columns, *above = y + i * columns;
            T* to = g + i * columns;
            #pragma omp simd
            for (I j = 0; j < columns; ++j) {
                const T term = MASKED && above[j] <= 0 ? 0 : from[j];
                if (MASKED) to[j] = term;
                sum[j] += term;
            }
        }
    }
    for (I j = 0; j < columns; ++j) {
        sums[j] = 0;
        for (I part = 0; part < parts; ++part) sums[j] += made[part * columns + j];
    }
}

#define FOR(T) extern "C" { \
    void multiply_##T(const T* a, const T* b, const T* bias, T* c, const Product* s, \
        I threads) { multiply<T>(a, b, bias, c, *s, threads); } \
    void sum_columns_##T(const T* gy, const T* y, T* g, T* sums, I rows, I columns, \
        I threads) { \
        if (y) sum_columns<T, true>(gy, y, g, sums, rows, columns, threads); \
        else sum_columns<T, false>(gy, y, g, sums, rows, columns, threads); } }
FOR(float)
FOR(double)
#undef FOR
"""
