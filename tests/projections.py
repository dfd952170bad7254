"""Gradients, and gradients of those, against differences along a random direction."""

import numpy as np

import minidl as md


def check_gradients(function, *arrays, order: int = 2) -> None:
    """Compare in float64; integers and bools are passed on as they are."""
    rng = np.random.default_rng(0)
    arrays = [np.asarray(a) for a in arrays]
    arrays = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
    places = [i for i, a in enumerate(arrays) if a.dtype.kind == "f"]
    directions = {i: rng.standard_normal(arrays[i].shape) for i in places}

    def tensors(step):
        moved = [
            a + step * directions[i] if i in directions else a
            for i, a in enumerate(arrays)
        ]
        return [
            md.tensor(a, requires_grad=i in directions) for i, a in enumerate(moved)
        ]

    seeds: list[np.ndarray] = []

    def first(inputs):
        y = function(*inputs)
        if not seeds:
            seeds.append(rng.standard_normal(y.shape))
        return (y * md.tensor(seeds[0])).sum()

    def second(inputs):
        value = first(inputs)
        wanted = [inputs[i] for i in places]
        found = md.autograd.grad(value, wanted, create_graph=True, allow_unused=True)
        if len(seeds) == 1:
            seeds.extend(
                rng.standard_normal(a.shape) for a in (inputs[i] for i in places)
            )
        parts = [
            (g * md.tensor(s)).sum()
            for g, s in zip(found, seeds[1:], strict=True)
            if g is not None
        ]
        return sum(parts[1:], parts[0])

    for value in (first, second)[:order]:
        inputs = tensors(0.0)
        result = value(inputs)
        if not result.requires_grad:
            continue
        slope = 0.0
        wanted = [inputs[i] for i in places]
        found = md.autograd.grad(result, wanted, allow_unused=True)
        for i, g in zip(places, found, strict=True):
            slope += 0.0 if g is None else float((g.numpy() * directions[i]).sum())
        step = 1e-5
        with md.enable_grad():
            up, down = value(tensors(step)).item(), value(tensors(-step)).item()
        expected = (up - down) / (2 * step)
        assert abs(slope - expected) <= 1e-6 + 1e-5 * abs(expected), (slope, expected)
