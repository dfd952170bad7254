"""Gradients, and gradients of gradients, against differences along a random line."""

import numpy as np

import minidl as md


def check_gradients(function, *arrays, step=1e-5, tolerance=1e-6) -> None:
    """For s = sum(w (y + y^2)) of all results y: y^2 makes the second order of linear
    functions count. Integer arrays are passed on as they are."""
    rng = np.random.default_rng(0)
    real = [np.asarray(a).dtype.kind == "f" for a in arrays]
    lines = [
        rng.standard_normal(np.shape(a)) if r else None
        for a, r in zip(arrays, real, strict=True)
    ]
    second = [
        rng.standard_normal(np.shape(a)) for a, r in zip(arrays, real, strict=True) if r
    ]

    def at(t):
        inputs = [
            md.tensor(np.asarray(a, np.float64) + t * v, requires_grad=True)
            if r
            else md.tensor(a)
            for a, v, r in zip(arrays, lines, real)
        ]
        return inputs, [x for x, r in zip(inputs, real) if r]

    def value(t, order):
        inputs, wanted = at(t)
        weights = np.random.default_rng(1)
        results = function(*inputs)
        s = md.tensor(0.0, dtype=np.float64)
        for y in results if isinstance(results, tuple) else (results,):
            s = s + (md.tensor(weights.standard_normal(y.shape)) * (y + y * y)).sum()
        if order == 2:
            gradients = md.autograd.grad(s, wanted, create_graph=True)
            products = [(g * md.tensor(u)).sum() for g, u in zip(gradients, second)]
            s = sum(products[1:], products[0])
        slopes = md.autograd.grad(s, wanted, allow_unused=True)
        slope = sum(
            (g.numpy() * v).sum()
            for g, v in zip(slopes, [v for v in lines if v is not None])
            if g is not None
        )
        return s.item(), slope

    for order in (1, 2):
        slope = value(0.0, order)[1]
        expected = (value(step, order)[0] - value(-step, order)[0]) / (2 * step)
        np.testing.assert_allclose(
            slope,
            expected,
            rtol=tolerance,
            atol=tolerance * 10,
            err_msg=f"order {order}",
        )
