"""The Euclidean norm of arrays, and whether they are finite, in one pass."""

from functools import cache
from math import isfinite, sqrt

import numpy

from .device import Array, cupy_module, device_of, on_gpu, to_device
from .dtypes import widened

THREADS = 256  # in a block
# At most: an H200 has four for each multiprocessor at once. On every GPU the same, and
# so the rounding.
BLOCKS = 528
SOURCE = """
const int width = 16 / sizeof(T);  // elements in a load of 16 bytes
struct alignas(16) Pack { T values[width]; };

// the sum over a block, in an order that never changes; thread 0 knows it
__device__ static double block_sum(double own, double* sums) {
    sums[threadIdx.x] = own;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    return sums[0];
}

// out: sum of squares, its root, whether that is not finite, and the root as a float;
// done and parts are room for the blocks, zeroes at first
extern "C" __global__ void minidl_norm(
    const T* x, long long size, double* out, unsigned int* done, double* parts
) {
    __shared__ double sums[256];
    __shared__ bool last;
    const long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long threads = (long long)gridDim.x * blockDim.x;
    const long long packs = (unsigned long long)x % 16 ? 0 : size / width;
    double total = 0;
    for (long long i = first; i < packs; i += threads) {
        const Pack pack = ((const Pack*)x)[i];
        #pragma unroll
        for (int k = 0; k < width; ++k) {
            total += (double)pack.values[k] * (double)pack.values[k];
        }
    }
    for (long long i = packs * width + first; i < size; i += threads) {
        total += (double)x[i] * (double)x[i];
    }
    total = block_sum(total, sums);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = total;
        __threadfence();
        last = atomicAdd(done, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    total = 0;  // the last block adds what all have found
    for (int k = threadIdx.x; k < gridDim.x; k += blockDim.x) {
        total += ((volatile double*)parts)[k];
    }
    __syncthreads();
    total = block_sum(total, sums);
    if (threadIdx.x == 0) {
        total += out[0];
        out[0] = total;
        out[1] = sqrt(total);
        out[2] = !(total - total == 0);
        *(float*)(out + 3) = (float)out[1];
        *done = 0;
    }
}
"""


def norm(arrays: list[Array]) -> tuple:
    """(sqrt(sum of x^2 over all elements), whether an element is infinite or NaN).

    Two numbers for NumPy's arrays; for CuPy's two one-element arrays of float64 on the
    device of the first, by one launch for each array and without waiting. On a GPU
    float64 whose squares are too large counts as not finite.
    """
    if not arrays or not on_gpu(arrays[0]):
        return _on_host(arrays)
    found = on_device(arrays)
    return found[1:2], found[2:3]


def _on_host(arrays: list) -> tuple[float, bool]:
    total, bad = 0.0, False
    for x in arrays:
        flat = widened(to_device(x, "cpu").reshape(-1))
        with numpy.errstate(all="ignore"):
            square = float(numpy.dot(flat, flat))
            if not isfinite(square):  # or too large for float32
                bad |= not numpy.isfinite(flat).all()
                square = float(numpy.square(flat, dtype=numpy.float64).sum())
        total += square
    return sqrt(total), bool(bad)


def on_device(arrays: list) -> Array:
    """Float64: the sum of squares, its root, whether not finite, and, in the first four
    of its eight bytes, the root as a float32; then room for the blocks."""
    cupy, device = cupy_module(), arrays[0].device
    # fewer blocks where each would have little to do
    blocks = [max(1, min(BLOCKS, -(-x.size // (16 * THREADS)))) for x in arrays]
    with device:
        found = cupy.zeros(5 + max(blocks), numpy.float64)
        room = found, found[4:], found[5:]
        for x, count in zip(arrays, blocks, strict=True):
            x = widened(to_device(x, device_of(found)).reshape(-1))
            kernel(x.dtype.name)((count,), (THREADS,), (x, x.size, *room))
    return found


@cache
def kernel(dtype: str):
    """The CUDA kernel for arrays of float32 or float64."""
    T = {"float32": "float", "float64": "double"}[dtype]
    return cupy_module().RawKernel(f"typedef {T} T;\n{SOURCE}", "minidl_norm")
