"""A small GPT. Radford et al., "Language models are unsupervised multitask learners",
2019 (GPT-2)."""

from math import sqrt

from minidl.autograd.mode import no_grad
from minidl.autograd.tensor import Tensor
from minidl.nn import functional as F
from minidl.nn import init
from minidl.nn.activation import Dropout
from minidl.nn.containers import Sequential
from minidl.nn.embedding import Embedding
from minidl.nn.layers import Linear
from minidl.nn.module import Module
from minidl.nn.norm import LayerNorm
from minidl.ops.creation import arange, rand
from minidl.ops.order import topk
from minidl.ops.pieces import cat


class SelfAttention(Module):
    """Each position looks at itself and those before it, with n_head heads."""

    def __init__(self, n_embd: int, n_head: int, dropout: float, bias: bool):
        super().__init__()
        self.n_head, self.dropout = n_head, dropout
        self.qkv = Linear(n_embd, 3 * n_embd, bias)
        self.out = Linear(n_embd, n_embd, bias)

    def forward(self, x):
        n, length, width = x.shape
        x = self.qkv(x).reshape(n, length, 3, self.n_head, width // self.n_head)
        q, k, v = x.permute(2, 0, 3, 1, 4).unbind()  # (N, heads, T, width / heads)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(n, length, width))


class MLPBlock(Module):
    """Two linear layers with GELU between them, applied at each position."""

    def __init__(self, n_embd: int, bias: bool):
        super().__init__()
        self.into = Linear(n_embd, 4 * n_embd, bias)
        self.out = Linear(4 * n_embd, n_embd, bias)

    def forward(self, x):
        return self.out(F.gelu(self.into(x)))


class Block(Module):
    """x += attention(norm(x)), then x += mlp(norm(x))"""

    def __init__(self, n_embd: int, n_head: int, dropout: float, bias: bool):
        super().__init__()
        self.norm1 = LayerNorm(n_embd, bias=bias)
        self.attention = SelfAttention(n_embd, n_head, dropout, bias)
        self.norm2 = LayerNorm(n_embd, bias=bias)
        self.mlp = MLPBlock(n_embd, bias)
        self.dropout = Dropout(dropout)

    def forward(self, x):
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class GPT(Module):
    """From tokens (N, T), integers below vocab_size, to scores of the tokens that
    follow each, (N, T, vocab_size); T is at most block_size.

    The loss is `F.cross_entropy(model(x).flatten(0, 1), y.flatten())`, where y is x
    moved by one. The output layer has no weight of its own: it is the table of tokens
    once more. Weights begin as N(0, 0.02^2), those that end in a sum of 2 n_layer + 1
    terms smaller by sqrt(2 n_layer), biases as zero.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layer: int = 4,
        n_head: int = 4,
        n_embd: int = 128,
        dropout: float = 0.0,
        bias: bool = True,
    ):
        super().__init__()
        if n_embd % n_head:
            raise ValueError(f"n_head={n_head} must divide n_embd={n_embd}")
        self.block_size = block_size
        self.tokens = Embedding(vocab_size, n_embd)
        self.positions = Embedding(block_size, n_embd)
        self.dropout = Dropout(dropout)
        layers = (Block(n_embd, n_head, dropout, bias) for _ in range(n_layer))
        self.blocks = Sequential(*layers)
        self.norm = LayerNorm(n_embd, bias=bias)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                init.zeros_(p)
            elif "norm" not in name:
                last = name.endswith("out.weight")
                init.normal_(p, std=0.02 / sqrt(2 * n_layer) if last else 0.02)

    def forward(self, idx: Tensor) -> Tensor:
        length = idx.shape[1]
        if length > self.block_size:
            raise ValueError(
                f"{length} tokens are more than block_size={self.block_size}: give the "
                "last ones, or build a model with a larger block_size"
            )
        place = arange(length, device=idx.device)
        x = self.dropout(self.tokens(idx) + self.positions(place))
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)

    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """idx (N, T), T > 0, with max_new_tokens more, each drawn from
        softmax(scores / temperature).

        A temperature of 0 takes the most likely one, top_k draws from so many. The
        model sees the last block_size tokens, and is as in evaluation meanwhile.
        """
        training = self.training
        self.eval()
        try:
            with no_grad():
                for _ in range(max_new_tokens):
                    scores = self(idx[:, -self.block_size :])[:, -1]
                    idx = cat([idx, drawn(scores, temperature, top_k)], 1)
        finally:
            self.train(training)
        return idx


def drawn(scores: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """A token for each row of scores (N, vocab_size), (N, 1)."""
    if temperature == 0:
        return scores.argmax(1, keepdim=True)
    if top_k is not None:
        least = topk(scores, min(top_k, scores.shape[1]))[0][:, -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    sums = F.softmax(scores / temperature, 1).cumsum(1)
    # the first whose sum exceeds a number that is uniform in [0, total)
    point = rand(len(scores), 1, device=scores.device) * sums[:, -1:]
    return (sums <= point).sum(1, keepdim=True)
