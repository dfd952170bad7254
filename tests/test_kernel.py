from minidl.array.kernel import Kernel

EVERYTHING = Kernel(
    "test_everything",
    inputs="x y",
    outputs="z w",
    scalars="a b",
    body="""
        auto inside = (x > a) & ~(y <= b);
        auto t = where(inside, x * 0.5 + y, sqrt(abs(x)) / (y + 3));
        t += min(x, y) - max(t, 1e-3);
        w = isnan(t) | isinf(x) | (t > 1) ^ (y == 0);
        z = round(t) - floor(y) + ceil(x) * a / 3 - trunc(b * t);
        z += exp(-abs(x)) + log(abs(y) + 1) + log1p(abs(x)) + expm1(-abs(y));
        z += sin(x) * cos(y) + tan(a) + tanh(t) + erf(x) + pow(abs(x), b) + atan2(x, y);
    """,
)
