"""A graph keeps no more than PyTorch's, and a step of training needs no more memory."""

import subprocess
import sys

import numpy as np
import pytest
from ranks import ROOT, environment

import minidl as md
from minidl.autograd import Tensor
from minidl.autograd.function import Op
from minidl.nn import functional as F

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


IMAGES, ROWS, MATRICES = (16, 16, 16, 16), (512, 64), (4, 64, 64)
LABELS = np.arange(512) % 64
# In the terms of either library: md, F and the inputs
OPERATIONS = {
    IMAGES: """
        F.relu(x), F.relu6(x), F.leaky_relu(x), F.elu(x), F.selu(x), F.celu(x)
        F.gelu(x), F.silu(x), F.mish(x), F.softplus(x), F.softsign(x), F.hardtanh(x)
        F.hardswish(x), F.hardsigmoid(x), F.logsigmoid(x), F.tanhshrink(x), F.glu(x, 1)
        md.sigmoid(x), md.tanh(x), md.exp(x), md.sin(x), md.abs(x), md.square(x)
        md.reciprocal(x), md.erf(x), md.neg(x), md.clone(x), md.flatten(x), x.sum()
        x.mean(), x.var(), x.std(1), x.amax(1), x.logsumexp(1), x.cumsum(1), x.norm()
        x.max(1)[0], x.sort(1)[0], x.topk(2, 1)[0], x.softmax(1), x.log_softmax(1)
        x + 1, x * 2, x / 2, 2 / x, x**2, x**3, x[:, ::2], x.clamp(0, 1), x.tril()
        x.repeat(2, 1, 1, 1), x[:, :1].expand(16, 16, 16, 16) * 2
        x.masked_fill(x > 0, 0.0), md.where(x.detach() > 0, x, -x), md.cat([x, x])
        F.max_pool2d(x, 2), F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 2)
        F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1), F.dropout(x)
        F.batch_norm(x, None, None, training=True), F.group_norm(x, 4)
        F.layer_norm(x, (16,)), F.instance_norm(x), F.rms_norm(x, (16,))
        F.local_response_norm(x, 5), F.interpolate(x, scale_factor=2), F.pad(x, (1, 1))
        F.interpolate(x, scale_factor=2, mode="bilinear"), F.unfold(x, 3)
        F.pad(x, (1, 1, 1, 1), mode="reflect"), F.pixel_shuffle(x, 2)
        F.normalize(x), x.view(16, -1), x.permute(1, 0, 2, 3), x.flip(1), x.roll(1, 1)
        F.conv2d(x, md.ones(16, 16, 3, 3)), F.conv_transpose2d(x, md.ones(16, 16, 3, 3))
    """,
    ROWS: """
        F.mse_loss(x, y), F.smooth_l1_loss(x, y), F.huber_loss(x, y), F.kl_div(x, y)
        F.binary_cross_entropy_with_logits(x, y), F.cosine_similarity(x, y)
        F.linear(x, y), x + y, x - y, x * y, x / y, md.maximum(x, y), md.atan2(x, y)
        md.lerp(x, y, 0.5), F.cross_entropy(x, labels), F.embedding(labels, x)
        F.cross_entropy(x, labels, label_smoothing=0.1), x.gather(1, labels[:, None])
    """,
    MATRICES: """
        md.matmul(x, y), md.matmul(x, y.detach()), md.bmm(x, y)
        md.einsum("bij,bjk->bik", x, y)
    """,
}
CALLS = [
    (shape, f"({line.strip()},)")
    for shape, lines in OPERATIONS.items()
    for line in lines.strip().splitlines()
]


def kept(results) -> int:
    """The bytes of all arrays that the graph behind the results keeps."""
    arrays, found = {}, dict.fromkeys(y.creator for y in results if y.creator)
    todo = list(found)
    while todo:
        node = todo.pop()
        for x in node.saved or ():
            x = x.data if isinstance(x, Tensor) else x
            x = x[0] if isinstance(x, tuple) else x  # an output, and which
            while isinstance(getattr(x, "base", None), np.ndarray):
                x = x.base
            if isinstance(x, np.ndarray):
                arrays[id(x)] = x.nbytes
        for edge in node.edges:
            if edge is not None and isinstance(edge[0], Op) and edge[0] not in found:
                found[edge[0]] = None
                todo.append(edge[0])
    return sum(arrays.values())


@pytest.mark.parametrize("shape, calls", CALLS, ids=[calls for _, calls in CALLS])
def test_a_graph_keeps_no_more_than_that_of_pytorch(shape, calls):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    arrays = rng.random((2, *shape), np.float32) + 0.1
    theirs = {}

    def pack(x):
        theirs[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    x, y = (torch.tensor(a, requires_grad=True) for a in arrays)
    names = {"x": x, "y": y, "labels": torch.tensor(LABELS), "md": torch}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        held = eval(calls, names | {"F": torch.nn.functional})
    x, y = (md.tensor(a, requires_grad=True) for a in arrays)
    names = {"x": x, "y": y, "labels": md.tensor(LABELS), "md": md, "F": F}
    results = eval(calls, names)
    assert len(held) == len(results)
    assert kept(results) <= sum(theirs.values()) + 4096  # a few numbers
