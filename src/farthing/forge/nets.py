"""Known networks, defined here so that demo, examples and benchmarks need no model hub."""

from __future__ import annotations

import torch
from torch import nn

from farthing.forge.families import Architecture, Stage

DIGITS_CNN = Architecture(
    family="plain",
    stages=(Stage(width=32, pool=(2, 2)), Stage(width=64, pool=(2, 2))),
    pooling="flatten",
    hidden=(128,),
    norm=False,
)
RESNET8 = Architecture(
    family="resnet",
    stem=Stage(width=16),
    stages=(Stage(width=16), Stage(width=32, stride=2), Stage(width=64, stride=2)),
    padding="even",
)
RESNET18 = Architecture(
    family="resnet",
    stem=Stage(width=64, kernel=7, stride=2, pool=(3, 2)),
    stages=tuple(
        Stage(width=width, depth=2, stride=1 if width == 64 else 2) for width in (64, 128, 256, 512)
    ),
    padding="even",
)
EFFICIENTNET_LITE0 = Architecture(
    family="mobilenet",
    stem=Stage(width=32, stride=2),
    stages=(
        Stage(width=16),
        Stage(width=24, depth=2, stride=2, expansion=6),
        Stage(width=40, depth=2, stride=2, kernel=5, expansion=6),
        Stage(width=80, depth=3, stride=2, expansion=6),
        Stage(width=112, depth=3, kernel=5, expansion=6),
        Stage(width=192, depth=4, stride=2, kernel=5, expansion=6),
        Stage(width=320, expansion=6),
    ),
    head=1280,
    activation="relu6",
)


def digits_cnn() -> nn.Sequential:
    """The classic two-convolution network for digits: 1 x 28 x 28 to 10 logits, 421,642 parameters."""
    return DIGITS_CNN.build((1, 28, 28), 10)


def resnet8(channels: int = 1, classes: int = 10) -> nn.Sequential:
    """ResNet-8 as in MLPerf Tiny's image classification: widths 16, 32, 64, some 78,000 parameters.

    Banbury et al. 2021, https://arxiv.org/abs/2106.07597. Takes (n, channels, h, w), gives (n, classes) logits.
    """
    return RESNET8.build((channels, 32, 32), classes)


def resnet18(classes: int = 1000) -> nn.Sequential:
    """ResNet-18 (He et al. 2015): (n, 3, 224, 224) to (n, classes) logits, 11,689,512 parameters for 1000 classes."""
    return RESNET18.build((3, 224, 224), classes)


def efficientnet_lite0(classes: int = 1000) -> nn.Sequential:
    """EfficientNet-lite0: (n, 3, 224, 224) to (n, classes) logits, 4,652,008 parameters for 1000 classes.

    Tan and Le 2019, https://arxiv.org/abs/1905.11946, without squeeze-and-excitation and with ReLU6, as in
    https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. Sides are multiples of 32.
    """
    net = EFFICIENTNET_LITE0.build((3, 224, 224), classes)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1e-3
    return net


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
