"""The machine code of the CUDA kernels, compiled for an H200 on machines without one.

Whether a kernel keeps the memory busy shows in it: no thread has anything in local
memory, 16 bytes are moved at a time and nothing is read twice, and registers leave
enough threads for the loads that must be under way.
"""

from collections import Counter
from functools import cache

import numpy as np
import pytest
from conftest import all_kernels, derived_kernels

import minidl as md
from minidl import nn, optim
from minidl.array import cuda_vectors
from minidl.array.arguments import signature
from minidl.array.device import bfloat16
from minidl.nn import functional as F
from minidl.optim.adam import adam

pytest.importorskip("cupy", reason="CuPy is not installed")
import machine_code  # noqa: E402
from test_cuda_compile import (  # noqa: E402, F401
    compile_cuda,
    compile_together,
    nvrtc,
    signatures,
)
from test_cuda_vectors import vector_source  # noqa: E402
from test_rules import RULES  # noqa: E402

HALF = bfloat16 or "float16"
UNDER_WAY = 40 << 10  # bytes that a multiprocessor of an H200 must have asked for
# sines of large numbers, whose digits of pi lie in memory: a path that is hardly taken
SINES = {"normal_from_bits", "sin", "cos", "tan"}


@cache
def compiled(source, raw=True, **options) -> dict[str, machine_code.Code]:
    return machine_code.kernels(compile_cuda(source, "sm_90", raw=raw, **options))


def test_what_is_read_off_the_machine_code(nvrtc):  # noqa: F811
    found = compiled("""
        struct alignas(16) Four { float at[4]; };
        extern "C" __global__ void copy(const Four* x, Four* y) { *y = *x; }
        extern "C" __global__ void bytes(const char* x, double* y) { *y = *x; }
        extern "C" __global__ void local(const int* x, int* y) {
            int held[32];
            for (int k = 0; k < 32; ++k) held[k] = x[k];
            for (int k = 0; k < 32; ++k) y[k] = held[x[k]];
        }
        extern "C" __global__ void many(const float* x, float* y) {
            float held[100];
            for (int k = 0; k < 100; ++k) held[k] = x[k];
            for (int k = 0; k < 100; ++k) y[k] = held[99 - k] * held[k];
        }
    """)
    assert found["copy"].loads == found["copy"].stores == {16: 1}
    assert found["bytes"].loads == {1: 1} and found["bytes"].stores == {8: 1}
    assert not found["copy"].frame and found["local"].frame >= 128
    assert found["many"].registers > 32 and found["many"].resident(256) < 2048
    assert found["copy"].resident(256) == 2048


