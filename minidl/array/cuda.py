"""A kernel on a GPU: one cupy.ElementwiseKernel for each compute type."""

import numpy

from . import arguments
from .body import PREAMBLE
from .device import cupy_module, device_of
from .errors import DeviceError

# a * b + c rounds twice, as on a CPU: random numbers and masks are then the same
# everywhere. It costs nothing where memory is the limit.
OPTIONS = ("--fmad=false",)
COMPUTE = {  # what CUDA C++ calls the types without any header
    numpy.dtype("float32"): "float",
    numpy.dtype("float64"): "double",
    numpy.dtype("int32"): "int",
    numpy.dtype("uint32"): "unsigned int",
    numpy.dtype("int64"): "long long",
    numpy.dtype("uint64"): "unsigned long long",
}


def run(kernel, inputs, outs, values) -> tuple:
    """One launch; returns the outputs."""
    cupy = cupy_module()
    present = [out for out in outs if out is not None]
    arrays = [*inputs, *present]
    scalar_arrays = [value for value in values if isinstance(value, cupy.ndarray)]
    devices = [device_of(array) for array in [*arrays, *scalar_arrays]]
    if len(set(devices)) > 1:
        raise DeviceError(
            f"kernel {kernel.name!r} needs its arrays on one device, "
            f"got them on {', '.join(devices)}"
        )
    arguments.check_scalars(kernel, values)
    values = [v.item() if isinstance(v, numpy.ndarray) else v for v in values]
    T, dtypes, scalars = arguments.signature(kernel, inputs, outs, values)
    shape = arguments.common_shape(kernel, inputs, outs)
    near = arguments.check_outputs(kernel, inputs, present)
    inputs = [x.copy() if k in near else x for k, x in enumerate(inputs)]
    key = (T, *(dtype is None for dtype in scalars.values()))
    launch = kernel.launches.get(key)
    if launch is None:
        launch = kernel.launches[key] = elementwise(kernel, T, scalars)
    with arrays[0].device:
        outs = [
            cupy.empty(shape, dtypes[name]) if out is None else out
            for out, name in zip(outs, kernel.outputs, strict=True)
        ]
        launch(*inputs, *values, *outs)
    return tuple(outs)


def elementwise(kernel, T: numpy.dtype, scalars: dict):
    """The cupy.ElementwiseKernel that computes in T; compiled when launched."""
    letters = iter("ABCDEFGHIJKLMNOPQRSUVWXYZ")  # CuPy's names for any dtype
    types = {name: next(letters) for name in kernel.names}
    in_params = [f"{types[name]} _{name}" for name in kernel.inputs]
    in_params += [
        f"{T.name} _{n}" if dtype is None else f"raw {next(letters)} _{n}"
        for n, dtype in scalars.items()
    ]
    lines = [f"typedef {COMPUTE[T]} T;"]
    for name in kernel.names:
        read = name in kernel.inputs or name in kernel.body.reads
        lines.append(f"T v_{name} = {f'(T)_{name}' if read else 'T(0)'};")
    for name, dtype in scalars.items():
        lines.append(f"const T v_{name} = (T)_{name}{'' if dtype is None else '[0]'};")
    if kernel.body.uses_index:
        lines.append("T v_index = (T)i;")
    lines += kernel.body.cpp
    lines += [f"_{name} = ({types[name]})v_{name};" for name in kernel.outputs]
    return cupy_module().ElementwiseKernel(
        ", ".join(in_params),
        ", ".join(f"{types[name]} _{name}" for name in kernel.outputs),
        "\n".join(lines),
        f"minidl_{kernel.name}",
        preamble="#define MINIDL_HD __device__ static inline" + PREAMBLE,
        options=OPTIONS,
    )
