"""Softmax, cross entropy, normalisation, pooling and dropout for gpu_check: right, and
how fast beside a copy. With NumPy in CuPy's place the same code looks at the CPU."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from gpu_benchmarks import copy_rate, device_of, milliseconds, per_second
from gpu_checks import HALVES, NORM, norm_error, rounded, verdict
from gpu_report import attempt

from minidl.array import pooling
from minidl.array.cross_entropy import cross_entropy, deviation
from minidl.array.device import to_numpy
from minidl.array.dropout import dropout, kept
from minidl.array.random import integers, normal
from minidl.array.softmax import (
    log_softmax,
    log_softmax_gradient,
    softmax,
    softmax_gradient,
)
from minidl.array.standardize import (
    rescale,
    rescale_gradient,
    standardize,
    standardize_gradient,
)

SCORES = [(300, 10), (64, 1000), (5, 5003), (3, 7, 20)]
NORMALISED = {  # shape, dims, shape of the parameters
    "batch norm": ((16, 8, 14, 14), (0, 2, 3), (1, 8, 1, 1)),
    "batch norm of rows": ((3000, 50), (0,), (1, 50)),
    "layer norm": ((60, 777), (1,), (777,)),
    "group norm": ((4, 8, 3, 50), (2, 3), (1, 8, 3, 1)),
}


def rows(xp, quick: bool) -> Iterator[dict]:
    """Against float64 on the CPU, then timed."""
    for dtype in ("float32",) if quick else ("float32", "float64", *HALVES):
        for shape in SCORES:
            rows = compare_scores(xp, np.dtype(dtype), shape)
            yield from attempt(f"rows {shape} {np.dtype(dtype)}", rows)
        for name, case in NORMALISED.items():
            rows = compare_norm(xp, name, np.dtype(dtype), *case)
            yield from attempt(f"{name} {np.dtype(dtype)}", rows)
    yield from rates(xp, quick)


def held(name: str, dtype, pairs: dict) -> Iterator[dict]:
    """A row for each part: (computed, in float64)."""
    for part, pair in pairs.items():
        error = norm_error(*pair)
        yield verdict(f"{name} {part} {dtype}", error, NORM[dtype.itemsize])


def compare_scores(xp, dtype, shape) -> Iterator[dict]:
    rng = np.random.default_rng(4)
    (x, x64), (g, g64) = rounded(rng, shape, dtype), rounded(rng, shape, dtype)
    (gt, gt64) = rounded(rng, shape[:1] + shape[2:], dtype)
    labels = rng.integers(0, shape[1], gt.shape)
    pairs = {}
    for name, forward, backward in (
        ("softmax", softmax, softmax_gradient),
        ("log softmax", log_softmax, log_softmax_gradient),
    ):
        y, y64 = forward(xp.asarray(x), 1), forward(x64, 1)
        gx = backward(xp.asarray(g), y, 1)
        pairs[name] = y, y64
        own = to_numpy(y).astype(np.float64)  # rounded, as the gradient finds it
        pairs[f"{name} gradient"] = gx, backward(g64, own, 1)
    for smoothing in (0.0, 0.1):
        terms, p = cross_entropy(xp.asarray(x), xp.asarray(labels), smoothing)
        slope = deviation(xp.asarray(gt), p, xp.asarray(labels), smoothing)
        own = to_numpy(p).astype(np.float64)
        name = "cross entropy" + ", smoothed" * (smoothing > 0)
        pairs[name] = terms, cross_entropy(x64, labels, smoothing)[0]
        pairs[f"{name} gradient"] = slope, deviation(gt64, own, labels, smoothing)
    yield from held(f"rows {shape}", dtype, pairs)


def compare_norm(xp, name, dtype, shape, dims, parameters) -> Iterator[dict]:
    rng = np.random.default_rng(5)
    (x, x64), (g, g64) = rounded(rng, shape, dtype), rounded(rng, shape, dtype)
    (w, w64), (b, b64) = (rounded(rng, parameters, dtype) for _ in "wb")
    results = []
    for arrays in (map(xp.asarray, (x, w, b, g)), (x64, w64, b64, g64)):
        a, v, shift, slope = arrays
        y, mean, var = standardize(a, v, shift, dims, 1e-5, True)
        back = standardize_gradient(slope, a, v, mean, var, dims, 1e-5, True)
        found = {"forward": y, "variance": var} | gradients(back, parameters)
        if 0 in dims:  # batch norm, which is evaluated by statistics that it has
            given = mean, var, dims, 1e-5
            y, back = (
                rescale(a, v, shift, *given),
                rescale_gradient(slope, a, v, *given),
            )
            more = {"forward": y} | gradients(back, parameters)
            found |= {f"{part}, given statistics": x for part, x in more.items()}
        results.append(found)
    ours, wanted = results
    yield from held(name, dtype, {part: (ours[part], wanted[part]) for part in ours})


def gradients(found: tuple, shape) -> dict:
    """Of the input, and of weight and bias, which have this shape."""
    gx, gw, gb = found
    of_parameters = [summed_to(to_numpy(part), shape) for part in (gw, gb)]
    names = "gradient", "of weight", "of bias"
    return dict(zip(names, (gx, *of_parameters), strict=True))


def summed_to(array, shape):
    """What has been broadcast from this shape, summed to it in float64."""
    whole = (1,) * (array.ndim - len(shape)) + tuple(shape)
    dims = tuple(d for d, n in enumerate(whole) if n == 1)
    return array.astype(np.float64).sum(dims, keepdims=True).reshape(shape)


def rates(xp, quick: bool) -> Iterator[dict]:
    """GB/s: every array counted as often as the formula must read or write it."""
    copy = copy_rate(xp, True)
    count = 1 << 16 if xp is np else (1 << 24 if quick else 1 << 27)
    for dtype in ("float32", *HALVES[-1:]):
        for name, (function, passes) in cases(xp, count, dtype).items():
            nbytes = passes * count * np.dtype(dtype).itemsize
            times = per_second(nbytes, milliseconds(xp, function, 5, 5), copy)
            yield {"name": f"{name} {np.dtype(dtype)}", "ok": None, **times}


def cases(xp, count: int, dtype) -> dict[str, tuple[Callable, float]]:
    """{name: (a call, passes over `count` elements)}"""
    flat = normal((count,), device=device_of(xp)).astype(dtype)
    found = {}
    for classes in (16, 1024, 32768):
        x = flat.reshape(-1, classes)
        labels = integers(0, classes, (len(x),), device=device_of(xp))
        terms, p = cross_entropy(x, labels)
        name = f"of {classes} classes"
        found[f"softmax {name}"] = partial(softmax, x, 1), 2
        found[f"softmax gradient {name}"] = partial(softmax_gradient, x, p, 1), 3
        found[f"cross entropy {name}"] = partial(cross_entropy, x, labels), 2
        found[f"its gradient {name}"] = partial(deviation, terms, p, labels), 2
    images, dims = flat.reshape(-1, 64, 32, 32), (0, 2, 3)
    w = normal((1, 64, 1, 1), device=device_of(xp)).astype(dtype)
    found |= normalisation("batch norm", images, w, dims, (3, 5))
    w = normal((1024,), device=device_of(xp)).astype(dtype)
    found |= normalisation("layer norm", flat.reshape(-1, 1024), w, (1,), (2, 5))
    window = ((2, 2), (2, 2), (0, 0))
    y, where = pooling.max_pool_forward(images, *window, (1, 1))
    index = 4 / flat.itemsize  # a position beside an element
    forward = partial(pooling.max_pool_forward, images, *window, (1, 1))
    found["max pooling"] = forward, 1 + (1 + index) / 4
    back = pooling.max_pool_backward
    backward = partial(back, y, where, images.shape, *window, (1, 1))
    found["max pooling gradient"] = backward, 1 + (1 + index) / 4
    found["average pooling"] = partial(pooling.avg_pool_forward, images, *window), 1.25
    mask = dropout(flat, 0.5)[1]
    bit = 1 / flat.itemsize
    found["dropout"] = partial(dropout, flat, 0.5), 2 + bit
    found["dropout gradient"] = partial(kept, flat, mask, scale=2.0), 2 + bit
    return found


def normalisation(name, x, w, dims, passes) -> dict[str, tuple[Callable, float]]:
    """Forward and backward, with passes over x."""
    _, mean, var = standardize(x, w, w, dims, 1e-5, True)
    forward = partial(standardize, x, w, w, dims, 1e-5, True)
    backward = partial(standardize_gradient, x, x, w, mean, var, dims, 1e-5, True)
    found = {name: (forward, passes[0]), f"{name} gradient": (backward, passes[1])}
    if 0 in dims:
        given = partial(rescale, x, w, w, mean, var, dims, 1e-5)
        found[f"{name}, given statistics"] = given, 2
    return found
