"""Rows of a table picked by number, and numbers as rows of zeros with a one."""

from math import prod

from minidl.array.device import array_module, on_gpu
from minidl.array.scatter import add_rows
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor


class Embedding(Op):
    """y = weight[index], for index (*) and weight (rows, width)"""

    def forward(self, index, weight, padding, by_frequency):
        self.settings = weight.shape[0], padding, by_frequency
        self.save_for_backward(index)
        return weight[index]

    def backward(self, g):
        (index,) = self.saved_tensors
        waiting = self.gradient_buffer(1)
        if waiting is not None and waiting.dtype != g.dtype:
            waiting = None
        return None, AddRows.apply(g, index, *self.settings, waiting)


class AddRows(Op):
    """A table of zeros with each row of g added to the row that its index names.

    The row `padding` stays zero; `by_frequency` divides each row by how often it is
    named.
    """

    def forward(self, g, index, rows, padding, by_frequency, out):
        self.settings = padding, by_frequency
        self.save_for_backward(index)
        xp = array_module(g)
        width = g.shape[index.ndim :]
        out = xp.empty((rows, *width), g.dtype) if out is None else out
        out[...] = 0
        flat = index.reshape(-1)
        add_rows(out, flat, g.reshape(flat.size, *width))
        if padding is not None:
            out[padding] = 0
        if by_frequency:
            out /= counts(flat, rows).astype(out.dtype)[:, None]
        return out

    def backward(self, gg):
        (index,) = self.saved_tensors
        padding, by_frequency = self.settings
        g = Embedding.apply(index, gg, None, False)
        xp = array_module(index.data)
        scale = index.data != (-1 if padding is None else padding)
        if by_frequency:
            scale = scale / counts(index.data.reshape(-1), gg.shape[0])[index.data]
        return g * Tensor(xp.asarray(scale, g.dtype)[..., None])


def counts(flat, rows: int):
    """How often each row is named, at least 1."""
    xp = array_module(flat)
    return xp.maximum(xp.bincount(flat, minlength=rows), 1)


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """The rows of weight (rows, width) that input (*) names: (*, width).

    The row padding_idx receives no gradient. With max_norm, the rows that are named
    and longer than that are first shortened, in weight itself. Sparse gradients are
    not offered. On a CPU an index out of range raises IndexError; on a GPU, where
    that would mean waiting for the device, it is taken modulo the number of rows.
    """
    index, table = input.data, weight.data
    if sparse:
        raise ValueError(
            "embedding: sparse gradients are not offered: use sparse=False"
        )
    if index.dtype.kind not in "iu":
        raise RuntimeError(f"embedding: indices must be integers, got {index.dtype}")
    if table.ndim != 2:
        raise RuntimeError(
            f"embedding: weight must be (rows, width), got shape {table.shape}"
        )
    rows = table.shape[0]
    if padding_idx is not None:
        if not -rows <= padding_idx < rows:
            raise AssertionError(
                f"padding_idx={padding_idx} is out of range for {rows} rows"
            )
        padding_idx %= rows
    if not on_gpu(index):
        wrong = (index < 0) | (index >= rows)
        if wrong.any():
            raise IndexError(
                f"embedding: index {index[wrong].flat[0]} is out of range: expected 0 "
                f"to {rows - 1} for a weight of {rows} rows"
            )
    if max_norm is not None:
        shorten(table, index, max_norm, norm_type)
    return Embedding.apply(input, weight, padding_idx, scale_grad_by_freq)


def shorten(table, index, max_norm: float, p: float) -> None:
    """Scale the rows that are named down to the norm max_norm."""
    xp = array_module(table)
    rows = xp.unique(index)
    norms = (xp.abs(table[rows]) ** p).sum(axis=1, keepdims=True) ** (1 / p)
    scale = xp.where(norms > max_norm, max_norm / (norms + 1e-7), 1)
    table[rows] *= scale.astype(table.dtype)


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """(*, num_classes) of int64, 1 where the last index is the value of tensor (*).

    Without num_classes there are as many as the greatest value asks for.
    """
    index = tensor.data
    if index.dtype.kind not in "iu":
        raise RuntimeError(f"one_hot needs integers, got {index.dtype}")
    if num_classes < 0:
        if not index.size:
            raise RuntimeError(
                "one_hot: pass num_classes for a tensor without elements"
            )
        num_classes = int(index.max()) + 1
    if not num_classes and prod(index.shape):
        raise RuntimeError("one_hot: num_classes must be positive")
    if (
        not on_gpu(index)
        and index.size
        and not 0 <= index.min() <= index.max() < (num_classes)
    ):
        raise RuntimeError(
            f"one_hot: values from {index.min()} to {index.max()} do not fit "
            f"{num_classes} classes, 0 to {num_classes - 1}"
        )
    xp = array_module(index)
    return Tensor((index[..., None] == xp.arange(num_classes)).astype(xp.int64))
