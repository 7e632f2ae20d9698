"""Small image classifiers in PyTorch, defined here so that demo, examples and benchmarks need no model hub."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def digits_cnn() -> nn.Sequential:
    """The classic two-convolution network for digits: 1 x 28 x 28 to 10 logits, 421,642 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a short cut (He et al. 2015, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        out: Tensor = self.relu(y + self.shortcut(x))
        return out


def resnet8(channels: int = 1, classes: int = 10) -> nn.Sequential:
    """ResNet-8 as in MLPerf Tiny's image classification: widths 16, 32, 64, some 78,000 parameters.

    Banbury et al. 2021, https://arxiv.org/abs/2106.07597. Takes (n, channels, h, w), gives (n, classes) logits.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Residual(16, 16, 1),
        Residual(16, 32, 2),
        Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def resnet18(classes: int = 1000) -> nn.Sequential:
    """ResNet-18 (He et al. 2015): (n, 3, 224, 224) to (n, classes) logits, 11,689,512 parameters for 1000 classes."""
    blocks = []
    channels = 64
    for width in (64, 128, 256, 512):
        blocks += [Residual(channels, width, 1 if width == 64 else 2), Residual(width, width, 1)]
        channels = width
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


class Inverted(nn.Module):
    """An inverted residual: expand, depthwise convolution, project, beside a short cut where the shapes allow for it.

    Sandler et al. 2018, https://arxiv.org/abs/1801.04381; padding of strided convolutions as TensorFlow's ``SAME``, for
    even sizes.
    """

    def __init__(self, channels: int, width: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = channels * expand
        self.adds = stride == 1 and channels == width
        body: list[nn.Module] = []
        if expand != 1:
            body += [nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner, eps=1e-3), nn.ReLU6()]
        body += [*_strided(inner, inner, kernel, stride, inner), nn.BatchNorm2d(inner, eps=1e-3), nn.ReLU6()]
        body += [nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width, eps=1e-3)]
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y + x if self.adds else y


def _strided(channels: int, width: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
    """A convolution that pads as ``SAME`` does: of an odd amount, the smaller half at the top and left."""
    if stride == 1:
        return [nn.Conv2d(channels, width, kernel, 1, kernel // 2, groups=groups, bias=False)]
    before, after = (kernel - 2) // 2, (kernel - 1) // 2
    pad = nn.ZeroPad2d((before, after, before, after))
    return [pad, nn.Conv2d(channels, width, kernel, stride, groups=groups, bias=False)]


def efficientnet_lite0(classes: int = 1000) -> nn.Sequential:
    """EfficientNet-lite0: (n, 3, 224, 224) to (n, classes) logits, 4,652,008 parameters for 1000 classes.

    Tan and Le 2019, https://arxiv.org/abs/1905.11946, without squeeze-and-excitation and with ReLU6, as in
    https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
    """
    stages = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )
    blocks, channels = [], 32
    for repeats, kernel, stride, expand, width in stages:
        for number in range(repeats):
            blocks.append(Inverted(channels, width, kernel, 1 if number else stride, expand))
            channels = width
    return nn.Sequential(
        *_strided(3, 32, 3, 2),
        nn.BatchNorm2d(32, eps=1e-3),
        nn.ReLU6(),
        *blocks,
        nn.Conv2d(channels, 1280, 1, bias=False),
        nn.BatchNorm2d(1280, eps=1e-3),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, classes),
    )


def parameters(module: nn.Module) -> int:
    """Number of learnt parameters; running statistics are not counted."""
    return sum(parameter.numel() for parameter in module.parameters())


def settle(module: nn.Module, shape: tuple[int, ...], seed: int = 0, rounds: int = 4) -> None:
    """Give an untrained network plausible running statistics: a few seeded random batches, in place.

    Without it the activations of a deep network with fresh BatchNorm layers are all but constant, and timings
    and errors of compressed versions mean nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    training = module.training
    module.train()
    with torch.no_grad():
        for _ in range(rounds):
            module(torch.randn(shape, generator=generator))
    module.train(training)
