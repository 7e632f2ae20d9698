"""Layers that shrink, as tools for torch modules make them (here Torch-Pruning): the ONNX graph follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch_pruning
from onnx import helper, numpy_helper
from torch import Tensor, nn

from farthing.forge import graph, nets
from farthing.forge.convert import convert
from farthing.forge.trainable import Trainable, trainable
from farthing.model import Manifest, Model, TensorSpec

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


def weights(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def test_sizes_stated_by_other_operators_follow() -> None:
    """Resize, Split and Expand that name the number of channels, in a file that fixes its batch."""
    whole = {"up": [1, 8, 16, 16], "parts": [4, 4], "wide": [1, 4, 4, 4]}
    stored = {name: np.asarray(numbers, np.int64) for name, numbers in whole.items()}
    stored |= {"w": weights(8, 3, 3, 3), "b": weights(8), "v": weights(5, 4, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["a", "", "", "up"], ["r"], mode="linear"),
        helper.make_node("Split", ["r", "parts"], ["s", "t"], axis=1),
        helper.make_node("Mul", ["s", "t"], ["m"]),
        helper.make_node("GlobalAveragePool", ["m"], ["g"]),
        helper.make_node("Expand", ["g", "wide"], ["e"]),
        helper.make_node("Conv", ["e", "v"], ["y"], name="last"),
    ]
    shapes = {"x": (1, 3, 8, 8), "y": (1, 5, 4, 4)}
    x, y = (helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items())
    kept = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "stated", [x], [y], kept),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    specs = [
        TensorSpec(name=name, dtype="float32", shape=shape, batch_axis=0) for name, shape in shapes.items()
    ]
    manifest = Manifest(name="stated", format="onnx", inputs=(specs[0],), outputs=(specs[1],))
    made = trainable(Model.create(manifest, {"model.onnx": proto.SerializeToString()}))
    first, last = (made.module.get_submodule(made.layers[name]) for name in ("first", "last"))
    first.weight, first.bias = (nn.Parameter(part[[0, 1, 4, 5]]) for part in (first.weight, first.bias))
    last.weight = nn.Parameter(last.weight[:, :2])
    after = made.to_model()  # compares the file with the module
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(after.file).graph.initializer}
    assert sorted(a.tolist() for a in tensors.values() if a.dtype == np.int64) == [
        [1, 2, 4, 4],
        [1, 4, 16, 16],
        [2, 2],
    ]


class Reader(nn.Module):
    """A recurrent layer, and a head on the mean of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.layer(x)
        out: Tensor = self.head(steps.mean(1))
        return out


def test_a_recurrent_layer_with_fewer_units_follows() -> None:
    """The state of zeros that exporters write says how many there are, and so does an attribute."""
    torch.manual_seed(0)
    model = convert(Reader().eval(), example="1x10x6").model
    made = trainable(model)
    recurrent, head = (made.module.get_submodule(name) for name in made.layers.values())
    name = made.layers[next(iter(made.layers))]
    smaller = nn.LSTM(6, 5)
    for field, part in recurrent.named_parameters():
        gates = [gate[:5, :5] if "hh" in field and gate.ndim > 1 else gate[:5] for gate in part.data.chunk(4)]
        setattr(smaller, field, nn.Parameter(torch.cat(gates)))
    setattr(made.module, name, smaller.eval())
    head.weight = nn.Parameter(head.weight[:, :5])
    after = made.to_model()  # compares the file with the module
    node = next(node for node in onnx.load(after.file).graph.node if node.op_type == "LSTM")
    assert next(a.i for a in node.attribute if a.name == "hidden_size") == 5
    assert len(onnx.load(after.file).graph.node) < len(onnx.load(model.file).graph.node)
