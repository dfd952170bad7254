"""The stand-in's CUDA graphs: what a stream records, and its replay."""

import weakref

from stand_in_memory import check_access, default_pool

launches: list[str] = []  # kernels, copies on the device, fills, graphs


class Capture:
    """What is recorded between begin_capture and end_capture."""

    def __init__(self, origin):
        self.origin, self.work, self.valid = origin, [], True
        self.joined = {}  # other streams, not yet waited for

    def record(self, name, run, reads, writes) -> None:
        self.work.append(Work(name, run, list(reads), list(writes)))


class Work:
    """A recorded operation and what it touches: pairs of memory and array."""

    def __init__(self, name, run, reads, writes):
        self.name, self.run = name, run
        self.reads, self.writes = (
            [(weakref.ref(memory), memory.pool, array) for memory, array in touched]
            for touched in (reads, writes)
        )
        pools = [memory.pool and memory.pool() for memory, _ in [*reads, *writes]]
        self.pools = [(weakref.ref(p), p.flushes) for p in pools if p is not None]


class Graph:
    """cupy.cuda.Graph: recorded work, run again on the same memory."""

    def __init__(self, work=None, _made=False):
        if not _made:
            raise NotImplementedError("a graph must be created via stream capture")
        self._work = work

    def upload(self, stream=None) -> None:
        pass

    def launch(self, stream=None) -> None:
        from stand_in_cuda import get_current_stream

        stream = get_current_stream() if stream is None else stream
        if stream.capture is not None:
            raise NotImplementedError("the stand-in has no graphs within graphs")
        launches.append("graph")
        stream.advance()
        for work in self._work:
            reads, writes = (_alive(x, work) for x in (work.reads, work.writes))
            check_access(reads, stream, False)
            check_access(writes, stream, True)
            work.run()


def _alive(touched, work):
    """The memory must be there still, or lie free in a pool that nobody else uses."""
    found = []
    for memory, pool, array in touched:
        pool = pool and pool()
        if memory() is not None:
            found.append((memory(), array))
        elif pool is None or pool is default_pool:
            raise RuntimeError(
                f"a graph's {work.name!r} uses memory that was freed: allocate from a "
                "pool of the graph's own, which outlives it"
            )
        elif any(ref() is pool and pool.flushes != n for ref, n in work.pools):
            raise RuntimeError(
                f"a graph's {work.name!r} uses memory that its pool freed"
            )
    return found
