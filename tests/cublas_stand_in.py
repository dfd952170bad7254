"""cuBLAS's functions on the stand-in's memory: what stands in for the library.

The prototypes are copied from cublas_api.h, not from minidl. Matrices lie in columns,
as cuBLAS has them; what it would refuse is refused with its own status. The
arithmetic is NumPy's in float64, so a test sees mistakes of layout, not of rounding.
"""

import ctypes
import traceback
from ctypes import POINTER, c_int, c_int64, c_longlong, c_size_t, c_void_p

import numpy as np
from stand_in_cuda import enqueue, stream_of
from stand_in_memory import memory_at

from minidl.array import cublas, cudnn_plans
from minidl.array.device import bfloat16

SUCCESS, NOT_INITIALIZED, INVALID_VALUE = 0, 1, 7
EXECUTION_FAILED, NOT_SUPPORTED = 13, 15
NAMES = {1: "NOT_INITIALIZED", 7: "INVALID_VALUE", 13: "EXECUTION_FAILED"}
NAMES |= {15: "NOT_SUPPORTED"}
TYPES = {0: np.float32, 1: np.float64, 2: np.float16}
TYPES |= {} if bfloat16 is None else {14: bfloat16}
# compute type: what A and B may be, what C may be, the type of alpha and beta
COMPUTE = {
    68: {(0, 0), (2, 2), (2, 0), (14, 14), (14, 0)},
    77: {(0, 0)},
    70: {(1, 1)},
}
MATRIX = [c_void_p, c_int, c_int64]
PROTOTYPES = {
    "cublasCreate_v2": [POINTER(c_void_p)],
    "cublasSetStream_v2": [c_void_p, c_void_p],
    "cublasSetWorkspace_v2": [c_void_p, c_void_p, c_size_t],
    "cublasSetMathMode": [c_void_p, c_int],
    "cublasGemmEx_64": [
        *(c_void_p, c_int, c_int, c_int64, c_int64, c_int64, c_void_p),
        *(*MATRIX, *MATRIX, c_void_p, *MATRIX, c_int, c_int),
    ],
    "cublasGemmStridedBatchedEx_64": [
        *(c_void_p, c_int, c_int, c_int64, c_int64, c_int64, c_void_p),
        *(*MATRIX, c_longlong, *MATRIX, c_longlong, c_void_p, *MATRIX, c_longlong),
        *(c_int64, c_int, c_int),
    ],
}


class Handle:
    def __init__(self):
        self.stream = self.workspace = self.mode = None


