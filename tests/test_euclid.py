"""The norm of arrays in one pass, on the host and as a CUDA kernel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cuda_compile import compile_cuda, nvrtc  # noqa: F401 - a fixture

from minidl.array import euclid


def expected(arrays):
    """The norm in float64."""
    whole = np.concatenate([x.ravel().astype(np.float64) for x in arrays])
    return np.sqrt(np.sum(whole**2))


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=3),
    dtype=st.sampled_from(["f2", "f4", "f8"]),
    seed=st.integers(0, 9),
)
def test_norm_on_the_host(sizes, dtype, seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((n, 3)).astype(dtype) for n in sizes]
    norm, bad = euclid.norm(arrays)
    assert norm == pytest.approx(expected(arrays), rel=1e-6) and bad is False


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_what_is_not_finite_is_found(value, dtype):
    x = np.ones(1000, dtype)
    assert euclid.norm([x, x]) == (pytest.approx(2000**0.5), False)
    x[500] = value
    norm, bad = euclid.norm([np.ones(3, "f4"), x])
    assert bad is True and not np.isfinite(norm)


def test_large_and_finite():
    assert euclid.norm([np.full(4, 1e30, "f4")]) == (pytest.approx(2e30), False)
    assert euclid.norm([np.full(4, 1e300)]) == (np.inf, False)
    assert euclid.norm([]) == (0, False)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernel_compiles_with_wide_loads(nvrtc, dtype):  # noqa: F811
    source = euclid.kernel(dtype).code
    assert compile_cuda(source, "sm_80")[1:4] == b"ELF"
    text = compile_cuda(source, "compute_90", "ptx")
    text = text if isinstance(text, str) else text.decode()
    wide = "v4.f32" if dtype == "float32" else "v2.f64"
    assert any("ld.global" in x and wide in x for x in text.splitlines())
    assert "st.local" not in text and "ld.local" not in text
