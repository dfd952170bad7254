"""Linear maps along one dimension in which each output reads a few inputs.

Padding by reflection, interpolation and pooling over windows of differing sizes are
such maps, one a dimension. The transpose of such a map, which takes gradients back,
is one too: a sum of reads, never of writes, so that no two threads meet and sums are
taken in one order.
"""

from functools import cached_property

import numpy as np

from minidl.array.device import array_module, device_of
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor


class Table:
    """y[o] = sum_t weight[t, o] x[index[t, o]]

    index (T, outputs), or (outputs) for one T, integers in [0, inputs); weight
    (T, outputs), or None for ones.
    """

    def __init__(self, inputs: int, index, weight=None):
        self.inputs, self.outputs = inputs, index.shape[-1]
        self.index = np.atleast_2d(index)
        self.weight = weight
        self.on_device: dict = {}

    @classmethod
    def of_matrix(cls, matrix) -> "Table":
        """The map x -> matrix x."""
        row, column = np.nonzero(matrix)
        rows, inputs = matrix.shape
        return cls(inputs, *packed(row, column, matrix[row, column], rows))

    @cached_property
    def transposed(self) -> "Table":
        row = np.tile(np.arange(self.outputs), len(self.index))
        weight = np.ones(row.size) if self.weight is None else self.weight.ravel()
        used = weight != 0
        return Table(
            self.outputs,
            *packed(self.index.ravel()[used], row[used], weight[used], self.inputs),
        )

    @property
    def is_identity(self) -> bool:
        return (
            self.weight is None
            and self.index.shape == (1, self.inputs)
            and bool((self.index[0] == np.arange(self.inputs)).all())
        )

    def taps(self, like, dtype) -> list[tuple]:
        """For each tap its inputs, its weights and which of these are not 0, beside
        the array `like`; weights are None where all are 1."""
        key = device_of(like), np.dtype(dtype)
        if key not in self.on_device:
            xp = array_module(like)
            weights = [None] * len(self.index) if self.weight is None else self.weight
            self.on_device[key] = [
                (
                    xp.asarray(index),
                    None if w is None or (w == 1).all() else xp.asarray(w, dtype),
                    None if w is None or w.all() else xp.asarray(w != 0),
                )
                for index, w in zip(self.index, weights, strict=True)
            ]
        return self.on_device[key]

    def __call__(self, x, dim: int):
        """The map applied along a dimension of a raw array."""
        xp = array_module(x)
        after = (-1,) + (1,) * (x.ndim - 1 - dim % x.ndim)
        dtype = (
            np.promote_types(x.dtype, np.float32) if x.dtype.kind in "fV" else x.dtype
        )
        if not self.inputs or not len(self.index):
            shape = list(x.shape)
            shape[dim] = self.outputs
            return xp.zeros(shape, x.dtype)
        total = None
        for index, weight, used in self.taps(x, dtype):
            part = xp.take(x, index, axis=dim)
            if weight is not None:
                part = part * weight.reshape(after)
            if used is not None:  # 0 times infinity is not 0
                part = xp.where(used.reshape(after), part, part.dtype.type(0))
            if total is None:
                total = part.astype(dtype, copy=False) if len(self.index) > 1 else part
            else:
                total += part
        return total.astype(x.dtype, copy=False)


def packed(row, column, weight, rows: int):
    """index and weight of the map with these entries: those of a row one below the
    other, in order, entries of weight 0 where others have more."""
    order = np.argsort(row, kind="stable")
    row, column, weight = row[order], column[order], weight[order]
    counts = np.bincount(row, minlength=rows)
    tap = np.arange(row.size) - np.repeat(np.cumsum(counts) - counts, counts)
    index = np.zeros((counts.max(initial=0), rows), np.int64)
    weights = np.zeros(index.shape)
    index[tap, row], weights[tap, row] = column, weight
    return index, weights


class Resample(Op):
    """A Table applied along one dimension."""

    def forward(self, x, table, dim):
        self.table, self.dim = table, dim
        return table(x, dim)

    def backward(self, g):
        return Resample.apply(g, self.table.transposed, self.dim)


def resample(input: Tensor, tables) -> Tensor:
    """One Table for each of the last dimensions; those that shrink come first."""
    dims = range(-len(tables), 0)
    for table, dim in sorted(
        zip(tables, dims, strict=True), key=lambda e: e[0].outputs / max(e[0].inputs, 1)
    ):
        if not table.is_identity:
            input = Resample.apply(input, table, dim)
    return input
