"""One line to check the gradients of a function, and the gradients of those."""

import numpy as np

import minidl as md
from minidl.autograd import Tensor

STEP = 1e-6


def check_gradients(function, *arrays, order: int = 2) -> None:
    """Compare with a difference along one random direction, in float64."""
    rng = np.random.default_rng(0)
    points = [np.asarray(a, np.float64) for a in arrays]
    direction = [rng.standard_normal(p.shape) for p in points]
    inputs = [Tensor(p, True) for p in points]
    outputs = [y for y in listed(function(*inputs)) if y.requires_grad]
    weights = [rng.standard_normal(y.shape) for y in outputs]

    def total(sign: int) -> float:
        moved = [p + sign * STEP * d for p, d in zip(points, direction, strict=True)]
        results = listed(function(*[Tensor(p, True) for p in moved]))
        results = [y for y in results if y.requires_grad]
        return sum(
            float((y.numpy() * w).sum()) for y, w in zip(results, weights, strict=True)
        )

    def gradient(*inputs):
        ys = [y for y in listed(function(*inputs)) if y.requires_grad]
        given = [Tensor(w) for w in weights]
        return md.autograd.grad(
            ys, inputs, given, create_graph=True, materialize_grads=True
        )

    slope = sum(
        float((g.numpy() * d).sum())
        for g, d in zip(gradient(*inputs), direction, strict=True)
    )
    np.testing.assert_allclose(
        slope, (total(1) - total(-1)) / (2 * STEP), rtol=1e-5, atol=1e-6
    )
    if order > 1 and any(g.requires_grad for g in gradient(*inputs)):
        check_gradients(gradient, *arrays, order=order - 1)


def listed(x) -> list:
    return [x] if isinstance(x, Tensor) else list(x)
