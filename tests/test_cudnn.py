"""Convolution by cuDNN: planned for an H200 where it is installed, on no device."""

import json

import numpy as np
import pytest

from minidl.array import cudnn_plans
from minidl.array.convolution import output_shape
from minidl.array.cudnn_plans import TYPES, Case, build

# what cuDNN asks of a device (by its own names), and what an H200 answers
H200 = {
    "deviceName": "NVIDIA H200",
    "deviceVer": 900,
    "driverVer": 13000,
    "cudaDeviceId": 0,
    "pciDeviceId": 0,
    "isTccDriver": 0,
    "supportCoopLaunch": 1,
    "multiProcessorCount": 132,
    "warpSize": 32,
    "maxGridSize": [2147483647, 65535, 65535],
    "maxBlockSize": [1024, 1024, 64],
    "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048,
    "maxCtasPerSM": 32,
    "regsPerBlock": 65536,
    "maxRegistersPerSM": 65536,
    "maxSharedMemoryPerBlock": 49152,
    "maxSharedMemoryPerBlockOptin": 232448,
    "reservedSharedMemoryPerBlock": 1024,
    "totalGlobalMem": 150754820096,
    "l2CacheSize": 62914560,
    "smClockRateKHz": 1980000,
    "memClockRateKHz": 3201000,
}
SHAPES = {  # x, w, stride, padding, dilation
    "3x3": ((64, 64, 56, 56), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1)),
    "1x1": ((32, 64, 28, 28), (128, 64, 1, 1), (1, 1), (0, 0), (1, 1)),
    "one channel": ((128, 1, 28, 28), (32, 1, 3, 3), (1, 1), (1, 1), (1, 1)),
    "first of a ResNet": ((8, 3, 224, 224), (64, 3, 7, 7), (2, 2), (3, 3), (1, 1)),
    "strided": ((64, 64, 56, 56), (128, 64, 3, 3), (2, 2), (1, 1), (1, 1)),
    "groups": ((16, 8, 20, 20), (12, 4, 3, 3), (1, 1), (1, 1), (1, 1)),
    "depthwise": ((16, 32, 20, 20), (32, 1, 3, 3), (1, 1), (1, 1), (1, 1)),
    "a line": ((16, 6, 1, 40), (6, 6, 1, 5), (1, 2), (0, 4), (1, 2)),
    "a volume": ((2, 4, 6, 7, 8), (4, 4, 3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
}


@pytest.fixture(scope="module")
def h200():
    """The description of a device that is not there, for `build`."""
    cudnn = cudnn_plans.frontend()
    if cudnn is None:
        pytest.skip("cuDNN or its Python frontend is not installed")
    properties = cudnn.create_device_properties(json.dumps(H200))
    return {"device_property": properties, "sm_version": 90, "sm_count": 132}


@pytest.mark.parametrize("name", SHAPES)
def test_every_convolution_has_a_plan(h200, name):
    x, w, *window = SHAPES[name]
    y = output_shape(x, w, *window, x[1] // w[1])
    for kind in ("forward", "input_gradient", "weight_gradient"):
        for dtype in TYPES:
            layouts = [(False, False), (True, True)]
            if kind == "weight_gradient":
                layouts += [(False, True), (True, False)]
            for last in layouts:
                ends = [(False, False)]
                if kind == "forward":
                    ends += [(True, False), (True, True)]
                for end in ends:
                    for exact in {False, dtype == np.float32}:
                        case = Case(kind, dtype, x, w, y, last, *window, *end, exact)
                        assert build(case, **h200) is not None, case
