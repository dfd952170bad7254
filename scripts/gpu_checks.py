"""What gpu_check holds to the CPU: rows of {"name", "ok", "error", "tolerance"}.

Every section is a generator that takes the array module to check and whether to be
quick; with NumPy in CuPy's place it checks the CPU against itself.
"""

import gc
import importlib
import pkgutil
from collections.abc import Iterator

import numpy as np
from gpu_report import attempt

import minidl
from minidl.array import convolution, pooling
from minidl.array.arguments import signature
from minidl.array.device import bfloat16, to_numpy
from minidl.array.kernel import Kernel
from minidl.array.loops import NumpyLoop
from minidl.ops.pointwise import Pointwise

HALVES = ("float16",) if bfloat16 is None else ("float16", bfloat16)
# of values that are rounded to these types: largest error of an element, and norm
ELEMENT = {8: 1e-12, 4: 2e-5, 2: 1e-2}
NORM = {8: 1e-12, 4: 1e-5, 2: 1e-2}

SWITCHES = ("skip", "found")  # scalars with which a kernel would leave all as it is


def verdict(name: str, error: float, tolerance: float) -> dict:
    """A row; NaN passes no check."""
    good = bool(error <= tolerance)
    shown = float(error) if np.isfinite(error) else str(error)
    return {"name": name, "ok": good, "error": shown, "tolerance": tolerance}


def largest_error(got, wanted) -> float:
    """max |got - wanted| / (1 + |wanted|); infinities and NaN must be the same."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return np.inf
    differ = (got != wanted) & ~((got != got) & (wanted != wanted))
    a, b = (x[differ].astype(np.float64) for x in (got, wanted))
    with np.errstate(all="ignore"):
        return float(np.max(np.abs(a - b) / (1 + np.abs(b)), initial=0))


def norm_error(got, wanted) -> float:
    """|got - wanted| / |wanted|, of float64 `wanted`."""
    got = to_numpy(got).astype(np.float64)
    if got.shape != wanted.shape:
        return np.inf
    return float(np.linalg.norm(got - wanted) / max(np.linalg.norm(wanted), 1e-30))


# --- kernels


def all_kernels() -> tuple[list[Kernel], list[Kernel]]:
    """The registry, and what first and second derivatives add to it."""
    for module in pkgutil.walk_packages(minidl.__path__, "minidl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    known = dict(Kernel.registry)
    for _ in range(2):
        for function in [x for x in gc.get_objects() if type(x) is Pointwise]:
            for position, _ in enumerate(function.arguments):
                function.gradient(position)
    made = Kernel.registry.items()
    return list(known.values()), [k for name, k in made if name not in known]


def kernels(xp, quick: bool) -> Iterator[dict]:
    """Every kernel, for every type that it takes, against its run in NumPy.

    Derivatives in float32 alone: types are converted alike in all kernels.
    """
    known, derived = all_kernels()
    for kernel in [*known, *derived]:
        whole = kernel.compute is not None and kernel.compute.kind in "iu"
        types = ("float32", "float64", *HALVES)
        if whole or kernel.body.needs_integer:
            types = ("uint64",)
        for dtype in types[:1] if quick or kernel in derived else types:
            yield compare_kernel(xp, kernel, np.dtype(dtype))
    for kernel in known[::10]:  # arrays with gaps go another way, in all alike
        if not kernel.body.needs_integer and kernel.compute is None:
            yield compare_kernel(xp, kernel, np.dtype("float32"), 2)


def compare_kernel(xp, kernel: Kernel, dtype: np.dtype, step: int = 1) -> dict:
    """Against NumPy's run in the same type, which may itself be this far from one in
    float64: a body that subtracts nearly equal numbers is not the device's fault."""
    name = f"{kernel.name} {dtype}{', with gaps' * (step > 1)}"
    draw = np.random.default_rng(0)
    size, first = 1003, len(kernel.inputs)
    if dtype.kind == "u":
        arrays = [draw.integers(0, 2**63, size).astype(dtype) for _ in kernel.names]
        values = [1 + k for k, _ in enumerate(kernel.scalars)]
    else:
        arrays = [(draw.normal(size=size) * 2).astype(dtype) for _ in kernel.names]
        values = [
            0.0 if scalar in SWITCHES else 0.1 + 0.2 * (k % 5)
            for k, scalar in enumerate(kernel.scalars)
        ]
    try:
        there = [xp.array(array.repeat(step))[::step] for array in arrays]
        scalars = dict(zip(kernel.scalars, values, strict=True))
        kernel(*there[:first], out=tuple(there[first:]), **scalars)
        got = [to_numpy(array) for array in there[first:]]
        T, dtypes, _ = signature(kernel, arrays[:first], arrays[first:], values)
        wide = T if T.kind in "iu" else np.dtype(np.float64)
        exact = [array.astype(wide) for array in arrays]
        for run, at in ((T, arrays), (wide, exact)):
            NumpyLoop(kernel.body, run, dtypes)(size, at, values)
    except Exception as error:
        return {"name": name, "ok": False, "error": f"{type(error).__name__}: {error}"}
    tolerance = ELEMENT[dtype.itemsize] * (dtype.kind != "u")
    errors = []
    for ours, wanted, best in zip(got, arrays[first:], exact[first:], strict=True):
        errors.append(largest_error(ours, wanted))
        if dtype.kind != "u":
            both = np.isfinite(wanted) & np.isfinite(best)
            own = largest_error(wanted[both].astype(wide), best[both])
            tolerance = max(tolerance, 4 * own)
    return verdict(name, max(errors), tolerance)


