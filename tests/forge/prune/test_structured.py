from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from msgspec.structs import replace
from onnx import numpy_helper
from torch import Tensor, nn

from farthing.engines.base import open_engine
from farthing.errors import ConfigError, TaskError, UnsupportedError
from farthing.forge import graph
from farthing.forge.apply import apply
from farthing.forge.cache import Cache
from farthing.forge.convert import convert
from farthing.forge.fuse import Fuse
from farthing.forge.prune.channels import Channels
from farthing.forge.prune.structured import StructuredPrune
from farthing.forge.training.schedule import Schedule
from farthing.model import Model
from farthing.recipe import Step
from farthing.target import Target
from farthing.task import Task

SHORT = Schedule(epochs=4, batch=64, lr=5e-3, bf16=False)
THIS = Target.detect()


@pytest.fixture(scope="session")
def plain(cnn: Model, digits_task: Task) -> Model:
    """The trained CNN with its batch normalization folded, as users' files have it."""
    return Fuse()(cnn, THIS, digits_task)


def accuracy(model: Model, task: Task) -> float:
    split = task.split("validation")
    with open_engine(model) as engine:
        found = engine.run({"image": split.inputs[""]})["logits"]
    return float((found.argmax(1) == split.labels).mean())


class Branching(nn.Module):
    """Additions, a concatenation, a depthwise and a grouped convolution: everything that couples channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.left = nn.Conv2d(16, 16, 3, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.other = nn.Conv2d(16, 8, 1)
        self.last = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.deep(x + torch.relu(self.left(x))))
        x = torch.cat([torch.relu(self.grouped(x)), torch.relu(self.other(x))], 1)
        result: Tensor = self.last(nn.functional.max_pool2d(x, 2).flatten(1))
        return result


@pytest.fixture(scope="module")
def branching(make_model: Any) -> Model:
    torch.manual_seed(3)
    model: Model = make_model(Branching())
    return model


def test_channels_that_go_together_have_one_name(branching: Model) -> None:
    found = {name: (one.width, one.step) for name, one in Channels(branching).couplings.items()}
    assert found == {"/stem/Conv": (16, 4), "/grouped/Conv": (24, 4), "/other/Conv": (8, 1)}


def test_taking_channels_out_computes_what_silencing_them_does(branching: Model) -> None:
    """The removed channels, set to zero where they are made and behind every addition, change nothing else."""
    channels = Channels(branching)
    scores = {name: np.arange(len(one.units), dtype=float) for name, one in channels.couplings.items()}
    smaller, left = channels.without({"/stem/Conv": 12, "/grouped/Conv": 16, "/other/Conv": 5}, scores)
    assert left["/other/Conv"].tolist() == [3, 4, 5, 6, 7]
    gone = {"stem": [0, 4, 8, 12], "grouped": [0, 1, 6, 7, 12, 13, 18, 19], "other": [0, 1, 2]}
    silent = Branching()
    stored = {t.name: numpy_helper.to_array(t) for t in graph.load(branching.file).graph.initializer}
    silent.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in stored.items()})
    with torch.no_grad():
        for name, picks in gone.items():
            silent.get_submodule(name).weight[picks] = 0
            silent.get_submodule(name).bias[picks] = 0
        for layer in (silent.left, silent.deep):
            layer.weight[gone["stem"]] = 0
            layer.bias[gone["stem"]] = 0
    x = torch.rand(7, 1, 8, 8)
    with open_engine(smaller) as engine:
        got = engine.run({"image": x.numpy()})["logits"]
    np.testing.assert_allclose(got, silent(x).detach().numpy(), atol=1e-5)
    shapes = {t.name: list(t.dims) for t in graph.load(smaller.file).graph.initializer}
    assert shapes["stem.weight"][0] == shapes["left.weight"][0] == shapes["deep.weight"][0] == 12
    assert shapes["grouped.weight"][:2] == [16, 3]
    assert shapes["last.weight"] == [10, (16 + 5) * 16]


def test_half_the_channels_go_and_the_digits_stay(plain: Model, digits_task: Task, tmp_path: Path) -> None:
    step = Step(
        use="prune.structured.v1",
        options={"ratio": 0.5, "schedule": {"epochs": 8, "lr": 5e-3, "bf16": False}},
    )
    pruned, (done,) = apply([step], plain, THIS, digits_task, Cache(tmp_path))
    assert pruned.size_bytes < plain.size_bytes / 2.5
    assert accuracy(pruned, digits_task) >= accuracy(plain, digits_task) - 0.03
    widths = done.options["widths"]
    assert widths
    assert all(width % 8 == 0 for width in widths.values()), widths
    assert [v.name for v in graph.load(pruned.file).graph.output] == ["logits"]
    assert pruned.manifest.outputs == plain.manifest.outputs
    again, (kept,) = apply([done], plain, THIS, digits_task, Cache(tmp_path / "another"))
    assert again.digest == pruned.digest, "the widths of a recipe are not planned again"
    assert kept == done


@pytest.mark.parametrize("kind", ["l1", "bn", "taylor"])
def test_every_importance_ranks_channels(cnn: Model, digits_task: Task, kind: Any) -> None:
    """Also in a file whose batch normalization is not folded."""
    options = StructuredPrune(ratio=0.3, importance=kind, rounds=2, multiple=4, schedule=SHORT)
    pruned = options(cnn, THIS, digits_task)
    assert pruned.size_bytes < cnn.size_bytes
    assert accuracy(pruned, digits_task) > 0.85


def test_unimportant_channels_are_found(plain: Model, digits_task: Task) -> None:
    """Noise of a thousandth in half the channels of a layer: these go, and the answers stay without training."""
    proto = graph.load(plain.file)
    kernel = next(t for t in proto.graph.initializer if len(t.dims) == 4 and t.dims[0] == 16)
    bias = next(t for t in proto.graph.initializer if list(t.dims) == [16])
    quiet = np.arange(0, 16, 2)
    for tensor in (kernel, bias):
        array = numpy_helper.to_array(tensor).copy()
        array[quiet] *= 1e-3
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    model = Model.create(plain.manifest, {"model.onnx": graph.save_bytes(proto)})
    channels = Channels(model)
    name = next(node.name for node in proto.graph.node if kernel.name in node.input)
    scores = channels.importance("l2")
    assert set(scores[name].argsort()[:8].tolist()) == set(quiet.tolist())
    smaller, left = channels.without({name: 8}, scores)
    assert left[name].tolist() == list(range(1, 16, 2))
    x = digits_task.split("validation").inputs[""][:64]
    with open_engine(model) as before, open_engine(smaller) as after:
        np.testing.assert_allclose(
            after.run({"image": x})["logits"], before.run({"image": x})["logits"], atol=0.05
        )


def test_a_share_of_the_time_is_planned_by_measuring(plain: Model, digits_task: Task, tmp_path: Path) -> None:
    step = Step(use="prune.structured.v1", options={"latency": 0.7, "schedule": {"epochs": 1, "bf16": False}})
    pruned, (done,) = apply([step], plain, THIS, digits_task, Cache(tmp_path))
    widths = done.options["widths"]
    full = {name: one.width for name, one in Channels(plain).couplings.items()}
    assert widths.keys() == full.keys()
    assert any(widths[name] < full[name] for name in full)
    assert pruned.size_bytes < plain.size_bytes
    assert (
        StructuredPrune(latency=0.7, widths=widths).planned(plain, THIS, digits_task, None).widths == widths
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "share from 0 to below 1"),
        ({"latency": -0.1}, "share from 0 to below 1"),
        ({"multiple": 0}, "whole number from 1"),
        ({"rounds": 0}, "whole number from 1"),
        ({"widths": {"a": 0}}, "keeps a channel at least"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StructuredPrune(**options)


def test_what_cannot_be_pruned_is_refused(
    plain: Model, mlp_net: nn.Module, make_model: Any, digits_task: Task
) -> None:
    with pytest.raises(UnsupportedError, match=r"no prunable node 'conv9'.*it has"):
        StructuredPrune(widths={"conv9": 8}, schedule=SHORT)(plain, THIS, digits_task)
    with pytest.raises(UnsupportedError, match="no layer left to narrow"):
        StructuredPrune(ratio=0.01, schedule=SHORT)(plain, THIS, digits_task)
    with pytest.raises(UnsupportedError, match="no batch normalization to rank channels by"):
        StructuredPrune(importance="bn", schedule=SHORT)(plain, THIS, digits_task)
    linear = make_model(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(UnsupportedError, match="no layer whose channels could be taken out"):
        StructuredPrune(schedule=SHORT)(linear, THIS, digits_task)
    bare = Task(
        "bare",
        {"validation": digits_task.split("validation"), "calibration": digits_task.split("calibration")},
        "top1",
    )
    with pytest.raises(TaskError, match="no train split"):
        StructuredPrune(schedule=SHORT)(plain, THIS, bare)


def test_signals_and_rounds(digits: tuple[Any, Any]) -> None:
    """A 1-D network; in two rounds the widths go down in two steps."""
    from farthing.task import Split

    x, y = digits
    rows = x.reshape(len(x), 8, 8)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(8, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv1d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    model = convert(net, name="rows", example=rows[:2]).model
    task = Task(
        "rows",
        {"train": Split({"": rows[:600]}, y[:600]), "validation": Split({"": rows[600:900]}, y[600:900])},
        "top1",
    )
    pruned = StructuredPrune(ratio=0.5, rounds=2, ranking="layer", schedule=replace(SHORT, epochs=8))(
        model, THIS, task
    )
    shapes = sorted(list(t.dims) for t in graph.load(pruned.file).graph.initializer if len(t.dims) == 3)
    assert shapes == [[16, 8, 3], [16, 16, 3]]
    with open_engine(pruned) as engine:
        found = next(iter(engine.run({pruned.manifest.inputs[0].name: rows[600:900]}).values()))
    assert float((found.argmax(1) == y[600:900]).mean()) > 0.8
    assert onnx.load(pruned.file).graph.node[0].op_type == "Conv"
