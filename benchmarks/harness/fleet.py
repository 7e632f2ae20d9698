"""Models and tasks for the benchmark over engines, what searches make of them, and what other tools do."""

from __future__ import annotations

import functools
import itertools
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from torch import nn

from farthing import bench, tasks
from farthing.engines.base import open_engine
from farthing.errors import FarthingError, UnsupportedError
from farthing.forge import pretrained
from farthing.forge.apply import apply
from farthing.forge.cache import Cache, key_of
from farthing.forge.convert import convert
from farthing.forge.ladder import ladder
from farthing.forge.optimize import optimize
from farthing.forge.training.loop import train
from farthing.forge.training.losses import loss_of
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.measure import Interval
from farthing.metrics import Metric
from farthing.model import Manifest, Model, TensorSpec, checked
from farthing.options import EngineOptions
from farthing.recipe import Candidate, Result
from farthing.target import Target
from farthing.task import Split, Task
from harness import artefacts
from harness.artefacts import Setting

ENGINES = ("onnxruntime", "openvino", "litert")
THREADS = (1,)


@dataclass(frozen=True)
class Case:
    """A model, a task and a budget."""

    model: Callable[[Setting], Model]
    task: Callable[[Setting], Task]
    budget: str


def watch_net() -> nn.Sequential:
    """A 1-D network for windows 6 x 100 of a smart watch."""
    return nn.Sequential(
        nn.Conv1d(6, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(32, 64, 5, padding=2), nn.BatchNorm1d(64), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(64, 64, 3, padding=1), nn.BatchNorm1d(64), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 7),
    )  # fmt: skip


