"""A kernel on a GPU, as one launch.

Arrays that lie alike in memory are moved 16 bytes at a time (cuda_vectors.py), others
go through one cupy.ElementwiseKernel for each compute type.
"""

import numpy

from . import arguments, cuda_vectors, layout
from .body import PREAMBLE
from .cuda_source import C_TYPE
from .device import check_devices, cupy_module

# a * b + c rounds twice, as on a CPU: random numbers and masks are then the same
# everywhere. It costs nothing where memory is the limit.
OPTIONS = ("--fmad=false",)


def run(kernel, inputs, outs, values) -> tuple:
    """One launch; returns the outputs."""
    cupy = cupy_module()
    present = [out for out in outs if out is not None]
    arrays = [*inputs, *present]
    scalar_arrays = [value for value in values if isinstance(value, cupy.ndarray)]
    check_devices(f"kernel {kernel.name!r}", *arrays, *scalar_arrays)
    arguments.check_scalars(kernel, values)
    values = [v.item() if isinstance(v, numpy.ndarray) else v for v in values]
    T, dtypes, scalars = arguments.signature(kernel, inputs, outs, values)
    shape = arguments.common_shape(kernel, inputs, outs)
    near = arguments.check_outputs(kernel, inputs, present)
    inputs = [x.copy() if k in near else x for k, x in enumerate(inputs)]
    with arrays[0].device:
        order = cuda_vectors.order([*inputs, *present], shape, kernel.body.uses_index)
        if order is None:
            outs = _made(outs, shape, dtypes, kernel.outputs)
            key = (T, *(dtype is None for dtype in scalars.values()))
            if key not in kernel.launches:
                kernel.launches[key] = elementwise(kernel, T, scalars)
            kernel.launches[key](*inputs, *values, *outs)
            return outs
        if order:
            inputs = [x.transpose(order) for x in inputs]
            outs = [out if out is None else out.transpose(order) for out in outs]
            shape = tuple(shape[axis] for axis in order)
        plan = _types(cupy.ndarray, [*inputs, *outs], values)
        outs = _made(outs, shape, dtypes, kernel.outputs)
        key = (T, *dtypes.values(), *scalars.values())
        if key not in kernel.launches:
            kernel.launches[key] = cuda_vectors.launcher(
                kernel, T, dtypes, scalars, OPTIONS
            )
        kernel.launches[key]([*inputs, *outs], values)
        kernel.again[plan] = kernel.launches[key], dtypes
        if not order:
            return outs
        back = layout.inverse(order)
        return tuple([out.transpose(back) for out in outs])


def run_again(kernel, inputs, outs, values) -> tuple | None:
    """The same in less of the host's time, for types that have been launched before.

    None where arrays are not of one shape, contiguous, aligned, apart and on the
    current device: `run` sees to those.
    """
    cupy = cupy_module()
    plan = kernel.again.get(_types(cupy.ndarray, [*inputs, *outs], values))
    if plan is None:
        return None
    present = [out for out in outs if out is not None]
    spans, devices = [], {cupy.cuda.runtime.getDevice()}
    arrays = [*present, *inputs]
    shape = arrays[0].shape
    for array in arrays:
        data = array.data
        start = data.ptr
        spans.append((start, start + array.nbytes))
        devices.add(data.device_id)
        if array.shape != shape or not array.flags.c_contiguous:
            return None
        if start % 16 and array.size > 1:
            return None
    for value in values:
        if isinstance(value, cupy.ndarray):
            devices.add(value.data.device_id)
            if value.size != 1:
                return None
    if len(devices) > 1 or not _apart(spans, len(present)):
        return None
    launch, dtypes = plan
    outs = _made(outs, shape, dtypes, kernel.outputs)
    launch([*inputs, *outs], values)
    return outs


def _types(ndarray, arrays, values) -> tuple:
    """The types of a call's arguments."""
    return tuple(
        [x.dtype if isinstance(x, ndarray) else type(x) for x in (*arrays, *values)]
    )


def _apart(spans: list[tuple[int, int]], outputs: int) -> bool:
    """Whether the outputs, which are the first, share no memory but with themselves."""
    for k, (low, high) in enumerate(spans[:outputs]):
        for n, (start, end) in enumerate(spans[k + 1 :], k + 1):
            if start < high and low < end:
                if n < outputs or (start, end) != (low, high):
                    return False
    return True


def _made(outs, shape, dtypes, names) -> tuple:
    """The outputs, those that are missing made."""
    empty = cupy_module().empty
    pairs = zip(outs, names, strict=True)
    return tuple([empty(shape, dtypes[x]) if out is None else out for out, x in pairs])


def elementwise(kernel, T: numpy.dtype, scalars: dict):
    """The cupy.ElementwiseKernel that computes in T; compiled when launched."""
    letters = iter("ABCDEFGHIJKLMNOPQRSUVWXYZ")  # CuPy's names for any dtype
    types = {name: next(letters) for name in kernel.names}
    in_params = [f"{types[name]} _{name}" for name in kernel.inputs]
    in_params += [
        f"{T.name} _{n}" if dtype is None else f"raw {next(letters)} _{n}"
        for n, dtype in scalars.items()
    ]
    lines = [f"typedef {C_TYPE[T]} T;"]
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
