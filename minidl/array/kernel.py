"""One body of arithmetic for every compiler: CUDA, the host's C++, or NumPy."""

from collections.abc import Callable
from math import prod
from typing import ClassVar

import numpy

from . import arguments, cuda, layout, loops
from .body import Body
from .device import Array, is_array, on_gpu
from .loops import PARALLEL_FROM

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
            arguments.check_type(self, self.compute)
        self._keep = {self.outputs.index(output) for output in self.body.reads}
        self._none = (None,) * len(self.outputs)
        self._plans: dict[tuple, tuple] = {}
        self._ufuncs: dict = {}  # by the first input's dtype, then the second's, ...
        self.launches: dict[tuple, Callable] = {}
        self.again: dict[tuple, tuple] = {}  # those to be found by arguments' types
        self._definition = (inputs, outputs, scalars, body, compute)
        if Kernel.registry.setdefault(name, self)._definition != self._definition:
            raise ValueError(
                f"there is another kernel of the name {name!r}: choose another name"
            )

    def __repr__(self) -> str:
        return f"<Kernel {self.name}>"

    def __call__(self, *inputs: Array, out=None, **scalars) -> Array | tuple:
        """Run on these arrays; `out` is the output or a tuple of them (or Nones)."""
        found, shape = None, None
        if out is None and len(inputs) == len(self.inputs):
            found = self._ufuncs
        for x in inputs:
            if found is None or type(x) is not ndarray:
                break
            found = found.get(x.dtype)
            if shape is None:
                shape = x.shape
            elif shape != x.shape:
                break
        else:
            # NumPy makes numbers of 0-d arrays, and uses one thread
            if found and shape and x.size < PARALLEL_FROM:
                if not scalars and not self.scalars:
                    return found(*inputs)
                values = [scalars.get(name) for name in self.scalars]
                if len(scalars) == len(values) and all(map(_is_number, values)):
                    return found(*inputs, *values)
        return self._call(inputs, out, scalars)

    def _call(self, inputs, out, scalars) -> Array | tuple:
        outs = self._none if out is None else out if type(out) is tuple else (out,)
        values = [scalars[name] for name in self.scalars if name in scalars]
        arrays = inputs + outs
        if (
            len(arrays) != len(self.names)
            or len(outs) != len(self.outputs)
            or not len(values) == len(self.scalars) == len(scalars)
        ):
            raise TypeError(arguments.usage(self, len(inputs), len(outs), scalars))
        key, flat, shape = [], True, None
        for array in arrays:
            if type(array) is ndarray:
                key.append(array.dtype)
                if shape is None:
                    shape = array.shape
                if array.shape != shape or not array.flags.c_contiguous:
                    flat = False
            elif array is None:
                key.append(None)
            else:
                return self._call_others(inputs, outs, values)
        for value in values:
            if type(value) is ndarray:
                key.append(value.dtype)
                flat = flat and value.size == 1
            else:
                key.append(type(value))
        key = tuple(key)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(inputs, outs, values)
            if out is None and plan[0].ufunc is not None:
                self._learn(plan[0].ufunc, *[x.dtype for x in inputs])
        loop, dtypes = plan
        if not flat or (out is not None and not layout.apart(inputs, outs)):
            return self._run_any(loop, dtypes, inputs, outs, values)
        outs = self._made(outs, shape, dtypes)
        loop(prod(shape), [*inputs, *outs], values)
        return outs[0] if len(outs) == 1 else outs

    def _plan(self, inputs, outs, values) -> tuple[Callable, list[numpy.dtype]]:
        """The loop for these dtypes, and the outputs' dtypes."""
        T, dtypes, scalars = arguments.signature(self, inputs, outs, values)
        loop = loops.make(self.body, T, dtypes, scalars)
        return loop, [dtypes[name] for name in self.outputs]

    def _learn(self, ufunc: numpy.ufunc, *dtypes: numpy.dtype) -> None:
        """Call this ufunc from now on for inputs of these dtypes."""
        *before, last = dtypes
        found = self._ufuncs
        for dtype in before:
            found = found.setdefault(dtype, {})
        found[last] = ufunc

    def _made(self, outs, shape, dtypes) -> tuple:
        """The outputs, those that are missing made."""
        return tuple(
            [
                numpy.empty(shape, dtype) if out is None else out
                for out, dtype in zip(outs, dtypes, strict=True)
            ]
        )

    def _run_any(self, loop, dtypes, inputs, outs, values):
        """Any strides: flat in a layout that all share, or as the arrays lie."""
        shape = arguments.common_shape(self, inputs, outs)
        arguments.check_scalars(self, values)
        present = [out for out in outs if out is not None]
        shared = arguments.check_outputs(self, inputs, present)
        order = layout.common_order([*inputs, *present])
        if order is None or shared or self.body.uses_index:
            like = () if self.body.uses_index else inputs
            outs = tuple(
                [
                    layout.made_like(like, shape, dtype) if out is None else out
                    for out, dtype in zip(outs, dtypes, strict=True)
                ]
            )
            self._run_strided(loop, shape, inputs, outs, values)
        else:
            given, back = outs, layout.inverse(order)
            outs = self._made(
                [out if out is None else out.transpose(order) for out in outs],
                tuple(shape[axis] for axis in order),
                dtypes,
            )
            loop(prod(shape), [*(x.transpose(order) for x in inputs), *outs], values)
            outs = tuple([new.transpose(back) for new in outs])
            outs = _own(given, outs)
        return outs[0] if len(outs) == 1 else outs

    def _run_strided(self, loop, shape, inputs, outs, values):
        """As the arrays lie where the loop can do that, otherwise through copies."""
        if 0 in shape:
            return
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

    def _call_others(self, inputs, outs, values):
        """Arrays of CuPy, and subclasses of NumPy's; anything else is a mistake."""
        if self.again:
            done = cuda.run_again(self, inputs, outs, values)
            if done is not None:
                return done[0] if len(done) == 1 else done
        present = [out for out in outs if out is not None]
        for array in [*inputs, *present]:
            if not is_array(array):
                raise TypeError(
                    f"kernel {self.name!r} takes arrays of NumPy or CuPy, "
                    f"got {type(array).__name__}"
                )
        if any(map(on_gpu, [*inputs, *present])):
            done = cuda.run(self, inputs, outs, values)
        else:
            done = self(
                *(x.view(ndarray) for x in inputs),
                out=tuple(out if out is None else out.view(ndarray) for out in outs),
                **dict(zip(self.scalars, values, strict=True)),
            )
        done = done if type(done) is tuple else (done,)
        outs = _own(outs, done)
        return outs[0] if len(outs) == 1 else outs


def _is_number(value) -> bool:
    return type(value) is float or type(value) is int


def _own(given: tuple, made: tuple) -> tuple:
    """The caller's own arrays where there are some."""
    pairs = zip(given, made, strict=True)
    return tuple([new if out is None else out for out, new in pairs])
