"""The stand-in's functions and kernels, which are NumPy's or run on the CPU."""

import weakref

import numpy
import stand_in_cuda as cuda
from cuda_on_cpu import ElementwiseKernel as CpuKernel
from cuda_on_cpu import compiled_module
from stand_in_array import (
    arrays_in,
    module,
    ndarray,
    operation,
    plain,
    touched,
)
from stand_in_signatures import short_types, signature_of

AT = ("add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or")


class Ufunc:
    """cupy.ufunc."""

    def __init__(self, name: str):
        self.name = self.__name__ = name
        self.numpy = getattr(numpy, name)

    def __call__(self, *args, out=None, **kwargs):
        wrong = set(kwargs) - {"dtype", "casting", "where"}
        if wrong:
            raise TypeError(f"Wrong arguments {wrong} for {self.name}")
        inputs, outs = args[: self.numpy.nin], args[self.numpy.nin :]
        out = outs[0] if outs else out
        if isinstance(out, tuple):
            (out,) = out
        if out is not None and not isinstance(out, ndarray):
            raise TypeError("Output arguments type must be cupy.ndarray")
        if not arrays_in(inputs):
            inputs = [numpy.asarray(plain(x))[()] for x in inputs]
        return operation(self.name, self.numpy, inputs, kwargs, out)

    def at(self, a, indices, b=None):
        if self.name not in AT:
            raise NotImplementedError(f"`{self.name}.at` is not supported yet")
        args = (a, indices) if b is None else (a, indices, b)
        run = lambda a, *rest, out: self.numpy.at(out, *rest)  # noqa: E731
        operation(f"{self.name}.at", run, args, out=a)

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        if self.name not in ("add", "multiply"):
            raise NotImplementedError(f"`{self.name}.reduce` is not supported yet")
        kwargs = {"axis": axis, "dtype": dtype, "keepdims": keepdims}
        return operation(self.name, self.numpy.reduce, (array,), kwargs, out)


def function_of(name: str, original, ours):
    """NumPy's function behind the signature of CuPy's."""
    signature = signature_of(original)

    def function(*args, **kwargs):
        if signature is not None:
            bound = signature.bind(*args, **kwargs)
            args, kwargs = bound.args, bound.kwargs
        out = kwargs.pop("out", None)
        kwargs = {k: v for k, v in kwargs.items() if k not in ("blocking", "device")}
        return operation(name, short_types(name, ours), args, kwargs, out)

    function.__name__ = name
    return function


# ---- functions that NumPy has not, or has otherwise ------------------------------
def array(
    obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False
):
    if arrays_in([obj]):
        kwargs = {"copy": copy or None, "order": order, "ndmin": ndmin}
        made = numpy.array if isinstance(obj, ndarray) else _stacked
        return operation("array", made, (obj,), {"dtype": dtype, **kwargs})
    host = numpy.array(obj, dtype, order=order, ndmin=ndmin)
    made = ndarray(host.shape, host.dtype)
    cuda.refuse_in_capture("a copy from the host")
    if host.size:
        made.set(host)
    return made


def _stacked(obj, **kwargs):
    return numpy.stack([numpy.asarray(x) for x in obj]).astype(kwargs["dtype"] or None)


def asarray(a, dtype=None, order=None, *, blocking=False):
    return array(a, dtype, False, order or "K")


def ascontiguousarray(a, dtype=None):
    return array(
        a, dtype, False, "C", ndmin=0 if numpy.ndim(getattr(a, "shape", a)) else 1
    )


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    return numpy.asarray(a)


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def from_dlpack(array):
    (shared,) = array.__dlpack__()
    return shared[...]


def get_array_module(*args):
    return module() if arrays_in(args) else numpy


class ElementwiseKernel:
    """cupy.ElementwiseKernel, run on the CPU."""

    def __init__(self, *args, **kwargs):
        self._kernel = CpuKernel(*args, **kwargs)
        self.name, self._loaded = self._kernel.real.name, {}

    def __call__(self, *args, size=None, stream=None, block_size=128):
        inputs = arrays_in(args)
        _load(self, tuple(x.dtype.char for x in inputs), stream)
        known = {id(x._array): x for x in inputs}

        def fresh(shape, dtype):
            new = ndarray(shape, dtype)
            known[id(new._array)] = new
            return new._array

        outs, launch = self._kernel.prepare([plain(x) for x in args], size, fresh)
        outs = [known[id(x)] for x in outs]
        _launch(self.name, launch, inputs, outs, stream)
        return outs[0] if len(outs) == 1 else tuple(outs)


def _load(kernel, variant, stream) -> None:
    """A first launch: in a capture it may wait for the device, or it may not."""
    if variant not in kernel._loaded:
        cuda.refuse_in_capture(f"loading kernel {kernel.name}", stream)
    kernel._loaded[variant] = True


def _launch(name, launch, reads, writes, stream=None) -> None:
    """A kernel's launch, its arrays' guards checked afterwards."""

    memories = [weakref.ref(array._memory) for array in [*reads, *writes]]

    def run():
        launch()
        for memory in memories:
            if memory() is not None:
                memory().check_guards()

    cuda.enqueue(
        name, run, list(map(touched, reads)), list(map(touched, writes)), stream
    )


class RawKernel:
    """cupy.RawKernel, run on the CPU; it writes what is not behind a const pointer."""

    def __init__(self, code, name, options=(), backend="nvrtc", **kwargs):
        self.code, self.name, self._loaded = code, name, {}
        self.max_dynamic_shared_size_bytes = 48 << 10

    def __call__(self, grid, block, args, *, shared_mem=0, stream=None):
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise cuda.CUDARuntimeError(1)
        _load(self, None, stream)
        compiled = compiled_module(self.code)
        found = arrays_in(args)
        bare = [plain(x) for x in args]

        def launch():
            compiled.launch(self.name, grid, block, bare, shared_mem)

        pairs = zip(args, compiled.writes[self.name], strict=False)
        written = arrays_in([arg for arg, writes in pairs if writes])
        _launch(self.name, launch, found, written, stream)


class RawModule:
    """cupy.RawModule from source."""

    def __init__(self, *, code=None, options=(), backend="nvrtc", **kwargs):
        self.code = code

    def get_function(self, name):
        return RawKernel(self.code, name)

    def compile(self, log_stream=None):
        compiled_module(self.code)
