"""C++ for exp, log, tanh and erf of floats that compilers turn into vector code.

A library's expf is called element by element, at ten times the cost of a vector
loop. These have no branches: they reduce the argument, sum a polynomial in double,
and round once to float, so that they are within one unit in the last place, the same
for every element whatever its place, and exact about NaN, infinity and zero.
Doubles go to the library.
"""

from math import factorial

# Chebyshev fits: erf(x) / x in x x up to 1, and above, in t = 1 / (1 + x / 2),
# erfc(x) exp(x x) up to 5, where erf is 1 in float
_ERF = """1.12837916709 -0.376126388899 0.112837913135 -0.0268661336246
    0.00522378500402 -0.000854267050872 0.000119569461756 -1.39116973703e-05
    1.05952667872e-06""".split()
_ERFC = """1.07310732745e-05 0.281822402086 0.285186613306 0.226194049551
    0.265782666423 -0.177879210555 0.511099709725 -0.710062357702 0.404911222882
    -0.0870972957397""".split()


def _horner(coefficients: list[str], variable: str) -> str:
    """The polynomial with these coefficients, lowest first."""
    return f" + {variable} * (".join(coefficients) + ")" * (len(coefficients) - 1)


_EXP_R = _horner([f"1.0 / {factorial(n)}" for n in range(9)], "r")
_LOG_Q = _horner([f"1.0 / {n}" for n in (1, 3, 5, 7, 9, 11)], "q")

VECTOR_MATH = f"""
static inline double of_bits(int64_t bits) {{
    double value;
    memcpy(&value, &bits, 8);
    return value;
}}
static inline int64_t bits_of(double value) {{
    int64_t bits;
    memcpy(&bits, &value, 8);
    return bits;
}}
static inline double wide_exp(double x) {{  // x = n log 2 + r
    x = x > 150 ? 150 : x < -150 ? -150 : x;
    const double magic = 6755399441055744.0;  // 1.5 * 2^52: rounds to an integer
    const double shifted = x * 1.4426950408889634 + magic;
    const double r = x - (shifted - magic) * 0.6931471805599453;
    const int64_t n = (int64_t)((uint64_t)(bits_of(shifted) + 1023) << 52);
    return of_bits(n) * ({_EXP_R});
}}
static inline double wide_log(double x) {{  // x = 2^e m, m from sqrt(1/2)
    const int64_t bits = bits_of(x);
    const double e = of_bits((bits >> 52) | 0x4330000000000000) - 4503599627370496.0;
    const double m = of_bits((bits & 0x000fffffffffffff) | 0x3ff0000000000000);
    const bool high = m > 1.4142135623730951;
    const double h = high ? 0.5 * m : m, s = (h - 1) / (h + 1), q = s * s;
    const double log_m = 2 * s * ({_LOG_Q});
    const double y = (e - (high ? 1022 : 1023)) * 0.6931471805599453 + log_m;
    const double end = x == 0 ? -INFINITY : x > 0 ? x : NAN;  // infinity stays
    return x > 0 && x < INFINITY ? y : end;
}}
static inline float vector_exp(float x) {{ return (float)wide_exp(x); }}
static inline float vector_log(float x) {{ return (float)wide_log(x); }}
static inline float vector_expm1(float a) {{
    const double x = a, series = x * (1 + x * (0.5 + x * (1.0 / 6)));
    return (float)(fabs(x) < 1e-4 ? series : wide_exp(x) - 1);
}}
static inline float vector_log1p(float a) {{
    const double x = a, series = x * (1 - x * (0.5 - x * (1.0 / 3)));
    return (float)(fabs(x) < 1e-4 ? series : wide_log(1 + x));
}}
static inline float vector_tanh(float a) {{
    const double x = a, series = x * (1 - x * x * (1.0 / 3));
    const double large = x > 20 ? 20 : x < -20 ? -20 : x, e = wide_exp(2 * large);
    return (float)(fabs(x) < 1e-4 ? series : (e - 1) / (e + 1));
}}
static inline float vector_erf(float a) {{
    const double x = a, u = x * x, most = fabs(x) > 5 ? 5 : fabs(x);
    const double t = 1 / (1 + 0.5 * most);
    const double near = x * ({_horner(_ERF, "u")});
    const double far = 1 - wide_exp(-most * most) * ({_horner(_ERFC, "t")});
    return (float)(fabs(x) < 1 ? near : x < 0 ? -far : x != x ? x : far);
}}
""" + "".join(
    f"static inline double vector_{name}(double x) {{ return {name}(x); }}\n"
    f"#define {name} vector_{name}\n"
    for name in ("exp", "log", "expm1", "log1p", "tanh", "erf")
)
