"""The stand-in's device memory: allocations, pools, and who touches them when.

Memory is NumPy's, filled with NaNs, with guards at both ends. Where two streams touch
the same bytes, one of them writing, an event or a synchronisation must lie between.
"""

import threading
import weakref
from contextlib import contextmanager

import numpy
from cupy.cuda.memory import OutOfMemoryError

GARBAGE = 0xFF  # as bytes of a float: NaN
GUARD, GUARD_BYTE = 512, 0xA5
TOTAL = 8 << 30  # bytes that each device has


class Local(threading.local):
    """What CuPy keeps for each thread."""

    def __init__(self):
        self.device, self.streams, self.allocators = 0, [], []


local = Local()


class Memory:
    """One allocation of `size` bytes."""

    alive: weakref.WeakSet = weakref.WeakSet()

    def __init__(self, size: int, device_id: int, stream, pool=None):
        whole = numpy.full(size + 3 * GUARD, GUARD_BYTE, numpy.uint8)
        start = GUARD + -whole.ctypes.data % GUARD
        self.bytes = whole[start : start + size]
        self.bytes[...] = GARBAGE
        self._guards = whole[:start], whole[start + size :]
        self.ptr, self.size, self.device_id = self.bytes.ctypes.data, size, device_id
        self.pool = None if pool is None else weakref.ref(pool)
        self.recorded = stream.capture is not None and pool is not default_pool
        Memory.alive.add(self)
        self.accesses = {}  # (first byte, last byte, stream, writes): tick
        weakref.finalize(self, _freed, self.accesses, stream).atexit = False

    def check_guards(self) -> None:
        if any((guard != GUARD_BYTE).any() for guard in self._guards):
            raise MemoryError("a kernel wrote outside of an array's memory")


def memory_at(ptr: int, size: int) -> tuple[Memory, numpy.ndarray]:
    """The allocation that a C function's pointer is in, and its bytes from there.

    Raises MemoryError where there are not so many.
    """
    for memory in list(Memory.alive):
        offset = ptr - memory.ptr
        if 0 <= offset and offset + size <= memory.size:
            return memory, memory.bytes[offset : offset + size]
    raise MemoryError(f"no {size} bytes of the device are at {ptr:#x}")


class MemoryPointer:
    """cupy.cuda.MemoryPointer: memory and an offset in bytes."""

    def __init__(self, mem: Memory, offset: int):
        self.mem, self._offset = mem, offset
        self.ptr, self.device_id = mem.ptr + offset, mem.device_id

    def __add__(self, offset: int) -> "MemoryPointer":
        return MemoryPointer(self.mem, self._offset + offset)


class MemoryPool:
    """cupy.cuda.MemoryPool: counts what is in use and what it keeps for later."""

    def __init__(self, allocator=None):
        self._used, self._total, self._limit, self.flushes = 0, 0, 0, 0
        self._lock = threading.RLock()

    def malloc(self, size: int) -> MemoryPointer:
        import stand_in_cuda as cuda

        rounded = -(-size // 512) * 512
        with self._lock:
            if self._used + rounded > (self._limit or TOTAL):
                raise OutOfMemoryError(size, self._total, self._limit)
            self._used += rounded
            self._total = max(self._total, self._used)
        memory = Memory(size, local.device, cuda.get_current_stream(), self)
        weakref.finalize(memory, _returned, weakref.ref(self), rounded).atexit = False
        return MemoryPointer(memory, 0)

    def used_bytes(self) -> int:
        return self._used

    def total_bytes(self) -> int:
        return self._total

    def free_bytes(self) -> int:
        return self._total - self._used

    def n_free_blocks(self) -> int:
        return int(self._total > self._used)

    def free_all_blocks(self, stream=None) -> None:
        self._total, self.flushes = self._used, self.flushes + 1

    def set_limit(self, size=None, fraction=None) -> None:
        self._limit = size if fraction is None else int(fraction * TOTAL)

    def get_limit(self) -> int:
        return self._limit


def _returned(pool, size: int) -> None:
    if pool() is not None:
        with pool()._lock:
            pool()._used -= size


hazards: list[str] = []  # found while memory was freed; raised by the next launch


def _freed(accesses: dict, stream) -> None:
    """A pool gives memory to the next who asks on the stream that it came from."""
    for (_, _, other, _), tick in accesses.items():
        known = max(stream.clock.get(other, 0), stream.host.get(other, 0))
        if other != stream.ptr and known < tick:
            hazards.append(
                f"an array of stream {stream.ptr} was freed while stream {other} "
                "may still use it: let the first wait for an event of the second"
            )


def extent(array: numpy.ndarray) -> tuple[int, int]:
    """First and last address, as numpy.lib.array_utils.byte_bounds has it."""
    return numpy.lib.array_utils.byte_bounds(array)


def check_access(arrays, stream, writes: bool) -> None:
    """Note that the stream touches these (memory, array); raise for a race."""
    tick = stream.clock[stream.ptr]
    for memory, array in arrays:
        if not array.size:
            continue
        first, last = extent(array)
        for (start, stop, other, wrote), then in list(memory.accesses.items()):
            if other == stream.ptr or not (writes or wrote):
                continue
            if start < last and first < stop and stream.clock.get(other, 0) < then:
                raise RuntimeError(
                    f"a race: stream {stream.ptr} {'writes' if writes else 'reads'} "
                    f"what stream {other} {'writes' if wrote else 'reads'}, with no "
                    "event between them"
                )
        memory.accesses[first, last, stream.ptr, writes] = tick


def check_fill(arrays) -> None:
    """Raise for what is written between replays to memory of the graph's own.

    A recording's pool gives the same bytes to one array after another, so those that
    had them before are written by the replay until its turn comes.
    """
    if any(memory.recorded for memory, _ in arrays):
        raise RuntimeError(
            "memory that a recording took from a pool of its own is written between "
            "replays: what a replay is to find there needs another pool"
        )


def check_host(ptr: int, size: int) -> None:
    """Raise where a stream may not be done with what the host, as MPI, is given."""
    import stand_in_cuda as cuda

    memory, array = memory_at(ptr, size)
    first, last = extent(array)
    for (start, stop, stream, _), tick in memory.accesses.items():
        if start < last and first < stop and cuda.Stream.host.get(stream, 0) < tick:
            raise RuntimeError(
                f"a race: the host is given what stream {stream} works on, and has "
                "not waited for it"
            )


default_pool = MemoryPool()


def alloc(size: int) -> MemoryPointer:
    return (local.allocators[-1] if local.allocators else default_pool.malloc)(size)


@contextmanager
def using_allocator(allocator=None):
    local.allocators.append(allocator)
    try:
        yield
    finally:
        local.allocators.pop()


pinned: dict[int, int] = {}  # first address: bytes


class PinnedMemoryPointer(bytearray):
    """cupy.cuda.PinnedMemoryPointer: a buffer of the host."""

    def __init__(self, size: int):
        super().__init__(b"\xff" * size)
        self.ptr = numpy.frombuffer(self, numpy.uint8).ctypes.data if size else 0
        pinned[self.ptr] = size
        weakref.finalize(self, pinned.pop, self.ptr, None).atexit = False

    def size(self) -> int:
        return len(self)


def is_pinned(array: numpy.ndarray) -> bool:
    first = array.ctypes.data
    return any(p <= first and first + array.nbytes <= p + n for p, n in pinned.items())
