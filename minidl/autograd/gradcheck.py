"""Gradients checked against differences, along one random direction an input.

With f the function, v random weights of its outputs and u a random direction:

    sum(grad(v . f)(x) u)  =  (v . f(x + eps u) - v . f(x - eps u)) / (2 eps)

One wrong element changes the left side, so one projection finds what perturbing every
element would, at the cost of two evaluations.
"""

from collections.abc import Callable

import numpy as np

from minidl.array.device import to_numpy
from minidl.array.random import Generator, normal
from minidl.autograd.differentiate import grad
from minidl.autograd.mode import enable_grad
from minidl.autograd.tensor import Tensor


class GradcheckError(RuntimeError):
    """A gradient that differs from the difference quotient."""


def gradcheck(
    func: Callable,
    inputs,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """Whether |analytic - numeric| <= atol + rtol |numeric| for every input.

    `inputs` is a Tensor or a tuple of what func is called with; those that require a
    gradient are checked and must be float64 (ValueError otherwise). A gradient that
    is wrong raises GradcheckError, or gives False without `raise_exception`.
    """
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    checked = [i for i, x in enumerate(inputs) if needs_gradient(x)]
    if not checked:
        raise ValueError("gradcheck needs at least one input that requires a gradient")
    for i in checked:
        if inputs[i].dtype != np.float64:
            raise ValueError(f"gradcheck needs float64, input {i} is {inputs[i].dtype}")
    random = Generator(len(inputs))
    with enable_grad():
        outputs = floating_outputs(func(*inputs))
        weights = [randomly(y, random) for y in outputs]
        gradients = analytic_gradients(outputs, weights, [inputs[i] for i in checked])
        for i, g in zip(checked, gradients, strict=True):
            u = randomly(inputs[i], random)
            numeric = slope(func, inputs, i, u.data * eps, weights) / (2 * eps)
            analytic = 0.0 if g is None else projection([g], [u])
            if abs(analytic - numeric) <= atol + rtol * abs(numeric):
                continue
            if not raise_exception:
                return False
            raise GradcheckError(
                f"the gradient of input {i}, of shape {inputs[i].shape}, along a "
                f"random direction is {analytic:.10g}, by differences {numeric:.10g}"
            )
    return True


def gradgradcheck(
    func: Callable,
    inputs,
    grad_outputs=None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """gradcheck of the gradient: as a function of inputs and grad_outputs.

    `grad_outputs`, one for each floating-point output, are random where not given.
    """
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if grad_outputs is None:
        random = Generator(len(inputs) + 1)
        with enable_grad():
            outputs = floating_outputs(func(*inputs))
        grad_outputs = [randomly(y, random).requires_grad_() for y in outputs]
    elif isinstance(grad_outputs, Tensor):
        grad_outputs = [grad_outputs]

    def gradient(*everything):
        x = everything[: len(inputs)]
        outputs = floating_outputs(func(*x))
        found = analytic_gradients(
            outputs,
            everything[len(inputs) :],
            [t for t in x if needs_gradient(t)],
            create_graph=True,
        )
        return tuple(g for g in found if g is not None)

    return gradcheck(
        gradient,
        (*inputs, *grad_outputs),
        eps=eps,
        atol=atol,
        rtol=rtol,
        raise_exception=raise_exception,
    )


def needs_gradient(x) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def floating_outputs(outputs) -> list[Tensor]:
    """The outputs that can have a gradient."""
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return [y for y in outputs if isinstance(y, Tensor) and y.is_floating_point()]


def randomly(like: Tensor, random: Generator) -> Tensor:
    """Random numbers in the shape, type and place of a Tensor."""
    return Tensor(
        normal(like.shape, dtype=like.dtype, device=like.device, generator=random)
    )


def analytic_gradients(outputs, weights, inputs, create_graph=False) -> list:
    """By backward; None for an input on which no output depends."""
    pairs = zip(outputs, weights, strict=True)
    pairs = [(y, v) for y, v in pairs if y.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    outputs, weights = zip(*pairs, strict=True)
    return list(
        grad(outputs, inputs, weights, create_graph=create_graph, allow_unused=True)
    )


def slope(func, inputs, position: int, step, weights) -> float:
    """v . f(x + step) - v . f(x - step), for one of the inputs."""
    values = []
    for sign in (1, -1):
        moved = Tensor(inputs[position].data + sign * step, requires_grad=True)
        outputs = func(*inputs[:position], moved, *inputs[position + 1 :])
        values.append(projection(floating_outputs(outputs), weights))
    return values[0] - values[1]


def projection(tensors, weights) -> float:
    pairs = zip(tensors, weights, strict=True)
    return sum(float(np.sum(to_numpy(x.data) * to_numpy(v.data))) for x, v in pairs)
