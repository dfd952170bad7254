"""A rule's two kernels: its numbers by every way to compute them, and its low copy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cuda_compile import (  # noqa: F401 - a fixture
    FLOATS,
    compile_cuda,
    compile_together,
    cuda_source,
    nvrtc,
)

import minidl as md
from minidl import nn, optim
from minidl.optim import adam, adam_variants, adaptive, sgd
from minidl.optim.rule import Rule

MODULES = (adam, adam_variants, adaptive, sgd)
RULES = {r.name: r for m in MODULES for r in vars(m).values() if type(r) is Rule}
RULES |= {r.name: r for r in adaptive.RMSPROP.values()}
OWN = Rule(
    "test_own",
    "speed",
    "rate friction",
    "speed = friction * speed + d; p -= rate * speed;",
    "rate = lr / sqrt(step);",
    "friction",
)
BETWEEN = st.floats(0.01, 0.999)


@given(
    name=st.sampled_from(sorted(RULES)),
    counts=st.tuples(st.integers(0, 2000), BETWEEN),
    found=st.sampled_from([0, 0, 0, 1]),
    scale=st.floats(0.5, 1e5),
    norm=st.sampled_from([0.0, 3.0, 1e6, np.inf, np.nan]),
    data=st.data(),
)
def test_numbers_in_python_are_the_kernels(name, counts, found, scale, norm, data):
    rule = RULES[name]
    counts = list(map(float, counts[: len(rule.counters)]))
    values = {"found": found, "divisor": scale, "norm": norm}
    values |= {x: data.draw(BETWEEN) for x in rule.settings}
    outs = [np.full(1, x) for x in (*counts, *rule.unset)]
    rule.numbers(out=tuple(outs), **values)
    given = {k: float(v) for k, v in values.items()}
    host = list(rule.on_host(counts, given))
    np.testing.assert_allclose(host, np.concatenate(outs), 1e-12)
    skip = bool(found) or not np.isfinite(norm)
    assert host[: len(counts)] == counts if skip else host[0] == counts[0] + 1


@pytest.mark.parametrize("name", RULES)
def test_a_first_step_that_is_left_out(name):
    """There is nothing to correct by then: 1 - b^0 = 0."""
    rule = RULES[name]
    settings = dict.fromkeys(rule.settings, 0.5)
    given = {**settings, "found": 1.0, "divisor": 1.0, "norm": 0.0}
    counts = [0.0, 1.0][: len(rule.counters)]
    values = rule.on_host(counts, given)
    assert list(values[: len(counts)]) == counts
    g, p = np.full(3, np.nan), np.arange(3.0)
    state = [np.ones(3) for _ in rule.state]
    rule(g, p, state, rule.needed(values, given))
    assert p.tolist() == [0, 1, 2] and all((x == 1).all() for x in state)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_rule_of_ones_own(dtype):
    """Heavy-ball momentum whose rate falls as 1 / sqrt(t)."""

    class Own(optim.Optimizer):
        def __init__(self, params):
            settings = dict(lr=0.5, friction=0.9, weight_decay=0, maximize=False)
            super().__init__(params, settings)

        def rule(self, group):
            return OWN

    p = nn.Parameter(np.ones(5, dtype))
    optimizer, weight, speed = Own([p]), 1.0, 0.0
    for step in range(1, 5):
        p.grad = md.tensor(np.full(5, step, dtype))
        speed = 0.9 * speed + step
        weight -= 0.5 / step**0.5 * speed
        optimizer.step()
    np.testing.assert_allclose(p.numpy(), weight, 1e-6)
    assert list(optimizer.state[p]) == ["step", "speed"]


@pytest.mark.slow
def test_numbers_compile_for_gpus(nvrtc):  # noqa: F811
    """Counters in float64 beside numbers in the type that the update computes in."""
    sources = []
    for name, rule in RULES.items():
        dtypes = ["float64"] * len(rule.counters) + ["float32"] * len(rule.made)
        sources.append(cuda_source(rule.numbers, dtypes, "1-d", f"numbers_{name}"))
    for code in compile_together(sources, ["sm_90"]):
        assert code[1:4] == b"ELF" and all(f"_{x}".encode() in code for x in RULES)


@pytest.mark.slow
def test_the_low_copy_compiles_for_gpus(nvrtc):  # noqa: F811
    sources = []
    for name, rule in RULES.items():
        kernel = rule.update_low
        for k, low in enumerate(x for x in FLOATS if np.dtype(x).itemsize == 2):
            dtypes = [*["float32"] * (len(kernel.names) - 1), low]
            sources.append(cuda_source(kernel, dtypes, "1-d", f"low_{name}_{k}"))
    for code in compile_together(sources, ["sm_90"]):
        assert code[1:4] == b"ELF" and all(f"_{x}".encode() in code for x in RULES)


@pytest.mark.parametrize("name", ["adam", "nadam", "sgd_momentum"])
def test_an_update_keeps_to_registers(nvrtc, name):  # noqa: F811
    source = cuda_source(RULES[name].update, "float32", "1-d", "update")
    text = compile_cuda(source, "compute_90", "ptx")
    text = text if isinstance(text, str) else text.decode()
    assert "ld.local" not in text and "st.local" not in text
