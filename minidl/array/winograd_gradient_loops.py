"""C++ of the weight gradient in tiles; see `winograd_loops`."""

SOURCE = r"""
// A gy A^T of `filters` filters' tiles in `rows` rows: to[product][tile][width]
static void transform_gradient(
    const float* gy, I filters, I rows, I most, I width, const Tiles& s, float* turned,
    float* to
) {
    const I apart = rows * s.across * width;
    turn(gy, filters, s.high * s.wide, most * s.wide, width, turned);
    for (I i = 0; i < rows; ++i)
    for (I j = 0; j < s.across; ++j, to += width)
    for (I k = 0; k < width; k += LANES) {
        F g[2][2] = {}, t[4][2];
        for (I a = 0; a < 2 && 2 * i + a < most; ++a)
            for (I b = 0; b < 2 && 2 * j + b < s.wide; ++b)
                g[a][b] = *(F*)(
                    turned + ((2 * i + a) * s.wide + 2 * j + b) * width + k);
        for (int b = 0; b < 2; ++b) {
            t[0][b] = g[0][b];
            t[1][b] = g[0][b] + g[1][b];
            t[2][b] = g[0][b] - g[1][b];
            t[3][b] = -g[1][b];
        }
        float* y = to + k;
        for (int a = 0; a < 4; ++a, y += 4 * apart) {
            *(F*)y = t[a][0];
            *(F*)(y + apart) = t[a][0] + t[a][1];
            *(F*)(y + 2 * apart) = t[a][0] - t[a][1];
            *(F*)(y + 3 * apart) = -t[a][1];
        }
    }
}

extern "C" void winograd_weight_gradient(
    const float* x, const float* gy, float* gw, const Tiles* tiles, I parts, I threads
) {
    const Tiles& s = *tiles;
    const I width = (s.out + LANES - 1) / LANES * LANES, padded = (s.in + 7) / 8 * 8;
    const I most = REGISTERS / 32 * 2 + 1, room = 16 * padded * width;
    const I rows = std::max(I(1), 64 / s.across), chunk = rows * s.across;
    const I stride = (chunk + LANES - 1) / LANES * LANES;
    float* sums = workspace<float>(1, parts * room);
    #pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Space own(s, 16 * s.in * stride + 20 * chunk * most * LANES);
        float *gradient = own.more + 16 * s.in * stride;
        float *turned = gradient + 16 * chunk * most * LANES;
        #pragma omp for schedule(dynamic, 1)
        for (I part = 0; part < parts; ++part) {
            float* sum = sums + part * room;
            memset(sum, 0, room * sizeof(float));
            for (I n = s.n * part / parts; n < s.n * (part + 1) / parts; ++n) {
                deal(x + n * s.in * s.rows * s.columns, own.dealt, s, own.padded);
                const float* g = gy + n * s.out * s.high * s.wide;
                for (I row = 0; row < s.down; row += rows) {
                    const I here = std::min(rows, s.down - row);
                    const I count = here * s.across;
                    transform(own.dealt, row * s.across, (count + LANES - 1) / LANES, s,
                              stride, own.more);
                    const I high = std::min(2 * here, s.high - 2 * row);
                    float* to = sum;
                    for (I v = 0, wide; v < width / LANES; v += wide) {
                        wide = std::min(most, width / LANES - v);
                        transform_gradient(
                            g + v * LANES * s.high * s.wide + 2 * row * s.wide,
                            std::min(s.out - v * LANES, wide * LANES), here, high,
                            wide * LANES, s, turned, gradient);
                        for (I p = 0; p < 16; ++p)
                        for (I c = 0; c < s.in; c += 8, to += 8 * wide * LANES) {
                            const float* from = gradient + p * count * wide * LANES;
                            const float* pairs[8];
                            for (I i = 0; i < 8; ++i)
                                pairs[i] = own.more
                                    + (p * s.in + std::min(c + i, s.in - 1)) * stride;
                            #define SUM(V) \
                                correlate<float, 8, V>(pairs, from, 1, count, 0, to)
                            if (wide == 3) SUM(REGISTERS / 32 * 2 + 1);
                            else if (wide == 2) SUM(REGISTERS / 32 + 1);
                            else SUM(1);
                        }
                    }
                }
            }
        }
        #pragma omp for schedule(static)
        for (I i = 0; i < room; ++i)
            for (I part = 1; part < parts; ++part) sums[i] += sums[part * room + i];
        #pragma omp for schedule(static)
        for (I k = 0; k < s.out; ++k) {
            I at = k / (most * LANES) * most * LANES;
            I wide = std::min(most * LANES, width - at);
            for (I c = 0; c < s.in; ++c) {
                const float* m = sums + 16 * at * padded + c * wide + k - at;
                const I each = padded * wide;
                float t[3][4], *y = gw + (k * s.in + c) * 9;
                for (int j = 0; j < 4; ++j, m += each) {
                    float half1 = m[4 * each] * 0.5f, half2 = m[8 * each] * 0.5f;
                    t[0][j] = m[0] + half1 + half2;
                    t[1][j] = half1 - half2;
                    t[2][j] = half1 + half2 + m[12 * each];
                }
                for (int i = 0; i < 3; ++i, y += 3) {
                    float half1 = t[i][1] * 0.5f, half2 = t[i][2] * 0.5f;
                    y[0] = t[i][0] + half1 + half2;
                    y[1] = half1 - half2;
                    y[2] = half1 + half2 + t[i][3];
                }
            }
        }
    }
}
"""
