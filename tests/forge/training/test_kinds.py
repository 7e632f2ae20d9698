"""Networks of other kinds than classifiers of pictures are trained on from their ONNX files, each by its own loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import farthing
from farthing.forge.convert import convert
from farthing.forge.training.finetune import FineTune
from farthing.forge.training.schedule import Schedule
from farthing.model import Manifest, Model, TensorSpec
from farthing.target import Target
from farthing.task import Split, Task

TARGET = Target.find("this")


class Segmenter(nn.Module):
    """Halves the picture and brings it back to size."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.last = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.relu(self.up(self.down(x))))
        return found


class Recurrent(nn.Module):
    """Reads a picture row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.LSTM(8, 24, batch_first=True)
        self.last = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows, _ = self.read(x)
        found: Tensor = self.last(rows[:, -1])
        return found


class Attentive(nn.Module):
    """A transformer of one layer over the rows of a picture, written out as exporters see it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.place = nn.Parameter(torch.randn(8, 16) * 0.1)
        self.queries, self.keys, self.values = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.norms = nn.ModuleList([nn.LayerNorm(16), nn.LayerNorm(16)])
        self.dense = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.last = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place
        weights = torch.softmax(self.queries(x) @ self.keys(x).transpose(1, 2) / 4, -1)
        x = self.norms[0](x + weights @ self.values(x))
        x = self.norms[1](x + self.dense(x))
        found: Tensor = self.last(x.mean(1))
        return found


class Reconstruction(nn.Module):
    """An autoencoder whose answer is its error."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 64))

    def forward(self, x: Tensor) -> Tensor:
        gap = self.inner(x) - x
        return (gap * gap).mean(1, keepdim=True)


class Embedding(nn.Module):
    """A vector for each picture; nobody says what it means."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return found


def made(net: nn.Module, x: Any) -> Model:
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", *x.shape[1:]), batch_axis=0)
    manifest = Manifest(name=type(net).__name__.lower(), format="onnx", inputs=(spec,), outputs=())
    return convert(net, name=manifest.name, example=x[:2], samples={"x": x[:8]}, manifest=manifest).model


def task(metric: str, x: Any, y: Any) -> Task:
    splits = {name: slice(*cut) for name, cut in {"train": (0, 1200), "validation": (1200, 1797)}.items()}
    return Task(
        "d",
        {name: Split({"": x[cut]}, None if y is None else y[cut]) for name, cut in splits.items()},
        metric,
    )


CASES = {
    "segmentation": (Segmenter, "miou", 0.8),
    "recurrent": (Recurrent, "top1", 0.7),
    "transformer": (Attentive, "top1", 0.7),
    "autoencoder": (Reconstruction, "auc", 0.85),
    "regression": (Embedding, "error", -0.2),
}


@pytest.mark.parametrize("kind", CASES)
def test_from_nothing_to_something(kind: str, digits: Any) -> None:
    """The untrained file goes in; what comes out, in an engine, has learned."""
    torch.manual_seed(0)
    x, y = digits
    flat = x.reshape(-1, 64)
    net, metric, least = CASES[kind]
    noisy = np.clip(x + np.random.default_rng(0).normal(0, 0.2, x.shape), 0, 1).astype(np.float32)
    data: dict[str, tuple[Any, Any]] = {
        "segmentation": (noisy, (x[:, 0] > 0.5).astype(np.int64)),
        "recurrent": (x[:, 0], y),
        "transformer": (x[:, 0], y),
        "autoencoder": (flat, (y != 0).astype(np.int64)),
        "regression": (flat, flat[:, :16]),
    }
    own = task(metric, *data[kind])
    if kind == "autoencoder":
        train = own.splits["train"]
        assert train.labels is not None
        own.splits["train"] = train.subset(np.flatnonzero(train.labels == 0))
    model = made(net(), data[kind][0])
    schedule = Schedule(epochs=12, batch=64, lr=0.01, bf16=kind != "regression")
    trained = FineTune(schedule=schedule)(model, TARGET, own)
    before, after = (farthing.evaluate(one, own, "validation")[0].value for one in (model, trained))
    sign = 1 if own.metric.higher_is_better else -1
    assert sign * after > sign * before
    assert sign * after > least


def test_embeddings_come_back_to_those_of_the_model_they_were_made_of(digits: Any) -> None:
    """Nobody has labels; the float model is the truth, and the teacher."""
    torch.manual_seed(0)
    x = digits[0].reshape(-1, 64)
    own, net = task("cosine", x, None), Embedding()
    model = made(net, x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    shaken = made(net, x)
    place = model.save(shaken.path.with_name("teacher")).path
    schedule = Schedule(epochs=8, batch=64, lr=0.01, bf16=False)
    mended = FineTune(schedule=schedule, teacher=str(place))(shaken, TARGET, own)
    before, after = (
        farthing.evaluate(one, own, "validation", reference=model)[0].value for one in (shaken, mended)
    )
    assert after > 0.99 > before
