from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from farthing.engines.base import open_engine
from farthing.errors import ConfigError, UnsupportedError
from farthing.forge import graph
from farthing.forge.apply import apply
from farthing.forge.cache import Cache
from farthing.forge.fuse import Fuse
from farthing.forge.quantize import faking
from farthing.forge.quantize.calibrate import ranges
from farthing.forge.quantize.qat import QuantizationAware
from farthing.forge.trainable import trainable
from farthing.forge.training.loop import predict
from farthing.forge.training.schedule import Schedule
from farthing.model import Model
from farthing.recipe import Step
from farthing.target import Target
from farthing.task import Split, Task

SHORT = Schedule(epochs=2, batch=64, lr=5e-4)
THIS = Target.detect()


@pytest.fixture(scope="module")
def plain(cnn: Model, digits_task: Task) -> Model:
    return Fuse()(cnn, THIS, digits_task)


def logits(model: Model, task: Task, engine: str = "") -> np.ndarray[Any, Any]:
    with open_engine(model, engine) as opened:
        return np.asarray(next(iter(opened.run({"image": task.split("validation").inputs[""]}).values())))


def accuracy(model: Model, task: Task) -> float:
    return float((logits(model, task).argmax(1) == task.split("validation").labels).mean())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_channel": False, "activations": "int8"},
        {"reduce_range": True, "ranges": "observed"},
        {"weights": "uint8", "ranges": "fixed", "per_channel": False},
    ],
    ids=str,
)
def test_the_module_computes_what_the_file_computes(
    plain: Model, digits_task: Task, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """The outputs of training's last module, held against those of the file in ONNX Runtime."""
    seen: list[np.ndarray[Any, Any]] = []
    end = faking.Fakes.end

    def noted(self: faking.Fakes) -> None:
        self._made.module.eval()
        seen.append(predict(self._made.module, digits_task.split("validation").inputs[""]))
        end(self)

    monkeypatch.setattr(faking.Fakes, "end", noted)
    model = QuantizationAware(schedule=SHORT, **options)(plain, THIS, digits_task)
    found, (faked,) = logits(model, digits_task), seen
    assert (found.argmax(1) == faked.argmax(1)).mean() >= 0.995
    step = np.abs(faked).max() / 100
    assert np.abs(found - faked).max() <= step, (
        "one step of the outputs' 8 bits, where a sum lies on the edge"
    )
    assert np.abs(found - faked).mean() <= step / 10
    assert {"QuantizeLinear", "DequantizeLinear"} <= {n.op_type for n in graph.load(model.file).graph.node}
    quantization = model.manifest.quantization
    assert quantization is not None
    assert quantization.scheme == "static"


def test_training_rescues_what_rounding_breaks(scaled: Model, digits_task: Task, tmp_path: Path) -> None:
    """Channels that differ by orders of magnitude under one scale: without training few digits are left."""
    begun = Fuse()(scaled, THIS, digits_task)
    broken = faking.static(QuantizationAware(per_channel=False)).resolved(THIS)(begun, THIS, digits_task)
    options = {"per_channel": False, "schedule": {"epochs": 8, "batch": 64, "lr": 2e-3}}
    step = Step(use="quantize.qat.v1", options=options)
    rescued, (done,) = apply([step], begun, THIS, digits_task, Cache(tmp_path))
    assert accuracy(rescued, digits_task) > accuracy(broken, digits_task) + 0.05
    assert done.options["schedule"]["bf16"] is False
    again, _ = apply([done], begun, THIS, digits_task, Cache(tmp_path / "another"))
    assert again.digest == rescued.digest


def test_its_file_goes_on_to_other_engines(plain: Model, digits_task: Task, tmp_path: Path) -> None:
    steps = [Step(use="quantize.qat.v1", options={"schedule": {"epochs": 1}})]
    onnx_file, _ = apply(steps, plain, THIS, digits_task, Cache(tmp_path))
    for export, engine in (("export.tflite.v1", "litert"), ("export.openvino.v1", "openvino")):
        made, _ = apply([*steps, Step(use=export)], plain, THIS, digits_task, Cache(tmp_path))
        found = logits(made, digits_task, engine)
        assert (found.argmax(1) == logits(onnx_file, digits_task).argmax(1)).mean() >= 0.99, engine


def test_excluded_nodes_stay_float(plain: Model, digits_task: Task) -> None:
    first = next(node for node in graph.load(plain.file).graph.node if node.op_type == "Conv")
    model = QuantizationAware(schedule=SHORT, exclude=(first.name,))(plain, THIS, digits_task)
    proto = graph.load(model.file)
    twin = next(node for node in proto.graph.node if node.name == first.name)
    assert twin.input[1] in {tensor.name for tensor in proto.graph.initializer}, (
        "its weights are stored in float"
    )


def test_learned_ranges_move_and_freeze(plain: Model, digits_task: Task) -> None:
    options = faking.static(QuantizationAware()).resolved(THIS)
    made = trainable(plain)
    begun = options(plain, THIS, digits_task)
    fakes = faking.Fakes(made, graph.load(begun.file), options, "learned")
    x = torch.from_numpy(digits_task.split("train").inputs[""][:32])
    made.module(x)[0].square().mean().backward()  # type: ignore[no-untyped-call]
    factors = {name: p for name, p in made.module.named_parameters() if name.endswith("factors")}
    assert factors
    assert all(p.grad is not None for p in factors.values())
    assert any(bool((p.grad != 0).any()) for p in factors.values() if p.grad is not None)
    fakes.freeze()
    made.module.zero_grad()
    made.module(x)[0].square().mean().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in factors.values())
    calibrated = ranges(plain, digits_task, "minmax", 99.99, 256)
    with torch.no_grad():
        for p in factors.values():
            p.fill_(0.1)
    found = fakes.over(calibrated)
    wider = [name for name in found if found[name].highest.max() > calibrated[name].highest.max() * 1.05]
    assert wider
    assert found is not calibrated, "calibrated ranges are kept for others"


