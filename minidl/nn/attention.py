"""Attention with several heads."""

from minidl.array.device import array_module
from minidl.array.random import empty
from minidl.autograd.tensor import Tensor
from minidl.nn import functional as F
from minidl.nn import init
from minidl.nn.layers import Linear
from minidl.nn.module import Module
from minidl.nn.parameter import Parameter
from minidl.ops.attention import attention_weights
from minidl.ops.elementwise import where
from minidl.ops.linear import matmul
from minidl.ops.pieces import cat


class MultiheadAttention(Module):
    """Linear maps to queries, keys and values, attention in each head, a linear map.

    Vaswani et al., "Attention Is All You Need", 2017, 3.2.2. Inputs are (L, N, E), or
    (N, L, E) with batch_first, or (L, E) for one sample.
    """

    def __init__(
        self,
        embed_dim,
        num_heads,
        dropout=0.0,
        bias=True,
        add_bias_kv=False,
        add_zero_attn=False,
        kdim=None,
        vdim=None,
        batch_first=False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if embed_dim <= 0 or num_heads <= 0 or embed_dim % num_heads:
            raise ValueError(
                f"embed_dim={embed_dim} must be a positive multiple of "
                f"num_heads={num_heads}"
            )
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.head_dim, self.batch_first = embed_dim // num_heads, batch_first
        self.add_zero_attn = add_zero_attn

        def parameter(name, *shape, wanted=True):
            p = Parameter(empty(shape, dtype or "float32", device)) if wanted else None
            self.register_parameter(name, p)

        joined = self.kdim == self.vdim == embed_dim
        parameter("in_proj_weight", 3 * embed_dim, embed_dim, wanted=joined)
        sizes = {"q": embed_dim, "k": self.kdim, "v": self.vdim}
        for letter, size in sizes.items():
            parameter(f"{letter}_proj_weight", embed_dim, size, wanted=not joined)
        parameter("in_proj_bias", 3 * embed_dim, wanted=bias)
        parameter("bias_k", 1, 1, embed_dim, wanted=add_bias_kv)
        parameter("bias_v", 1, 1, embed_dim, wanted=add_bias_kv)
        self.out_proj = Linear(embed_dim, embed_dim, bias, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights: Xavier uniform, biases zero."""
        for p in self.projections(self.in_proj_weight):
            init.xavier_uniform_(p)
        for p in (self.in_proj_bias, self.out_proj.bias):
            if p is not None:
                init.zeros_(p)
        for p in (self.bias_k, self.bias_v):
            if p is not None:
                init.xavier_normal_(p)

    def projections(self, joined) -> list:
        """The weights of the three maps: one Parameter, or three."""
        if joined is not None:
            return [joined]
        return [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output, of the query's shape (*, embed_dim), and the attention weights.

        key_padding_mask is (N, S), attn_mask (L, S) or (N num_heads, L, S): True where
        attention is forbidden, or numbers to be added. The weights are (N, L, S), the
        mean over the heads, or (N, num_heads, L, S) without average_attn_weights, or
        None without need_weights. is_causal says that attn_mask is causal: as in
        PyTorch the mask must be given too.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal=True needs attn_mask, the causal mask, too")
        single = query.ndim == 2
        inputs = [query, key, value]
        if single:
            inputs = [x.unsqueeze(1) for x in inputs]
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        elif self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        q, k, v = self.project(inputs)  # (L or S, N, E)
        n, positions = q.shape[1], k.shape[0]
        if self.bias_k is not None:
            k, v = with_row(k, self.bias_k), with_row(v, self.bias_v)
        q, k, v = (self.heads(x) for x in (q, k, v))  # (N, heads, L or S, E / heads)
        if self.add_zero_attn:
            k, v = (with_row(x.permute(2, 0, 1, 3)).permute(1, 2, 0, 3) for x in (k, v))
        mask = self.mask(attn_mask, key_padding_mask, n, q.shape[2], positions, q)
        if mask is not None and k.shape[2] > positions:  # the rows added may be seen
            xp = array_module(mask.data)
            more = (*mask.shape[:-1], k.shape[2] - positions)
            mask = cat([mask, Tensor(xp.zeros(more, mask.dtype))], -1)
        weights = attention_weights(q, k, mask, False, None)
        weights = F.dropout(weights, self.dropout, self.training)
        y = matmul(weights, v).permute(2, 0, 1, 3).reshape(-1, n, self.embed_dim)
        y = self.out_proj(y)
        if need_weights and average_attn_weights:
            weights = weights.mean(1)
        if single:
            y, weights = y.squeeze(1), weights.squeeze(0)
        elif self.batch_first:
            y = y.transpose(0, 1)
        return y, weights if need_weights else None

    def project(self, inputs: list[Tensor]) -> list[Tensor]:
        """Queries, keys and values, by one matrix product if they are of one input."""
        e, joined, bias = self.embed_dim, self.in_proj_weight, self.in_proj_bias
        if joined is not None and inputs[0] is inputs[1] is inputs[2]:
            y = F.linear(inputs[0], joined, bias)
            return [y[..., i * e : (i + 1) * e] for i in range(3)]
        weights = self.projections(joined)
        if joined is not None:
            weights = [joined[i * e : (i + 1) * e] for i in range(3)]
        biases = [None if bias is None else bias[i * e : (i + 1) * e] for i in range(3)]
        return [
            F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)
        ]

    def heads(self, x: Tensor) -> Tensor:
        """(L, N, E) -> (N, heads, L, E / heads)"""
        shape = x.shape[0], x.shape[1], self.num_heads, self.head_dim
        return x.reshape(shape).permute(1, 2, 0, 3)

    def mask(self, attention, padding, n: int, length: int, positions: int, like):
        """Both masks as one that is added to the scores (N, heads, L, S), or None."""
        total = None
        if attention is not None:
            total = additive(attention, like)
            if total.ndim == 3:
                total = total.reshape(n, self.num_heads, length, positions)
        if padding is not None:
            padding = additive(padding, like).reshape(n, 1, 1, positions)
            total = padding if total is None else total + padding
        return total


def additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of bool, True for forbidden, as numbers to be added."""
    if mask.dtype != bool:
        return mask
    xp = array_module(mask.data)
    return where(mask, Tensor(xp.asarray(-xp.inf, like.dtype)), 0.0)


def with_row(x: Tensor, row: Tensor | None = None) -> Tensor:
    """x with one more entry along dim 0, zeros or `row`."""
    shape = (1, *x.shape[1:])
    if row is None:
        row = Tensor(array_module(x.data).zeros(shape, x.dtype))
    return cat([x, row.expand(shape)])
