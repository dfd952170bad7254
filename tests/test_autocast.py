"""Autocast: which function computes in which type, and where gradients go."""

import threading

import numpy as np
import pytest
from autocast_calls import CALLS
from hypothesis import given
from hypothesis import strategies as st
from test_contract import FUNCTIONS, LAYER_FUNCTIONS

import minidl as md
from minidl import nn
from minidl.array.dtypes import BFLOAT16
from minidl.nn import functional as F
from minidl.ops import autocast as ops_autocast
from minidl.ops.autocast_rules import RULES

pytestmark = pytest.mark.skipif(BFLOAT16 is None, reason="ml_dtypes is not installed")
KINDS = {"halves": "hh", "floats": "ff", "both": "fh"}
LENIENT = {  # what PyTorch refuses here, and minidl does not
    ("cpu", "tensordot"): "of two types",
    ("cuda", "gaussian_nll_loss"): "looks at values, and without a GPU there are none",
}
HALVES = [BFLOAT16, np.float16]


# --- Which type -----------------------------------------------------------------------


def result(call, *arguments) -> str:
    """The name of the result's type, or that the call was refused."""
    try:
        return str(call(*arguments).dtype).removeprefix("torch.")
    except (RuntimeError, TypeError):
        return "refused"


@pytest.mark.slow  # PyTorch
@pytest.mark.filterwarnings("ignore:reduction")  # of kl_div
@pytest.mark.parametrize("kind", KINDS)
def test_types_are_those_of_pytorch_on_a_cpu(kind):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    types = {"f": torch.float32, "h": torch.bfloat16}
    given = [torch.full((4, 4), 0.5, dtype=types[k]) for k in KINDS[kind]]
    with torch.autocast("cpu"):
        compare("cpu", kind, torch, given)


