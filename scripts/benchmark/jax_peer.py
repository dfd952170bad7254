"""JAX at the work of the benchmark: each step is one jitted function.

Images are channels-last inside.
"""

import platform
from collections.abc import Callable
from functools import partial
from itertools import cycle

import jax
import jax.numpy as jnp

from benchmark import work
from benchmark.work import LEARNING_RATE, Work

jax.config.update("jax_platforms", "cpu")
CHANNELS_LAST = ("NHWC", "OIHW", "NHWC")


def versions() -> str:
    return f"JAX {jax.__version__}, Python {platform.python_version()}"


def conv2d(x, w, stride, pad):
    padding = ((pad, pad), (pad, pad))
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), padding, dimension_numbers=CHANNELS_LAST
    )


def batch_norm(x, gamma, beta, running, momentum=0.1, eps=1e-5):
    """The output, and the running mean and variance, which take part in no gradient."""
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    n = x.size // x.shape[-1]
    new = jax.lax.stop_gradient(jnp.stack([mean, var * n / (n - 1)]))
    running = (1 - momentum) * running + momentum * new
    return (x - mean) * (gamma * jax.lax.rsqrt(var + eps)) + beta, running


def forward(layers, x, parameters, running):
    """Output of the layers; takes from the iterators what they need, in order."""
    kept = []
    for kind, *sizes in layers:
        if kind == "conv":
            w = next(parameters)
            x = conv2d(x, w, sizes[2], w.shape[2] // 2)
            x = x + next(parameters) if sizes[3] else x
        elif kind == "norm":
            gamma, beta = next(parameters), next(parameters)
            x, new = batch_norm(x, gamma, beta, next(running))
            kept.append(new)
        elif kind == "relu":
            x = jax.nn.relu(x)
        elif kind == "pool":
            window = (1, 2, 2, 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
        elif kind == "mean":
            x = x.mean((1, 2))
        elif kind == "linear":
            if x.ndim == 4:
                x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
            x = x @ next(parameters).T + next(parameters)
        elif kind == "residual":
            body, *short = sizes
            y, new = forward(body, x, parameters, running)
            x, more = forward(*short, x, parameters, running) if short else (x, [])
            x, kept = x + y, kept + new + more
    return x, kept


def adam_update(parameters, gradients, state):
    """Adam as Kingma and Ba, 2015, algorithm 1."""
    m, v, t = state
    t = t + 1
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, gradients)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradients)
    rate, correction = LEARNING_RATE / (1 - 0.9**t), 1 - 0.999**t

    def update(p, m, v):
        return p - rate * m / (jnp.sqrt(v / correction) + 1e-8)

    return jax.tree.map(update, parameters, m, v), (m, v, t)


def zeros(arrays):
    return [jnp.zeros(a.shape, jnp.float32) for a in arrays]


def build(job: Work) -> Callable[[], list]:
    """A function that makes one step and returns what it computed."""
    if job.ranks > 1:
        raise NotImplementedError("data parallelism over processes is not written")
    if job.kind == "chain":
        raise NotImplementedError("a jitted program has no engine to measure")
    return {"train": train, "conv": conv_step, "adam": adam}[job.kind](job)


def train(job: Work) -> Callable[[], list]:
    return train_step(job.layers, work.weights(job.layers), work.batches(job))


def train_step(layers: work.Layers, weights: list, batches: list) -> Callable:
    """A step of training from these weights on the next of the batches."""

    def loss_fn(parameters, running, images, labels):
        if images.ndim == 4:
            images = images.transpose(0, 2, 3, 1)
        y, running = forward(layers, images, iter(parameters), iter(running))
        picked = jnp.take_along_axis(jax.nn.log_softmax(y), labels[:, None], 1)
        return -picked.mean(), running

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def update(parameters, running, state, images, labels):
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, running), g = value_and_grad(parameters, running, images, labels)
        parameters, state = adam_update(parameters, g, state)
        return loss, parameters, running, state

    parameters = [jnp.asarray(a) for a in weights]
    norms = [size for kind, size, *_ in filter(is_norm, work.flat(layers))]
    running = [jnp.stack([jnp.zeros(n), jnp.ones(n)]) for n in norms]
    state = (zeros(parameters), zeros(parameters), jnp.zeros(()))
    data = cycle([(jnp.asarray(x), jnp.asarray(t)) for x, t in batches])

    def step():
        nonlocal parameters, running, state
        loss, parameters, running, state = update(
            parameters, running, state, *next(data)
        )
        return [loss]

    return step


def is_norm(layer: tuple) -> bool:
    return layer[0] == "norm"


def conv_step(job: Work) -> Callable[[], list]:
    x, w, b, gradient = (jnp.asarray(a) for a in work.conv_arrays(job))
    kernel, stride = job.conv[-2:]
    x, gradient = (a.transpose(0, 2, 3, 1) for a in (x, gradient))

    @jax.jit
    def both(x, w, b, gradient):
        y, backward = jax.vjp(
            lambda x, w, b: conv2d(x, w, stride, kernel // 2) + b, x, w, b
        )
        return [y, *backward(gradient)]

    return lambda: both(x, w, b, gradient)


def adam(job: Work) -> Callable[[], list]:
    gradients = [jnp.asarray(a) for a in work.gradients(job)]
    parameters = zeros(gradients)
    state = (zeros(gradients), zeros(gradients), jnp.zeros(()))
    update = jax.jit(adam_update, donate_argnums=(0, 2))

    def step():
        nonlocal parameters, state
        parameters, state = update(parameters, gradients, state)
        return parameters

    return step


def wait(result: list) -> None:
    """Steps are only begun when they return."""
    jax.block_until_ready(result)


def to_numpy(job: Work, result: list) -> list:
    arrays = jax.device_get(result)
    if job.kind == "conv":  # y and the gradient of x
        arrays[:2] = (a.transpose(0, 3, 1, 2) for a in arrays[:2])
    return arrays
