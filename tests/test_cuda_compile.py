"""Every kernel is compiled for GPUs, on machines that have none.

CuPy writes the CUDA source of an ElementwiseKernel and hands it to NVRTC; both work
without a device, through names of CuPy 14 that are not public.
"""

import numpy
import pytest
from conftest import all_kernels

from minidl.array.arguments import signature
from minidl.array.cuda import OPTIONS, elementwise
from minidl.array.device import bfloat16
from minidl.array.kernel import Kernel

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
if int(cupy.__version__.split(".")[0]) != 14:
    pytest.skip("written for the inside of CuPy 14", allow_module_level=True)

KERNELS = all_kernels()
TOGETHER = 12  # kernels in a compilation, most of whose time goes into the headers
FLOATS = ["float32", "float64", "float16", *([] if bfloat16 is None else [bfloat16])]


def cuda_source(kernel, dtypes, scalars, name, ndim=1):
    """The CUDA C++ that CuPy would compile.

    For arrays of these dtypes (or all of one) and of so many dimensions, 1 standing
    for contiguous ones. `scalars` says what scalars are: "number", or arrays of
    one element and "0-d" or "1-d".
    """
    from cupy._core import _carray, _kernel, _scalar

    if not isinstance(dtypes, list):
        dtypes = [dtypes] * len(kernel.names)
    arrays = [numpy.empty(1, dtype) for dtype in dtypes]
    wide = kernel.compute or arrays[0].dtype
    values = [1 if scalars == "number" else numpy.ones(1, wide) for _ in kernel.scalars]
    first = len(kernel.inputs)
    T, dtypes, kinds = signature(kernel, arrays[:first], arrays[first:], values)
    made = elementwise(kernel, T, kinds)
    kinds = [*(dtypes[name] for name in kernel.inputs), *kinds.values()]
    outs = tuple(dtypes[name] for name in kernel.outputs)
    filled = tuple(T if kind is None else kind for kind in kinds)
    in_types, out_types, types = made._decide_params_type(filled, outs)

    def array(dtype, ndim, flat):  # small flat arrays are indexed with 32 bits
        of = numpy.dtype(dtype)
        return _kernel._ArgInfo(1, cupy.ndarray, of, ndim, flat, flat)

    info = [
        _kernel._ArgInfo(3, _scalar.CScalar, numpy.dtype(t), 0, True, True)
        if kind is None
        else array(t, ndim, ndim == 1)
        if position < first
        else array(t, int(scalars[0]), True)
        for position, (kind, t) in enumerate(zip(kinds, in_types, strict=True))
    ]
    info += [array(t, ndim, ndim == 1) for t in out_types]
    info.append(_kernel._ArgInfo(2, _carray.Indexer, None, ndim, True, ndim == 1))
    return _kernel._get_elementwise_kernel_code(
        tuple(info),
        types,
        made.params,
        made.operation,
        name,
        made.preamble,
        **made.kwargs,
    )


def compile_cuda(source, architecture, method="cubin", options=OPTIONS, raw=False):
    """The machine code (or, with method "ptx", its text) by NVRTC.

    `raw` is a source that gets none of CuPy's headers but those that it asks for.
    """
    from cupy._core import core
    from cupy.cuda import compiler

    names = [] if raw else core._cupy_header_list
    headers = "".join(f"#include <{name}>\n" for name in names)
    options = (
        *core.assemble_cupy_compiler_options(()),
        "-ftz=true",
        "--device-as-default-execution-space",
        f"-arch={architecture}",
        *options,
    )
    program = compiler._NVRTCProgram(headers + source, "kernel.cu", method=method)
    return program.compile(options)[0]


def compile_together(sources, architectures=("sm_80", "sm_90"), raw=False):
    """Compile all for each architecture: most of the time goes into the headers."""
    headers, bodies = {}, []
    for source in sources:
        lines = [line.strip() for line in source.splitlines()]
        headers |= dict.fromkeys(x for x in lines if x.startswith("#include"))
        body = "\n".join(x for x in lines if not x.startswith("#include"))
        bodies.append(f"namespace n{len(bodies)} {{\n{body}\n}}")
    for architecture in architectures:
        yield compile_cuda("\n".join([*headers, *bodies]), architecture, raw=raw)


@pytest.fixture(scope="session")
def nvrtc():
    """Skips where the CUDA compiler is missing."""
    try:
        compile_cuda("", "sm_80")
    except Exception as error:
        pytest.skip(f"NVRTC or the CUDA headers are not installed: {error}")


def signatures(kernel):
    """The dtypes to compile it for."""
    if kernel.body.needs_integer or kernel.compute == numpy.uint64:
        return ["uint64"]
    return FLOATS if kernel.compute is None else [kernel.compute.name]


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(KERNELS), TOGETHER))
def test_kernels_compile_for_gpus(nvrtc, first):
    """As they are for arrays in several orders; for those in one, and derivatives, see
    test_cuda_vectors.py and test_machine_code.py."""
    sources = {}
    for name in list(KERNELS)[first : first + TOGETHER]:
        for k, dtype in enumerate(signatures(KERNELS[name])):
            title, scalars = f"{name}_{k}", ("number", "1-d")[k % 2]
            sources[title] = cuda_source(KERNELS[name], dtype, scalars, title, 3)
    for code in compile_together(sources.values(), ["sm_80"]):
        assert code[1:4] == b"ELF"
        assert all(title.encode() in code for title in sources)


@pytest.mark.slow
def test_every_part_of_the_language_compiles(nvrtc):
    from test_kernel import EVERYTHING, MIX

    mixtures = [*FLOATS, ["float16", "int64", "float64", "bool"]]
    mixtures += [["bool", "uint8", "float32", "float16"]]
    sources = [
        cuda_source(EVERYTHING, dtypes, scalars, f"everything_{k}_{ndim}", ndim)
        for k, dtypes in enumerate(mixtures)
        for scalars, ndim in (("number", 4), ("0-d", 1))
    ]
    whole = ["int32", "uint64", ["uint8", "int16", "bool"]]
    sources += [
        cuda_source(MIX, dtypes, "number", f"mix_{k}") for k, dtypes in enumerate(whole)
    ]
    for code in compile_together(sources):
        assert code[1:4] == b"ELF"


def test_sums_of_products_are_rounded_as_on_a_cpu(nvrtc):
    axpy = Kernel("test_rounding", "x", "y", "a", "y += a * x;")
    source = cuda_source(axpy, "float32", "number", "axpy")
    del Kernel.registry["test_rounding"]

    def text(options):
        ptx = compile_cuda(source, "compute_90", "ptx", options)
        return ptx if isinstance(ptx, str) else ptx.decode()

    assert "fma." in text(()) and "fma." not in text(OPTIONS)


def test_a_wrong_source_does_not_compile(nvrtc):
    with pytest.raises(Exception, match="undeclared"):
        compile_cuda(
            'extern "C" __global__ void f(float* x) { x = undeclared; }', "sm_90"
        )
