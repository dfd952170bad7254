"""Plans for cuDNN's convolutions, made once for each shape, type and layout.

A plan is made before a CUDA graph is captured; to run it is one launch, which can be
captured. Those that could give another sum in another run, or add halves to halves,
are left out; under `set_float32_matmul_precision("highest")`, those that round float32,
too. NVIDIA, *cuDNN Frontend API*, "Convolutions".
"""

import os
from functools import cache
from math import prod
from types import ModuleType
from typing import NamedTuple

import numpy

from .device import Array, bfloat16, cupy_module
from .errors import DeviceError
from .precision import tf32

TYPES = {numpy.dtype("float32"): "FLOAT", numpy.dtype("float16"): "HALF"}
TYPES |= {} if bfloat16 is None else {numpy.dtype(bfloat16): "BFLOAT16"}
_plans: dict[tuple, "Plan | None"] = {}
_handles: dict[tuple[int, int], int] = {}  # by device and stream


class Case(NamedTuple):
    """What a plan is made for; the shapes have two spatial dimensions or three."""

    kind: str  # "forward", "input_gradient" or "weight_gradient"
    dtype: numpy.dtype
    x: tuple[int, ...]
    w: tuple[int, ...]
    y: tuple[int, ...]
    channels_last: tuple[bool, bool]  # of x and of y, in memory
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    bias: bool
    relu: bool
    exact: bool  # no rounding to TF32


class Plan(NamedTuple):
    """A graph that is ready to run: its tensors are 1, 2, 3, the result last."""

    graph: object
    workspace: int  # bytes


@cache
def frontend() -> ModuleType | None:
    """NVIDIA's package; None where it or cuDNN is missing, or MINIDL_CUDNN is 0."""
    if os.environ.get("MINIDL_CUDNN", "1") == "0":
        return None
    try:
        import cudnn

        cudnn.backend_version()
    except (ImportError, OSError, RuntimeError, AssertionError):
        return None
    return cudnn


def plan_for(kind, array, x, w, y, last, window, bias=False, relu=False):
    """The plan for these shapes, made where there is none; None where cuDNN has none.

    RuntimeError where it would have to be made while a stream is capturing.
    """
    missing = (1,) * (4 - len(x))  # one dimension is two, the first of size 1
    x, w, y = ((*shape[:2], *missing, *shape[2:]) for shape in (x, w, y))
    stride, dilation = ((*missing, *values) for values in (window[0], window[2]))
    padding = (*(0 for _ in missing), *window[1])
    exact = not tf32()
    sizes = x, w, y, last, stride, padding, dilation
    case = Case(kind, array.dtype, *sizes, bias, relu, exact)
    key = array.device.id, case
    if key not in _plans:
        with array.device:
            if cupy_module().cuda.get_current_stream().is_capturing():
                raise RuntimeError(
                    "a convolution of new shapes cannot be captured: run the step once "
                    "before capturing it"
                )
            _plans[key] = build(case, handle=_handle())
    return _plans[key]


def build(case: Case, **device) -> Plan | None:
    """Plan a convolution; None where cuDNN has no way to do it.

    `device` is what the plan is for: a handle, or a description of a device.
    """
    cudnn = frontend()
    types, modes = cudnn.data_type, cudnn.heur_mode
    graph = cudnn.pygraph(
        io_data_type=getattr(types, TYPES[case.dtype]),
        intermediate_data_type=types.FLOAT,
        compute_data_type=types.FLOAT,
        **device,
    )
    try:
        _convolve(graph, case, getattr(types, TYPES[case.dtype]))
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([modes.A, modes.FALLBACK])
        graph.deselect_numeric_notes(_unwanted(cudnn.numerical_note, case))
        graph.check_support()
        graph.build_plans()
    except cudnn.cudnnGraphNotSupportedError:
        return None
    return Plan(graph, graph.get_workspace_size())


def _convolve(graph, case: Case, kind) -> None:
    """Say to the graph what it is to compute."""

    def tensor(uid, shape, channels_last):
        strides = _strides(shape, channels_last)
        made = graph.tensor(
            name=f"t{uid}", dim=list(shape), stride=strides, data_type=kind
        )
        return made.set_uid(uid)

    x_last, y_last = case.channels_last
    last = {"x": x_last, "w": False, "y": y_last}
    inputs, out = {
        "forward": ("xw", "y"),
        "input_gradient": ("yw", "x"),
        "weight_gradient": ("xy", "w"),
    }[case.kind]
    first, second = (
        tensor(uid, getattr(case, name), last[name])
        for uid, name in enumerate(inputs, 1)
    )
    names = "stride", "padding", "dilation"
    window = {name: list(getattr(case, name)) for name in names}
    if case.kind == "forward":
        result = graph.conv_fprop(image=first, weight=second, **window)
        if case.bias:
            bias = tensor(3, (1, case.w[0], *(1 for _ in case.stride)), False)
            result = graph.bias(name="bias", input=result, bias=bias)
        if case.relu:
            result = graph.relu(name="relu", input=result)
    elif case.kind == "input_gradient":
        result = graph.conv_dgrad(loss=first, filter=second, **window)
    else:
        result = graph.conv_wgrad(image=first, loss=second, **window)
    shape = getattr(case, out)
    result.set_output(True).set_dim(list(shape)).set_stride(_strides(shape, last[out]))
    result.set_data_type(kind).set_uid(3 + case.bias)


def _unwanted(notes, case: Case) -> list:
    unwanted = [notes.NONDETERMINISTIC, notes.REDUCED_PRECISION_REDUCTION]
    if case.exact and case.dtype == numpy.float32:
        unwanted += [notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS]
    return unwanted


def run(plan: Plan, *arrays: Array) -> None:
    """Launch on the current stream; DeviceError where cuDNN fails."""
    cupy = cupy_module()
    with arrays[0].device:
        workspace = cupy.empty(plan.workspace, "uint8")
        pointers = {uid: array.data.ptr for uid, array in enumerate(arrays, 1)}
        try:
            plan.graph.execute(pointers, workspace.data.ptr, handle=_handle())
        except RuntimeError as error:
            raise DeviceError(f"cuDNN's convolution failed: {error}") from error


def _handle() -> int:
    """The handle of the current device's current stream, which it never leaves."""
    cupy, cudnn = cupy_module(), frontend()
    stream = cupy.cuda.get_current_stream().ptr
    key = cupy.cuda.runtime.getDevice(), stream
    if key not in _handles:
        _handles[key] = cudnn.create_handle()
        cudnn.set_stream(handle=_handles[key], stream=stream)
    return _handles[key]


def _strides(shape, last: bool) -> list[int]:
    """In elements, of a dense array with the channels second or last in memory."""
    order = [0, *range(2, len(shape)), 1] if last else list(range(len(shape)))
    lengths = [shape[axis] for axis in order]
    return [prod(lengths[order.index(axis) + 1 :]) for axis in range(len(shape))]
