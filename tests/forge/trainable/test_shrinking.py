"""Layers that shrink, as tools for torch modules make them (here Torch-Pruning): the ONNX graph follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch_pruning
from torch import Tensor, nn

from farthing.forge import graph, nets
from farthing.forge.convert import convert
from farthing.forge.trainable import Trainable, trainable
from farthing.model import Model

PICTURE = (3, 16, 16)


def model_of(net: nn.Module, shape: tuple[int, ...], dynamo: bool) -> Model:
    """A net by one of torch's exporters, its batch free."""
    torch.manual_seed(0)
    nets.settle(net, (8, *shape))
    return exported(net.eval(), shape, dynamo)


def exported(net: nn.Module, shape: tuple[int, ...], dynamo: bool) -> Model:
    x = torch.randn(2, *shape)
    if not dynamo:
        return convert(net, example=(1, *shape)).model
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    return convert(program, example=x).model


def halved(made: Trainable, shape: tuple[int, ...], ratio: float = 0.5, **options: Any) -> None:
    """Half of the channels of every layer but the last taken out, by Torch-Pruning."""
    last = made.module.get_submodule(list(made.layers.values())[-1])
    torch_pruning.pruner.BasePruner(
        made.module,
        (torch.randn(2, *shape),),
        importance=torch_pruning.importance.MagnitudeImportance(),
        pruning_ratio=ratio,
        ignored_layers=[last],
        **options,
    ).step()


class Viewed(nn.Module):
    """Says how many numbers a sample has between the convolutions and the rest, in one of many ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(16 if way in {"mean", "tokens"} else 256, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.way == "size":
            y = y.view(y.size(0), 256)
        elif self.way == "stated":
            y = y.reshape(-1, 256)
        elif self.way == "computed":
            y = y.view(y.size(0), y.size(1) * y.size(2) * y.size(3))
        elif self.way == "tokens":
            y = y.view(-1, 16, 16).transpose(1, 2).mean(1)
        elif self.way == "mean":
            y = y.view(y.size(0), 16, -1).mean(2)
        out: Tensor = self.head(y)
        return out


def check_smaller(made: Trainable, before: Model, shape: tuple[int, ...]) -> Model:
    """The written file is smaller, is whole, and computes what the module computes, at any batch."""
    after = made.to_model()
    assert after.size_bytes < 0.8 * before.size_bytes
    proto = graph.load(after.file)
    for batch in (1, 5):
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            wanted = made.module(x)[0].numpy()
        found = next(iter(graph.run(proto, {after.manifest.inputs[0].name: x.numpy()}).values()))
        np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-3)
    return after


WAYS = [(way, False) for way in ("size", "stated", "computed", "mean", "tokens")]


@pytest.mark.parametrize(("way", "dynamo"), [*WAYS, ("size", True)])
def test_stated_counts_follow(way: str, dynamo: bool) -> None:
    before = model_of(Viewed(way), PICTURE, dynamo)
    made = trainable(before)
    halved(made, PICTURE)
    assert made.module.get_submodule(made.layers[list(made.layers)[1]]).out_channels == 8
    after = check_smaller(made, before, PICTURE)
    again = trainable(after)
    assert all(
        p.shape == q.shape for p, q in zip(again.module.parameters(), made.module.parameters(), strict=True)
    )


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("kind", ["digits_cnn", "resnet8", pytest.param("lite0", marks=pytest.mark.slow)])
def test_networks_are_pruned_through_their_dependencies(kind: str, norms: bool) -> None:
    net, shape = {
        "digits_cnn": (nets.digits_cnn, (1, 28, 28)),
        "resnet8": (nets.resnet8, (1, 28, 28)),
        "lite0": (lambda: nets.efficientnet_lite0(10), (3, 32, 32)),
    }[kind]
    before = model_of(net(), shape, dynamo=False)
    made = trainable(before)
    if norms:
        made.insert_norms([[torch.randn(8, *shape)]])
    halved(made, shape, round_to=4, global_pruning=kind != "lite0")
    after = check_smaller(made, before, shape)
    assert len(onnx.load(after.file).graph.node) == len(onnx.load(before.file).graph.node)
