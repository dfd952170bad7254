"""Tensors made, converted, copied and shared with other libraries."""

import copy
import pickle

import numpy as np
import pytest
from gradients import check_gradients

import minidl as md
from minidl import nn
from minidl.array.device import gpu_available
from minidl.array.random import Generator
from minidl.nn.parameter import FlatStorage


def same(tensor, array, dtype):
    assert tensor.dtype == dtype
    assert tensor.shape == np.shape(array)
    np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-6)


def test_constants():
    same(md.zeros(2, 3), np.zeros((2, 3)), "float32")
    same(md.zeros((2, 3), dtype="int64"), np.zeros((2, 3)), "int64")
    same(md.ones(size=(2,)), np.ones(2), "float32")
    same(md.zeros(()), 0, "float32")
    same(md.zeros(0, 3), np.zeros((0, 3)), "float32")
    same(md.full((2,), 3), [3, 3], "int64")
    same(md.full((2,), 3.5), [3.5, 3.5], "float32")
    same(md.full((1,), True), [True], "bool")
    same(md.eye(2), np.eye(2), "float32")
    same(md.eye(2, 3, dtype="float64"), np.eye(2, 3), "float64")
    assert md.ones(2, requires_grad=True).requires_grad


def test_ranges():
    same(md.arange(5), np.arange(5), "int64")
    same(md.arange(1, 5.5), [1, 2, 3, 4, 5], "float32")
    same(md.arange(5, -1, -2), [5, 3, 1], "int64")
    same(md.arange(0, 1, 0.1), np.arange(10) / 10, "float32")
    same(md.arange(3, dtype="float64"), [0, 1, 2], "float64")
    same(md.arange(2, 2), np.zeros(0), "int64")
    same(md.linspace(0, 1, 5), [0, 0.25, 0.5, 0.75, 1], "float32")
    same(md.linspace(3, 7, 1), [3], "float32")


def test_like():
    x = md.ones(2, 3, dtype="float64")
    same(md.zeros_like(x), np.zeros((2, 3)), "float64")
    same(md.ones_like(x, dtype="int32"), np.ones((2, 3)), "int32")
    same(md.full_like(x, 2), np.full((2, 3), 2), "float64")
    assert md.rand_like(x).dtype == md.randn_like(x).dtype == "float64"
    y = md.randint_like(x, 3, 5)
    assert y.dtype == "float64" and set(y.flatten().tolist()) <= {3.0, 4.0}


def test_random():
    md.manual_seed(3)
    first = md.rand(2, 3), md.randn((2, 3)), md.randint(4, (5,)), md.randperm(6)
    md.manual_seed(3)
    again = md.rand(2, 3), md.randn((2, 3)), md.randint(0, 4, (5,)), md.randperm(6)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert sorted(first[3].tolist()) == list(range(6))
    x = md.randint(-2, 3, (1000,))
    assert x.dtype == "int64" and (x.numpy().min(), x.numpy().max()) == (-2, 2)
    assert md.randint(high=3, size=(2,), dtype="int32").dtype == "int32"
    x = md.randn(10000, generator=Generator(1))
    assert abs(x.numpy().mean()) < 0.05 and abs(x.numpy().std() - 1) < 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: md.zeros(-1),
        lambda: md.eye(-1),
        lambda: md.arange(3, 1),
        lambda: md.arange(0, 1, 0),
        lambda: md.linspace(0, 1, -1),
        lambda: md.randint(3, 3, (2,)),
    ],
)
def test_what_is_refused(wrong):
    with pytest.raises(RuntimeError):
        wrong()


TYPES = {
    "float": "float32",
    "double": "float64",
    "half": "float16",
    "int": "int32",
    "long": "int64",
    "bool": "bool",
    "bfloat16": "bfloat16",
}


@pytest.mark.parametrize("name", TYPES)
def test_types(name):
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes")
    y = getattr(md.tensor([0.0, 1.0, 2.0]), name)()
    assert y.dtype == np.dtype(TYPES[name])
    np.testing.assert_array_equal(
        y.double().numpy(), [0, 1, 1 if name == "bool" else 2]
    )


