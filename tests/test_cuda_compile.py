"""Every kernel is compiled for GPUs, on machines that have none.

CuPy writes the CUDA source of an ElementwiseKernel and hands it to NVRTC; both work
without a device, through names of CuPy 14 that are not public.
"""

import numpy
import pytest
from conftest import all_kernels

from minidl.array.arguments import signature
from minidl.array.cuda import elementwise
from minidl.array.device import bfloat16

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
if int(cupy.__version__.split(".")[0]) != 14:
    pytest.skip("written for the inside of CuPy 14", allow_module_level=True)

KERNELS = all_kernels()
FLOATS = ["float32", "float64", "float16", *([] if bfloat16 is None else [bfloat16])]


def cuda_source(kernel, dtype, arrays_as_scalars, name):
    """The CUDA C++ that CuPy would compile for arrays of this dtype."""
    from cupy._core import _carray, _kernel, _scalar

    arrays = [numpy.empty(1, dtype) for _ in kernel.names]
    wide = kernel.compute or numpy.dtype(dtype)
    values = [numpy.ones(1, wide) if arrays_as_scalars else 1 for _ in kernel.scalars]
    first = len(kernel.inputs)
    T, dtypes, scalars = signature(kernel, arrays[:first], arrays[first:], values)
    made = elementwise(kernel, T, scalars)
    kinds = [*(dtypes[name] for name in kernel.inputs), *scalars.values()]
    outs = tuple(dtypes[name] for name in kernel.outputs)
    filled = tuple(T if kind is None else kind for kind in kinds)
    in_types, out_types, types = made._decide_params_type(filled, outs)
    info = [
        _kernel._ArgInfo(3, _scalar.CScalar, numpy.dtype(t), 0, True, True)
        if kind is None
        else _kernel._ArgInfo(1, cupy.ndarray, numpy.dtype(t), 1, True, True)
        for kind, t in zip(kinds, in_types, strict=True)
    ]
    info += [
        _kernel._ArgInfo(1, cupy.ndarray, numpy.dtype(t), 1, True, True)
        for t in out_types
    ]
    info.append(_kernel._ArgInfo(2, _carray.Indexer, None, 1, True, True))
    return _kernel._get_elementwise_kernel_code(
        tuple(info),
        types,
        made.params,
        made.operation,
        name,
        made.preamble,
        **made.kwargs,
    )


def compile_cuda(source, architecture):
    """The machine code for that architecture, by NVRTC."""
    from cupy._core import core
    from cupy.cuda import compiler

    headers = "".join(f"#include <{name}>\n" for name in core._cupy_header_list)
    options = (
        *core.assemble_cupy_compiler_options(()),
        "-ftz=true",
        "--device-as-default-execution-space",
        f"-arch={architecture}",
    )
    program = compiler._NVRTCProgram(headers + source, "kernel.cu", method="cubin")
    return program.compile(options)[0]


@pytest.fixture(scope="session")
def nvrtc():
    """Skips where the CUDA compiler is missing."""
    try:
        compile_cuda("", "sm_80")
    except Exception as error:
        pytest.skip(f"NVRTC or the CUDA headers are not installed: {error}")


def signatures(kernel):
    """The dtypes to compile it for."""
    if kernel.body.needs_integer or kernel.compute is not None:
        return ["uint64"]
    return FLOATS


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_compiles_for_gpus(nvrtc, name):
    # one text for all dtypes, since most of the time goes into CuPy's headers
    kernel, headers, bodies = KERNELS[name], {}, []
    for as_arrays in (False, True) if kernel.scalars else (False,):
        for dtype in signatures(kernel):
            source = cuda_source(kernel, dtype, as_arrays, f"{name}_{len(bodies)}")
            lines = [line.strip() for line in source.splitlines()]
            headers |= dict.fromkeys(x for x in lines if x.startswith("#include"))
            body = "\n".join(x for x in lines if not x.startswith("#include"))
            bodies.append(f"namespace n{len(bodies)} {{\n{body}\n}}")
    for architecture in ("sm_80", "sm_90"):
        code = compile_cuda("\n".join([*headers, *bodies]), architecture)
        assert code[1:4] == b"ELF"
        assert all(f"{name}_{k}".encode() in code for k in range(len(bodies)))


@pytest.mark.slow
def test_every_part_of_the_language_compiles(nvrtc):
    from test_kernel import EVERYTHING

    for dtype in FLOATS:
        source = cuda_source(EVERYTHING, dtype, False, "everything")
        assert compile_cuda(source, "sm_90")[1:4] == b"ELF"


def test_a_wrong_source_does_not_compile(nvrtc):
    with pytest.raises(Exception, match="undeclared"):
        compile_cuda(
            'extern "C" __global__ void f(float* x) { x = undeclared; }', "sm_90"
        )
