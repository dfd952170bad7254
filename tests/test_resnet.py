"""ResNet-18: names, shapes, and the same model written with PyTorch's layers."""

import numpy as np
import pytest

import minidl as md
import minidl.nn.functional as F
from minidl import nn

WIDTHS = [64, 64, 128, 256, 512]


def expected_shapes(kernel, channels, classes):
    """What torchvision's resnet18 has, in its order."""

    def norm(name, width):
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{part}", (width,)
        yield f"{name}.num_batches_tracked", ()

    yield "conv1.weight", (64, channels, kernel, kernel)
    yield from norm("bn1", 64)
    for layer in range(1, 5):
        for block in range(2):
            inputs, width = WIDTHS[layer - 1 + block], WIDTHS[layer]
            prefix = f"layer{layer}.{block}"
            yield f"{prefix}.conv1.weight", (width, inputs, 3, 3)
            yield from norm(f"{prefix}.bn1", width)
            yield f"{prefix}.conv2.weight", (width, width, 3, 3)
            yield from norm(f"{prefix}.bn2", width)
            if inputs != width:
                yield f"{prefix}.downsample.0.weight", (width, inputs, 1, 1)
                yield from norm(f"{prefix}.downsample.1", width)
    yield "fc.weight", (classes, 512)
    yield "fc.bias", (classes,)


@pytest.mark.parametrize(
    "form, kernel, channels, classes, count",
    [("imagenet", 7, 3, 1000, 11_689_512), ("cifar", 3, 3, 10, 11_173_962)],
)
def test_names_and_shapes_are_those_of_torchvision(
    form, kernel, channels, classes, count
):
    model = nn.ResNet18(channels, classes, form)
    found = [(name, t.shape) for name, t in model.state_dict().items()]
    assert found == list(expected_shapes(kernel, channels, classes))
    assert sum(p.numel() for p in model.parameters()) == count


def test_forms():
    with pytest.raises(ValueError, match="'cifar'"):
        nn.ResNet18(form="mnist")


def their_resnet(torch, kernel, classes):
    """The same model of PyTorch's layers."""

    def conv(a, b, k, s=1):
        return torch.nn.Conv2d(a, b, k, s, k // 2, bias=False)

    class Block(torch.nn.Module):
        def __init__(self, a, b, s):
            super().__init__()
            self.conv1, self.bn1 = conv(a, b, 3, s), torch.nn.BatchNorm2d(b)
            self.conv2, self.bn2 = conv(b, b, 3), torch.nn.BatchNorm2d(b)
            self.downsample = torch.nn.Sequential()
            if a != b:
                self.downsample = torch.nn.Sequential(
                    conv(a, b, 1, s), torch.nn.BatchNorm2d(b)
                )

        def forward(self, x):
            y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            return (y + self.downsample(x)).relu()

    class ResNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = conv(3, 64, kernel, 2 if kernel == 7 else 1)
            self.bn1 = torch.nn.BatchNorm2d(64)
            for i, (a, b) in enumerate(zip(WIDTHS, WIDTHS[1:], strict=False), 1):
                blocks = Block(a, b, 1 if a == b else 2), Block(b, b, 1)
                setattr(self, f"layer{i}", torch.nn.Sequential(*blocks))
            self.fc = torch.nn.Linear(512, classes)

        def forward(self, x):
            x = self.bn1(self.conv1(x)).relu()
            if kernel == 7:
                x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(x.mean((2, 3)))

    return ResNet()


@pytest.mark.slow
@pytest.mark.parametrize("form, kernel, size", [("imagenet", 7, 64), ("cifar", 3, 16)])
def test_weights_of_torchvision_fit_and_train_alike(form, kernel, size):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = their_resnet(torch, kernel, 10).double()
    ours = nn.ResNet18(3, 10, form).to(dtype=np.float64)
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((4, 3, size, size))
    labels = np.arange(4)
    loss = F.cross_entropy(ours(md.tensor(x)), md.tensor(labels))
    expected = torch.nn.functional.cross_entropy(
        theirs(torch.tensor(x)), torch.tensor(labels)
    )
    np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-10)
    loss.backward()
    expected.backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        g = q.grad.numpy()
        assert np.linalg.norm(p.grad.numpy() - g) <= 1e-9 * np.linalg.norm(g), name
    state = ours.state_dict()
    for name, value in theirs.state_dict().items():
        if "running" in name or "tracked" in name:
            found = state[name].numpy()
            np.testing.assert_allclose(found, value.numpy(), rtol=1e-9, atol=1e-12)
