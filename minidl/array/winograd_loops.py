"""C++ of convolutions with 3 x 3 taps in 16 products for 2 x 2 outputs, not 36.

Y = A^T [(G g G^T) * (B^T d B)] A for tiles d of 4 x 4 inputs; the gradient of g is
G^T [(A gy A^T) * (B^T d B)] G. Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", 2016. The products over channels run in the register blocks of
`sweep_loops`, whose source stands before this one.
"""

SOURCE = r"""
struct Tiles {
    I n, in, out, rows, columns, top, left;  // inputs: size, and padding before them
    I high, wide, down, across;              // outputs, and tiles of 2 x 2 of them
    I of_out, of_in, turned;                 // strides of the weight; taps reversed?
};
typedef Vector<float>::type F;
enum { LANES = Vector<float>::size, BLOCK = WIDE * LANES };  // tiles side by side

// planes[channel][row parity][column of a tile][row of tiles][tile], and room behind
// each: vectors go beyond a row's end, into what is written next
static I plane_of(const Tiles& s) { return (s.down + 1) * s.across + LANES; }

// A channel is padded first: its rows have this length.
static I row_of(const Tiles& s) { return 2 * s.across + 2 * LANES + 4; }

static void deal(const float* x, float* to, const Tiles& s, float* padded) {
    const I plane = plane_of(s), length = row_of(s);
    for (I c = 0; c < s.in; ++c, to += 8 * plane) {
        for (I r = 0; r < s.rows; ++r, x += s.columns)
            copy(x, padded + (r + s.top) * length + s.left, s.columns);
        for (I r = 0; r < 2 * s.down + 2; ++r) {
            const float* row = padded + r * length;
            float* line = to + r % 2 * 4 * plane + r / 2 * s.across;
            for (I t = 0; t < s.across; t += LANES) {
                halves(row + 2 * t, line + t, line + plane + t);
                halves(row + 2 * t + 2, line + 2 * plane + t, line + 3 * plane + t);
            }
        }
    }
}

// B^T d B of `vectors` times LANES tiles from `at` on: to[product][channel][stride]
static void transform(
    const float* from, I at, I vectors, const Tiles& s, I stride, float* to
) {
    const I plane = plane_of(s), apart = s.in * stride;
    for (I c = 0; c < s.in; ++c)
    for (I v = 0; v < vectors; ++v) {
        const float* x = from + c * 8 * plane + at + v * LANES;
        F d[4][4], t[4][4];
        for (int i = 0; i < 4; ++i) for (int j = 0; j < 4; ++j)
            d[i][j] = *(const F*)(x + (i % 2 * 4 + j) * plane + i / 2 * s.across);
        for (int j = 0; j < 4; ++j) {
            t[0][j] = d[0][j] - d[2][j];
            t[1][j] = d[1][j] + d[2][j];
            t[2][j] = d[2][j] - d[1][j];
            t[3][j] = d[1][j] - d[3][j];
        }
        float* y = to + c * stride + v * LANES;
        for (int i = 0; i < 4; ++i, y += 4 * apart) {
            *(F*)y = t[i][0] - t[i][2];
            *(F*)(y + apart) = t[i][1] + t[i][2];
            *(F*)(y + 2 * apart) = t[i][2] - t[i][1];
            *(F*)(y + 3 * apart) = t[i][1] - t[i][3];
        }
    }
}

// G g G^T of filters k to k + FILTERS: panel[product][in][filter]
static void arrange_tiles(const float* w, float* panel, I k, const Tiles& s) {
    for (I c = 0; c < s.in; ++c)
    for (I i = 0; i < FILTERS; ++i) {
        float g[3][3] = {}, t[4][3], *to = panel + c * FILTERS + i;
        for (int a = 0; a < 9 && k + i < s.out; ++a)
            g[a / 3][a % 3] =
                w[(k + i) * s.of_out + c * s.of_in + (s.turned ? 8 - a : a)];
        for (int j = 0; j < 3; ++j) {
            t[0][j] = g[0][j];
            t[1][j] = (g[0][j] + g[1][j] + g[2][j]) * 0.5f;
            t[2][j] = (g[0][j] - g[1][j] + g[2][j]) * 0.5f;
            t[3][j] = g[2][j];
        }
        for (int a = 0; a < 4; ++a, to += 4 * s.in * FILTERS) {
            to[0] = t[a][0];
            to[s.in * FILTERS] = (t[a][0] + t[a][1] + t[a][2]) * 0.5f;
            to[2 * s.in * FILTERS] = (t[a][0] - t[a][1] + t[a][2]) * 0.5f;
            to[3 * s.in * FILTERS] = t[a][2];
        }
    }
}

// above(A^T m A + bias, low) of one filter's tiles [at, stop);
// m[product][FILTERS][BLOCK]
static void finish(
    const float* m, float bias, F low, float* y, I at, I stop, const Tiles& s
) {
    float pixels[2][2 * BLOCK];
    const I apart = 4 * FILTERS * BLOCK;
    for (I v = 0; v < stop - at; v += LANES) {
        F t[2][4];
        for (int j = 0; j < 4; ++j) {
            const float* p = m + j * FILTERS * BLOCK + v;
            F m1 = *(const F*)(p + apart), m2 = *(const F*)(p + 2 * apart);
            t[0][j] = *(const F*)p + m1 + m2;
            t[1][j] = m1 - m2 - *(const F*)(p + 3 * apart);
        }
        for (int a = 0; a < 2; ++a)
            interleave<float>(above(t[a][0] + t[a][1] + t[a][2] + bias, low),
                              above(t[a][1] - t[a][2] - t[a][3] + bias, low),
                              pixels[a] + 2 * v);
    }
    I row = at / s.across, column = at - row * s.across;
    for (I i = at; i < stop;) {
        const I count = std::min(stop - i, s.across - column);
        const I m = std::min(2 * count, s.wide - 2 * column);
        for (I a = 0; a < 2 && 2 * row + a < s.high; ++a)
            copy(pixels[a] + 2 * (i - at), y + (2 * row + a) * s.wide + 2 * column, m);
        i += count, column = 0, ++row;
    }
}

struct Space {  // a thread's memory: planes, a padded channel, and `more`
    float *dealt, *padded, *more;
    Space(const Tiles& s, I more_room) {
        I one = s.in * 8 * plane_of(s) + BLOCK, two = (2 * s.down + 2) * row_of(s);
        one = (one + 15) / 16 * 16, two = (two + 15) / 16 * 16;
        dealt = workspace<float>(0, one + two + more_room);
        memset(dealt, 0, (one + two) * sizeof(float));
        padded = dealt + one;
        more = padded + two;
    }
};

extern "C" void winograd_convolve(
    const float* x, const float* w, const float* bias, float* y, const Tiles* tiles,
    I relu, I threads
) {
    const Tiles& s = *tiles;
    const F low = F{} + lowest<float>(relu);
    const I blocks = (s.out + FILTERS - 1) / FILTERS, panel = 16 * s.in * FILTERS;
    const I total = s.down * s.across, number = (total + BLOCK - 1) / BLOCK;
    const I cuts = s.n < threads ? std::min(number, threads) : 1;
    float* weights = workspace<float>(1, blocks * panel);
    std::vector<I> distance(s.in);
    for (I c = 0; c < s.in; ++c) distance[c] = c * BLOCK;
    Sweep once = {s.in};
    once.distance = distance.data();
    #pragma omp parallel num_threads(threads) if (threads > 1)
    {
        #pragma omp for schedule(static)
        for (I k = 0; k < blocks; ++k)
            arrange_tiles(w, weights + k * panel, k * FILTERS, s);
        Space own(s, 16 * (s.in + FILTERS) * BLOCK);
        float* made = own.more + 16 * s.in * BLOCK;
        #pragma omp for schedule(dynamic, 1)
        for (I unit = 0; unit < s.n * cuts; ++unit) {
            I n = unit / cuts, cut = unit % cuts;
            deal(x + n * s.in * s.rows * s.columns, own.dealt, s, own.padded);
            for (I i = number * cut / cuts; i < number * (cut + 1) / cuts; ++i) {
                const I vectors = (total + LANES - 1) / LANES;
                const I at = vectors * i / number;
                const I wide = vectors * (i + 1) / number - at;
                const I stop = std::min(total, (at + wide) * LANES);
                transform(own.dealt, at * LANES, wide, s, BLOCK, own.more);
                for (I k = 0; k < s.out; k += FILTERS) {
                    for (I p = 0; p < 16; ++p) {
                        const float* u = weights + k / FILTERS * panel
                                       + p * s.in * FILTERS;
                        const float* v = own.more + p * s.in * BLOCK;
                        float* m = made + p * FILTERS * BLOCK;
                        #define TILES(V) tile<float, FILTERS, V>(v, 0, 1, once, u, m)
                        if (wide == 3) TILES(3);
                        else if (wide == 2) TILES(2);
                        else TILES(1);
                    }
                    for (I j = 0; j < FILTERS && k + j < s.out; ++j)
                        finish(made + j * BLOCK, bias ? bias[k + j] : 0, low,
                               y + (n * s.out + k + j) * s.high * s.wide, at * LANES,
                               stop, s);
                }
            }
        }
    }
}
"""
