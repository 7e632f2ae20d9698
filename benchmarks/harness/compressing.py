"""Networks, the recipes that compress them, and what comes of it over several seeds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from farthing import tasks
from farthing.config import plain
from farthing.errors import UnsupportedError
from farthing.forge.apply import apply
from farthing.forge.families import Architecture, Stage
from farthing.forge.ladder import COMPACT, FUSE, ladder
from farthing.measure import Interval
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.recipe import Step
from farthing.target import Target
from farthing.task import Task
from harness import artefacts, fleet
from harness.artefacts import Setting

ENGINE = "litert"
INT8 = Step(use="quantize.static.v1", options={"calibrator": "mse", "correct_biases": True})
TFLITE = Step(use="export.tflite.v1")
END = (INT8, TFLITE)
BATCH = 32


class Bars(NamedTuple):
    """What a recipe must reach: size and speed over the best float, mean drop in the metric; None for no bar."""

    smaller: float
    offline: float | None
    single: float | None
    drop: float


@dataclass(frozen=True)
class Case:
    """A network and a recipe for it.

    Attributes:
        model: its float model for a seed.
        seeds: how many it is trained with.
        steps: from float to the deployed file, which LiteRT runs.
        bars: to be reached.
    """

    model: Callable[[Setting, int], Model]
    task: Callable[[Setting], Task]
    seeds: int
    steps: tuple[Step, ...]
    bars: Bars


WATCH = {"/0/Conv": 16, "/4/Conv": 24, "/8/Conv": 32}
"""Less than half of the channels: ranked together, most would go from one layer, to the loss of new people."""


def pruned(left: float | Mapping[str, int], epochs: int, **schedule: Any) -> tuple[Step, ...]:
    """Channels out, the float network teaching what is left, then 8 bits.

    Args:
        left: the share of all channels to take out, or how many stay in each layer.
        epochs, schedule: of the training.
    """
    which = {"ratio": left} if isinstance(left, float) else {"widths": dict(left)}
    options = {**which, "teacher": "self", "schedule": {"epochs": epochs, "lr": 2e-3, **schedule}}
    return (FUSE, Step(use="prune.structured.v1", options=options), *END)


CNN_STUDENT = Architecture(
    family="plain",
    stages=(Stage(width=4, stride=2, depth=2), Stage(width=8, stride=2), Stage(width=16, stride=2, kernel=5)),
    pooling="flatten",
)
RESNET8_STUDENT = Architecture(
    family="plain",
    stages=(Stage(width=4, stride=2, depth=2), Stage(width=8, stride=2, kernel=5)),
    pooling="flatten",
)
"""What `farthing search` chose on MNIST-5k for LiteRT, taught by the network it stands in for: ten trials of at most 24
epochs each, within 1 point on validation. docs/how-to/search-an-architecture.md has the limits and the other finalists.
The searches are not repeated here: their outcome is data, and a benchmark of their outcome trains it anew."""


def student(architecture: Architecture, epochs: int, **schedule: Any) -> tuple[Step, ...]:
    """A network of another architecture taught by the float one, then 8 bits."""
    options = {
        "architecture": plain(architecture),
        "teacher": "self",
        "schedule": {"epochs": epochs, "lr": 5e-3, **schedule},
    }
    return (Step(use="distill.student.v1", options=options), FUSE, *END)


def _plan(name: str) -> tuple[Callable[[Setting, int], Model], Callable[[Setting], Task]]:
    return (
        lambda setting, seed: artefacts.baseline(setting, name, seed),
        lambda setting: artefacts.data(setting, name),
    )


CASES: dict[str, Case] = {
    "cnn-mnist, pruned": Case(
        *_plan("cnn-mnist"), 3, pruned(0.75, 30, augment="affine"), Bars(40, 7, 5, 1.0)
    ),
    "cnn-mnist, searched student": Case(
        *_plan("cnn-mnist"), 3, student(CNN_STUDENT, 60, augment="affine"), Bars(100, 14, 8, 1.0)
    ),
    "resnet8-mnist, pruned": Case(
        *_plan("resnet8-mnist"), 3, pruned(0.5, 40, augment="affine"), Bars(7, 5, 4, 1.0)
    ),
    "resnet8-mnist, searched student": Case(
        *_plan("resnet8-mnist"), 3, student(RESNET8_STUDENT, 60, augment="affine"), Bars(15, 20, 8, 1.0)
    ),
    "watch, pruned": Case(
        fleet.watch,
        lambda setting: tasks.watch(setting.assets),
        5,
        pruned(WATCH, 60, lr=3e-3, batch=64, weight_decay=0.5, augment="jitter"),
        Bars(9, 4, None, 1.0),
    ),
    "shuttle, pruned": Case(
        fleet.wide_shuttle,
        lambda setting: tasks.shuttle(setting.assets),
        1,
        pruned(0.4, 5),
        Bars(3.5, None, None, 0.2),
    ),
    "digits, pruned": Case(*_plan("digits"), 1, pruned(0.5, 2), Bars(4, 1, 1, 10)),
}
"""The last one is a quick trial of the benchmark itself, and no part of it unless asked for."""


@dataclass(frozen=True, eq=False)
class Compressed:
    """What a recipe made of a network trained with one seed."""

    task: Task
    baseline: Model
    result: Model


@functools.cache
def compressed(setting: Setting, name: str, seed: int) -> Compressed:
    """Train a network and compress it; both are kept."""
    case = CASES[name]
    print(f"  {name}, seed {seed}", flush=True)
    task, model = case.task(setting), case.model(setting, seed)
    steps = tuple(_seeded(step, seed) for step in case.steps)
    return Compressed(task, model, apply(steps, model, Target.detect(), task, setting.store())[0])


def _seeded(step: Step, seed: int) -> Step:
    if "schedule" not in step.options:
        return step
    return Step(
        use=step.use, options={**step.options, "schedule": {**step.options["schedule"], "seed": seed}}
    )


def floats(setting: Setting, baseline: Model, task: Task) -> dict[str, Model]:
    """The float32 form of a model for each engine that has one, without what a file can do without."""
    made, target = {}, Target.detect()
    for rung in ladder(baseline, fleet.ENGINES, target):
        if rung.exact:
            try:
                made[rung.engine] = apply(rung.steps, baseline, target, task, setting.store())[0]
            except UnsupportedError as error:
                print(f"  no float32 in {rung.engine}: {error}", flush=True)
    return made


def smallest(setting: Setting, baseline: Model, task: Task) -> int:
    """Bytes of the smallest float file: every engine's, and the ONNX file in its shortest form."""
    short = apply((FUSE, COMPACT), baseline, Target.detect(), task, setting.store())[0]
    return min(model.size_bytes for model in (short, *floats(setting, baseline, task).values()))


def drops(setting: Setting, name: str, seeds: int) -> tuple[Interval, list[float]]:
    """What the metric lost on the test split: over all seeds, each sample counted once for each, and for each seed.

    The samples are the same for every seed, so they are what is independent (or the groups that they belong to).
    """
    task = CASES[name].task(setting)
    split = task.split("test")
    pairs = [_answers(task, compressed(setting, name, seed)) for seed in range(seeds)]
    each = [task.metric.drop(base, ours, split.labels, base, split.groups) for base, ours in pairs]
    if seeds == 1:
        return each[0], [each[0].value]
    own = np.arange(len(split)) if split.groups is None else np.asarray(split.groups)
    labels = None if split.labels is None else np.tile(split.labels, seeds)
    base, ours = (_joined(side) for side in zip(*pairs, strict=True))
    whole = task.metric.drop(base, ours, labels, base, np.tile(own, seeds))
    return whole, [one.value for one in each]


def _answers(task: Task, found: Compressed) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs of the float network and of the deployed file on the test split."""
    base = fleet.outputs(task, found.baseline, "onnxruntime")
    return base, fleet.outputs(task, found.result, ENGINE, EngineOptions())


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
