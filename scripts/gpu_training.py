"""A convolutional network's training on the device, for gpu_check: the CPU's numbers,
and the same ones each time. With NumPy in CuPy's place it checks the CPU."""

from collections.abc import Iterator

import numpy as np
from gpu_checks import norm_error, verdict

import minidl
from minidl import nn, optim
from minidl.autograd import Tensor
from minidl.nn import functional as F


def training(xp, quick: bool) -> Iterator[dict]:
    """Weights after 1 and 20 steps of Adam against those of NumPy in float64."""
    device = "cpu" if xp is np else "cuda"
    wanted = trained("cpu", "float64", 20)
    for dtype, tolerances in {
        "float64": (1e-12, 1e-9),
        "float32": (1e-5, 2e-4),
    }.items():
        got = trained(device, dtype, 20)
        for number, tolerance in zip((1, 20), tolerances, strict=True):
            for name, value in wanted[number].items():
                error = norm_error(got[number][name], value)
                label = f"{name} after {number} steps, {dtype}"
                yield verdict(label, error, tolerance)
    again = trained(device, "float32", 20)[20]
    for name, value in got[20].items():
        same = value.tobytes() == again[name].tobytes()
        yield verdict(f"{name}: a second run, bit for bit", 0.0 if same else 1.0, 0.0)


def trained(device: str, dtype: str, steps: int) -> dict[int, dict]:
    """{step: {name: weights}} after the first and the last step of a small CNN."""
    minidl.manual_seed(0)
    model = nn.SmallCNN(1, 8, 10, (16, 32), 24).to(dtype=dtype).to(device)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    rng = np.random.default_rng(3)
    weights = {}
    for step in range(1, steps + 1):
        images = minidl.tensor(rng.normal(size=(32, 1, 8, 8)), dtype, device)
        labels = minidl.tensor(rng.integers(0, 10, 32), device=device)
        train_step(model, optimizer, images, labels)
        if step in (1, steps):
            state = model.state_dict().items()
            weights[step] = {name: np.array(value.numpy()) for name, value in state}
    return weights


def train_step(model, optimizer, images: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
