"""Matrix products and convolutions for gpu_check: right, capturable, and how fast.

With NumPy in CuPy's place the same code checks and measures the CPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from gpu_benchmarks import device_of, milliseconds, tf32_in, torch_or_none
from gpu_checks import (
    CONVOLUTIONS,
    HALVES,
    NORM,
    compare_convolution,
    norm_error,
    rounded,
    verdict,
)
from gpu_report import attempt

from minidl.array import convolution, cudnn, cudnn_plans
from minidl.array.device import to_numpy
from minidl.array.matmul import matmul
from minidl.array.precision import set_float32_matmul_precision
from minidl.array.random import normal

TF32_ERROR = 2e-3  # of norms: 11 bits of each factor
PRODUCTS = {  # a, b
    "square": ((128, 128), (128, 128)),
    "odd": ((37, 101), (101, 3)),
    "stacks": ((4, 3, 33, 17), (4, 3, 17, 20)),
    "a stack and a matrix": ((6, 40, 8), (8, 24)),
}
SIDE, QUICK_SIDE = 8192, 4096  # of the matrices that are timed
CONV = 64, 64, 56  # N, C = K, H = W of the convolution that is timed, 3 x 3


def products(xp, quick: bool) -> Iterator[dict]:
    """Every path against float64, then in a graph, then timed."""
    version = cudnn.version() if xp is not np else None
    yield {"name": "cuDNN", "ok": None, "note": version or "not used"}
    for dtype in ("float32", "float64", *HALVES):
        for name, shapes in PRODUCTS.items():
            rows = compare_product(xp, name, np.dtype(dtype), *shapes)
            yield from attempt(f"product {name}", rows)
    with precision("high"):
        rows = compare_product(xp, "TF32", np.dtype("float32"), *PRODUCTS["square"])
        yield from attempt("product TF32", rows)
    for path in paths(xp):
        with chosen(path):
            for name, case in CONVOLUTIONS.items():
                for dtype in ("float32",) if quick else ("float32", *HALVES):
                    label = f"conv {name} by {path}"
                    rows = compare_convolution(xp, label, np.dtype(dtype), *case)
                    yield from attempt(label, rows)
            yield from attempt(f"ReLU by {path}", compare_relu(xp, path))
    if xp is not np:
        yield from attempt("a graph of products", captured(xp))
    yield from attempt("product rates", product_rates(xp, quick))
    yield from attempt("convolution rates", convolution_rates(xp, quick))


@contextmanager
def precision(word: str):
    """float32 products in this precision."""
    set_float32_matmul_precision(word)
    try:
        yield
    finally:
        set_float32_matmul_precision("highest")


def paths(xp) -> list[str]:
    """The ways of convolution that there are here."""
    return ["products"] + ["cuDNN"] * (xp is not np and cudnn.version() is not None)


@contextmanager
def chosen(path: str):
    """With cuDNN, or without."""
    before = cudnn_plans.frontend
    if path != "cuDNN":
        cudnn_plans.frontend = lambda: None
    try:
        yield
    finally:
        cudnn_plans.frontend = before


def compare_product(xp, name, dtype, a_shape, b_shape) -> Iterator[dict]:
    """A product, one of turned factors, and one that is added to float32."""
    rng = np.random.default_rng(4)
    (a, a64), (b, b64) = rounded(rng, a_shape, dtype), rounded(rng, b_shape, dtype)
    want = a64 @ b64
    there = [xp.asarray(x) for x in (a, b)]
    turned = [xp.asarray(np.ascontiguousarray(x.swapaxes(-1, -2))) for x in (a, b)]
    wide = np.float32 if dtype.itemsize == 2 else dtype
    begun = xp.asarray(np.ones(want.shape, wide))
    pairs = {
        "": (matmul(*there), want),
        " turned": (matmul(*(x.swapaxes(-1, -2) for x in turned)), want),
        " added": (matmul(*there, begun, accumulate=True), want + 1),
    }
    for label, (got, wanted) in pairs.items():
        tolerance = TF32_ERROR if name == "TF32" else NORM[got.dtype.itemsize]
        error = norm_error(got, wanted)
        yield verdict(f"product {name}{label} {dtype}", error, tolerance)


def compare_relu(xp, path: str) -> Iterator[dict]:
    """A convolution that ends with a ReLU, and one of NaN."""
    rng = np.random.default_rng(5)
    dtype, geometry = np.dtype("float32"), ((1, 1), (1, 1), (1, 1), 1)
    (x, x64), (w, w64) = (rounded(rng, s, dtype) for s in ((4, 8, 9, 9), (16, 8, 3, 3)))
    b, b64 = rounded(rng, 16, dtype)
    x[0, 0, 0, 0] = np.nan
    there = map(xp.asarray, (x, w, b))
    got = to_numpy(convolution.conv_forward(*there, *geometry, relu=True))
    want = np.maximum(convolution.conv_forward(x64, w64, b64, *geometry), 0)
    lost = np.count_nonzero(~np.isnan(got[0, :, :2, :2]))
    yield verdict(f"conv with ReLU by {path}: NaN that is lost", float(lost), 0.0)
    error = norm_error(got[1:], want[1:])
    yield verdict(f"conv with ReLU by {path}", error, NORM[4])


def captured(xp) -> Iterator[dict]:
    """Products and convolutions in a CUDA graph: the bits of an eager run."""
    a, b = normal((256, 256), device="cuda"), normal((256, 256), device="cuda")
    x, w = normal((8, 16, 20, 20), device="cuda"), normal((16, 16, 3, 3), device="cuda")
    geometry = (2, 2), (1, 1), (1, 1), 1

    def work():
        y = convolution.conv_forward(x, w, None, *geometry)
        gx = convolution.conv_input_gradient(y, w, x.shape, *geometry)
        gw = convolution.conv_weight_gradient(y, x, w.shape, *geometry)
        return [matmul(a, b), y, gx, gw]

    for path in paths(xp):
        stream, pool = xp.cuda.Stream(non_blocking=True), xp.cuda.MemoryPool()
        xp.cuda.Device().synchronize()
        with chosen(path), stream, xp.cuda.using_allocator(pool.malloc):
            eager = work()
            stream.begin_capture()
            try:
                results = work()
            finally:
                graph = stream.end_capture()
            for _ in range(2):
                graph.launch(stream)
            stream.synchronize()
            same = all(
                (one.view("uint32") == other.view("uint32")).all().get()
                for one, other in zip(eager, results, strict=True)
            )
            name = f"a graph of products and convolutions by {path}, bit for bit"
            yield verdict(name, 0.0 if same else 1.0, 0.0)


def product_rates(xp, quick: bool) -> Iterator[dict]:
    """TFLOP/s of square products."""
    n = 128 if xp is np else QUICK_SIDE if quick else SIDE
    torch = torch_or_none(xp)
    kinds = [("float32", "highest"), ("float32", "high"), ("float16", "highest")]
    for dtype, word in kinds + [(half, "highest") for half in HALVES[1:]]:
        a, b = (normal((n, n), device=device_of(xp)).astype(dtype) for _ in "ab")
        out = xp.empty_like(a)
        with precision(word):
            ms = milliseconds(xp, lambda a=a, b=b, out=out: matmul(a, b, out))
        name = "TF32" if word == "high" else str(np.dtype(dtype))
        row = {
            "name": f"product of {n} x {n}, {name}",
            "ok": None,
            **rate(2 * n**3, ms),
        }
        if torch is not None:
            kind = getattr(torch, str(np.dtype(dtype)))
            here = {"device": device_of(xp), "dtype": kind}
            x, y = (torch.randn(n, n, **here) for _ in "xy")
            with tf32_in(torch, word == "high"):
                row |= beside(xp, lambda x=x, y=y: x @ y, ms)
        yield row


def convolution_rates(xp, quick: bool) -> Iterator[dict]:
    """TFLOP/s of a convolution's three parts, by each path."""
    n, c, size = (2, 8, 12) if xp is np else CONV
    geometry = (1, 1), (1, 1), (1, 1), 1
    flops = 2 * n * c * c * 9 * size * size
    torch = torch_or_none(xp)
    kinds = [("float32", "highest"), ("float32", "high")]
    for dtype, word in kinds + [(half, "highest") for half in HALVES[1:]]:
        x, gy = (
            normal((n, c, size, size), device=device_of(xp)).astype(dtype) for _ in "xy"
        )
        w = normal((c, c, 3, 3), device=device_of(xp)).astype(dtype)
        name = "TF32" if word == "high" else str(np.dtype(dtype))
        parts = {
            "forward": (convolution.conv_forward, x, w, None),
            "input gradient": (convolution.conv_input_gradient, gy, w, x.shape),
            "weight gradient": (convolution.conv_weight_gradient, gy, x, w.shape),
        }
        for path in paths(xp):
            for part, call in parts.items():
                with chosen(path), precision(word):
                    ms = milliseconds(xp, partial(*call, *geometry), repeats=5)
                label = f"conv {n}x{c}x{size}x{size}, {part} by {path}, {name}"
                row = {"name": label, "ok": None, **rate(flops, ms)}
                if torch is not None and part == "forward":
                    row |= torch_convolution(xp, torch, x, w, dtype, word, ms)
                yield row


def torch_convolution(xp, torch, x, w, dtype, word, ms: float) -> dict:
    kind = getattr(torch, str(np.dtype(dtype)))
    here = {"device": device_of(xp), "dtype": kind}
    x, w = (torch.randn(*a.shape, **here) for a in (x, w))
    with tf32_in(torch, word == "high"):
        return beside(xp, lambda: torch.nn.functional.conv2d(x, w, padding="same"), ms)


def rate(flops: float, ms: float) -> dict:
    return {"ms": ms, "tflop_per_s": flops / ms / 1e9}


def beside(xp, function: Callable, ms: float) -> dict:
    """PyTorch's time for the same."""
    theirs = milliseconds(xp, function, repeats=5)
    return {"torch_ms": theirs, "times_torch": theirs / ms}
