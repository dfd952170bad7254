"""The CUDA kernel that adds rows, compiled without a GPU."""

import numpy as np
import pytest
from test_cuda_compile import compile_cuda, nvrtc  # noqa: F401 - a fixture

from minidl.array.scatter import _segment_sums


def cuda_source(value, index):
    """The CUDA source for rows and values of these types."""
    import cupy
    from cupy._core import _carray, _kernel, _scalar

    def argument(dtype, ndim):
        return _kernel._ArgInfo(1, cupy.ndarray, np.dtype(dtype), ndim, True, True)

    kernel = _segment_sums()
    given = tuple(np.dtype(t) for t in (index, "int64", value, "int64"))
    *_, types = kernel._decide_params_type(given, (np.dtype(value),))
    arguments = (
        argument(index, 1),
        argument("int64", 1),
        argument(value, 2),
        _kernel._ArgInfo(3, _scalar.CScalar, np.dtype("int64"), 0, True, True),
        argument(value, 2),
        _kernel._ArgInfo(2, _carray.Indexer, None, 1, True, True),
    )
    return _kernel._get_elementwise_kernel_code(
        arguments,
        types,
        kernel.params,
        kernel.operation,
        kernel.name,
        kernel.preamble,
        **kernel.kwargs,
    )


@pytest.mark.slow
@pytest.mark.parametrize("value", ["float32", "float64", "int64"])
@pytest.mark.parametrize("index", ["int64", "int32", "uint8"])
def test_adding_rows_compiles(nvrtc, value, index):  # noqa: F811
    for architecture in ("sm_80", "sm_90"):
        assert compile_cuda(cuda_source(value, index), architecture)[1:4] == b"ELF"
