"""What all tests share: the array modules to run on, and repeatable hypothesis."""

import numpy
import pytest
from hypothesis import settings

from minidl.array.device import cupy_module, gpu_available

settings.register_profile(
    "minidl", deadline=None, derandomize=True, max_examples=30, database=None
)
settings.load_profile("minidl")


@pytest.fixture(params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    """NumPy, and CuPy where there is a CUDA device."""
    if request.param == "numpy":
        return numpy
    if not gpu_available():
        pytest.skip("no CUDA device")
    return cupy_module()
