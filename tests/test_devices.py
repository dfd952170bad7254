"""Tensors on different devices: a sentence from whatever is given both."""

import numpy as np
import pytest

import minidl as md
from minidl import nn
from minidl.array.standardize import standardize
from minidl.nn import functional as F

ONE = md.Tensor(np.ones(1, "f4"))  # which CuPy would pass to a kernel by value
MIXED = {
    "add": lambda here, there: there + here,
    "a number of no dimensions": lambda here, there: there * md.tensor(2.0),
    "compare": lambda here, there: here < there,
    "where": lambda here, there: md.where(here > 0, there, there),
    "cat": lambda here, there: md.cat([there, here]),
    "matmul": lambda here, there: there @ here.T,
    "linear": lambda here, there: nn.Linear(3, 5)(there),
    "linear with a bias": lambda here, there: F.linear(there, there, here[:, 0]),
    "convolution": lambda here, there: nn.Conv2d(1, 2, 1)(there[None, None]),
    "batch norm": lambda here, there: nn.BatchNorm1d(3)(there),
    "layer norm": lambda here, there: nn.LayerNorm(3)(there),
    "loss": lambda here, there: F.mse_loss(there, here),
    "labels": lambda here, there: F.cross_entropy(there, md.tensor([0, 1, 2, 0])),
    "embedding": lambda here, there: nn.Embedding(5, 3)((there > 0).to(md.int64)),
    "index": lambda here, there: here[there > 0],
    "gather": lambda here, there: md.gather(here, 1, there.argmax(1)[:, None]),
    "from here": lambda here, there: here + there,
    "clamp": lambda here, there: there.clamp(md.tensor(2.0)),
    "lerp": lambda here, there: md.lerp(there, here, 0.5),
    "prelu": lambda here, there: F.prelu(there, ONE),
    "a mean of one number": lambda here, there: F.batch_norm(there[:, :1], ONE, ONE),
    "a weight of one number": lambda here, there: F.batch_norm(
        there[:, :1], None, None, ONE, ONE, True
    ),
    "grad": lambda here, there: setattr(there, "grad", here),
    "backward": lambda here, there: there.requires_grad_().backward(here),
}


@pytest.mark.parametrize("name", MIXED)
def test_one_sentence(stand_in, name):
    here = md.tensor(np.arange(12.0, dtype="f").reshape(4, 3))
    there = here.to("cuda")
    with pytest.raises(RuntimeError, match="cpu.*cuda:0|cuda:0.*cpu") as caught:
        MIXED[name](here, there)
    assert "; move " in str(caught.value)


def test_elements_may_come_from_elsewhere(stand_in):
    """As in PyTorch, and numbers too."""
    here = md.tensor(np.arange(12.0, dtype="f").reshape(4, 3))
    there = here.to("cuda")
    there[0], here[1] = here[3], there[2]
    there[1] = np.ones(3)
    assert there.tolist()[:2] == [[9, 10, 11], [1, 1, 1]]
    assert here[1].tolist() == [6, 7, 8]


def test_no_kernel_takes_an_array_of_the_host(stand_in):
    x, one = stand_in.cupy.ones((3, 1), "f4"), np.ones((1, 1), "f4")
    with pytest.raises(TypeError, match="got one on the CPU"):
        standardize(x, one, one, (0,), 1e-5, True)


def test_what_is_no_question_of_devices_is_raised_as_it_is(stand_in):
    x = md.ones(4, 3, device="cuda")
    with pytest.raises(RuntimeError, match="do not broadcast"):
        x + md.ones(2, device="cuda")
    assert x[md.tensor([0, 2])].tolist() == [[1, 1, 1]] * 2  # as in PyTorch
