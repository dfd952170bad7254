"""Scaled dot-product attention."""

from math import sqrt

from minidl.array.device import array_module
from minidl.autograd.tensor import Tensor
from minidl.ops.dropout import dropout
from minidl.ops.elementwise import where
from minidl.ops.linear import matmul, matrix_transpose
from minidl.ops.operands import cast
from minidl.ops.softmax import Softmax


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale Q K^T + mask) V, for Q (*, L, E), K (*, S, E), V (*, S, Ev).

    scale is 1 / sqrt(E) where it is not given. attn_mask broadcasts to (*, L, S):
    True where attention is allowed, or numbers that are added. is_causal allows
    position i to see positions 0 to i. A position that may see nothing gives 0. With
    enable_gqa each head (dim -3) of key and value serves several of query.
    Vaswani et al., "Attention Is All You Need", 2017, (1).
    """
    weights = attention_weights(
        query, repeated(key, query) if enable_gqa else key, attn_mask, is_causal, scale
    )
    value = repeated(value, query) if enable_gqa else value
    return matmul(dropout(weights, dropout_p), value)


def attention_weights(query, key, mask, is_causal: bool, scale: float | None) -> Tensor:
    """softmax(scale Q K^T + mask), (*, L, S)"""
    for name, x in (("query", query), ("key", key)):
        if x.ndim < 2:
            raise ValueError(
                f"attention: {name} must have 2 dimensions or more, got {x.ndim}"
            )
    if query.shape[-1] != key.shape[-1]:
        raise RuntimeError(
            f"attention: query of shape {tuple(query.shape)} and key of shape "
            f"{tuple(key.shape)} must agree in their last dimension"
        )
    if scale is None:
        scale = 1 / sqrt(query.shape[-1]) if query.shape[-1] else 1.0
    if is_causal:
        if mask is not None:
            raise RuntimeError("attention: give attn_mask or is_causal=True, not both")
        xp = array_module(query.data)
        mask = Tensor(xp.tri(query.shape[-2], key.shape[-2], dtype=bool))
    scores = matmul(query * scale, matrix_transpose(key))
    if mask is not None:
        if mask.dtype == bool:
            scores = where(mask, scores, float("-inf"))
        else:
            scores = scores + cast(mask, scores.dtype)
    if not scores.numel():
        return scores
    return Softmax.apply(scores, scores.ndim - 1, mask is not None)


def repeated(x: Tensor, query: Tensor) -> Tensor:
    """x with each head repeated, side by side, as often as query has heads for it."""
    heads = x.shape[-3]
    times, rest = divmod(query.shape[-3], heads)
    if rest:
        raise RuntimeError(
            f"attention: {query.shape[-3]} heads of query are not a multiple of the "
            f"{heads} of key or value"
        )
    shape = x.shape
    x = x.reshape(*shape[:-2], 1, *shape[-2:])
    x = x.expand(*shape[:-2], times, *shape[-2:])
    return x.reshape(*shape[:-3], heads * times, *shape[-2:])
