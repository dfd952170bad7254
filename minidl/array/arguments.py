"""What a kernel asks of its arguments, and the sentences that say so."""

import numpy

from . import layout
from .device import bfloat16, is_array, on_gpu
from .errors import DeviceError
from .loop_source import C_TYPE

_NUMBERS = (int, float, numpy.number, numpy.bool_)
COMPUTE = [
    numpy.dtype(name)
    for name in ("float32", "float64", "int32", "int64", "uint32", "uint64")
]


def signature(kernel, inputs, outs, values) -> tuple[numpy.dtype, dict, dict]:
    """Compute type, dtypes of the arrays by name, dtypes of the scalars.

    A scalar that is a number has None in place of a dtype.
    """
    dtypes = {}
    for name, array in zip(kernel.names, [*inputs, *outs], strict=True):
        if array is not None:
            dtypes[name] = array.dtype
        elif name in kernel.inputs or name in kernel.body.reads or not inputs:
            raise TypeError(f"kernel {kernel.name!r} needs the array {name!r}")
        else:
            dtypes[name] = inputs[0].dtype
        if dtypes[name] not in C_TYPE:
            raise TypeError(
                f"kernel {kernel.name!r} cannot take {name!r} of {dtypes[name]}"
            )
    gpu = on_gpu(next(x for x in [*inputs, *outs] if x is not None))
    scalars = {}
    for name, value in zip(kernel.scalars, values, strict=True):
        if is_array(value) and on_gpu(value) and not gpu:
            raise DeviceError(
                f"kernel {kernel.name!r} runs on the CPU, its scalar {name!r} is "
                "on a GPU"
            )
        if not is_array(value) and not isinstance(value, _NUMBERS):
            raise TypeError(
                f"kernel {kernel.name!r} takes a number or a one-element array as "
                f"{name!r}, got {type(value).__name__}"
            )
        scalars[name] = value.dtype if is_array(value) else None
    return _compute_type(kernel, list(dtypes.values())), dtypes, scalars


def _compute_type(kernel, dtypes: list[numpy.dtype]) -> numpy.dtype:
    if kernel.compute is not None:
        return kernel.compute
    if any(dtype == numpy.float64 for dtype in dtypes):
        T = numpy.dtype("float64")
    elif any(dtype.kind == "f" or dtype == bfloat16 for dtype in dtypes):
        T = numpy.dtype("float32")
    else:
        T = numpy.result_type(numpy.int32, *dtypes)
        if T.kind == "f":  # NumPy's answer to int64 with uint64
            T = numpy.dtype("int64")
    check_type(kernel, T)
    return T


def check_type(kernel, T: numpy.dtype) -> None:
    if T not in COMPUTE:
        raise TypeError(f"kernel {kernel.name!r} cannot compute in {T}")
    if T.kind == "f" and kernel.body.needs_integer:
        raise TypeError(
            f"kernel {kernel.name!r} has operators for integers, got arrays of {T}"
        )
    if T.kind != "f" and kernel.body.needs_float:
        raise TypeError(
            f"kernel {kernel.name!r} computes with real numbers, got only arrays of "
            "integers: convert them with astype"
        )


def common_shape(kernel, inputs, outs) -> tuple[int, ...]:
    """The shape of the outputs; everything must broadcast to it."""
    arrays = [*inputs, *(out for out in outs if out is not None)]
    shape = arrays[-1].shape
    for array in arrays:
        if array.shape != shape:
            break
    else:
        return shape
    given = [out.shape for out in outs if out is not None]
    try:
        shape = numpy.broadcast_shapes(*(x.shape for x in inputs), *given)
    except ValueError:
        shape = None
    if shape is None or any(x != shape for x in given):
        named = zip(kernel.names, [*inputs, *outs], strict=True)
        shapes = ", ".join(f"{n} {x.shape}" for n, x in named if x is not None)
        raise ValueError(f"kernel {kernel.name!r}: shapes do not fit: {shapes}")
    return shape


def check_scalars(kernel, values) -> None:
    for name, value in zip(kernel.scalars, values, strict=True):
        if hasattr(value, "size") and value.size != 1:
            raise ValueError(
                f"kernel {kernel.name!r} takes one element as {name!r}, "
                f"got the shape {value.shape}"
            )


def check_outputs(kernel, inputs, outs) -> set[int]:
    """Positions of inputs that overlap an output; raises if one cannot be written."""
    for out in outs:
        if layout.repeats(out):
            raise ValueError(
                f"kernel {kernel.name!r}: an output of shape {out.shape} is a "
                "broadcast view: its elements share memory"
            )
        if isinstance(out, numpy.ndarray) and not out.flags.writeable:
            raise ValueError(f"kernel {kernel.name!r}: an output is read-only")
    shared = layout.shared(inputs, outs)
    if shared is None:
        raise ValueError(f"kernel {kernel.name!r}: two outputs share memory")
    return shared


def usage(kernel, inputs: int, outs: int, scalars) -> str:
    return (
        f"kernel {kernel.name!r} takes {len(kernel.inputs)} inputs "
        f"({' '.join(kernel.inputs)}), {len(kernel.outputs)} outputs "
        f"({' '.join(kernel.outputs)}) and the scalars ({' '.join(kernel.scalars)}), "
        f"got {inputs} inputs, {outs} outputs and ({' '.join(scalars)})"
    )
