"""Initial values, drawn into a tensor's own array; each returns the tensor."""

from math import prod, sqrt

from minidl.array import random
from minidl.autograd.tensor import Tensor

GAINS = {
    "linear": 1.0,
    "conv1d": 1.0,
    "conv2d": 1.0,
    "conv3d": 1.0,
    "conv_transpose1d": 1.0,
    "conv_transpose2d": 1.0,
    "conv_transpose3d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
    "relu": sqrt(2.0),
    "selu": 0.75,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the variance through a nonlinearity."""
    if nonlinearity == "leaky_relu":
        return sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in GAINS:
        known = ", ".join([*GAINS, "leaky_relu"])
        raise ValueError(f"no gain is known for {nonlinearity!r}; known are {known}")
    return GAINS[nonlinearity]


def fans(tensor: Tensor) -> tuple[int, int]:
    """(inputs of an output, outputs of an input) for a weight (out, in, *kernel)."""
    if tensor.ndim < 2:
        raise ValueError(
            f"a fan needs at least 2 dimensions, got shape {tuple(tensor.shape)}"
        )
    field = prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


def fan(tensor: Tensor, mode: str) -> int:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode must be 'fan_in' or 'fan_out', got {mode!r}")
    return fans(tensor)[mode == "fan_out"]


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator=None) -> Tensor:
    """Uniform in [a, b)."""
    tensor.data[...] = random.uniform(
        tensor.shape, a, b, tensor.dtype, tensor.device, generator
    )
    return tensor


def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator=None
) -> Tensor:
    """Normal with this mean and standard deviation."""
    tensor.data[...] = random.normal(
        tensor.shape, mean, std, tensor.dtype, tensor.device, generator
    )
    return tensor


def constant_(tensor: Tensor, val: float) -> Tensor:
    """val everywhere."""
    tensor.data[...] = val
    return tensor


def ones_(tensor: Tensor) -> Tensor:
    """1 everywhere."""
    return constant_(tensor, 1)


def zeros_(tensor: Tensor) -> Tensor:
    """0 everywhere."""
    return constant_(tensor, 0)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator=None) -> Tensor:
    """Uniform in +-gain sqrt(6 / (fan_in + fan_out)). Glorot and Bengio, 2010, (16)."""
    bound = gain * sqrt(6 / sum(fans(tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator=None) -> Tensor:
    """Normal, standard deviation gain sqrt(2 / (fan_in + fan_out))."""
    return normal_(tensor, 0, gain * sqrt(2 / sum(fans(tensor))), generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator=None,
) -> Tensor:
    """Uniform in +-gain sqrt(3 / fan); He et al., 2015, section 2.2."""
    bound = calculate_gain(nonlinearity, a) * sqrt(3 / max(fan(tensor, mode), 1))
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator=None,
) -> Tensor:
    """Normal, standard deviation gain / sqrt(fan); He et al., 2015, (10) and (14)."""
    std = calculate_gain(nonlinearity, a) / sqrt(max(fan(tensor, mode), 1))
    return normal_(tensor, 0, std, generator)