def test_norms_that_are_not_folded_are_refused(cnn: Model, digits_task: Task) -> None:
    with pytest.raises(UnsupportedError, match=r"put graph\.fuse\.v1 before"):
        QuantizationAware(schedule=SHORT)(cnn, THIS, digits_task)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="freeze is a share"):
        QuantizationAware(freeze=1.5)
    with pytest.raises(ConfigError, match="bfloat16 rounds more coarsely"):
        QuantizationAware(schedule=Schedule(bf16=True))


def test_signals_and_dense_layers(digits: tuple[Any, Any]) -> None:
    from farthing.forge.convert import convert

    x, y = digits
    rows = x.reshape(len(x), 8, 8)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    model = convert(net, name="rows", example=rows[:2]).model
    splits = {"train": Split({"": rows[:800]}, y[:800]), "validation": Split({"": rows[800:]}, y[800:])}
    task = Task("rows", splits, "top1")
    options = QuantizationAware(schedule=Schedule(epochs=8, batch=64, lr=5e-3), teacher="")
    made = options(Fuse()(model, THIS, task), THIS, task)
    with open_engine(made) as engine:
        found = next(iter(engine.run({made.manifest.inputs[0].name: rows[800:]}).values()))
    assert float((found.argmax(1) == y[800:]).mean()) > 0.85


class Attentive(nn.Module):
    """Matrix products whose biases are added by operators of their own, as in dense layers of sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Linear(8, 16), nn.Linear(16, 48)
        self.norm, self.last = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        queries, keys, values = self.mix(x).split(16, -1)
        x = self.norm(x + torch.softmax(queries @ keys.transpose(1, 2) / 4, -1) @ values)
        found: torch.Tensor = self.last(x.mean(1))
        return found


@pytest.mark.parametrize(
    "options", [{}, {"activations": "int8", "per_channel": False}, {"reduce_range": True}], ids=str
)
def test_biases_that_are_added_apart_are_rounded_where_the_file_rounds_them(
    options: dict[str, Any], digits: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from farthing.forge.convert import convert

    x, y = digits
    rows = x[:, 0]
    torch.manual_seed(0)
    model = convert(Attentive(), name="rows", example=rows[:2]).model
    splits = {
        "train": Split({"": rows[:600]}, y[:600]),
        "validation": Split({"": rows[600:1000]}, y[600:1000]),
    }
    task = Task("rows", splits, "top1")
    seen: list[np.ndarray[Any, Any]] = []
    end = faking.Fakes.end

    def noted(self: faking.Fakes) -> None:
        self._made.module.eval()
        seen.append(predict(self._made.module, rows[600:1000]))
        end(self)

    monkeypatch.setattr(faking.Fakes, "end", noted)
    schedule = Schedule(epochs=6, batch=64, lr=5e-3)
    made = QuantizationAware(schedule=schedule, teacher="", **options)(Fuse()(model, THIS, task), THIS, task)
    assert {"MatMul", "Add"} <= {node.op_type for node in graph.load(made.file).graph.node}
    name = made.manifest.inputs[0].name
    found = next(iter(graph.run(graph.load(made.file), {name: rows[600:1000]}, optimise=False).values()))
    (faked,) = seen
    assert (found.argmax(1) == faked.argmax(1)).mean() >= 0.995
    assert np.abs(found - faked).mean() <= np.abs(faked).max() / 127 / 20
    with open_engine(made) as engine:  # which rounds anew what it computes in one go
        found = next(iter(engine.run({name: rows[600:1000]}).values()))
    assert (found.argmax(1) == faked.argmax(1)).mean() >= 0.97
