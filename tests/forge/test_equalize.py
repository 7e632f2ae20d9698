"""Cross-layer equalization: nothing changes in float, and ranges that 8 bits could not hold are evened out."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from farthing.bench import evaluate
from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.fuse import Fuse
from farthing.forge.quantize.equalize import Equalize
from farthing.forge.quantize.static import StaticInt8
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

Array = NDArray[Any]
VNNI = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))


def answers(model: Model, x: Array) -> Array:
    return graph.run(model.file.read_bytes(), {"image": x})["logits"]


def accuracy(model: Model, task: Task) -> float:
    return evaluate(model, task)[0].value


def weights(model: Model) -> list[Array]:
    """Weights of the layers, in order; channels of the output first."""
    proto = graph.load(model.file)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    return [stored[node.input[1]] for node in proto.graph.node if node.op_type in {"Conv", "Gemm"}]


def settled(*layers: nn.Module, seed: int = 0) -> nn.Module:
    """An untrained net whose channels have very different ranges."""
    torch.manual_seed(seed)
    net = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in net.parameters():
            factors = torch.exp(1.5 * torch.randn(len(parameter)))
            parameter.mul_(factors.reshape(-1, *[1] * (parameter.ndim - 1)))
    return net


def depthwise(clip: nn.Module) -> list[nn.Module]:
    return [
        nn.Conv2d(1, 8, 1),
        copy.deepcopy(clip),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        copy.deepcopy(clip),
        nn.Conv2d(8, 6, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 10),
    ]


def plain(pool: nn.Module) -> list[nn.Module]:
    return [
        nn.Conv2d(1, 6, 3),
        nn.LeakyReLU(),
        pool,
        nn.Flatten(),
        nn.Linear(54, 12),
        nn.ReLU(),
        nn.Linear(12, 10),
    ]


GROUPED = (nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2), nn.ReLU())
NETS = {
    "depthwise": lambda: depthwise(nn.ReLU()),
    "depthwise with ReLU6": lambda: depthwise(nn.ReLU6()),
    "flattened": lambda: plain(nn.MaxPool2d(2)),
    "averaged": lambda: plain(nn.AvgPool2d(2)),
    "grouped": lambda: [*GROUPED, nn.Conv2d(4, 10, 4), nn.Flatten()],
}


@pytest.mark.parametrize("net", NETS)
def test_float_outputs_stay_and_ranges_meet(
    net: str, make_model: Any, digits: Any, digits_task: Task
) -> None:
    model = Fuse()(make_model(settled(*NETS[net]())), VNNI, digits_task)
    equal = Equalize(clips=True)(model, VNNI, digits_task)
    expected = answers(model, digits[0][:100])
    np.testing.assert_allclose(
        answers(equal, digits[0][:100]), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
    )
    spread = [np.prod([_spread(array) for array in weights(each)]) for each in (model, equal)]
    assert spread[1] < spread[0]


def _spread(array: Array) -> float:
    """Largest over smallest range of a channel."""
    ranges = np.abs(array.reshape(len(array), -1)).max(axis=1)
    return float(ranges.max() / ranges.min())


def test_a_channel_has_one_range_on_both_sides(make_model: Any, digits_task: Task) -> None:
    model = Fuse()(make_model(settled(*depthwise(nn.ReLU()))), VNNI, digits_task)
    first, second, third, _ = weights(Equalize()(model, VNNI, digits_task))
    before = np.abs(first.reshape(8, -1)).max(1)
    between = np.abs(second.reshape(8, -1)).max(1)
    after = np.abs(third.reshape(6, 8)).max(0)
    np.testing.assert_allclose(before, between, rtol=0.01)
    np.testing.assert_allclose(between, after, rtol=0.01)


def test_it_undoes_what_ruins_8_bits(scaled: Model, cnn: Model, digits_task: Task) -> None:
    """The channels of this net were scaled by 1 to 4 ** 15: one scale a tensor keeps only the largest."""
    per_tensor = StaticInt8(per_channel=False)
    fused = Fuse()(scaled, VNNI, digits_task)
    equal = Equalize()(fused, VNNI, digits_task)
    found = [accuracy(per_tensor(model, VNNI, digits_task), digits_task) for model in (fused, equal)]
    assert found[0] < 0.5
    assert found[1] > accuracy(cnn, digits_task) - 0.02


def test_clips_are_left_alone_unless_asked_for(make_model: Any, digits_task: Task) -> None:
    model = Fuse()(make_model(settled(*depthwise(nn.ReLU6()))), VNNI, digits_task)
    kept = [node.op_type for node in graph.load(model.file).graph.node]
    same = Equalize()(
        model, VNNI, digits_task
    )  # the last convolution and the layer behind the pooling are a pair
    assert [node.op_type for node in graph.load(same.file).graph.node] == kept
    clipped = Equalize(clips=True)(model, VNNI, digits_task)
    through = graph.load(clipped.file)
    assert [node.op_type for node in through.graph.node].count("Min") == 2
    used = {name for node in through.graph.node for name in node.input}
    assert {tensor.name for tensor in through.graph.initializer} <= used


def test_what_others_read_and_shared_weights_stay(make_model: Any, digits_task: Task) -> None:
    """A short cut around the second convolution: the first one's channels may not change."""

    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.c, self.d = nn.Conv2d(4, 5, 8), nn.Linear(5, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.a(x))
            out: torch.Tensor = self.d(torch.relu(self.c(x + self.b(x))).flatten(1))
            return out

    torch.manual_seed(0)
    model = Fuse()(make_model(Short()), VNNI, digits_task)
    before, after = weights(model), weights(Equalize()(model, VNNI, digits_task))
    assert [np.array_equal(*pair) for pair in zip(before, after, strict=True)] == [True, True, False, False]


def test_dead_channels_do_not_blow_up(
    cnn_net: nn.Module, make_model: Any, digits: Any, digits_task: Task
) -> None:
    net = copy.deepcopy(cnn_net)
    with torch.no_grad():
        layers = dict(net.named_parameters())
        layers["3.weight"][:, 3] = 0
        layers["1.weight"][2] = 0
    model = Fuse()(make_model(net), VNNI, digits_task)
    equal = Equalize()(model, VNNI, digits_task)
    assert all(np.isfinite(array).all() for array in weights(equal))
    np.testing.assert_allclose(answers(equal, digits[0][:50]), answers(model, digits[0][:50]), atol=1e-3)


def test_a_single_layer_has_nothing_to_equalize(make_model: Any, digits_task: Task) -> None:
    model = make_model(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(UnsupportedError, match="no two layers whose weights could be equalized"):
        Equalize()(model, VNNI, digits_task)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), clips=st.booleans())
def test_any_net_answers_the_same(
    seed: int, clips: bool, make_model: Any, digits: Any, digits_task: Task
) -> None:
    model = Fuse()(make_model(settled(*depthwise(nn.ReLU6()), seed=seed)), VNNI, digits_task)
    before = onnx.load(model.file)
    expected = answers(model, digits[0][:20])
    found = answers(Equalize(clips=clips)(model, VNNI, digits_task), digits[0][:20])
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())
    assert onnx.load(model.file) == before
