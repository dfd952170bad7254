"""Weights travel to PyTorch and back, as files and in memory."""

import numpy as np
import pytest

import minidl as md
from minidl import nn, optim

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

from safetensors import numpy as ours  # noqa: E402 - after the checks for both
from safetensors import torch as theirs  # noqa: E402

pytestmark = pytest.mark.slow  # PyTorch
TYPES = ["float32", "float64", "float16", "bfloat16"]


def model_of(library):
    """The same layers from either library."""
    torch.manual_seed(0)
    return library.Sequential(
        library.Conv2d(2, 4, 3, groups=2),
        library.BatchNorm2d(4),
        library.ConvTranspose2d(4, 2, 2, bias=False),
        library.Flatten(),
        library.PReLU(),
        library.Linear(18, 6),
        library.LayerNorm(6),
        library.MultiheadAttention(6, 2),
        library.Embedding(5, 3),
    )


def widened(state):
    """The values of a state of either library, in float64."""
    return {
        name: np.asarray(x.double() if isinstance(x, torch.Tensor) else x.numpy(), "f8")
        for name, x in state.items()
    }


def same(state, other):
    a, b = widened(state), widened(other)
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def numpy_state(model):
    """As the README has it."""
    state = model.state_dict()
    return {
        name: np.ascontiguousarray(tensor.numpy()) for name, tensor in state.items()
    }


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("flat", [False, True])
def test_a_file_of_pytorch_loads(dtype, flat, tmp_path):
    source = model_of(torch.nn).to(getattr(torch, dtype))
    theirs.save_file(source.state_dict(), tmp_path / "model.safetensors")
    model = model_of(nn).to(dtype=getattr(md, dtype))
    if flat:
        optim.Adam(model.parameters())
    read = ours.load_file(tmp_path / "model.safetensors")
    assert model.load_state_dict(read) == ([], [])
    assert {str(p.dtype) for p in model.parameters()} == {dtype}
    same(model.state_dict(), source.state_dict())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("flat", [False, True])
def test_our_file_loads_in_pytorch(dtype, flat, tmp_path):
    model = model_of(nn).to(dtype=getattr(md, dtype))
    if flat:
        optim.Adam(model.parameters())
    ours.save_file(numpy_state(model), tmp_path / "model.safetensors")
    target = model_of(torch.nn).to(getattr(torch, dtype))
    target.load_state_dict(theirs.load_file(tmp_path / "model.safetensors"))
    same(target.state_dict(), model.state_dict())


def test_a_file_of_half_precision_widens(tmp_path):
    source = model_of(torch.nn).bfloat16()
    theirs.save_file(source.state_dict(), tmp_path / "model.safetensors")
    model = model_of(nn)
    model.load_state_dict(ours.load_file(tmp_path / "model.safetensors"))
    assert {str(p.dtype) for p in model.parameters()} == {"float32"}
    same(model.state_dict(), source.state_dict())


def test_a_state_of_pytorch_loads_without_a_file():
    source, model = model_of(torch.nn), model_of(nn)
    model.load_state_dict(source.state_dict())
    same(model.state_dict(), source.state_dict())


def test_a_parameter_in_flat_storage_is_shared():
    model = nn.Linear(3, 2)
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    weight = torch.from_dlpack(model.weight)
    before = weight.clone()
    model(md.ones(1, 3)).sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(weight.numpy(), model.weight.numpy())
    assert torch.equal(weight, before - 1)
    weight.zero_()
    assert not model.weight.numpy().any()


def test_a_tensor_of_pytorch_is_shared():
    theirs = torch.ones(2, 3)
    x = md.from_dlpack(theirs).requires_grad_()
    (x * x).sum().backward()
    theirs *= 5
    assert (x.numpy() == 5).all() and (x.grad.numpy() == 2).all()
    np.testing.assert_array_equal(torch.from_dlpack(x.grad).numpy(), x.grad.numpy())
