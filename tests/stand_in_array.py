"""The stand-in's cupy.ndarray: what CuPy's has, with values by NumPy.

It is no numpy.ndarray and turns into none by itself; NumPy's arrays mixed with it are
refused as CuPy refuses them.
"""

import contextlib

import numpy
import stand_in_cuda as cuda
from stand_in_cuda import Arrival, refuse_in_capture, syncs, uploads
from stand_in_memory import MemoryPointer, alloc, is_pinned

BLAS = ("matmul", "dot", "vdot", "inner", "tensordot", "einsum")
SYNCING = (
    *("nonzero", "argwhere", "flatnonzero", "unique", "bincount", "extract"),
    *("compress", "histogram", "array_equiv"),
)
NO_LAUNCH = ("empty", "empty_like")


class ndarray:
    """A stand-in for cupy.ndarray."""

    __module__ = "cupy"
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        shape = (shape,) if isinstance(shape, int | numpy.integer) else tuple(shape)
        dtype = numpy.dtype(dtype)
        if dtype.kind not in "biufcV" or (dtype.kind == "V" and dtype.char != "E"):
            raise ValueError(f"Unsupported dtype {dtype}")
        size = dtype.itemsize * int(numpy.prod(shape, dtype=object))
        if memptr is None:
            memptr = alloc(size)
        self.base, self._memory = None, memptr.mem
        self._array = numpy.ndarray(
            shape, dtype, memptr.mem.bytes, memptr._offset, strides, order
        )

    @property
    def data(self) -> MemoryPointer:
        offset = self._array.ctypes.data - self._memory.ptr
        return MemoryPointer(self._memory, offset)

    @property
    def device(self):
        return cuda.Device(self._memory.device_id)

    @property
    def flags(self):
        return Flags(self._array.flags)

    @property
    def __cuda_array_interface__(self):
        described = self._array.__array_interface__
        stream = cuda.get_current_stream().ptr
        return described | {"version": 3, "stream": stream or 1}

    def __dlpack_device__(self):
        return 2, self._memory.device_id

    def __dlpack__(self, **_):
        return (self,)  # what the stand-in's from_dlpack takes

    # ---- to and from the host
    def get(self, stream=None, order="C", out=None, blocking=True):
        stream = cuda.get_current_stream() if stream is None else stream
        refuse_in_capture("a copy to the host", stream)
        if out is None:
            out = numpy.empty(self.shape, self.dtype, order.replace("A", "C"))
        elif not isinstance(out, numpy.ndarray):
            raise TypeError("Only numpy.ndarray can be obtained from cupy.ndarray")
        elif out.dtype != self.dtype:
            raise TypeError(f"{out.dtype} array cannot be obtained from {self.dtype}")
        elif out.shape != self.shape:
            raise ValueError(f"Shape mismatch: {out.shape}, {self.shape}")
        elif not (out.flags.c_contiguous or out.flags.f_contiguous):
            raise RuntimeError(
                "`out` cannot be specified when copying to non-contiguous"
            )

        def copy():
            now = self._array.copy()
            stream.arrivals.append(Arrival(lambda: numpy.copyto(out, now)))

        cuda.enqueue("to host", copy, [touched(self)], stream=stream, kind=[])
        if blocking or not is_pinned(out):
            syncs.append("get")
            stream.arrive()
        return out

    def set(self, arr, stream=None) -> None:
        stream = cuda.get_current_stream() if stream is None else stream
        if not isinstance(arr, numpy.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch: {self.shape}, {arr.shape}")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        refuse_in_capture("a copy from the host", stream)

        def copy():
            self._array[...] = arr
            if is_pinned(arr):
                now = arr.copy()
                stream.arrivals.append(Arrival(lambda: _unchanged(arr, now)))

        cuda.enqueue("set", copy, (), [touched(self)], stream, kind=uploads)

    def _to_host(self, name: str) -> numpy.ndarray:
        refuse_in_capture(name)
        syncs.append(name)
        cuda.get_current_stream().arrive()
        return self._array

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use "
            "`.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        function = getattr(module(), ufunc.__name__, None)
        if method != "__call__":
            function = getattr(function, method, None)
        if function is None:
            return NotImplemented
        return function(*inputs, **kwargs, **({"out": out[0]} if out else {}))

    def __array_function__(self, function, types, args, kwargs):
        return getattr(module(), function.__name__)(*args, **kwargs)

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        return (self[k] for k in range(len(self)))

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    # ---- indexing
    def __getitem__(self, index):
        index, basic, syncing = _device_index(index)
        if syncing:
            refuse_in_capture("a boolean index")
            syncs.append("mask")
        if basic:
            found = self._array[index]
            if not isinstance(found, numpy.ndarray):  # an element: of no dimension
                parts = index if isinstance(index, tuple) else (index,)
                found = self._array[(*parts, ...)]
            return _view(self, found)
        index, extra = _bare(index)
        return operation("getitem", lambda array, *_: array[index], (self, *extra))

    def __setitem__(self, index, value):
        if isinstance(value, numpy.ndarray) and value.ndim:
            if index != slice(None):
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
            return self.set(value)
        index, basic, syncing = _device_index(index)
        if syncing and isinstance(value, ndarray) and value.ndim:
            refuse_in_capture("a boolean index")
            syncs.append("mask")
        if not basic and isinstance(value, ndarray):
            if numpy.may_share_memory(self._array, value._array):
                raise RuntimeError("a race: threads write what others still read")
        index, extra = _bare(index)

        def run(array, value, *_, out):
            out[index] = value

        operation("setitem", run, (self, value, *extra), out=self)


def _device_index(index):
    """The index, whether it makes a view, whether its result's size is not known."""
    parts = index if isinstance(index, tuple) else (index,)
    found, basic, syncing = [], True, False
    for part in parts:
        if isinstance(part, list | numpy.ndarray) and numpy.ndim(part):
            part = module().asarray(part)
        if isinstance(part, ndarray):
            basic, syncing = False, syncing or part.dtype == bool
        found.append(part)
    return (tuple(found) if isinstance(index, tuple) else found[0]), basic, syncing


def _bare(index):
    """The index with NumPy's arrays, and the device's arrays in it."""
    parts = index if isinstance(index, tuple) else (index,)
    bare = tuple(plain(part) for part in parts)
    return (bare if isinstance(index, tuple) else bare[0]), arrays_in(parts)


def _unchanged(array, before) -> None:
    if array.tobytes() != before.tobytes():
        raise RuntimeError("pinned memory was written before its copy was done")


class Flags:
    """Those that CuPy's flags have."""

    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous
        self.owndata, self.fnc, self.forc = flags.owndata, flags.fnc, flags.forc

    def __getitem__(self, name):
        return getattr(self, {"C_CONTIGUOUS": "c_contiguous"}.get(name, name.lower()))


# ---- operations ------------------------------------------------------------------
def module():
    """The stand-in for cupy."""
    import stand_in

    return stand_in.cupy


def touched(array: ndarray):
    return array._memory, array._array


def plain(value):
    """NumPy's arrays in the place of the device's; NumPy's own are refused."""
    if isinstance(value, ndarray):
        if value.device.id != cuda.local.device:
            raise ValueError(
                f"The device where the array resides ({value.device.id}) is different "
                f"from the current device ({cuda.local.device})."
            )
        return value._array
    if isinstance(value, numpy.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, list | tuple):
        return type(value)(plain(x) for x in value)
    return value


def arrays_in(values) -> list[ndarray]:
    """Those of the device, in lists and tuples too."""
    found = []
    for value in values:
        if isinstance(value, ndarray):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += arrays_in(value)
    return found


def operation(name, function, args, kwargs=None, out=None):
    """A launch of NumPy's function on arrays of the device; or a view, for nothing.

    Where `out` is given the function has an argument of this name and writes there.
    """
    kwargs = kwargs or {}
    sources = arrays_in([*args, *kwargs.values()])
    bare = [plain(x) for x in args]
    named = {key: plain(value) for key, value in kwargs.items()}
    if name in BLAS:
        _check_blas(name, sources)
    if name in SYNCING:
        refuse_in_capture(name)
        syncs.append(name)
    reads = [touched(x) for x in sources]

    def run(**to):
        with numpy.errstate(all="ignore"):
            return function(*bare, **named, **to)

    recorded = cuda.get_current_stream().is_capturing()
    if out is not None:
        target = plain(out)
        if recorded:
            with _indices_of_zero(sources):
                run(out=target.copy())  # what is wrong is said now
        cuda.enqueue(name, lambda: run(out=target), reads, [touched(out)])
        return out
    with _indices_of_zero(sources if recorded else ()):
        result = run()
    if not isinstance(result, numpy.ndarray | numpy.generic | tuple | list):
        return result
    several = isinstance(result, tuple | list)
    results = [numpy.asarray(x) for x in (result if several else [result])]
    made = [_made(x, sources) for x in results]
    fresh = [k for k, x in enumerate(made) if x is not None and x.base is None]
    if fresh and name not in NO_LAUNCH:
        targets = [(k, made[k]._array) for k in fresh]  # a graph keeps nothing alive

        def store():
            again = run() if recorded else result
            again = again if several else [again]
            for k, target in targets:
                target[...] = again[k]

        cuda.enqueue(name, store, reads, [touched(made[k]) for k in fresh])
    return type(result)(made) if several else made[0]


@contextlib.contextmanager
def _indices_of_zero(sources):
    """Integers that may be indices are 0: while recording they are not there yet."""
    arrays = [x._array for x in sources if x.dtype.kind in "iu"]
    arrays = [x for x in arrays if x.flags.writeable]
    kept = [x.copy() for x in arrays]
    for array in arrays:
        array[...] = 0
    yield
    for array, values in zip(arrays, kept, strict=True):
        array[...] = values


def _made(array: numpy.ndarray, sources) -> ndarray:
    """A view of a source where NumPy's result is one, otherwise new memory."""
    for source in sources:
        if array.size and numpy.may_share_memory(array, source._array):
            return source if array is source._array else _view(source, array)
    like = numpy.empty_like(array)
    new = ndarray(array.shape, array.dtype)
    if like.strides != new.strides:
        new._array = numpy.ndarray(
            array.shape, array.dtype, new._memory.bytes, 0, like.strides
        )
    return new


def _view(source: ndarray, array: numpy.ndarray) -> ndarray:
    view = ndarray.__new__(ndarray)
    view._array, view._memory = array, source._memory
    view.base = source if source.base is None else source.base
    return view


def _check_blas(name, sources) -> None:
    if cuda.get_current_stream().is_capturing():
        raise NotImplementedError(
            "calling cuBLAS API during stream capture is currently unsupported"
        )
    if any(x.dtype.char == "E" and x.ndim > 2 for x in sources):
        raise TypeError("can't handle bfloat16 in a matrix product of more dimensions")
