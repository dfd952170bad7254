"""Gradients, and gradients of gradients, against differences along a random line."""

import numpy as np

import minidl as md


def check_gradients(function, *arrays, step=1e-5, tolerance=1e-6) -> None:
    """For s = sum(w (y + y^2)) of all results y: y^2 makes the second order of linear
    functions count. Integer arrays are passed on as they are."""
    rng = np.random.default_rng(0)
    arrays = [np.asarray(a) for a in arrays]
    line, other = (
        [rng.standard_normal(a.shape) for a in arrays if a.dtype.kind == "f"]
        for _ in range(2)
    )

    def value(t, order):
        """s, or its slope along the other line; and the slope of that along line."""
        directions = iter(line)
        inputs = [
            md.tensor(a + t * next(directions), dtype="f8", requires_grad=True)
            if a.dtype.kind == "f"
            else md.tensor(a)
            for a in arrays
        ]
        wanted = [x for x in inputs if x.requires_grad]
        s = total(function(*inputs))
        if order == 2:
            s = along(md.autograd.grad(s, wanted, create_graph=True), other)
        slopes = md.autograd.grad(s, wanted, materialize_grads=True)
        return s.item(), along(slopes, line).item()

    for order in (1, 2):
        slope = value(0.0, order)[1]
        expected = (value(step, order)[0] - value(-step, order)[0]) / (2 * step)
        np.testing.assert_allclose(
            slope, expected, tolerance, tolerance * 10, err_msg=f"order {order}"
        )


def total(results):
    rng = np.random.default_rng(1)
    s = md.tensor(0.0, dtype="f8")
    for y in results if isinstance(results, tuple) else (results,):
        s = s + (md.tensor(rng.standard_normal(y.shape)) * (y + y * y)).sum()
    return s


def along(gradients, line):
    products = [(g * md.tensor(v)).sum() for g, v in zip(gradients, line, strict=True)]
    return sum(products[1:], products[0])