@pytest.mark.slow  # PyTorch
@pytest.mark.filterwarnings("ignore:reduction")  # of kl_div
@pytest.mark.parametrize("kind", KINDS)
def test_types_are_those_of_pytorch_on_a_gpu(kind, monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch._subclasses.fake_tensor import FakeTensorMode  # without a GPU

    monkeypatch.setattr(ops_autocast, "on_gpu", lambda array: True)
    types = {"f": torch.float32, "h": torch.bfloat16}
    try:
        torch.set_autocast_enabled("cuda", True)  # the context asks for a GPU
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        with FakeTensorMode():
            given = [
                torch.empty(4, 4, dtype=types[k], device="cuda") for k in KINDS[kind]
            ]
            compare("cuda", kind, torch, given)
    finally:
        torch.set_autocast_enabled("cuda", False)


def compare(device, kind, torch, theirs) -> None:
    values = np.linspace(0.1, 1.6, 16, dtype=np.float32).reshape(4, 4)
    ours = [
        md.tensor(values.astype({"f": "f4", "h": BFLOAT16}[k])) for k in KINDS[kind]
    ]
    different = {}
    for name, call in CALLS.items():
        with md.autocast(device, BFLOAT16):
            mine = result(call, md, F, *ours)
        its = result(call, torch, torch.nn.functional, *theirs)
        if mine != its and not (its == "refused" and (device, name) in LENIENT):
            different[name] = mine, its
    assert different == {}


@pytest.mark.slow  # PyTorch
@pytest.mark.parametrize(
    "device, key", [("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")]
)
def test_no_function_of_pytorchs_lists_is_forgotten(device, key):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    place = ("cpu", "cuda").index(device)
    ruled = {name for _, names, *rule in RULES if rule[place] for name in names.split()}
    names = dict.fromkeys(FUNCTIONS + LAYER_FUNCTIONS)
    listed = [name for name in names if is_listed(torch, name, key)]
    assert len(listed) > 10 and [name for name in listed if name not in ruled] == []


def is_listed(torch, name: str, key: str) -> bool:
    """Whether PyTorch does something else with it under autocast."""
    packet = getattr(torch.ops.aten, name, None)
    forms = [] if packet is None else packet.overloads()
    names = [f"aten::{name}.{form}".removesuffix(".default") for form in forms]
    return any(
        torch._C._dispatch_has_kernel_for_dispatch_key(full, key)
        for full in names
        if torch._C._dispatch_has_kernel(full)
    )


def test_products_are_low_and_losses_are_not():
    x, w = md.randn(3, 4), md.randn(5, 4)
    with md.autocast("cpu"):
        y = F.linear(x, w)
        assert y.dtype == BFLOAT16 and (x @ x.T).dtype == BFLOAT16
        loss = F.cross_entropy(y, md.tensor([0, 1, 2]))
        assert loss.dtype == np.float32 and loss.total.dtype == np.float32
        assert F.softmax(y, 1).dtype == BFLOAT16
    assert F.linear(x, w).dtype == np.float32


def test_layers_with_a_relu_in_them_are_low_too():
    x = md.tensor(np.ones((2, 3, 4, 4), "float32"))
    for layer in (nn.Conv2d(3, 2, 3), nn.Linear(4, 2)):
        with md.autocast("cpu"):
            for y in (layer(x), nn.Sequential(layer, nn.ReLU())(x)):
                assert y.dtype == BFLOAT16


def test_on_a_gpu_sums_and_exponentials_are_float32(stand_in):
    x = md.randn(3, 4, device="cuda")
    with md.autocast("cuda"):
        y = x @ x.T
        assert y.dtype == np.float16
        for result in (y.exp(), y.sum(), F.softmax(y, 1), y**2, md.cat([y, y.float()])):
            assert result.dtype == np.float32
        assert (md.randn(3, 4) @ md.randn(4, 3)).dtype == np.float32  # on the CPU
        with pytest.raises(RuntimeError, match="with_logits"):
            F.binary_cross_entropy(y.sigmoid(), y.sigmoid())


def test_other_types_are_left_alone():
    x = md.randn(3, 3, dtype=np.float64)
    n = md.arange(9).reshape(3, 3)
    with md.autocast("cpu"):
        assert (x @ x).dtype == np.float64
        assert (n @ n).dtype == np.int64
        assert (md.randn(2, 3) @ np.ones((3, 2), "f4")).dtype == BFLOAT16


@given(seed=st.integers(0, 99), kind=st.sampled_from(HALVES))
def test_a_product_is_that_of_the_rounded_operands(seed, kind):
    a, b = np.random.default_rng(seed).normal(size=(2, 6, 6)).astype("f4")
    with md.autocast("cpu", kind):
        y = (md.tensor(a) @ md.tensor(b)).numpy()
    wanted = a.astype(kind).astype(float) @ b.astype(kind).astype(float)
    assert y.dtype == kind
    eps = 2**-8 if kind == BFLOAT16 else 2**-11
    np.testing.assert_allclose(y.astype(float), wanted, rtol=1.01 * eps, atol=1e-5)


# --- Where it holds -------------------------------------------------------------------


def low() -> bool:
    return (md.ones(2, 2) @ md.ones(2, 2)).dtype != np.float32


def test_regions_nest_and_end():
    region = md.autocast("cpu", np.float16)
    with region:
        assert (md.ones(1, 1) @ md.ones(1, 1)).dtype == np.float16
        with md.autocast("cpu", enabled=False):
            assert not low()
            with region, md.autocast("cuda"):
                assert low()
        with md.autocast("cpu", BFLOAT16):
            assert (md.ones(1, 1) @ md.ones(1, 1)).dtype == BFLOAT16
        assert low()
    assert not low()
    with pytest.raises(ZeroDivisionError), region:
        1 / 0  # noqa: B018
    assert not low()


def test_as_a_decorator_and_in_another_thread():
    decorated = md.autocast("cpu")(low)
    assert decorated() and decorated.__name__ == "low" and not low()
    found = []
    with md.autocast("cpu"):
        thread = threading.Thread(target=lambda: found.append(low()))
        thread.start()
        thread.join()
    assert found == [False]


def test_what_is_refused(monkeypatch):
    with pytest.raises(RuntimeError, match="'tpu'"):
        md.autocast("tpu")
    with pytest.raises(RuntimeError, match="float32"):
        md.autocast("cpu", np.float32)
    monkeypatch.setitem(ops_autocast.DEFAULTS, "cpu", None)
    with pytest.raises(md.array.errors.DependencyError, match="ml_dtypes"):
        md.autocast("cpu")
    md.autocast("cpu", enabled=False)
