"""Torch modules of blocks: the one place that puts a convolution and its normalization, or a short cut, together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from farthing.forge.families.layers import Activation, Block, Layer, Shape

Make = Callable[..., nn.Module]
_CONV: tuple[Make, Make] = (nn.Conv1d, nn.Conv2d)  # by the number of axes, from 1
_NORM: tuple[Make, Make] = (nn.BatchNorm1d, nn.BatchNorm2d)
_MAXPOOL: tuple[Make, Make] = (nn.MaxPool1d, nn.MaxPool2d)
_AVERAGE: tuple[Make, Make] = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_PAD: tuple[Make, Make] = (nn.ZeroPad1d, nn.ZeroPad2d)
_ACTIVATION: dict[Activation, tuple[Make, ...]] = {"none": (), "relu": (nn.ReLU,), "relu6": (nn.ReLU6,)}


class Sum(nn.Module):
    """Layers beside a short cut, added, and an activation."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return out


def assemble(blocks: Sequence[Block], shape: Shape) -> nn.Sequential:
    """A module of blocks that run one after another on samples of a shape; layers beside no short cut stand alone."""
    made: list[nn.Module] = []
    for block in blocks:
        body = _chain(block.body, shape)
        if block.shortcut is None:
            made += [*body, *_activation(block.activation)]
        else:
            beside = nn.Sequential(*_chain(block.shortcut, shape)) if block.shortcut else nn.Identity()
            after = (
                nn.Sequential(*_activation(block.activation)) if block.activation != "none" else nn.Identity()
            )
            made.append(Sum(nn.Sequential(*body), beside, after))
        shape = block.shape(shape)
    return nn.Sequential(*made)


def _chain(layers: Sequence[Layer], shape: Shape) -> list[nn.Module]:
    made: list[nn.Module] = []
    for layer in layers:
        made += _modules(layer, shape)
        shape = layer.shape(shape)
    return made


def _modules(layer: Layer, shape: Shape) -> list[nn.Module]:
    """The modules of one layer, for a sample of that shape."""
    axes = len(shape) - 1
    if layer.kind == "flatten":
        return [nn.Flatten()]
    if layer.kind == "average":
        return [_AVERAGE[axes - 1](1), nn.Flatten()]
    if layer.kind == "dense":
        return [nn.Linear(layer.inputs, layer.outputs), *_activation(layer.activation)]
    if layer.kind == "maxpool":
        return [_MAXPOOL[axes - 1](layer.kernel, layer.stride, layer.pads(shape[1])[0])]
    pads = [layer.pads(places) for places in shape[1:]]
    uneven = any(before != after for before, after in pads)
    padding = tuple(0 if uneven else before for before, _ in pads)
    conv = _CONV[axes - 1](
        layer.inputs,
        layer.outputs,
        layer.kernel,
        layer.stride,
        padding,
        groups=layer.groups,
        bias=not layer.norm,
    )
    ahead = [_PAD[axes - 1](tuple(n for pair in reversed(pads) for n in pair))] if uneven else []
    norm = [_NORM[axes - 1](layer.outputs)] if layer.norm else []
    return [*ahead, conv, *norm, *_activation(layer.activation)]


def _activation(name: Activation) -> list[nn.Module]:
    return [make() for make in _ACTIVATION[name]]
