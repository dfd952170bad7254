"""CUDA source run on the CPU: blocks, barriers, shuffles, and what is refused."""

import numpy
import pytest
from conftest import all_kernels
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("cupy", reason="CuPy is not installed")
from cuda_on_cpu import CompileError, ElementwiseKernel, Module  # noqa: E402

ROW_SUMS = """
#include <cuda_fp16.h>
template <class T> __device__ T warp_sum(T v) {
  for (int by = 16; by; by /= 2) v += __shfl_xor_sync(~0u, v, by);
  return v;
}
template <class T> __device__ T block_sum(T v) {
  __shared__ T parts[32];
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
  __syncthreads();
  v = threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : T(0);
  return threadIdx.x < 32 ? warp_sum(v) : v;
}
extern "C" __global__ void __launch_bounds__(128)
row_sums(const float* __restrict__ x, float* __restrict__ y, int columns) {
  float sum = 0;
  for (int k = threadIdx.x; k < columns; k += blockDim.x)
    sum += __ldg(x + blockIdx.x * (long long)columns + k);
  sum = block_sum(sum);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}
extern "C" __global__ void reversed(float* x) {
  extern __shared__ float kept[];
  __shared__ int unused;
  kept[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = kept[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void quads(const float4* x, float4* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float4 v = x[i];
  y[i] = make_float4(v.w, v.z, v.y, v.x);
}
extern "C" __global__ void halves(const __half* x, unsigned* n, float* y) {
  y[threadIdx.x] = 2 * __half2float(x[threadIdx.x]);
  unsigned odd = __ballot_sync(~0u, threadIdx.x % 2);
  if (threadIdx.x == 0) *n = odd;
  atomicAdd(n + 1, threadIdx.x);
}
"""
WRONG = """
extern "C" __global__ void stuck() {
  if (threadIdx.x < 40) __syncthreads(); else __shfl_sync(~0u, 1, 0);
}
extern "C" __global__ void gone() {
  if (threadIdx.x == 3) return;
  __syncwarp(0xf);
}
extern "C" __global__ void no_barrier(float* x, float* y) {
  extern __shared__ float kept[];
  int i = threadIdx.x;
  kept[i] = x[i];
  y[blockIdx.x * blockDim.x + i] = kept[blockDim.x - 1 - i];
}
"""


@pytest.fixture(scope="module")
def module():
    return Module(ROW_SUMS)


@pytest.fixture(scope="module")
def wrong():
    return Module(WRONG)


@given(rows=st.integers(1, 5), columns=st.integers(1, 300))
def test_reduction_of_blocks(module, rows, columns):
    x = numpy.random.default_rng(columns).normal(size=(rows, columns))
    x, y = x.astype("f4"), numpy.zeros(rows, "f4")
    module.launch("row_sums", (rows,), (128,), (x, y, numpy.int32(columns)))
    numpy.testing.assert_allclose(y, x.sum(1, dtype="f8"), rtol=1e-5, atol=1e-5)


def test_dynamic_shared_memory_and_vectors(module):
    x = numpy.arange(64, dtype="f4")
    module.launch("reversed", (1,), (64,), (x,), shared=256)
    assert x.tolist() == list(range(64))[::-1]
    y = numpy.zeros_like(x)
    module.launch("quads", (2,), (8,), (x, y, numpy.int32(16)))
    assert (y == x.reshape(16, 4)[:, ::-1].ravel()).all()


def test_halves_votes_and_atomics(module):
    x, y = numpy.linspace(-3, 60000, 32).astype("f2"), numpy.zeros(32, "f4")
    n = numpy.zeros(2, "u4")
    module.launch("halves", (1,), (32,), (x, n, y))
    assert (y == 2 * x.astype("f4")).all()
    assert n.tolist() == [0xAAAAAAAA, 31 * 16]