# --- convolution and pooling

CONVOLUTIONS = {  # x, w, (stride, padding, dilation, groups)
    "3x3": ((8, 3, 17, 16), (8, 3, 3, 3), ((1, 1), (1, 1), (1, 1), 1)),
    "1x1": ((8, 16, 9, 9), (24, 16, 1, 1), ((1, 1), (0, 0), (1, 1), 1)),
    "strided, in groups": ((4, 8, 9, 10), (12, 4, 3, 3), ((2, 3), (1, 0), (1, 1), 2)),
    "dilated, 1-d": ((4, 6, 40), (6, 6, 5), ((2,), (4,), (2,), 1)),
    "3-d": ((2, 4, 6, 7, 8), (4, 4, 3, 3, 3), ((1, 2, 1), (1, 1, 0), (1, 1, 1), 1)),
    "large, in chunks": ((48, 64, 28, 28), (64, 64, 3, 3), ((1, 1),) * 3 + (1,)),
}
POOLINGS = {  # x, (kernel, stride, padding)
    "2x2": ((8, 16, 28, 28), ((2, 2), (2, 2), (0, 0))),
    "3x3, overlapping": ((4, 5, 13, 12), ((3, 3), (2, 2), (1, 1))),
    "1-d": ((4, 5, 30), ((4,), (3,), (2,))),
}


def windows(xp, quick: bool) -> Iterator[dict]:
    """Convolution and pooling, with gradients, against float64 on the CPU."""
    for dtype in ("float32",) if quick else ("float32", "float64", *HALVES):
        for name, case in CONVOLUTIONS.items():
            label = f"conv {name}", np.dtype(dtype)
            yield from attempt(label[0], compare_convolution(xp, *label, *case))
        for name, case in POOLINGS.items():
            label = f"pool {name}", np.dtype(dtype)
            yield from attempt(label[0], compare_pooling(xp, *label, *case))


def rounded(rng, shape, dtype):
    """(in that type, the same numbers in float64)"""
    x = rng.normal(size=shape).astype(dtype)
    return x, x.astype(np.float64)


def compare_convolution(xp, name, dtype, x_shape, w_shape, geometry):
    rng = np.random.default_rng(1)
    shape = convolution.output_shape(x_shape, w_shape, *geometry)
    (x, x64), (w, w64) = rounded(rng, x_shape, dtype), rounded(rng, w_shape, dtype)
    (b, b64), (g, g64) = rounded(rng, shape[1], dtype), rounded(rng, shape, dtype)
    x, w, b, g = map(xp.asarray, (x, w, b, g))
    forward, to_x, to_w = (
        convolution.conv_forward,
        convolution.conv_input_gradient,
        convolution.conv_weight_gradient,
    )
    pairs = {
        "forward": (forward(x, w, b, *geometry), forward(x64, w64, b64, *geometry)),
        "input gradient": (
            to_x(g, w, x_shape, *geometry),
            to_x(g64, w64, x_shape, *geometry),
        ),
        "weight gradient": (
            to_w(g, x, w_shape, *geometry),
            to_w(g64, x64, w_shape, *geometry),
        ),
    }
    for part, pair in pairs.items():
        yield verdict(f"{name} {part} {dtype}", norm_error(*pair), NORM[dtype.itemsize])


def compare_pooling(xp, name, dtype, x_shape, window):
    rng = np.random.default_rng(2)
    dilation = (1,) * len(window[0])
    x, x64 = rounded(rng, x_shape, dtype)
    wanted, where = pooling.max_pool_forward(x64, *window, dilation)
    got, indices = pooling.max_pool_forward(xp.asarray(x), *window, dilation)
    g, g64 = rounded(rng, wanted.shape, dtype)
    tolerance = NORM[dtype.itemsize]
    yield verdict(f"{name} max {dtype}", norm_error(got, wanted), 0.0)
    places = norm_error(indices, where.astype(np.float64))
    yield verdict(f"{name} places of the maxima {dtype}", places, 0.0)
    back = pooling.max_pool_backward
    got = back(xp.asarray(g), indices, x_shape, *window, dilation)
    error = norm_error(got, back(g64, where, x_shape, *window, dilation))
    yield verdict(f"{name} max gradient {dtype}", error, tolerance)
    pairs = {
        "mean": (pooling.avg_pool_forward, x, x64, ()),
        "mean gradient": (pooling.avg_pool_backward, g, g64, (x_shape,)),
    }
    for part, (function, narrow, wide, more) in pairs.items():
        got = function(xp.asarray(narrow), *more, *window)
        error = norm_error(got, function(wide, *more, *window))
        yield verdict(f"{name} {part} {dtype}", error, tolerance)
