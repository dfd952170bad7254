"""Layers that normalise within a sample."""

from minidl.array.random import empty
from minidl.nn import functional as F
from minidl.nn import init
from minidl.nn.applied import REQUIRED, Applied
from minidl.nn.module import Module
from minidl.nn.parameter import Parameter


def register_affine(layer: Module, shape, weight, bias, device, dtype) -> None:
    """Register `weight`, ones, and `bias`, zeros, of this shape, or None for them."""
    for name, wanted in (("weight", weight), ("bias", bias)):
        p = Parameter(empty(shape, dtype or "float32", device)) if wanted else None
        layer.register_parameter(name, p)
    reset_affine(layer)


def reset_affine(layer: Module) -> None:
    if layer.weight is not None:
        init.ones_(layer.weight)
    if getattr(layer, "bias", None) is not None:
        init.zeros_(layer.bias)


class GroupNorm(Module):
    """Group norm of (N, num_channels, *)."""

    def __init__(
        self,
        num_groups,
        num_channels,
        eps=1e-5,
        affine=True,
        device=None,
        dtype=None,
        *,
        bias=True,
    ):
        super().__init__()
        if num_channels % num_groups:
            raise ValueError(
                f"num_groups={num_groups} must divide num_channels={num_channels}"
            )
        self.num_groups, self.num_channels = num_groups, num_channels
        self.eps, self.affine = eps, affine
        shape = (num_channels,)
        register_affine(self, shape, affine, affine and bias, device, dtype)

    reset_parameters = reset_affine

    def forward(self, input):
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, "
            f"affine={self.affine}, bias={self.bias is not None}"
        )


class LayerNorm(Module):
    """Layer norm over the last dimensions, of normalized_shape."""

    def __init__(
        self,
        normalized_shape,
        eps=1e-5,
        elementwise_affine=True,
        bias=True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.normalized_shape = shape_of(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        wanted = elementwise_affine, elementwise_affine and bias
        register_affine(self, self.normalized_shape, *wanted, device, dtype)

    reset_parameters = reset_affine

    def forward(self, input):
        return F.layer_norm(
            input, self.normalized_shape, self.weight, self.bias, self.eps
        )

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )


class RMSNorm(Module):
    """Division by the root mean square over the last dimensions."""

    def __init__(
        self,
        normalized_shape,
        eps=None,
        elementwise_affine=True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.normalized_shape = shape_of(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        weight = None
        if elementwise_affine:
            weight = Parameter(empty(self.normalized_shape, dtype or "float32", device))
        self.register_parameter("weight", weight)
        self.reset_parameters()

    reset_parameters = reset_affine

    def forward(self, input):
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}"
        )


def shape_of(normalized_shape) -> tuple[int, ...]:
    """A shape given as an int or a sequence of them."""
    if isinstance(normalized_shape, int):
        return (normalized_shape,)
    return tuple(normalized_shape)


class LocalResponseNorm(
    Applied,
    function=F.local_response_norm,
    size=REQUIRED,
    alpha=1e-4,
    beta=0.75,
    k=1.0,
):
    """x / (k + alpha / size * sum of x^2 over neighbouring channels)^beta"""

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
