"""Batch normalization folded into the layers before it, and where it has to stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from farthing.forge import graph
from farthing.forge.folding import NORM, foldable
from farthing.forge.fuse import Fuse
from farthing.forge.quantize.qat import QuantizationAware
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.training.schedule import Schedule
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

THIS = Target.detect()


class Kept(nn.Module):
    """Normalized before its layers: nothing takes the norms up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.last = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.second(torch.relu(self.norm(x)))
        found: Tensor = self.last(x.amax((2, 3)))
        return found


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 24),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.Linear(24, 10, bias=False),
        nn.BatchNorm1d(10),
    )


def up(groups: int) -> nn.Module:
    layers = [
        nn.ConvTranspose2d(4, 8, 2, stride=2, groups=groups, bias=groups == 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
    ]
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers, nn.Flatten(), nn.Linear(8 * 256, 10))


def worn(net: nn.Module) -> nn.Module:
    """With statistics and scales of a network that was trained."""
    torch.manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for numbers in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(numbers, 0.5, 2.0)
    return net.eval()


def kinds(model: Model) -> list[str]:
    return [node.op_type for node in graph.load(model.file).graph.node]


@pytest.mark.parametrize(
    ("net", "left"),
    [(dense(), 0), (up(1), 0), (up(2), 0), (Kept(), 1)],
    ids=["dense", "up", "grouped", "kept"],
)
@pytest.mark.parametrize("fold", [True, False])
def test_the_same_is_computed_with_fewer_operators(
    net: nn.Module, left: int, fold: bool, make_model: Any, digits_task: Task
) -> None:
    model = make_model(worn(net), fold=fold)
    fused = Fuse()(model, THIS, digits_task)
    assert kinds(fused).count(NORM) == left
    assert not any(foldable(graph.load(fused.file)))
    x = {"image": digits_task.split("validation").inputs[""][:20]}
    wanted, found = (graph.run(graph.load(one.file), x)["logits"] for one in (model, fused))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    assert Fuse()(fused, THIS, digits_task).digest == fused.digest


def test_what_cannot_be_folded_is_trained_in_8_bits_with_the_statistics_it_has(
    make_model: Any, digits_task: Task
) -> None:
    fused = Fuse()(make_model(worn(Kept()), fold=False), THIS, digits_task)
    made = QuantizationAware(schedule=Schedule(epochs=1, batch=100, lr=1e-3))(fused, THIS, digits_task)
    norms = [
        [node.input[3:5] for node in graph.load(model.file).graph.node if node.op_type == NORM]
        for model in (fused, made)
    ]
    assert len(norms[0]) == len(norms[1]) == 1
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.load(model.file).graph.initializer}
        for model in (fused, made)
    )
    for name, twin in zip(norms[0][0], norms[1][0], strict=True):
        np.testing.assert_array_equal(after[twin], before[name])


@pytest.mark.parametrize("per_channel", [True, False])
def test_transposed_convolutions_in_groups_can_be_quantized_with_the_rest(
    per_channel: bool, make_model: Any, digits_task: Task
) -> None:
    fused = Fuse()(make_model(worn(up(2))), THIS, digits_task)
    made = StaticInt8(per_channel=per_channel)(fused, THIS, digits_task)
    x = {"image": digits_task.split("validation").inputs[""][:50]}
    wanted, found = (graph.run(graph.load(one.file), x)["logits"] for one in (fused, made))
    assert (wanted.argmax(1) == found.argmax(1)).mean() > 0.9
    weight = next(node for node in graph.load(made.file).graph.node if node.op_type == "ConvTranspose").input[
        1
    ]
    assert weight.endswith("DequantizeLinear_Output") is not per_channel, (
        "with a scale for each channel it stays float"
    )
