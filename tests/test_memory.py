"""A step of training needs no more memory than PyTorch's own."""

import subprocess
import sys

import pytest
from ranks import ROOT, environment

pytestmark = pytest.mark.slow

# One program for both: the layers, their names and what they do are the same
STEP = """
import importlib, sys
import numpy as np

name = sys.argv[1]
md = importlib.import_module(name)
nn, F = md.nn, importlib.import_module(name + ".nn.functional")


def resident(what):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(what))


def conv(a, b, size, stride=1):
    return nn.Conv2d(a, b, size, stride, size // 2, bias=False)


class Block(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.conv1, self.bn1 = conv(a, b, 3, 1 if a == b else 2), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = conv(b, b, 3), nn.BatchNorm2d(b)
        self.downsample = nn.Sequential()
        if a != b:
            self.downsample = nn.Sequential(conv(a, b, 1, 2), nn.BatchNorm2d(b))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
if name == "minidl":
    model = nn.ResNet18(3, 10, "cifar")
else:
    md.set_num_threads(1)
    blocks = [Block(a, b) for a, b in zip(widths, widths[1:])]
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)
    stem = conv(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU()
    model = nn.Sequential(*stem, *blocks, *head)
count = sum(p.numel() for p in model.parameters())
images = np.random.default_rng(0).standard_normal((64, 3, 32, 32), dtype=np.float32)
images, labels = md.tensor(images), md.tensor(np.arange(64) % 10)
before = resident("VmRSS")
loss = F.cross_entropy(model(images), labels)
loss.backward()
assert np.isfinite(loss.item())
print(count, before, resident("VmHWM"))
"""


def measured(library):
    """(parameters, resident MiB before the step, at most) in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", STEP, library],
        env=environment(OMP_NUM_THREADS="1"),
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    count, before, peak = map(int, done.stdout.split())
    return count, before / 1024, peak / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_a_resnet18_step():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    count, before, peak = measured("minidl")
    their_count, their_before, their_peak = measured("torch")
    print(f"minidl {before:.0f} -> {peak:.0f} MiB", end=", ")
    print(f"PyTorch {their_before:.0f} -> {their_peak:.0f} MiB")
    assert count == their_count
    assert peak <= their_peak
    assert peak - before <= their_peak - their_before  # the libraries' own size apart
