from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from msgspec.structs import replace
from onnx import numpy_helper
from torch import Tensor, nn

from farthing.bench import Timed
from farthing.bench.machine import Here
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
from farthing.forge.workshop import Workshop
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


class Means(nn.Module):
    """Pooled by a mean that drops its axes; in front of it squeezed and excited."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.gate, self.last = nn.Linear(24, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[..., None, None]
        found: Tensor = self.last(x.mean((2, 3)))
        return found


class Parts(nn.Module):
    """Half of the channels go their own way, as in cross-stage partial networks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.own = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.first(x)).split(16, 1)
        both = torch.cat([left, torch.relu(self.own(right))], 1)
        found: Tensor = self.last(both.amax((2, 3)))
        return found


class Sizes(nn.Module):
    """Sizes that are written down: of a picture that grows, and of rows that take places and samples together."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 1)
        self.dense, self.last = nn.Linear(16, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(nn.functional.interpolate(x, (6, 6))))
        rows = torch.relu(self.dense(x.permute(0, 2, 3, 1).reshape(-1, 16)))
        found: Tensor = self.last(rows.reshape(-1, 36, 24).mean(1))
        return found


class Shuffled(nn.Module):
    """Channels of two groups change places, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.own = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1, groups=2)
        self.last = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x.reshape(-1, 2, 16, 8, 8).transpose(1, 2).reshape(-1, 32, 8, 8)
        found: Tensor = self.last(torch.relu(self.own(x)).mean((2, 3)))
        return found


class Unfolded(nn.Module):
    """A dense layer that gives a picture, as decoders begin, and one that gives a signal to slide over."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.slid = nn.Linear(64, 16 * 4), nn.Linear(64, 24)
        self.conv, self.along, self.last = nn.Conv2d(16, 16, 1), nn.Conv1d(1, 16, 3), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        picture = torch.relu(self.conv(torch.relu(self.dense(flat)).reshape(-1, 16, 2, 2))).amax((2, 3))
        signal = torch.relu(self.along(torch.relu(self.slid(flat))[:, None])).amax(2)
        found: Tensor = self.last(torch.cat([picture, signal], 1))
        return found


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (Means, {"first": 16, "second": 24}),
        (Parts, {"first": 32, "own": 16}),
        (Sizes, {"first": 16, "second": 16, "dense": 24}),
        (Shuffled, {"first": 32, "own": 32}),
        (Unfolded, {"dense": 64, "conv": 16, "along": 16}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("batch", [None, 2])
def test_what_lies_between_layers_loses_the_same_channels(
    kind: type[nn.Module], names: dict[str, int], batch: int | None, make_model: Any
) -> None:
    """Half the channels of every layer go; the same as if all numbers that belong to them were zero."""
    torch.manual_seed(1)
    model = make_model(kind(), batch)
    channels = Channels(model)
    assert {name.split("/")[1]: one.width for name, one in channels.couplings.items()} == names
    generator = np.random.default_rng(0)
    scores = {name: generator.random(len(one.units)) for name, one in channels.couplings.items()}
    smaller, _ = channels.without({name: one.width // 2 for name, one in channels.couplings.items()}, scores)
    gone = np.concatenate(
        [one.units[np.argsort(scores[n])[: len(one.units) // 2]] for n, one in channels.couplings.items()]
    )
    silent = graph.load(model.file)
    for tensor in silent.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        for axis, labels in enumerate(channels._axes.get(tensor.name, [])):
            if labels is not None:
                array[(slice(None),) * axis + (np.isin(labels, gone),)] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    x = {"image": generator.random((2, 1, 8, 8), np.float32)}
    found, wanted = graph.run(graph.load(smaller.file), x), graph.run(silent, x)
    np.testing.assert_allclose(found["logits"], wanted["logits"], atol=1e-5)
    assert smaller.size_bytes < 0.7 * model.size_bytes


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
    options = StructuredPrune(ratio=0.5, importance=kind, rounds=2, schedule=SHORT)
    pruned = options(cnn, THIS, digits_task)
    assert pruned.size_bytes < cnn.size_bytes
    assert accuracy(pruned, digits_task) > 0.85


def test_gradients_that_cancel_out_over_the_data_count(plain: Model) -> None:
    """Two batches that pull a weight to either side: it matters, though the sum of both says nothing."""
    channels = Channels(plain)
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.load(plain.file).graph.initializer}
    name, one = next(iter(channels.couplings.items()))
    kernel = next(n.input[1] for n in graph.load(plain.file).graph.node if n.name == name)
    pull = np.zeros_like(tensors[kernel])
    pull[3] = 1.0
    scores = channels.importance("taylor", [{kernel: pull}, {kernel: -pull}])[name]
    assert scores.argmax() == 3
    assert scores[3] > 0
    assert np.count_nonzero(scores) == 1
    assert len(scores) == len(one.units)


def test_no_loss_of_its_own_leaves_no_gradient(plain: Model, digits_task: Task) -> None:
    task = Task("digits", digits_task.splits, "agreement")
    options = StructuredPrune(importance="taylor", teacher="self", schedule=SHORT)
    with pytest.raises(
        UnsupportedError, match=r"metric agreement compares with the model itself.*use importance l2"
    ):
        options(plain, THIS, task)


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


class Elsewhere(Here):
    """This machine, on which whatever is timed second takes a known share of the time of the first."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def race(self, entrants: Sequence[Any], rule: Any, tick: Any = None) -> list[Timed]:
        seconds = [1.0, *[self.share for _ in entrants[1:]]]
        return [Timed(calls=[one] * 30, rounds=[one] * 30, made=30) for one in seconds]


def test_narrower_layers_that_take_longer_are_refused_with_the_figures(
    plain: Model, digits_task: Task
) -> None:
    options, told = StructuredPrune(ratio=0.5), list[str]()
    slower = Workshop(machine=Elsewhere(1.2))
    with pytest.raises(
        UnsupportedError, match=r"digits slower, 0\.8333 .*\(1e\+03 ms before, 1.2e\+03 ms with"
    ):
        options.planned(plain, THIS, digits_task, slower)
    faster = Workshop(machine=Elsewhere(0.5), listener=lambda event: told.append(event.text))
    assert options.planned(plain, THIS, digits_task, faster).widths
    assert any("1e+03 ms before, 500 ms with narrower layers in onnxruntime" in text for text in told)
    other = Target.find("raspberry-pi-5")
    assert options.planned(plain, other, digits_task, slower).widths, "nothing is timed for another device"


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