def test_barriers_that_not_all_reach_are_errors(wrong):
    with pytest.raises(RuntimeError, match="wait at different barriers"):
        wrong.launch("stuck", (1,), (64,), ())
    with pytest.raises(RuntimeError, match="has returned"):
        wrong.launch("gone", (1,), (4,), ())


def test_a_missing_barrier_shows(wrong):
    x, y = numpy.ones(4, "f4"), numpy.zeros(8, "f4")
    wrong.launch("no_barrier", (2,), (4,), (x, y), shared=16)
    assert numpy.isnan(y).any()


def test_a_misaligned_address_is_an_error(module):
    x, y = numpy.zeros(65, "f4")[1:], numpy.zeros(64, "f4")
    assert x.ctypes.data % 16
    with pytest.raises(RuntimeError, match="alignment"):
        module.launch("quads", (1,), (16,), (x, y, numpy.int32(16)))


def test_wrong_launches_are_refused(module):
    x = numpy.zeros(4, "f4")
    with pytest.raises(TypeError, match=r"of \[8, 8, 4\] bytes, got \[8, 8, 8\]"):
        module.launch("row_sums", (1,), (32,), (x, x, 4))
    with pytest.raises(ValueError, match="blocks of"):
        module.launch("reversed", (1,), (2048,), (x,))
    with pytest.raises(KeyError, match="no kernel"):
        module.launch("absent", (1,), (1,), ())
    with pytest.raises(CompileError, match="undeclared|not declared"):
        Module('extern "C" __global__ void f(float* x) { *x = undeclared; }')


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_elementwise_kernels(dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    scaled = ElementwiseKernel(
        "A x, B y, float32 a", "A z", "z = (A)((float)a * (float)x + (float)y);"
    )
    x = numpy.arange(6).reshape(2, 3).astype(dtype)
    y = numpy.arange(3, dtype="i4")
    expected = (2.5 * x.astype("f8") + y).astype(dtype)
    assert (scaled(x, y, 2.5) == expected).all()
    z = numpy.zeros((3, 2), dtype)
    assert scaled(x.T[::-1], y[:, None], 2.5, z) is z
    assert (z == (2.5 * x.T[::-1].astype("f8") + y[:, None]).astype(dtype)).all()


def test_raw_arguments_and_sizes():
    gathered = ElementwiseKernel("raw T x, I at", "T y", "y = x[at] * _ind.size();")
    x = numpy.arange(10.0)[::2]
    assert gathered(x, numpy.array([3, 0, 3])).tolist() == [18, 0, 18]
    written = ElementwiseKernel("", "raw T y", "y[i] = i;")
    y = numpy.zeros(3)
    written(y, size=3)
    assert y.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="size"):
        written(y)
    with pytest.raises(ValueError, match="mismatch"):
        gathered(x, numpy.zeros(3, int), numpy.zeros(4))


def test_a_kernel_of_the_package_as_cupy_writes_it(monkeypatch):
    from minidl.array import cuda
    from minidl.array.arguments import signature

    kernel = all_kernels()["adam"]
    rng = numpy.random.default_rng(0)
    arrays = [rng.normal(size=(5, 7)).astype("f4") for _ in range(3)]
    arrays.append(rng.uniform(size=(5, 7)).astype("f4"))
    values = [0, 1, 0.01, 0.02, 0.1, 0.001, numpy.full(1, 0.3), 1.5, 1e-8]
    T, _, kinds = signature(kernel, arrays[:1], arrays[1:], values)
    here = type("cupy", (), {"ElementwiseKernel": ElementwiseKernel})
    monkeypatch.setattr(cuda, "cupy_module", lambda: here)
    mine, theirs = ([x.copy() for x in arrays] for _ in range(2))
    cuda.elementwise(kernel, T, kinds)(mine[0], *values, *mine[1:])
    named = dict(zip(kernel.scalars, values, strict=True))
    kernel(theirs[0], out=tuple(theirs[1:]), **named)
    for x, y in zip(mine, theirs, strict=True):
        numpy.testing.assert_allclose(x, y, rtol=1e-6)
