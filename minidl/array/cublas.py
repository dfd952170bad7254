"""Matrix products on a GPU: cuBLAS, called so that a CUDA graph can capture it.

CuPy refuses its own products while a stream is capturing. Here a stream has a handle
of its own, made with its workspace when the stream multiplies for the first time, and
a product is one call that waits for nothing. cuBLAS counts matrices by columns: in its
eyes a matrix in rows is its transpose, so that C = A B is asked for as C^T = B^T A^T,
and an operand in columns costs nothing. NVIDIA, *cuBLAS Library*, sections 2.4 and 3.
"""

import ctypes
from functools import cache
from itertools import pairwise
from math import prod

import numpy

from .device import Array, bfloat16, check_devices, cupy_module
from .errors import DependencyError, DeviceError
from .precision import tf32

WORKSPACE_BYTES = 32 << 20  # what NVIDIA recommends for the H100 and later

# From cublas_api.h and library_types.h.
_TYPES = {numpy.dtype("float32"): 0, numpy.dtype("float64"): 1}
_TYPES |= {numpy.dtype("float16"): 2}
_TYPES |= {} if bfloat16 is None else {numpy.dtype(bfloat16): 14}
_COMPUTE_32F, _COMPUTE_64F, _COMPUTE_32F_TF32 = 68, 70, 77
_DEFAULT_ALGORITHM = -1
_NO_16_BIT_SUMS = 16  # partial sums of halves stay float32 (a math mode)
_NUMBERS = {  # 0 and 1, for alpha and beta, by compute type
    kind: tuple(map(number, (0, 1)))
    for kind, number in (
        (_COMPUTE_32F, ctypes.c_float),
        (_COMPUTE_32F_TF32, ctypes.c_float),
        (_COMPUTE_64F, ctypes.c_double),
    )
}

_P, _I, _N = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_MATRIX = {False: [_P, _I, _N], True: [_P, _I, _N, _N]}  # at, type, ld (, stride)
_ARGUMENTS = {
    "cublasCreate_v2": [_P],
    "cublasSetStream_v2": [_P, _P],
    "cublasSetWorkspace_v2": [_P, _P, ctypes.c_size_t],
    "cublasSetMathMode": [_P, _I],
} | {
    name: [_P, _I, _I, _N, _N, _N, _P]
    + [*_MATRIX[stacks], *_MATRIX[stacks], _P, *_MATRIX[stacks]]
    + [_N] * stacks
    + [_I, _I]
    for name, stacks in (
        ("cublasGemmEx_64", False),
        ("cublasGemmStridedBatchedEx_64", True),
    )
}
_handles: dict[tuple[int, int], tuple] = {}  # by device and stream


def supports(a: Array, b: Array, out: Array | None) -> bool:
    """Whether cuBLAS multiplies these types: real ones, halves also into float32."""
    if a.dtype not in _TYPES or a.dtype != b.dtype:
        return False
    wide = a.dtype.itemsize == 2 and out is not None and out.dtype == numpy.float32
    return out is None or out.dtype == a.dtype or wide


def matmul(a: Array, b: Array, out: Array | None, accumulate: bool) -> Array:
    """a @ b, or out += a @ b, for matrices and stacks of them that broadcast.

    Sums are float32 for types of 16 bits. ValueError where shapes do not fit;
    RuntimeError where a stream that is capturing has multiplied nothing before;
    DeviceError, with cuBLAS's own name for it, where cuBLAS fails.
    """
    stack = a.shape[:-2]
    if stack != b.shape[:-2]:
        stack = numpy.broadcast_shapes(stack, b.shape[:-2])
    shape = (*stack, a.shape[-2], b.shape[-1])
    if a.shape[-1] != b.shape[-2] or (out is not None and out.shape != shape):
        given = f"{a.shape} and {b.shape}"
        given += "" if out is None else f" into {out.shape}"
        raise ValueError(f"matrix product of shapes {given}: they do not fit")
    places = {x.data.device_id for x in (a, b, out) if x is not None and x.size}
    if len(places) > 1:
        check_devices("a matrix product", a, b, out)
    cupy = cupy_module()
    with a.device:
        if out is None:
            out = target = cupy.empty(shape, a.dtype)
        elif _writable(cupy, out, a, b):
            target = out
        else:
            target = out.copy() if accumulate else cupy.empty(shape, out.dtype)
        if out.size and a.shape[-1]:
            left, right = _lying(cupy, a, stack), _lying(cupy, b, stack)
            _multiply(cupy, left, right, target, accumulate)
        elif not accumulate:
            target.fill(0)
        if target is not out:
            out[...] = target
    return out


