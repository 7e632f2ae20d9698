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
