"""ResNet-18. He, Zhang, Ren and Sun, "Deep residual learning for image recognition",
2015. Parameters have the names and shapes of torchvision's resnet18."""

from minidl.nn import functional as F
from minidl.nn import init
from minidl.nn.batch_norm import BatchNorm2d
from minidl.nn.containers import Sequential
from minidl.nn.convolution import Conv2d
from minidl.nn.layers import Linear
from minidl.nn.module import Module


class BasicBlock(Module):
    """y = relu(x + bn(conv(relu(bn(conv(x)))))); where the size changes, x goes
    through a convolution of 1 x 1."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(outputs)
        self.conv2 = Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = Sequential(
                Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(Module):
    """18 layers, for images (N, channels, H, W), in one of two forms.

    `form="imagenet"` begins with a convolution of 7 x 7, stride 2, and max pooling,
    for images of 224 x 224; `form="cifar"` with one of 3 x 3, stride 1, and no
    pooling, for images of 32 x 32 (the paper's section 4.2).
    """

    def __init__(self, channels: int = 3, classes: int = 1000, form: str = "imagenet"):
        super().__init__()
        if form not in ("imagenet", "cifar"):
            raise ValueError(f"form must be 'imagenet' or 'cifar', got {form!r}")
        self.form = form
        kernel, stride = (7, 2) if form == "imagenet" else (3, 1)
        self.conv1 = Conv2d(
            channels, 64, kernel, stride, padding=kernel // 2, bias=False
        )
        self.bn1 = BatchNorm2d(64)
        self.layer1 = Sequential(BasicBlock(64, 64), BasicBlock(64, 64))
        self.layer2 = Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128))
        self.layer3 = Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256))
        self.layer4 = Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512))
        self.fc = Linear(512, classes)
        for module in self.modules():
            if isinstance(module, Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images):
        x = F.relu(self.bn1(self.conv1(images)))
        if self.form == "imagenet":
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
