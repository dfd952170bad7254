"""PyTorch's own published sample inputs, run through minidl and PyTorch alike.

An optional extra: skipped where PyTorch is not installed.
"""

import warnings

import numpy as np
import pytest

import minidl as md
import minidl.nn.functional as F

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip(
    "expecttest", reason="expecttest, for PyTorch's samples, is missing"
)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    invocations = pytest.importorskip(
        "torch.testing._internal.common_methods_invocations"
    )

pytestmark = pytest.mark.slow
FORWARD, GRADIENT = 2e-5, 1e-4
# PyTorch's name: ours, where they differ in more than the prefix
NAMES: dict[str, str] = {}
# where PyTorch's samples are for another order of arguments than the function's own
CALLS = {
    "einsum": lambda operands, equation: md.einsum(equation, operands),
    "nn.functional.embedding": lambda weight, index, **options: F.embedding(
        index, weight, **options
    ),
    "where": lambda input, condition, other: md.where(condition, input, other),
}
# random numbers: of these only shape and type are compared
RANDOM = ("rand", "randn", "randint", "rand_like", "randn_like", "randint_like")
# (operator, reason): samples that are left out, each for a documented reason
LEFT_OUT: dict[str, str] = {}


def is_random(name: str, sample) -> bool:
    """Whether the result depends on PyTorch's own random numbers."""
    if name == "nn.functional.dropout":
        p = sample.args[0] if sample.args else sample.kwargs.get("p", 0.5)
        return sample.kwargs.get("training", True) and 0 < p < 1
    return name in RANDOM or 0 < sample.kwargs.get("dropout_p", 0.0) < 1


def ours(name: str):
    """The function of minidl that PyTorch calls by this name, or None."""
    if name in CALLS:
        return CALLS[name]
    if name.startswith("nn.functional."):
        return getattr(F, name.removeprefix("nn.functional."), None)
    found = getattr(md, NAMES.get(name, name), None)
    if found is None or isinstance(found, type):  # a method, as float or __getitem__
        found = getattr(md.Tensor, NAMES.get(name, name), None)
    return found.fget if isinstance(found, property) else found


def operators():
    """All of PyTorch's operators that minidl has."""
    found = {}
    for info in invocations.op_db:
        if ours(info.name) is not None and torch.float32 in info.dtypes:
            found[
                info.name + "." * bool(info.variant_test_name) + info.variant_test_name
            ] = info
    return found


OPERATORS = operators()


def convert(x):
    """A sample's argument in minidl's terms."""
    if isinstance(x, torch.Tensor):
        y = md.tensor(x.detach().resolve_neg().numpy())
        return y.requires_grad_() if x.requires_grad else y
    if isinstance(x, torch.dtype):
        return np.dtype(str(x).removeprefix("torch.").replace("bool", "bool"))
    if isinstance(x, (list, tuple)):
        return type(x)(convert(v) for v in x)
    if isinstance(x, dict):
        return {k: convert(v) for k, v in x.items()}
    return x


def tensors(x, kind):
    """All tensors in a nest of lists, tuples and dicts, in order."""
    if isinstance(x, kind):
        return [x]
    if isinstance(x, (list, tuple)):
        return [t for v in x for t in tensors(v, kind)]
    if isinstance(x, dict):
        return [t for v in x.values() for t in tensors(v, kind)]
    return []


def close(a, b, tolerance: float | None, what: str) -> None:
    assert tuple(a.shape) == tuple(b.shape), (
        f"{what}: shape {a.shape}, PyTorch {b.shape}"
    )
    assert str(a.dtype) == str(b.dtype).removeprefix("torch."), (
        f"{what}: {a.dtype} {b.dtype}"
    )
    if tolerance is None:
        return
    if b.dtype == torch.bfloat16:  # which NumPy does not know
        a, b = a.float(), b.float()
    np.testing.assert_allclose(
        a.numpy(), b.detach().numpy(), rtol=tolerance, atol=tolerance, err_msg=what
    )


def check_sample(info, sample) -> None:
    arguments = (sample.input, *sample.args)
    ours_in, ours_kw = convert(arguments), convert(sample.kwargs)
    ours_kw.pop("memory_format", None)  # minidl has one, and values do not depend on it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = info.op(*arguments, **sample.kwargs)
    result = ours(info.name)(*ours_in, **ours_kw)
    a, b = tensors(result, md.Tensor), tensors(theirs, torch.Tensor)
    assert len(a) == len(b), f"{len(a)} results, PyTorch {len(b)}"
    random = is_random(info.name, sample)
    for x, y in zip(a, b, strict=True):
        close(x, y, None if random else FORWARD, "result")
    if random:
        return
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if y.requires_grad]
    leaves = [
        t for t in tensors((arguments, sample.kwargs), torch.Tensor) if t.requires_grad
    ]
    own = [t for t in tensors((ours_in, ours_kw), md.Tensor) if t.requires_grad]
    if not pairs or not leaves:
        return
    rng = np.random.default_rng(0)
    weights = [
        np.asarray(rng.standard_normal(tuple(y.shape)), str(y.dtype)[6:])
        for _, y in pairs
    ]
    theirs_g = torch.autograd.grad(
        [y for _, y in pairs],
        leaves,
        [
            torch.tensor(w.astype("f8")).to(y.dtype)
            for w, (_, y) in zip(weights, pairs, strict=True)
        ],
        allow_unused=True,
    )
    ours_g = md.autograd.grad(
        [x for x, _ in pairs], own, [md.tensor(w) for w in weights], allow_unused=True
    )
    for x, y in zip(ours_g, theirs_g, strict=True):
        if y is None:
            assert x is None or not np.any(x.numpy())
        else:
            assert x is not None, "PyTorch has a gradient, minidl None"
            close(x, y, GRADIENT, "gradient")


@pytest.mark.parametrize("name", OPERATORS)
def test_agrees_with_pytorch_on_its_own_samples(name):
    info = OPERATORS[name]
    if name in LEFT_OUT:
        pytest.skip(LEFT_OUT[name])
    with np.errstate(all="ignore"):
        for number, sample in enumerate(
            info.sample_inputs(
                "cpu", torch.float32, requires_grad=info.supports_autograd
            )
        ):
            try:
                check_sample(info, sample)
            except Exception as error:
                error.add_note(f"sample {number}: {sample.summary()}") if hasattr(
                    error, "add_note"
                ) else None
                raise
