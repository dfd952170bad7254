"""Pooling to a given size: window i of n elements to m goes from floor(i n / m) to
ceil((i + 1) n / m). Where m divides n, this is pooling with windows of one size."""

from functools import lru_cache

import numpy as np

from minidl.autograd.tensor import Tensor
from minidl.ops.pool import AvgPool, MaxPool
from minidl.ops.resample import Table, resample
from minidl.ops.spatial import batched, check_images


@lru_cache(maxsize=256)
def window_places(n: int, m: int):
    """(widest window, m): the elements of each window, its last again where others
    are wider; and (m): how many they are."""
    i = np.arange(m)
    start, stop = i * n // m, -(-(i + 1) * n // m)
    widest = (stop - start).max(initial=0)
    return np.minimum(start + np.arange(widest)[:, None], stop - 1), stop - start


@lru_cache(maxsize=256)
def mean_table(n: int, m: int) -> Table:
    """The mean of each of m windows."""
    places, count = window_places(n, m)
    real = np.arange(len(places))[:, None] < count
    return Table(n, places, real / count)


@lru_cache(maxsize=256)
def window_table(n: int, m: int) -> Table:
    """The elements of all windows, one window after the other."""
    return Table(n, window_places(n, m)[0].T.ravel())


def target_sizes(n: int, name: str, input: Tensor, output_size) -> tuple[int, ...]:
    """output_size as a tuple; None in it keeps the input's size."""
    if input.ndim not in (n + 1, n + 2):
        raise RuntimeError(
            f"{name}: expected an input of {n + 1} or {n + 2} dimensions, got shape "
            f"{tuple(input.shape)}"
        )
    if 0 in input.shape[-n:]:
        raise RuntimeError(f"{name}: the input is empty, of shape {tuple(input.shape)}")
    single = output_size is None or isinstance(output_size, int)
    sizes = (output_size,) * n if single else tuple(output_size)
    if len(sizes) == 1:
        sizes *= n
    if len(sizes) != n or any(m is not None and m < 0 for m in sizes):
        raise RuntimeError(
            f"{name}: output_size must be {n} numbers of at least 0, got {output_size}"
        )
    inputs = input.shape[-n:]
    return tuple(k if m is None else m for k, m in zip(inputs, sizes, strict=True))


def equal_windows(inputs, outputs) -> tuple[int, ...] | None:
    """The windows' common size, or None."""
    pairs = list(zip(inputs, outputs, strict=True))
    if all(m and n % m == 0 for n, m in pairs):
        return tuple(n // m for n, m in pairs)
    return None


def adaptive_avg_pool(n: int, name: str, input: Tensor, output_size) -> Tensor:
    outputs = target_sizes(n, name, input, output_size)
    inputs = input.shape[-n:]
    if all(m == 1 for m in outputs):
        return input.mean(tuple(range(-n, 0)), True)
    kernel = equal_windows(inputs, outputs)
    if kernel is None:
        return resample(input, list(map(mean_table, inputs, outputs)))
    settings = kernel, kernel, (0,) * n, False, True, None
    return batched(lambda x: AvgPool.apply(x, settings), n, name, input)


def adaptive_avg_pool1d(input: Tensor, output_size) -> Tensor:
    """The means of output_size windows of (N, C, L)."""
    return adaptive_avg_pool(1, "adaptive_avg_pool1d", input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size) -> Tensor:
    """The means of windows of (N, C, H, W); output_size is one number or (h, w), and
    None in it keeps a size."""
    return adaptive_avg_pool(2, "adaptive_avg_pool2d", input, output_size)


def adaptive_max_pool2d(input: Tensor, output_size, return_indices=False):
    """The largest of each window of (N, C, H, W), output_size as for the mean.

    With return_indices also where it was, counted through the plane.
    """
    name = "adaptive_max_pool2d"
    outputs = target_sizes(2, name, input, output_size)
    check_images(name, input)
    inputs = input.shape[-2:]
    kernel = equal_windows(inputs, outputs)
    ragged = kernel is None
    if ragged:  # windows that overlap stand side by side before they are pooled
        places = list(map(window_places, inputs, outputs))
        kernel = tuple(len(of_window) for of_window, _ in places)
        input = resample(input, list(map(window_table, inputs, outputs)))
    if 0 in outputs:
        y = input[..., : outputs[0], : outputs[1]]  # empty
        return (y, Tensor(y.data.astype(np.int64))) if return_indices else y
    settings = kernel, kernel, (0, 0), (1, 1), False
    y, where = batched(lambda x: MaxPool.apply(x, settings), 2, name, input)
    if not return_indices:
        return y
    where = where.data.astype(np.int64)
    if ragged:
        row, column = where // input.shape[-1], where % input.shape[-1]
        tables = map(window_table, inputs, outputs)
        rows, columns = (table.taps(where, where.dtype)[0][0] for table in tables)
        where = rows[row] * inputs[1] + columns[column]
    return y, Tensor(where)