def _multiply(cupy, left: tuple, right: tuple, out: Array, accumulate: bool) -> None:
    """One call, for operands with their layouts and stacks of the same shape."""
    (a, (lda, turned_a, step_a)), (b, (ldb, turned_b, step_b)) = left, right
    *stack, m, n = out.shape
    ldc, _, step_c = _layout(out)
    compute = _COMPUTE_64F if a.dtype.itemsize == 8 else _COMPUTE_32F
    if a.dtype == numpy.float32 and tf32():
        compute = _COMPUTE_32F_TF32
    zero, one = _NUMBERS[compute]
    kind, made, count = _TYPES[a.dtype], _TYPES[out.dtype], prod(stack)
    steps = ([step_b], [step_a], [step_c]) if count > 1 else ([], [], [])
    call(
        "cublasGemmStridedBatchedEx_64" if count > 1 else "cublasGemmEx_64",
        handle(cupy),
        *(int(turned_b), int(turned_a), n, m, a.shape[-1]),
        ctypes.byref(one),
        *(b.data.ptr, kind, ldb, *steps[0]),
        *(a.data.ptr, kind, lda, *steps[1]),
        ctypes.byref(one if accumulate else zero),
        *(out.data.ptr, made, ldc, *steps[2]),
        *([count] if count > 1 else []),
        *(compute, _DEFAULT_ALGORITHM),
    )


def _lying(cupy, array: Array, stack: tuple) -> tuple:
    """(the array as a stack of this shape, its layout); copied where it has none."""
    if array.shape[:-2] != stack:
        array = cupy.broadcast_to(array, (*stack, *array.shape[-2:]))
    layout = _layout(array)
    if layout is None:
        array = cupy.ascontiguousarray(array)
        layout = _layout(array)
    return array, layout


def _layout(array: Array) -> tuple[int, bool, int] | None:
    """(elements from line to line, whether lines are columns, from matrix to matrix).

    None where the lines are not of adjacent elements, or the matrices of the stack
    not equally far from each other (0: one for all).
    """
    *steps, row, column = [stride // array.itemsize for stride in array.strides]
    *stack, rows, columns = array.shape
    row = max(columns, 1) if rows == 1 else row
    column = 1 if columns == 1 and row >= 1 else column
    if column == 1 and row >= columns:
        lines = row, False
    elif (row == 1 or rows == 1) and column >= rows:
        lines = column, True
    else:
        return None
    lengths = [(n, step) for n, step in zip(stack, steps, strict=True) if n > 1]
    for (_, outer), (n, inner) in pairwise(lengths):
        if outer != n * inner:
            return None
    step = lengths[-1][1] if lengths else 0
    return None if step < 0 else (*lines, step)


def _writable(cupy, out: Array, *operands: Array) -> bool:
    """Whether cuBLAS can write there: lines that are rows, apart from the operands."""
    layout = _layout(out)
    if layout is None or layout[1]:
        return False
    return not any(cupy.may_share_memory(out, operand) for operand in operands)


def handle(cupy) -> int:
    """The handle of the current device's current stream; made where there is none.

    It is never given another stream, so threads and streams share no workspace.
    """
    stream = cupy.cuda.get_current_stream()
    key = cupy.cuda.runtime.getDevice(), stream.ptr
    found = _handles.get(key)
    if found is None:
        if stream.is_capturing():
            raise RuntimeError(
                "the first matrix product of a stream cannot be captured: run the "
                "step once on this stream before capturing it"
            )
        found = _handles[key] = _made(cupy, stream)
    return found[0]


def _made(cupy, stream) -> tuple:
    """(a new handle for this stream, its workspace, kept for as long)."""
    made = ctypes.c_void_p()
    memory = cupy.get_default_memory_pool().malloc(WORKSPACE_BYTES)  # not a graph's
    call("cublasCreate_v2", ctypes.byref(made))
    call("cublasSetStream_v2", made, stream.ptr)  # before the workspace: it resets it
    call("cublasSetWorkspace_v2", made, memory.ptr, WORKSPACE_BYTES)
    call("cublasSetMathMode", made, _NO_16_BIT_SUMS)
    return made, memory


def call(name: str, *arguments) -> None:
    """Call a function of cuBLAS; DeviceError where it returns anything but success."""
    status = _function(name)(*arguments)
    if status:
        said = _function("cublasGetStatusName")(status)
        raise DeviceError(
            f"{name} failed with status {status}, "
            f"{said.decode() if said else 'which has no name'}"
        )


@cache
def _function(name: str):
    function = getattr(library(), name)
    if name == "cublasGetStatusName":
        function.argtypes, function.restype = [_I], ctypes.c_char_p
    else:
        function.argtypes, function.restype = _ARGUMENTS[name], _I
    return function


@cache
def library() -> ctypes.CDLL:
    """The cuBLAS that CuPy uses; DependencyError where there is none."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    except (ImportError, RuntimeError, OSError) as error:
        raise DependencyError(
            "cuBLAS, which multiplies matrices on a GPU, was not found: "
            "pip install 'minidl[cuda12]' (or cuda13, as the driver is)"
        ) from error
