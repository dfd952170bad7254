"""What is told to a Recorder, by functions that stand before others while one records.

When nobody records, the functions are those that they were, and nothing is asked.
"""

import threading
from collections.abc import Callable
from functools import wraps

from minidl.array import (
    cublas,
    cuda_bias,
    cuda_channels,
    cuda_cross_entropy,
    cuda_layer_norm,
    cuda_pool,
    cuda_softmax,
    cudnn,
    euclid,
    window_kernels,
)
from minidl.array.graph import Graph
from minidl.array.kernel import Kernel
from minidl.array.pinned import Feed
from minidl.autograd.function import Op
from minidl.autograd.walk import Walk
from minidl.data.loader import Resident
from minidl.data.transforms import Standardize
from minidl.distributed.communicator import Communicator, Work
from minidl.distributed.data_parallel import DataParallel
from minidl.distributed.nccl import NCCL
from minidl.distributed.streams import LaneWork
from minidl.optim import Optimizer
from minidl.train.recorder import Recorder
from minidl.train.trace_table import REPLAY

COLLECTIVES = ("all_reduce", "broadcast", "reduce_scatter", "all_gather", "barrier")
WAITING = ("send_receive", "all_gather_object", "broadcast_object")  # to their end


class Active(threading.local):
    """Who records what this thread does; ranks simulated by threads have one each."""

    recorder: Recorder | None = None


active = Active()
_lock = threading.Lock()
_installed: list[tuple] = []  # (owner, name, what was there)
_users = 0


def start(recorder: Recorder) -> None:
    """Tell `recorder` what this thread does from now on.

    Raises RuntimeError where another one is told.
    """
    global _users
    if active.recorder is not None:
        raise RuntimeError("there is a profile under way on this thread already")
    with _lock:
        if not _users:
            install()
        _users += 1
    active.recorder = recorder


def stop() -> None:
    """Tell no more; of the last, functions are again what they were."""
    global _users
    active.recorder = None
    with _lock:
        _users -= 1
        if not _users:
            while _installed:
                setattr(*_installed.pop())


def install() -> None:
    for owner, name, wrapper in hooks():
        before = vars(owner)[name]
        _installed.append((owner, name, before))
        if isinstance(before, classmethod):
            setattr(owner, name, classmethod(wrapper(before.__func__)))
        else:
            setattr(owner, name, wrapper(before))


def hooks() -> list[tuple[object, str, Callable]]:
    """(owner, name, what makes of a function one that tells)"""
    return [
        (Op, "apply", ranged("op", lambda cls, *_: cls.__name__)),
        (Walk, "visit", ranged("backward", lambda _, node: kind(node, "backward"))),
        (Walk, "run", ranged("phase", named("backward"))),
        (DataParallel, "__call__", ranged("phase", named("forward"))),
        (DataParallel, "wait", ranged("phase", named("exchange"))),
        (Optimizer, "step", ranged("phase", lambda self, *_: kind(self, "step"))),
        (
            Optimizer,
            "zero_grad",
            ranged("phase", lambda self, *_: kind(self, "zero_grad")),
        ),
        (Resident, "rows", ranged("data", named("gather a batch"))),
        (Feed, "send", ranged("data", named("gather and send a batch"))),
        (Feed, "receive", ranged("data", named("receive a batch"))),
        (Standardize, "__call__", ranged("data", named("standardize a batch"))),
        *((Communicator, name, ranged("issue", named(name))) for name in COLLECTIVES),
        *((Communicator, name, ranged("wait", named(name))) for name in WAITING),
        (Work, "wait", ranged("wait", lambda work: f"wait for {work.call.name}")),
        (LaneWork, "wait", ranged("wait", lambda work: f"wait for {work.call.name}")),
        (Work, "__init__", departing),
        (Communicator, "_complete_first", arriving),
        (NCCL, "_launch", flying),
        *((owner, name, ranged("kernel", label)) for owner, name, label in kernels()),
    ]


def kernels() -> list[tuple[object, str, Callable]]:
    """(owner, name, what the kernel is called): loops of a CPU, launches of a GPU."""

    def second(_, name, *__):
        return name

    return [
        (Kernel, "__call__", lambda self, *_: self.name),
        (cublas, "matmul", named("cublas.matmul")),
        (cudnn, "run", named("cudnn.convolution")),
        *((window_kernels, n, named(n)) for n in ("columns", "images", "swap")),
        (cuda_softmax, "launch", second),
        (cuda_cross_entropy, "launch", second),
        (cuda_layer_norm, "launch", second),
        (cuda_channels.Channels, "launch", lambda _, source, name, *__: name),
        (cuda_bias, "add_bias", named("add_bias")),
        (cuda_pool, "_launch", lambda name, *_: name),
        (euclid, "on_device", named("norm")),
        (Graph, "replay", named(REPLAY)),
    ]


def ranged(category: str, label: Callable) -> Callable:
    """What makes of a function a range named label(*its arguments)."""

    def wrapper(function):
        @wraps(function)
        def telling(*inputs, **options):
            recorder = active.recorder
            if recorder is None:
                return function(*inputs, **options)
            details = shapes(inputs) if recorder.shapes else None
            with recorder.range(label(*inputs), category, details):
                return function(*inputs, **options)

        return telling

    return wrapper


def departing(function):
    """Of Work.__init__: tells of a collective that is not over when it is issued."""

    @wraps(function)
    def telling(work, *inputs, **options):
        function(work, *inputs, **options)
        if active.recorder is not None and not work._done:
            active.recorder.departs(work)

    return telling


def arriving(function):
    """Of Communicator._complete_first: tells of a collective that is over."""

    @wraps(function)
    def telling(communicator):
        work = communicator._outstanding[0]
        function(communicator)
        if active.recorder is not None:
            active.recorder.arrives(work)

    return telling


def flying(function):
    """Of NCCL._launch: times a collective on its stream."""

    @wraps(function)
    def telling(nccl, launched, launch):
        recorder = active.recorder
        if recorder is None:
            return function(nccl, launched, launch)

        def timed(pointer):
            events, stream = recorder.events, nccl._lane.stream
            since = events.mark(stream)
            launch(pointer)
            name = launched.call.name
            until = events.mark(stream)
            events.add(recorder.flights, name, "communication", since, until)

        return function(nccl, launched, timed)

    return telling


def named(name: str) -> Callable:
    return lambda *_: name


def kind(value, method: str) -> str:
    return f"{type(value).__name__}.{method}"


def shapes(inputs: tuple) -> dict | None:
    """The shapes of those that have one."""
    found = [list(x.shape) for x in inputs if hasattr(x, "shape")]
    return {"shapes": found} if found else None
