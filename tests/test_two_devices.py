"""Tensors on a GPU and on the CPU in one operation: one sentence, and no harm done."""

import numpy as np
import pytest

import minidl as md
import minidl.nn.functional as F
from minidl import nn
from minidl.array.errors import DeviceError
from minidl.array.standardize import standardize

X = np.arange(12, dtype="f4").reshape(3, 4)
HERE = md.Tensor(X)
ONE = md.Tensor(np.ones(1, "f4"))  # which CuPy would pass to a kernel by value
MIXED = {
    "add": lambda x: x + HERE,
    "add from here": lambda x: HERE + x,
    "a number": lambda x: x * md.tensor(2.0),
    "compare": lambda x: x == HERE,
    "where": lambda x: md.where(HERE > 0, x, 0.0),
    "clamp": lambda x: x.clamp(md.tensor(2.0)),
    "lerp": lambda x: md.lerp(x, HERE, 0.5),
    "cat": lambda x: md.cat([x, HERE]),
    "matmul": lambda x: x @ HERE.T,
    "matmul from here": lambda x: HERE @ x.T,
    "linear": lambda x: nn.Linear(4, 2)(x),
    "conv": lambda x: nn.Conv1d(3, 2, 3)(x),
    "embedding": lambda x: F.embedding(x.long(), md.ones(12, 2)),
    "mse_loss": lambda x: F.mse_loss(x, HERE),
    "layer_norm": lambda x: F.layer_norm(x, (4,), md.ones(4)),
    "batch_norm": lambda x: F.batch_norm(x[:, :1], ONE, ONE),
    "batch_norm, weight": lambda x: F.batch_norm(x[:, :1], None, None, ONE, ONE, True),
    "prelu": lambda x: F.prelu(x, ONE),
}


@pytest.fixture
def there(stand_in):
    return md.Tensor(stand_in.cupy.asarray(X))


@pytest.mark.parametrize("name", MIXED)
def test_a_sentence_says_so(there, name):
    with pytest.raises(RuntimeError, match="on (cuda:0.* cpu|cpu.* cuda:0)") as caught:
        MIXED[name](there)
    assert name == "conv" or isinstance(caught.value, DeviceError)


def test_gradients_stay_where_their_tensors_are(there):
    there.requires_grad_()
    with pytest.raises(RuntimeError, match="cpu.*cuda:0"):
        there.grad = md.ones(3, 4)
    with pytest.raises(RuntimeError, match="gradient is on cpu"):
        (there * 2).backward(md.ones(3, 4))


def test_no_kernel_takes_an_array_of_the_host(there):
    one, x = ONE.numpy().reshape(1, 1), there.data[:, :1]
    with pytest.raises(TypeError, match="got one on the CPU"):
        standardize(x, one, one, (0,), 1e-5, True)
