"""What stands in for NVIDIA's package cudnn: graphs of one convolution, by NumPy.

The methods, their arguments and their order are those of the package's version 1.22.
Tensors are read and written through their pointers, strides and number types.
"""

from types import SimpleNamespace

import numpy as np
from stand_in_cuda import enqueue, stream_of
from stand_in_memory import memory_at

from minidl.array import convolution_columns as columns
from minidl.array.device import bfloat16

__version__ = "1.22.1"
data_type = SimpleNamespace(FLOAT=np.float32, HALF=np.float16, BFLOAT16=bfloat16)
heur_mode = SimpleNamespace(A="A", FALLBACK="fallback")
NOTES = "TENSOR_CORE DOWN_CONVERT_INPUTS REDUCED_PRECISION_REDUCTION NONDETERMINISTIC"
numerical_note = SimpleNamespace(**{name: name for name in NOTES.split()})
STEPS = (
    "validate build_operation_graph create_execution_plans check_support build_plans"
)
streams: dict[int, int] = {}  # of each handle
graphs: list["pygraph"] = []
refused = False  # whether no plan is found for anything
WORKSPACE = 64


class cudnnGraphNotSupportedError(RuntimeError):
    pass


def backend_version() -> int:
    return 91900


def backend_version_string() -> str:
    return "9.19.0"


def create_handle() -> int:
    streams[len(streams) + 1] = 0
    return len(streams)


def set_stream(handle: int, stream: int) -> None:
    streams[handle] = stream


class Tensor:
    def __init__(self, dim=None, stride=None, data_type=None, name=""):
        self.dim, self.stride, self.data_type, self.uid = dim, stride, data_type, None
        self.output = False

    def set_output(self, value):
        self.output = value
        return self

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        self.stride = stride
        return self

    def set_data_type(self, kind):
        self.data_type = kind
        return self

    def set_uid(self, uid):
        self.uid = uid
        return self

    def touched(self, pointer):
        """(memory, array) of what lies there."""
        assert pointer % 16 == 0 and type(pointer) is int
        dtype = np.dtype(self.data_type)
        steps = zip(self.dim, self.stride, strict=True)
        last = sum((n - 1) * step for n, step in steps)
        memory, place = memory_at(pointer, (last + 1) * dtype.itemsize)
        strides = [n * dtype.itemsize for n in self.stride]
        return memory, np.ndarray(self.dim, dtype, place.data, 0, strides)


class pygraph:
    def __init__(self, io_data_type, intermediate_data_type, compute_data_type, handle):
        assert intermediate_data_type == compute_data_type == np.float32
        assert handle in streams
        self.done, self.deselected, self.bias_of = [], [], None
        self.rectified = False
        graphs.append(self)

    def tensor(self, dim, stride, data_type, name):
        assert type(dim) is list and type(stride) is list
        return Tensor(dim, stride, data_type, name)

    def conv_fprop(self, image, weight, padding, stride, dilation):
        return self._set("forward", image, weight, padding, stride, dilation)

    def conv_dgrad(self, loss, filter, padding, stride, dilation):
        return self._set("input_gradient", loss, filter, padding, stride, dilation)

    def conv_wgrad(self, image, loss, padding, stride, dilation):
        return self._set("weight_gradient", loss, image, padding, stride, dilation)

    def _set(self, kind, first, second, padding, stride, dilation):
        self.kind, self.inputs = kind, (first, second)
        self.window = tuple(map(tuple, (stride, padding, dilation)))
        self.result = Tensor()
        return self.result

    def bias(self, name, input, bias):
        assert input is self.result and input.dim is None
        self.bias_of = bias
        return self.result

    def relu(self, name, input):
        assert input is self.result and input.dim is None
        self.rectified = True
        return self.result

    def __getattr__(self, name):
        if name not in STEPS.split():
            raise AttributeError(name)

        def step(*arguments):
            assert name == STEPS.split()[len(self.done)], "steps in another order"
            if name == "check_support" and refused:
                raise cudnnGraphNotSupportedError("no engine")
            self.done.append(name)

        return step

    def deselect_numeric_notes(self, notes):
        assert self.done[-1] == "create_execution_plans"
        self.deselected = notes

    def get_workspace_size(self):
        return WORKSPACE

    def execute(self, pointers, workspace, handle):
        assert len(self.done) == len(STEPS.split()) and self.result.output
        assert memory_at(workspace, WORKSPACE)
        more = [] if self.bias_of is None else [self.bias_of]
        tensors = [*self.inputs, *more, self.result]
        assert {t.uid for t in tensors} == set(pointers)
        touched = [tensor.touched(pointers[tensor.uid]) for tensor in tensors]
        a, b, *bias, out = [array for _, array in touched]

        def run():
            wide = [np.ascontiguousarray(x).astype(float) for x in (a, b)]
            if self.kind == "weight_gradient":
                groups = wide[1].shape[1] // out.shape[1]
                made = np.empty(out.shape)
                columns.weight_gradient(*wide, made, *self.window, groups)
            else:
                x = a if self.kind == "forward" else out
                function = getattr(columns, self.kind)
                groups = x.shape[1] // b.shape[1]
                extra = [bias[0].astype(float).ravel() if bias else None]
                extra = extra if self.kind == "forward" else []
                made = function(*wide, *extra, out.shape, *self.window, groups)
            out[...] = np.maximum(made, 0) if self.rectified else made

        enqueue("cudnn", run, touched[:-1], touched[-1:], stream_of(streams[handle]))