def promised(kernel, T, dtypes) -> tuple[Counter, Counter, int]:
    """The loads and the stores of a kernel of cuda_vectors.py, {bytes: how many}, and
    the bytes that a thread loads before it waits for any."""
    reads = [*kernel.inputs, *kernel.body.reads]
    _, units, width = cuda_vectors.shares(T, dtypes, reads)
    loads, stores, loaded = Counter(), Counter(), 0
    for name, dtype in dtypes.items():
        size, whole = dtype.itemsize, width * dtype.itemsize
        moves = Counter({min(16, whole): units * -(-whole // 16)})
        moves[size] += 1  # one a thread of the last elements
        if name in reads:
            loads, loaded = loads + moves, loaded + units * whole
        if name in kernel.outputs:
            stores += moves
    return loads, stores, loaded


def check_vectors(kernels: dict, dtype_of, all_used: bool = True) -> None:
    """Of these kernels: what is promised is what is there.

    A store may stand in both branches of a condition; what a derivative does not depend
    on, it need not load: not `all_used`.
    """
    texts, wanted = [], {}
    for kernel in kernels.values():
        dtypes = [dtype_of(kernel, name) for name in kernel.names]
        values = [1.0] * len(kernel.scalars)
        texts.append(vector_source(kernel, dtypes, values))
        arrays = [np.empty(1, dtype) for dtype in dtypes]
        first = len(kernel.inputs)
        T, types, _ = signature(kernel, arrays[:first], arrays[first:], values)
        wanted[f"minidl_{kernel.name}"] = kernel, T, types
    for first in range(0, len(texts), 60):
        (cubin,) = compile_together(texts[first : first + 60], ["sm_90"], raw=True)
        for name, code in machine_code.kernels(cubin).items():
            kernel, T, types = wanted.pop(name)
            loads, stores, loaded = promised(kernel, T, types)
            if kernel.name in SINES:
                assert code.frame <= 32, name
                continue
            assert not code.frame, name
            assert code.loads == loads if all_used else code.loads <= loads, name
            assert code.stores >= stores and set(code.stores) == set(stores), name
            if loaded and kernel.compute is None:
                block = cuda_vectors.shares(T, types, True)[0]
                assert code.resident(block) * loaded >= UNDER_WAY, name
    assert not wanted


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, -1])
def test_simple_kernels(nvrtc, which):  # noqa: F811
    """In float32, and in half precision."""
    check_vectors(all_kernels(), lambda kernel, name: signatures(kernel)[which])


@pytest.mark.slow
def test_derivatives(nvrtc):  # noqa: F811
    check_vectors(derived_kernels(), lambda kernel, name: "float32", all_used=False)


def test_optimizers_with_a_low_copy(nvrtc):  # noqa: F811
    low = {name: rule.update_low for name, rule in RULES.items()}
    check_vectors(low, lambda kernel, name: HALF if name in ("g", "low") else "float32")


def test_adam(nvrtc):  # noqa: F811
    """As it is launched: the step's numbers lie on the device."""
    kernel = adam.update
    values = [np.ones(1, "float32")] * len(kernel.scalars)
    source = vector_source(kernel, ["float32"] * 4, values)
    code = compiled(source)["minidl_adam"]
    assert code.loads == {16: 4, 4: 4 + 2 * len(values)}
    assert code.stores == {16: 3, 4: 3}
    assert not code.frame and code.registers <= 48
    assert code.resident(256) * 64 >= 2 * UNDER_WAY


WRITTEN_OUT = {"minidl_columns", "minidl_images", "minidl_swap"}  # not Kernel's own
# What cannot move 16 bytes at a time: windows have no common alignment, sums of
# channels are one number each, and the terms of a batch are few.
NARROW = {"minidl_columns", "minidl_images", "counted_mean"}
NARROW_LOADS = NARROW | {"max_backward", "average_backward"}
NARROW_STORES = NARROW | {"moments", "sums", "totals"}


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Dropout(0.25), nn.Linear(512, 128), nn.LayerNorm(128),
        nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 16), nn.Softmax(1),
    ).to("cuda")  # fmt: skip


def step(dtype) -> None:
    """A step of training on the stand-in, where no kernel does anything; and layers
    whose channels are last in memory. Half precision is autocast's."""
    half = np.dtype(dtype).itemsize == 2
    real = md.float32 if half else dtype
    model = network().to(real)
    optimizer = optim.Adam(model.parameters())
    x = md.zeros(32, 4, 32, 32, dtype=real, device="cuda")
    labels = md.zeros(32, dtype=md.int64, device="cuda")
    with md.autocast("cuda", dtype if half else md.float16, enabled=half):
        F.cross_entropy(model(x), labels).backward()
    optimizer.step()
    norm = nn.BatchNorm2d(32).to("cuda", real)
    last = md.zeros(8, 16, 16, 32, dtype=dtype, device="cuda")
    image = last.permute(0, 3, 1, 2).detach().requires_grad_()
    for layer in (norm, nn.MaxPool2d(2), nn.AvgPool2d(2)):
        layer(image).sum().backward()


def launched(monkeypatch, dtype) -> list[tuple[str, str]]:
    """(source, name) of the kernels that are written out, as a step launches them."""
    import stand_in

    stand_in.install()
    try:
        launches = machine_code.recorded(monkeypatch, lambda: step(dtype))
    finally:
        stand_in.remove()
    written = {
        launch[:2]
        for launch in launches
        if launch.name in WRITTEN_OUT or not launch.name.startswith("minidl_")
    }
    assert len({name for _, name in written}) >= 18
    return sorted(written)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [md.float32, HALF])
def test_a_step_of_training(nvrtc, monkeypatch, dtype):  # noqa: F811
    least = 16 if dtype is md.float32 else 8  # beside four numbers in float32
    for source, name in launched(monkeypatch, dtype):
        code = compiled(source, raw="CArray" not in source, options=())[name]
        assert not code.frame and code.registers <= 64, name
        assert name in NARROW_LOADS or max(code.loads) >= least, name
        assert name in NARROW_STORES or max(code.stores) >= least, name


@pytest.mark.slow
def test_a_step_in_float64_on_other_gpus(nvrtc, monkeypatch):  # noqa: F811
    """Whatever it costs there."""
    each = {name: source for source, name in launched(monkeypatch, md.float64)}
    for name, source in each.items():
        code = compile_cuda(source, "sm_80", raw="CArray" not in source, options=())
        assert name in machine_code.kernels(code), name
