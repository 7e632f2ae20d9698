"""Training on the real data of built-in tasks: what the schedule's defaults and the tasks' own losses reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from farthing import tasks
from farthing.bench import feeds
from farthing.errors import AssetError
from farthing.forge.families import Architecture, Stage
from farthing.forge.training.loop import predict, train
from farthing.forge.training.losses import loss_of
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.model import Manifest, Preprocess, TensorSpec
from farthing.task import Task


def task_of(make: Callable[[], Task]) -> Task:
    try:
        return make()
    except AssetError as error:
        pytest.skip(str(error))


def trained(net: nn.Module, task: Task, shape: tuple[int, ...], schedule: Schedule, **facts: Any) -> float:
    """The metric on the validation split, after training on the task's own split by its own loss."""
    layout = "NCHW" if len(shape) == 3 else ""
    spec = TensorSpec(name="x", dtype="float32", shape=("n", *shape), batch_axis=0, layout=layout)
    manifest = Manifest(name="net", format="onnx", inputs=(spec,), outputs=(), **facts)
    train(net, Samples(task, manifest), loss_of(task, manifest), schedule)
    split = task.split("validation")
    x = feeds(task, split, manifest, np.arange(len(split)))["x"]
    return task.metric.score({"y": predict(net, x)}, split.labels, None, split.groups).value


class Reconstruction(nn.Module):
    """An autoencoder of sensor readings whose answer is its error."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 4), nn.ReLU(), nn.Linear(4, 32), nn.ReLU()]
        self.inner = nn.Sequential(*layers, nn.Linear(32, 9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gap = self.inner(x) - x
        return (gap * gap).mean(1, keepdim=True)


@pytest.mark.slow
def test_anomalies_of_a_shuttle() -> None:
    """Normal readings only: the metric AUC makes the reconstruction error small."""
    torch.manual_seed(0)
    assert trained(Reconstruction(), task_of(tasks.shuttle), (9,), Schedule(epochs=5, batch=256)) > 0.997


@pytest.mark.slow
def test_exercises_of_people_never_seen() -> None:
    stages = (Stage(width=32, kernel=5, pool=(2, 2)), Stage(width=64, kernel=5, pool=(2, 2)), Stage(width=64))
    torch.manual_seed(0)
    net = Architecture(family="plain", stages=stages).build((6, 100), 7)
    assert trained(net, task_of(tasks.watch), (6, 100), Schedule(epochs=12)) > 0.75


@pytest.mark.slow
def test_handwriting() -> None:
    """Pictures of 8 bits, prepared as the manifest says, and moved a little in every epoch."""
    stages = (Stage(width=16, pool=(2, 2)), Stage(width=32, pool=(2, 2)))
    torch.manual_seed(0)
    net = Architecture(family="plain", stages=stages, pooling="flatten").build((1, 28, 28), 10)
    preprocess = Preprocess(colour="GRAY", scale=1 / 255, mean=(0.1307,), std=(0.3081,))
    schedule = Schedule(epochs=8, lr=0.01, augment="affine")
    assert trained(net, task_of(tasks.mnist_5k), (1, 28, 28), schedule, preprocess=preprocess) > 0.96
