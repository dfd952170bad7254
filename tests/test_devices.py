"""Tensors on different devices: a sentence from whatever is given both."""

import numpy as np
import pytest

import minidl as md
from minidl import nn
from minidl.nn import functional as F

MIXED = {
    "add": lambda here, there: here + there,
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
    "assign": lambda here, there: there.__setitem__(0, here[0]),
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


def test_what_is_no_question_of_devices_is_raised_as_it_is(stand_in):
    x = md.ones(4, 3, device="cuda")
    with pytest.raises(RuntimeError, match="do not broadcast"):
        x + md.ones(2, device="cuda")
    assert x[md.tensor([0, 2])].tolist() == [[1, 1, 1]] * 2  # as in PyTorch