class Library:
    """In the place of ctypes.CDLL; `calls` has (single or stack, compute type, stream)
    of each product, `handles` what was made."""

    def __init__(self):
        self.handles: dict[int, Handle] = {}
        self.calls: list[tuple] = []
        for name, types in PROTOTYPES.items():
            kind = ctypes.CFUNCTYPE(c_int, *types)
            setattr(self, name, kind(getattr(self, name.split("_")[0][6:].lower())))
        texts = {n: f"CUBLAS_STATUS_{text}" for n, text in NAMES.items()}
        self.cublasGetStatusName = lambda n: texts[n].encode()

    def create(self, place):
        place[0] = 4096 + 16 * len(self.handles)
        self.handles[place[0]] = Handle()
        return SUCCESS

    def setstream(self, handle, stream):
        if handle not in self.handles:
            return NOT_INITIALIZED
        self.handles[handle].stream = stream or 0
        self.handles[handle].workspace = None  # as documented
        return SUCCESS

    def setworkspace(self, handle, pointer, size):
        if handle not in self.handles:
            return NOT_INITIALIZED
        if not pointer or pointer % 256:
            return INVALID_VALUE
        self.handles[handle].workspace = size
        return SUCCESS

    def setmathmode(self, handle, mode):
        if handle not in self.handles:
            return NOT_INITIALIZED
        self.handles[handle].mode = mode
        return SUCCESS

    def gemmex(self, handle, ta, tb, m, n, k, alpha, *rest):
        a, b, (beta, c), last = rest[:3], rest[3:6], (rest[6], rest[7:10]), rest[10:]
        sizes, single = (ta, tb, m, n, k), (1,)
        return self.run(
            "single", handle, sizes, alpha, (*a, 0), (*b, 0), beta, (*c, 0), single,
            *last,
        )  # fmt: skip

    def gemmstridedbatchedex(self, handle, ta, tb, m, n, k, alpha, *rest):
        a, b, beta, c, last = rest[:4], rest[4:8], rest[8], rest[9:13], rest[13:]
        sizes = (ta, tb, m, n, k)
        return self.run(
            "stack", handle, sizes, alpha, a, b, beta, c, last[:1], *last[1:]
        )

    def run(self, name, handle, sizes, alpha, a, b, beta, c, count, compute, algorithm):
        turned_a, turned_b, m, n, k = sizes
        known = self.handles.get(handle)
        if known is None or known.workspace is None:
            return NOT_INITIALIZED
        if algorithm != -1 or (a[1], c[1]) not in COMPUTE.get(compute, ()):
            return NOT_SUPPORTED
        if a[1] != b[1] or min(turned_a, turned_b) < 0 or max(turned_a, turned_b) > 1:
            return NOT_SUPPORTED
        shapes = [(k, m) if turned_a else (m, k), (n, k) if turned_b else (k, n)]
        shapes.append((m, n))
        for (pointer, _, ld, step), (rows, columns) in zip(
            (a, b, c), shapes, strict=True
        ):
            if not pointer or min(rows, columns) < 1 or ld < rows or step < 0:
                return INVALID_VALUE
        self.calls.append((name, compute, known.stream))
        scalar = ctypes.c_double if compute == 70 else ctypes.c_float
        factors = [scalar.from_address(x).value for x in (alpha, beta)]
        try:
            found = [
                seen(*matrix, shape, count[0])
                for matrix, shape in zip((a, b, c), shapes, strict=True)
            ]
            multiply(known.stream, found, (turned_a, turned_b), *factors)
        except Exception:  # it would be lost on its way through C
            traceback.print_exc()
            return EXECUTION_FAILED
        return SUCCESS


def multiply(stream, matrices, turned, alpha, beta) -> None:
    """Enqueue c = alpha a b + beta c; c is not read where beta is 0."""
    (x, y, z), whole = [array for _, array in matrices], matrices
    x, y = (
        a.swapaxes(1, 2) if turn else a for a, turn in zip((x, y), turned, strict=True)
    )

    def product():
        total = alpha * (x.astype(float) @ y.astype(float))
        z[...] = total if beta == 0 else total + beta * z.astype(float)

    enqueue("gemm", product, whole[:2], whole[2:], stream_of(stream))


def seen(pointer, kind, ld, step, shape, count):
    """(memory, matrices in columns (count, rows, columns)) at a place on the device."""
    dtype, (rows, columns) = np.dtype(TYPES[kind]), shape
    elements = (count - 1) * step + (columns - 1) * ld + rows
    memory, place = memory_at(pointer, elements * dtype.itemsize)
    strides = [n * dtype.itemsize for n in (step, 1, ld)]
    return memory, np.ndarray((count, *shape), dtype, place.data, 0, strides)


_kept: list = []


def install() -> None:
    """Put a new Library where minidl looks for cuBLAS, and no cuDNN beside it."""
    _kept[:] = cublas.library, cudnn_plans.frontend
    library = Library()
    cublas.library, cudnn_plans.frontend = lambda: library, lambda: None
    forget()


def remove() -> None:
    """Undo install."""
    cublas.library, cudnn_plans.frontend = _kept
    forget()


def forget() -> None:
    """What minidl keeps of a library."""
    cublas._function.cache_clear()
    for kept in (cublas._handles, cudnn_plans._plans, cudnn_plans._handles):
        kept.clear()
