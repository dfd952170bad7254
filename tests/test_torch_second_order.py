"""Gradients of gradients, on PyTorch's own sample inputs, in float64.

With random weights w of the results and v of the gradients, the second walk is the
gradient of v . (dw y / dx) with respect to x and to w.
"""

import warnings

import numpy as np
import pytest
from test_torch_samples import OPERATORS, convert, is_random, ours, tensors, torch

import minidl as md

pytestmark = pytest.mark.slow
SAMPLES = 6  # of each operator: the first are the plain cases
NO_SECOND = {  # what PyTorch itself cannot differentiate twice: at that, its samples
    "nn.functional.scaled_dot_product_attention": "_scaled_dot_product_flash_attention"
}
TWICE = [
    name
    for name, info in OPERATORS.items()
    if info.supports_autograd and info.supports_gradgrad
    if torch.float64 in info.dtypes
]


def twice(library, results, leaves, weights, seed):
    """The gradients of the leaves' gradients, each weighted at random, or None."""
    first = library.autograd.grad(
        results, leaves, weights, create_graph=True, allow_unused=True
    )
    rng = np.random.default_rng(seed)
    pairs = []
    for leaf, g in zip(leaves, first, strict=True):
        v = library.tensor(rng.standard_normal(tuple(leaf.shape)))
        if g is not None and g.requires_grad:
            pairs.append((g, v))
    if not pairs:
        return [None] * len(leaves + weights)
    found = [[*x] for x in zip(*pairs, strict=True)]
    return library.autograd.grad(
        found[0], leaves + weights, found[1], allow_unused=True
    )


def check_sample(info, sample) -> None:
    arguments, options = (sample.input, *sample.args), sample.kwargs
    inputs, own_options = convert(arguments), convert(options)
    own_options.pop("memory_format", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = tensors(info.op(*arguments, **options), torch.Tensor)
    mine = tensors(ours(info.name)(*inputs, **own_options), md.Tensor)
    chosen = [i for i, y in enumerate(theirs) if y.requires_grad]
    leaves, own_leaves = (
        [x for x in tensors(nest, kind) if x.requires_grad]
        for nest, kind in (
            ((arguments, options), torch.Tensor),
            ((inputs, own_options), md.Tensor),
        )
    )
    if not chosen or not leaves or any(x.dtype != torch.float64 for x in theirs):
        return
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(tuple(theirs[i].shape)) for i in chosen]
    expected, found = (
        twice(
            library,
            [results[i] for i in chosen],
            own,
            [library.tensor(w).requires_grad_() for w in weights],
            1,
        )
        for library, results, own in (
            (torch, theirs, leaves),
            (md, mine, own_leaves),
        )
    )
    for position, (x, y) in enumerate(zip(found, expected, strict=True)):
        y = 0.0 if y is None else y.numpy(force=True)
        x = np.zeros_like(y) if x is None else x.numpy()
        np.testing.assert_allclose(x, y, 1e-6, 1e-8, err_msg=f"gradient {position}")


@pytest.mark.parametrize("name", TWICE)
def test_second_order_agrees_with_pytorch(name):
    info = OPERATORS[name]
    samples = info.sample_inputs("cpu", torch.float64, requires_grad=True)
    samples = [s for s in samples if not is_random(info.name, s)]
    assert samples
    for sample in samples[:SAMPLES]:
        try:
            with np.errstate(all="ignore"):
                check_sample(info, sample)
        except RuntimeError as error:
            if NO_SECOND.get(name, "nothing") not in str(error):
                raise
        except AssertionError as error:
            raise AssertionError(f"{sample.summary()}: {error}") from error