def test_to():
    x = md.ones(2, requires_grad=True)
    assert x.to("cpu") is x.to(md.float32) is x.to(x) is x.cpu() is x
    assert x.to("cpu", md.float64).dtype == "float64"
    assert x.to(device="cpu", dtype=md.int32).dtype == "int32"
    assert x.to(md.zeros(1).double()).dtype == x.type_as(md.zeros(1).double()).dtype
    for y in (x.to("cpu", copy=True), x.to(md.float32, False, True)):
        assert y is not x and not np.shares_memory(y.data, x.data)
    x.double().sum().backward()
    assert x.grad.dtype == "float32" and x.grad.tolist() == [1, 1]
    check_gradients(lambda x: x.to("cpu", copy=True), np.ones(3))
    leaf = md.ones(3, requires_grad=True)
    for y in (leaf.long(), leaf.bool(), leaf.to(md.int32), leaf.sum(dtype=md.int64)):
        assert not y.requires_grad and y.is_leaf
    assert leaf.double().requires_grad
    for wrong in ("S3", "complex64"):
        with pytest.raises(TypeError, match="real numbers"):
            x.to(np.dtype(wrong))
    with pytest.raises(ValueError, match="unknown device"):
        x.to("somewhere")


@pytest.mark.gpu
def test_devices():
    if not gpu_available():
        pytest.skip("no CUDA device")
    x = md.ones(2, requires_grad=True)
    y = x.cuda()
    assert y.device == "cuda:0" and y.to("cuda") is y
    (y * 2).sum().backward()
    assert x.grad.device == "cpu" and x.grad.tolist() == [2, 2]
    assert md.zeros_like(y).device == md.rand(3, device="cuda").device == "cuda:0"


def test_dlpack_shares_memory_with_numpy(xp):
    array = xp.arange(6.0).reshape(2, 3)
    x = md.from_dlpack(array)
    x.data[0, 0] = 9
    assert array[0, 0] == 9
    back = xp.from_dlpack(md.Tensor(array))
    back[0, 1] = 8
    assert array[0, 1] == 8


def test_dlpack_shares_memory_with_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = torch.arange(6.0).reshape(2, 3).T
    ours = md.from_dlpack(theirs)
    ours.data[0, 0] = 9
    assert theirs[0, 0] == 9 and ours.shape == (3, 2)
    parameter = nn.Parameter(md.ones(3))
    FlatStorage([parameter])
    theirs = torch.from_dlpack(parameter)
    theirs[1] = 7
    assert parameter.tolist() == [1, 7, 1]
    for dtype in ("bool", "uint8", "int32", "int64", "float16", "float64"):
        x = md.ones(2).to(np.dtype(dtype))
        assert str(md.from_dlpack(torch.from_dlpack(x)).dtype) == dtype


def test_copies_of_leaves():
    layer = nn.Linear(2, 3)
    FlatStorage(list(layer.parameters()))
    layer(md.ones(1, 2)).sum().backward()
    twin = copy.deepcopy(layer)
    assert twin.weight.storage is None and isinstance(twin.weight, nn.Parameter)
    assert not np.shares_memory(twin.weight.data, layer.weight.data)
    np.testing.assert_array_equal(twin.weight.numpy(), layer.weight.numpy())
    assert twin.weight.grad is None  # as in PyTorch
    tied = nn.Sequential(layer, layer)
    twin = copy.deepcopy(tied)
    assert twin[0].weight is twin[1].weight
    x = md.ones(2)
    assert copy.copy(x).data is x.data
    y = pickle.loads(pickle.dumps(layer.weight))
    assert isinstance(y, nn.Parameter) and y.requires_grad
    np.testing.assert_array_equal(y.numpy(), layer.weight.numpy())
    for refused in (copy.deepcopy, pickle.dumps):
        with pytest.raises(RuntimeError, match="only leaves"):
            refused(layer.weight * 2)


def test_as_a_sequence():
    x = md.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    assert len(x) == 2 and [row.tolist() for row in x] == [[1, 2], [3, 4]]
    assert 3 in x and 5 not in x
    first, second = x
    (first * second).sum().backward()
    assert x.grad.tolist() == [[3, 4], [1, 2]]
    for wrong in (len, iter):
        with pytest.raises(TypeError):
            wrong(md.tensor(1.0))


def test_as_text():
    assert repr(md.tensor([1.0, 2.5])) == "tensor([1. , 2.5])"
    assert repr(md.zeros(0, 3)) == "tensor([], size=(0, 3))"
    assert repr(md.ones(1).double()) == "tensor([1.], dtype=float64)"
    assert repr(md.ones(1, requires_grad=True)) == "tensor([1.], requires_grad=True)"
    assert f"{md.tensor(1.2345):.2f}" == "1.23"