class Reconstruction(nn.Module):
    """An autoencoder of sensor readings; its answer is the mean squared error of what it makes of them.

    Args:
        widths: of the layers between nine readings and nine readings.
    """

    def __init__(self, widths: Sequence[int] = (32, 4, 32)) -> None:
        super().__init__()
        sizes = [9, *widths]
        inner = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.code = nn.Sequential(*inner[:-1])
        self.back = nn.Sequential(nn.ReLU(), nn.Linear(sizes[-1], 9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gap = self.back(self.code(x)) - x
        return (gap * gap).mean(1, keepdim=True)


def watch(setting: Setting, seed: int = 0) -> Model:
    """The 1-D network, trained on four people."""
    task = tasks.watch(setting.assets)
    kept = f"watch-{seed}" if seed else "watch"
    return _kept(setting, kept, task, lambda: _watch(task, seed))


def _watch(task: Task, seed: int) -> Model:
    torch.manual_seed(seed)
    return _trained(watch_net(), "watch", task, Schedule(epochs=20, bf16=False, seed=seed))


def shuttle(setting: Setting, seed: int = 0) -> Model:
    """The autoencoder, trained on normal readings."""
    task = tasks.shuttle(setting.assets)
    kept = f"shuttle-{seed}" if seed else "shuttle"
    return _kept(setting, kept, task, lambda: _shuttle(task, seed))


def _shuttle(task: Task, seed: int) -> Model:
    torch.manual_seed(seed)
    return _trained(Reconstruction(), "shuttle", task, Schedule(epochs=20, batch=256, bf16=False, seed=seed))


WIDE = (128, 128, 8, 128, 128)
"""As wide as MLPerf Tiny's autoencoder (Banbury et al. 2021, https://arxiv.org/abs/2106.07597), with fewer layers."""


def wide_shuttle(setting: Setting, seed: int = 0) -> Model:
    """An autoencoder of a size that is worth compressing, trained on normal readings."""
    task = tasks.shuttle(setting.assets)

    def make() -> Model:
        torch.manual_seed(seed)
        schedule = Schedule(epochs=10, batch=256, bf16=False, seed=seed)
        return _trained(Reconstruction(WIDE), "shuttle", task, schedule)

    return _kept(setting, f"wide-shuttle-{seed}", task, make)


def _trained(net: nn.Module, name: str, task: Task, schedule: Schedule) -> Model:
    x = np.asarray(next(iter(task.split("train").inputs.values())), np.float32)
    spec = TensorSpec(name="input", dtype="float32", shape=("batch", *x.shape[1:]), batch_axis=0)
    labels = task.labels if task.metric.name == "top1" else ()
    facts = Manifest(name=name, format="onnx", inputs=(spec,), outputs=(), task=task.name, labels=labels)
    train(net, Samples(task, facts), loss_of(task, facts), schedule)
    return convert(net, name=name, example=x[:2], manifest=checked(facts, inputs=())).model


def _kept(setting: Setting, name: str, task: Task, make: Callable[[], Model]) -> Model:
    return setting.store().model(key_of("benchmark", name, task.digest, str(torch.__version__), 1), make)


def _plan(name: str, budget: str) -> Case:
    return Case(
        lambda setting: artefacts.baseline(setting, name, 0),
        lambda setting: artefacts.data(setting, name),
        budget,
    )


CASES: Mapping[str, Case] = {
    "resnet18": _plan("resnet18", "accuracy_drop<=0.05"),
    "efficientnet-lite0": Case(
        lambda setting: _pretrained(setting, "lite0", pretrained.efficientnet_lite0),
        lambda setting: tasks.imagenet_photos(setting.assets),
        "accuracy_min>=0.95",
    ),
    "centerface": Case(
        lambda setting: _pretrained(setting, "centerface", pretrained.centerface),
        lambda setting: tasks.faces(setting.assets),
        "accuracy_drop<=0.02",
    ),
    "resnet8-mnist": _plan("resnet8-mnist", artefacts.BUDGET),
    "cnn-mnist": _plan("cnn-mnist", artefacts.BUDGET),
    "digits": _plan("digits", artefacts.BUDGET),
    "watch": Case(watch, lambda setting: tasks.watch(setting.assets), "accuracy_drop<=0.01"),
    "shuttle": Case(shuttle, lambda setting: tasks.shuttle(setting.assets), "accuracy_drop<=0.01"),
}


def _pretrained(setting: Setting, name: str, make: Callable[..., Model]) -> Model:
    return setting.store().model(key_of("benchmark", name, 2), lambda: make(cache=setting.assets))


@dataclass(frozen=True, eq=False)
class Searched:
    """A case, its float model, and what a search over some engines returned."""

    name: str
    task: Task
    baseline: Model
    result: Result
    cache: Path

    @property
    def winner(self) -> Candidate:
        """The winning candidate."""
        return self.result.candidates[self.result.summary.winner]

    @property
    def changed(self) -> bool:
        """Whether the search returned something other than the file it was given."""
        return self.result.winner.digest != self.baseline.digest

    def floats(self) -> dict[str, Model]:
        """The float32 form of the model for each engine that has one; the model as given for its own."""
        found = {}
        target = Target.detect()
        for rung in ladder(self.baseline, ENGINES, target):
            if rung.exact:
                try:
                    found[rung.engine] = self.made(rung.steps)
                except UnsupportedError as error:
                    print(f"  {self.name}: no float32 in {rung.engine}: {error}", flush=True)
        return found

    def made(self, steps: Any) -> Model:
        """What steps make of the float model, out of the cache where it is there."""
        return apply(steps, self.baseline, Target.detect(), self.task, Cache(self.cache))[0]


@functools.cache
def searched(setting: Setting, name: str, engines: tuple[str, ...] = ENGINES) -> Searched:
    """The search of a case over engines."""
    case, label = CASES[name], f"{name} in {' '.join(engines)}"
    model, task = case.model(setting), case.task(setting)
    print(f"  {label}: searching", flush=True)
    place = setting.cache / "engines" / f"{name}-{'-'.join(engines)}"
    result = optimize(
        model, task, "this", case.budget, place, engines=engines, threads=THREADS, cache=setting.cache
    )
    print(f"  {label}: {result.summary.sentence}", flush=True)
    return Searched(name, task, model, result, setting.cache)


def everything(found: Searched, *splits: str) -> Task:
    """A task whose test split holds all samples of some splits."""
    parts = [found.task.split(name) for name in splits]  # type: ignore[arg-type]
    inputs = {
        key: np.concatenate([np.asarray(part.inputs[key]) for part in parts]) for key in parts[0].inputs
    }
    labels = None if parts[0].labels is None else np.concatenate([np.asarray(part.labels) for part in parts])
    groups, start = [], 0
    for part in parts:  # photos of different splits are different photos
        own = np.arange(len(part)) if part.groups is None else np.unique(part.groups, return_inverse=True)[1]
        groups.append(own + start)
        start += int(own.max()) + 1
    whole = Split(inputs, labels, groups=np.concatenate(groups))
    return Task(
        found.task.name, {"test": whole}, found.task.metric, labels=found.task.labels, form=found.task.form
    )


def outputs(task: Task, model: Model, engine: str, how: EngineOptions | None = None) -> dict[str, Any]:
    """What a model answers to the test split."""
    with open_engine(model, engine, how) as opened:
        return dict(bench.outputs(opened, model.manifest, task, task.split("test")))


def compared(metric: Metric, task: Task, base: dict[str, Any], other: dict[str, Any]) -> Interval:
    """A metric of a model's answers, with those of the float model as its reference, clustered by group."""
    split = task.split("test")
    return metric.score(other, split.labels, base, split.groups)


# Other tools ---------------------------------------------------------------------------------------------------------


def nncf_default(found: Searched) -> Model:
    """What ``nncf.quantize`` makes of the file with its default options, saved by OpenVINO."""
    import nncf
    import openvino

    graph = openvino.Core().read_model(str(found.baseline.file))
    quantized = nncf.quantize(graph, nncf.Dataset(samples(found, found.baseline)))
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(quantized, str(Path(folder) / "model.xml"), compress_to_fp16=False)
        manifest = checked(found.baseline.manifest, format="openvino")
        files = {name: Path(folder) / name for name in ("model.xml", "model.bin")}
        return Model.create(manifest, files)


def ai_edge_quantizer(found: Searched) -> Model:
    """What ai-edge-quantizer makes of our float TFLite file with its recipe for static int8."""
    from ai_edge_quantizer import quantizer, recipe

    given = found.floats()["litert"]
    tool = quantizer.Quantizer(str(given.file))
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    calibration = {"serving_default": samples(found, given)}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model.tflite"
        tool.quantize(tool.calibrate(calibration)).export_model(str(place))
        data = place.read_bytes()
    return Model.create(_integers(given.manifest, data), {"model.tflite": data})


def _integers(manifest: Manifest, data: bytes) -> Manifest:
    """A manifest with the element types and scales of a file's inputs and outputs."""
    from ai_edge_litert.interpreter import Interpreter

    reader = Interpreter(model_content=data)

    def spec(old: TensorSpec, detail: Any) -> TensorSpec:
        dtype = np.dtype(detail["dtype"]).name
        scale, zero = detail["quantization"]
        if not dtype.startswith(("int", "uint")):
            return old
        return replace(old, dtype=dtype, scale=float(scale), zero_point=int(zero))

    return checked(
        manifest,
        inputs=(spec(manifest.inputs[0], reader.get_input_details()[0]),),
        outputs=(spec(manifest.outputs[0], reader.get_output_details()[0]),),
    )


def samples(found: Searched, model: Model) -> list[dict[str, Any]]:
    """Calibration samples for another tool, one by one: those that our own passes see."""
    split = found.task.split("calibration")
    return [
        bench.feeds(found.task, split, model.manifest, [index])
        for index in range(min(artefacts.CALIBRATION, len(split)))
    ]


LITERT_TORCH = """
import sys, torch, litert_torch
from farthing.forge import nets
name, weights, place = sys.argv[1:]
net = getattr(nets, name)()
net.load_state_dict(torch.load(weights, weights_only=True))
example = (torch.zeros(1, 224, 224, 3),)
litert_torch.convert(litert_torch.to_channel_last_io(net.eval(), args=[0]).eval(), example).export(place)
"""


def litert_torch(name: str, net: nn.Module, manifest: Manifest, python: str) -> Model:
    """What litert-torch writes for a network of ours, in channels-last form as its guide advises.

    Args:
        python: an interpreter that has litert_torch (a gigabyte, in an environment of its own).

    Raises:
        FarthingError: it is not installed there, or fails.
    """
    source = str(Path(__file__).resolve().parents[2] / "src")
    with tempfile.TemporaryDirectory() as folder:
        weights, place = Path(folder) / "weights.pt", Path(folder) / "model.tflite"
        torch.save(net.state_dict(), weights)
        done = subprocess.run(
            [python, "-c", LITERT_TORCH, name, str(weights), str(place)],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": source, "HOME": folder},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["nothing said"]
            raise FarthingError(f"litert-torch in {python}: {said[-1]}")
        data = place.read_bytes()
    return Model.create(_own_names(manifest, data), {"model.tflite": data})


def _own_names(manifest: Manifest, data: bytes) -> Manifest:
    """A manifest with the tensor names and the fixed batch of a file."""
    from ai_edge_litert.interpreter import Interpreter

    reader = Interpreter(model_content=data)
    given, answered = reader.get_input_details()[0], reader.get_output_details()[0]

    def spec(old: TensorSpec, detail: Any) -> TensorSpec:
        shape = tuple(int(size) for size in detail["shape"])
        return TensorSpec(
            name=detail["name"],
            dtype="float32",
            shape=shape,
            batch_axis=0,
            layout="NHWC" if len(shape) == 4 else "",
        )

    return checked(
        manifest,
        format="tflite",
        inputs=(spec(manifest.inputs[0], given),),
        outputs=(spec(manifest.outputs[0], answered),),
    )


def transposes(model: Model) -> int:
    """TRANSPOSE operators in a TFLite file."""
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.ModelT.InitFromPackedBuf(model.file.read_bytes(), 0)
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in graph.operatorCodes]
    return sum(
        codes[operator.opcodeIndex] == schema.BuiltinOperator.TRANSPOSE
        for part in graph.subgraphs
        for operator in part.operators
    )
