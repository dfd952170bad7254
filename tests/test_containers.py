"""ModuleList, and layers that are a function and its settings."""

import copy

import numpy as np
import pytest

import minidl as md
from minidl import nn


def test_module_list():
    layers = nn.ModuleList([nn.Linear(2, 3), nn.ReLU()])
    layers.append(nn.Linear(3, 4)).extend([nn.Tanh()])
    assert len(layers) == 4
    assert [n for n, _ in layers.named_parameters()] == [
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    ]
    assert isinstance(layers[-1], nn.Tanh) and layers[-1] in layers
    assert isinstance(layers[1:3], nn.ModuleList) and layers[1:3][1] is layers[2]
    layers.insert(0, nn.Sigmoid())
    assert isinstance(layers[0], nn.Sigmoid) and isinstance(layers[2], nn.ReLU)
    layers[0] = nn.ELU()
    assert isinstance(layers.pop(0), nn.ELU)
    del layers[1:3]
    assert list(layers._modules) == ["0", "1"] and isinstance(layers[1], nn.Tanh)
    assert len(layers + [nn.ReLU()]) == 3
    with pytest.raises(IndexError):
        layers[7]


def test_settings_are_arguments_and_attributes():
    layer = nn.Hardtanh(-2.0, max_val=3.0)
    assert (layer.min_val, layer.max_val) == (-2.0, 3.0)
    assert repr(layer) == "Hardtanh(min_val=-2.0, max_val=3.0)"
    assert repr(nn.ReLU(True)) == "ReLU(inplace=True)"
    assert layer(md.tensor([-5.0, 5.0])).tolist() == [-2, 3]
    layer.max_val = 1.0
    assert layer(md.tensor([5.0])).tolist() == [1]
    with pytest.raises(TypeError, match="missing a required argument"):
        nn.Threshold(1.0)
    with pytest.raises(TypeError, match="slope"):
        nn.LeakyReLU(slope=0.1)


def test_layers_can_be_copied():
    model = nn.Sequential(nn.Linear(2, 3), nn.ELU(2.0), nn.BatchNorm1d(3))
    twin = copy.deepcopy(model)
    x = md.tensor(np.ones((2, 2), np.float32))
    np.testing.assert_array_equal(model.eval()(x).numpy(), twin.eval()(x).numpy())
    assert twin[1].alpha == 2.0 and twin[0].weight is not model[0].weight


def test_class_weights_are_part_of_the_state():
    loss = nn.CrossEntropyLoss(md.tensor([1.0, 2.0]))
    assert list(loss.state_dict()) == ["weight"]
    assert list(nn.CrossEntropyLoss().state_dict()) == []
    loss.to(md.float64)
    assert loss.weight.dtype == np.float64
