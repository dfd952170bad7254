"""One body of arithmetic for every compiler: CUDA, the host's C++, or NumPy."""

from collections.abc import Callable
from math import prod
from typing import ClassVar

import numpy

from . import layout, loops
from .body import PREAMBLE, Body
from .device import Array, bfloat16, cupy_module, device_of, is_array, on_gpu
from .errors import DeviceError

ndarray = numpy.ndarray


class Kernel:
    """An elementwise operation, written once; body.py describes its language.

        axpy = Kernel("axpy", inputs="x", outputs="y", scalars="a", body="y += a * x;")
        axpy(x, out=y, a=2.0)

    `inputs` are arrays that are read, `outputs` arrays that are written (and read,
    where the body reads them first), `scalars` numbers or one-element arrays.
    A call returns its output, or a tuple of them. Outputs that are not given are
    made: the shape that the inputs broadcast to, the first input's dtype.

    Every argument is loaded into a local of the compute type T, the body runs, the
    outputs are stored last; so an output may be an input too. T is float32 for
    float16, bfloat16 and float32, float64 if any array is float64; an integer type
    if all arrays are integers; or `compute`, where that is given.

    A call raises TypeError for wrong arguments or dtypes, ValueError for shapes
    that do not fit, DeviceError for arrays on different devices, all before
    anything is written.
    """

    registry: ClassVar[dict[str, "Kernel"]] = {}

    def __init__(
        self,
        name: str,
        inputs: str = "",
        outputs: str = "",
        scalars: str = "",
        body: str = "",
        compute: str | None = None,
    ):
        self.name = name
        self.inputs, self.outputs = inputs.split(), outputs.split()
        self.scalars = scalars.split()
        self.names = self.inputs + self.outputs
        self.compute = None if compute is None else numpy.dtype(compute)
        self.body = Body(name, self.inputs, self.outputs, self.scalars, body)
        if self.compute is not None:
            self._check_type(self.compute)
        self._keep = {self.outputs.index(output) for output in self.body.reads}
        self._none = (None,) * len(self.outputs)
        self._plans: dict[tuple, tuple] = {}
        self._cuda: dict[tuple, Callable] = {}
        self._definition = (inputs, outputs, scalars, body, compute)
        if Kernel.registry.setdefault(name, self)._definition != self._definition:
            raise ValueError(f"there is another kernel of the name {name!r}")

    def __repr__(self) -> str:
        return f"<Kernel {self.name}>"

    def __call__(self, *inputs: Array, out=None, **scalars) -> Array | tuple:
        """Run on these arrays; `out` is the output or a tuple of them (or Nones)."""
        outs = self._none if out is None else out if type(out) is tuple else (out,)
        values = [scalars[name] for name in self.scalars if name in scalars]
        if (
            len(inputs) != len(self.inputs)
            or len(outs) != len(self.outputs)
            or not len(values) == len(self.scalars) == len(scalars)
        ):
            raise TypeError(self._usage(len(inputs), len(outs), scalars))
        key = []
        for array in inputs + outs:
            if type(array) is ndarray:
                key.append(array.dtype)
            elif array is None:
                key.append(None)
            else:
                return self._call_others(inputs, outs, values)
        for value in values:
            kind = type(value)
            key.append(kind if kind is not ndarray else value.dtype)
        key = tuple(key)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(inputs, outs, values)
        return self._run(*plan, inputs, outs, values, out is not None)

    # --- on the CPU

    def _plan(self, inputs, outs, values) -> tuple[Callable, list[numpy.dtype]]:
        """The loop for these dtypes, and the outputs' dtypes."""
        T, dtypes, scalars = self.signature(inputs, outs, values)
        loop = loops.make(self.body, T, dtypes, scalars)
        return loop, [dtypes[name] for name in self.outputs]

    def _run(self, loop, dtypes, inputs, outs, values, given):
        """Check, make the outputs that are missing, run flat where that can be."""
        shape = self._shape(inputs, outs)
        for value in values:
            if type(value) is ndarray and value.size != 1:
                self._check_scalars(values)
        flat = True
        for array in inputs:
            if array.shape != shape or not array.flags.c_contiguous:
                flat = False
        if given:
            present = [out for out in outs if out is not None]
            flat = self._check_outputs(present) and flat
            shared = layout.shared(inputs, present, flat)
            if shared is None:
                raise ValueError(f"kernel {self.name!r}: two outputs share memory")
            flat = flat and not shared
        if not flat:
            return self._run_any(loop, dtypes, shape, inputs, outs, values)
        outs = [
            numpy.empty(shape, dtype) if out is None else out
            for out, dtype in zip(outs, dtypes, strict=True)
        ]
        loop(prod(shape), [*inputs, *outs], values)
        return outs[0] if len(outs) == 1 else tuple(outs)

    def _run_any(self, loop, dtypes, shape, inputs, outs, values):
        """Any strides: in the layout that all share, or through contiguous copies."""
        present = [out for out in outs if out is not None]
        order = layout.common_order([*inputs, *present])
        if order is not None and not self.body.uses_index:
            back = numpy.argsort(order)
            turned = [out if out is None else out.transpose(order) for out in outs]
            done = self._run(
                loop, dtypes, [x.transpose(order) for x in inputs], turned, values, True
            )
            done = [done] if len(outs) == 1 else done
            outs = [
                new.transpose(back) if out is None else out
                for out, new in zip(outs, done, strict=True)
            ]
        else:
            outs = [
                numpy.empty(shape, dtype) if out is None else out
                for out, dtype in zip(outs, dtypes, strict=True)
            ]
            self._run_strided(loop, shape, inputs, outs, values)
        return outs[0] if len(outs) == 1 else tuple(outs)

    def _run_strided(self, loop, shape, inputs, outs, values):
        """As the arrays lie where the loop can do that, otherwise through copies."""
        arrays = layout.spread(inputs, outs, shape)
        if not self.body.uses_index:
            arrays = layout.by_stride(arrays)
        walk = layout.geometry(
            arrays[-1].shape,
            tuple(array.strides for array in arrays),
            tuple(array.itemsize for array in arrays),
        )
        if walk is not None and loop.strided(walk, arrays, values):
            return
        flat, copies = layout.flatten(inputs, outs, shape, self._keep)
        loop(prod(shape), flat, values)
        for out, temporary in copies:
            out[...] = temporary

    # --- on a GPU

    def _call_others(self, inputs, outs, values):
        """Arrays of CuPy, and subclasses of NumPy's; anything else is a mistake."""
        arrays = [*inputs, *(out for out in outs if out is not None)]
        for array in arrays:
            if not is_array(array):
                raise TypeError(
                    f"kernel {self.name!r} takes arrays of NumPy or CuPy, "
                    f"got {type(array).__name__}"
                )
        if not any(map(on_gpu, arrays)):
            plain = [out if out is None else out.view(ndarray) for out in outs]
            done = self(
                *(x.view(ndarray) for x in inputs),
                out=tuple(plain),
                **dict(zip(self.scalars, values, strict=True)),
            )
            return outs[0] if len(outs) == 1 and outs[0] is not None else done
        return self._run_cuda(arrays, inputs, outs, values)

    def _run_cuda(self, arrays, inputs, outs, values):
        """One launch of the ElementwiseKernel for this compute type."""
        cupy = cupy_module()
        present = arrays[len(inputs) :]
        devices = [device_of(x) for x in [*arrays, *filter(is_array, values)]]
        if len(set(devices[: len(arrays)])) > 1 or "cpu" in devices[: len(arrays)]:
            raise DeviceError(
                f"kernel {self.name!r} needs its arrays on one device, "
                f"got them on {', '.join(devices)}"
            )
        values = [v.item() if isinstance(v, ndarray) else v for v in values]
        T, dtypes, scalars = self.signature(inputs, outs, values)
        shape = self._shape(inputs, outs)
        self._check_scalars(values)
        self._check_outputs(present)
        near = layout.shared(inputs, present)
        if near is None:
            raise ValueError(f"kernel {self.name!r}: two outputs share memory")
        inputs = [x.copy() if k in near else x for k, x in enumerate(inputs)]
        key = (T, *(dtype is None for dtype in scalars.values()))
        launch = self._cuda.get(key)
        if launch is None:
            launch = self._cuda[key] = self.elementwise(T, scalars)
        with arrays[0].device:
            outs = [
                cupy.empty(shape, dtypes[name]) if out is None else out
                for out, name in zip(outs, self.outputs, strict=True)
            ]
            launch(*inputs, *values, *outs)
        return outs[0] if len(outs) == 1 else tuple(outs)

    def elementwise(self, T: numpy.dtype, scalars: dict):
        """The cupy.ElementwiseKernel that computes in T; compiled when launched."""
        letters = iter("ABCDEFGHIJKLMNOPQRSUVWXYZ")  # CuPy's names for any dtype
        types = {name: next(letters) for name in self.names}
        in_params = [f"{types[name]} _{name}" for name in self.inputs]
        in_params += [
            f"{T.name} _{n}" if dtype is None else f"raw {next(letters)} _{n}"
            for n, dtype in scalars.items()
        ]
        lines = [f"typedef {_COMPUTE[T]} T;"]
        for name in self.names:
            read = name in self.inputs or name in self.body.reads
            lines.append(f"T v_{name} = {f'(T)_{name}' if read else 'T(0)'};")
        for name, dtype in scalars.items():
            lines.append(
                f"const T v_{name} = (T)_{name}{'' if dtype is None else '[0]'};"
            )
        if self.body.uses_index:
            lines.append("T v_index = (T)i;")
        lines += self.body.cpp
        lines += [f"_{name} = ({types[name]})v_{name};" for name in self.outputs]
        return cupy_module().ElementwiseKernel(
            ", ".join(in_params),
            ", ".join(f"{types[name]} _{name}" for name in self.outputs),
            "\n".join(lines),
            f"minidl_{self.name}",
            preamble="#define MINIDL_HD __device__ static inline" + PREAMBLE,
        )

    # --- what is asked of the arguments

    def signature(self, inputs, outs, values) -> tuple[numpy.dtype, dict, dict]:
        """Compute type, dtypes of the arrays by name, dtypes of the scalars.

        A scalar that is a number has None in place of a dtype.
        """
        dtypes = {}
        for name, array in zip(self.names, [*inputs, *outs], strict=True):
            if array is not None:
                dtypes[name] = array.dtype
            elif name in self.inputs or name in self.body.reads or not inputs:
                raise TypeError(f"kernel {self.name!r} needs the array {name!r}")
            else:
                dtypes[name] = inputs[0].dtype
            if dtypes[name] not in loops.C_TYPE:
                raise TypeError(
                    f"kernel {self.name!r} cannot take {name!r} of {dtypes[name]}"
                )
        gpu = on_gpu(next(x for x in [*inputs, *outs] if x is not None))
        scalars = {}
        for name, value in zip(self.scalars, values, strict=True):
            if is_array(value) and on_gpu(value) and not gpu:
                raise DeviceError(
                    f"kernel {self.name!r} runs on the CPU, its scalar {name!r} is "
                    "on a GPU"
                )
            if not is_array(value) and not isinstance(value, _NUMBERS):
                raise TypeError(
                    f"kernel {self.name!r} takes a number or a one-element array as "
                    f"{name!r}, got {type(value).__name__}"
                )
            scalars[name] = value.dtype if is_array(value) else None
        return self._compute_type(list(dtypes.values())), dtypes, scalars

    def _compute_type(self, dtypes: list[numpy.dtype]) -> numpy.dtype:
        if self.compute is not None:
            return self.compute
        if any(dtype == numpy.float64 for dtype in dtypes):
            T = numpy.dtype("float64")
        elif any(dtype.kind == "f" or dtype == bfloat16 for dtype in dtypes):
            T = numpy.dtype("float32")
        else:
            T = numpy.result_type(numpy.int32, *dtypes)
            if T.kind == "f":  # NumPy's answer to int64 with uint64
                T = numpy.dtype("int64")
        self._check_type(T)
        return T

    def _check_type(self, T: numpy.dtype) -> None:
        if T not in _COMPUTE:
            raise TypeError(f"kernel {self.name!r} cannot compute in {T}")
        if T.kind == "f" and self.body.needs_integer:
            raise TypeError(
                f"kernel {self.name!r} has operators for integers, got arrays of {T}"
            )
        if T.kind != "f" and self.body.needs_float:
            raise TypeError(
                f"kernel {self.name!r} computes with real numbers, got only arrays of "
                "integers: convert them with astype"
            )

    def _shape(self, inputs, outs) -> tuple[int, ...]:
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
            named = zip(self.names, [*inputs, *outs], strict=True)
            shapes = ", ".join(f"{n} {x.shape}" for n, x in named if x is not None)
            raise ValueError(f"kernel {self.name!r}: shapes do not fit: {shapes}")
        return shape

    def _check_scalars(self, values) -> None:
        for name, value in zip(self.scalars, values, strict=True):
            if hasattr(value, "size") and value.size != 1:
                raise ValueError(
                    f"kernel {self.name!r} takes one element as {name!r}, "
                    f"got the shape {value.shape}"
                )

    def _check_outputs(self, outs) -> bool:
        """Whether all are C-contiguous; raises if one of them cannot be written."""
        contiguous = True
        for out in outs:
            flags = out.flags
            if not flags.c_contiguous:
                contiguous = False
                if layout.repeats(out):
                    raise ValueError(
                        f"kernel {self.name!r}: an output of shape {out.shape} is a "
                        "broadcast view: its elements share memory"
                    )
            if type(out) is ndarray and not flags.writeable:
                raise ValueError(f"kernel {self.name!r}: an output is read-only")
        return contiguous

    def _usage(self, inputs: int, outs: int, scalars) -> str:
        return (
            f"kernel {self.name!r} takes {len(self.inputs)} inputs "
            f"({' '.join(self.inputs)}), {len(self.outputs)} outputs "
            f"({' '.join(self.outputs)}) and the scalars ({' '.join(self.scalars)}), "
            f"got {inputs} inputs, {outs} outputs and ({' '.join(scalars)})"
        )


_NUMBERS = (int, float, numpy.number, numpy.bool_)
_COMPUTE = {  # and what CUDA C++ calls them without any header
    numpy.dtype("float32"): "float",
    numpy.dtype("float64"): "double",
    numpy.dtype("int32"): "int",
    numpy.dtype("uint32"): "unsigned int",
    numpy.dtype("int64"): "long long",
    numpy.dtype("uint64"): "unsigned long long",
}
