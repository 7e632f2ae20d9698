"""Trained networks and what a search makes of them, kept in a cache so that a second run only measures."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime import quantization
from torch import nn

from farthing import bench
from farthing.assets import default_cache
from farthing.bench import Rule
from farthing.forge import nets
from farthing.forge.cache import Cache, key_of
from farthing.forge.convert import convert
from farthing.forge.optimize import optimize
from farthing.forge.quantize.calibrate import quiet
from farthing.forge.training.loop import train
from farthing.forge.training.losses import loss_of
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.model import Manifest, Model, Preprocess, TensorSpec
from farthing.recipe import Result
from farthing.task import Split, Task
from farthing.tasks import MNIST_PREPROCESS, digits, mnist_5k

PEER = "quantize_static"
BUDGET = "accuracy_drop<=0.01"
SEEDS = (0, 1, 2)
EPOCHS = 10
NOISE_SAMPLES = 32
CALIBRATION = 256
CHUNK = 16
FULL = Rule(min_count=200, min_seconds=4.0, max_seconds=60.0)


@dataclass(frozen=True)
class Setting:
    """Where a benchmark keeps its things, and how long it measures.

    Attributes:
        cache: directory of trained networks, of passes and of searches.
        assets: directory that data sets are fetched into.
        rule: length of a race.
        processes: starts of each interpreter in a race of processes.
    """

    cache: Path = field(default_factory=lambda: default_cache() / "benchmarks")
    assets: Path = field(default_factory=default_cache)
    rule: Rule = FULL
    processes: int = 30

    def store(self) -> Cache:
        """The cache of models and values."""
        return Cache(self.cache)


@dataclass(frozen=True, eq=False)
class Found:
    """A float model, what the search returned for it, and what the peer makes of the same file."""

    name: str
    task: Task
    baseline: Model
    result: Result
    peer: Model

    @property
    def changed(self) -> bool:
        """Whether the search returned something other than the file it was given."""
        return self.result.winner.digest != self.baseline.digest

    @property
    def threads(self) -> tuple[int, int, int]:
        """Threads of baseline (its best), winner and peer (the winner's)."""
        own = self.result.recipe.options.threads
        return self.result.candidates[0].options.threads, own, own


@dataclass(frozen=True)
class Plan:
    """How a case gets its model: ``seeds`` networks, each trained (or only settled) and searched under ``budget``.

    ``threads`` are those the search may try; empty leaves the choice to it.
    """

    net: Callable[[], nn.Module]
    task: Callable[[Path], Task]
    side: int
    channels: int = 1
    classes: int = 10
    preprocess: Preprocess | None = None
    seeds: tuple[int, ...] = (0,)
    budget: str = BUDGET
    threads: tuple[int, ...] = (1,)


def noise(assets: Path) -> Task:
    """Seeded random-normal pictures without labels: enough to time and to drive a search, no word on accuracy."""
    del assets  # fetches nothing
    generator = np.random.default_rng(0)

    def some() -> Split:
        return Split({"": generator.standard_normal((NOISE_SAMPLES, 3, 224, 224), np.float32)})

    return Task("random-normal", {"calibration": some(), "validation": some(), "test": some()}, "cosine")


def small_digits_net() -> nn.Sequential:
    """For 8 x 8 digits: two convolutions and a hidden layer, 149,130 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def tiny_digits_net() -> nn.Sequential:
    """For 8 x 8 digits: 650 parameters, so little work that converting to int8 and back costs more than it saves."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


PLANS = {
    "resnet18": Plan(nets.resnet18, noise, 224, 3, 1000, budget="accuracy_drop<=0.05"),
    "resnet8-mnist": Plan(nets.resnet8, mnist_5k, 28, preprocess=MNIST_PREPROCESS, seeds=SEEDS),
    "cnn-mnist": Plan(nets.digits_cnn, mnist_5k, 28, preprocess=MNIST_PREPROCESS, seeds=SEEDS),
    "cnn-any-threads": Plan(nets.digits_cnn, mnist_5k, 28, preprocess=MNIST_PREPROCESS, threads=()),
    "digits": Plan(small_digits_net, digits, 8),
    "tiny": Plan(tiny_digits_net, digits, 8),
}


def manifest(name: str, plan: Plan, task: Task) -> Manifest:
    """What a runner must know about the network of a plan."""
    shape = ("batch", plan.channels, plan.side, plan.side)
    return Manifest(
        name=name,
        format="onnx",
        inputs=(TensorSpec(name="input", dtype="float32", shape=shape, batch_axis=0, layout="NCHW"),),
        outputs=(
            TensorSpec(
                name="output", dtype="float32", shape=("batch", plan.classes), batch_axis=0, layout="NC"
            ),
        ),
        preprocess=plan.preprocess,
        task=task.name,
        decode="logits",
        labels=task.labels,
    )


@functools.cache
def data(setting: Setting, name: str) -> Task:
    """The task of a plan."""
    return PLANS[name].task(setting.assets)


@functools.cache
def baseline(setting: Setting, name: str, seed: int) -> Model:
    """The float model of a plan, made once and kept."""
    plan, task = PLANS[name], data(setting, name)
    key = key_of("benchmark", name, seed, task.digest, EPOCHS, str(plan.net()), str(torch.__version__))
    return setting.store().model(key, lambda: trained(f"{name}-{seed}", plan, task, seed))


@functools.cache
def searched(setting: Setting, name: str) -> tuple[Found, ...]:
    """What the search returns for each seed of a plan."""
    return tuple(_search(setting, name, seed) for seed in PLANS[name].seeds)


def _search(setting: Setting, name: str, seed: int) -> Found:
    task, label = data(setting, name), f"{name}-{seed}"
    print(f"  {label}: making, searching", flush=True)
    given = baseline(setting, name, seed)
    place = setting.cache / "results" / label
    plan = PLANS[name]
    result = optimize(
        given,
        task,
        "this",
        plan.budget,
        place,
        engines=("onnxruntime",),
        threads=plan.threads,
        cache=setting.cache,
    )
    print(f"  {label}: {result.summary.sentence}", flush=True)
    key = key_of("peer", given.digest, task.digest, onnxruntime.__version__)
    return Found(label, task, given, result, setting.store().model(key, lambda: peer(given, task)))


def trained(name: str, plan: Plan, task: Task, seed: int) -> Model:
    """The network of a plan as a float model: trained on the task's train split; without one, untrained."""
    torch.manual_seed(seed)
    module = plan.net()
    blank = manifest(name, plan, task)
    if "train" in task.splits:
        train(module, Samples(task, blank), loss_of(task, blank), Schedule(epochs=EPOCHS, seed=seed))
    else:
        nets.settle(module, (4, plan.channels, plan.side, plan.side), seed)
        module.eval()
    samples = bench.feeds(task, task.split("validation"), blank, range(8))
    return convert(module, name=name, example=samples["input"][:2], samples=samples, manifest=blank).model


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Calibration samples for the peer: those that our own passes see."""

    def __init__(self, model: Model, task: Task) -> None:
        split = task.split("calibration")
        order = np.arange(min(CALIBRATION, len(split)))
        self._feeds: Iterator[dict[str, Any]] = (
            bench.feeds(task, split, model.manifest, order[start : start + CHUNK])
            for start in range(0, len(order), CHUNK)
        )

    def get_next(self) -> Any:
        return next(self._feeds, None)


def peer(model: Model, task: Task) -> Model:
    """What ``onnxruntime.quantization.quantize_static`` makes of a file with its default options."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        place = Path(folder) / "model.onnx"
        quantization.quantize_static(str(model.file), str(place), Reader(model, task))
        return Model.create(model.manifest, {"model.onnx": place})
