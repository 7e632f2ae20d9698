"""A small transformer that reads scikit-learn's digits as words: two neighbouring pixels are one of 289."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from farthing.forge.encoders import Layer
from farthing.forge.fuse import Fuse
from farthing.forge.training.loop import train
from farthing.forge.training.losses import CrossEntropy
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.model import Manifest, Model, TensorSpec
from farthing.target import Target
from farthing.task import Split, Task

Array = NDArray[Any]
VNNI = Target(name="vnni", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"))


class Reader(nn.Module):
    """Embeddings, two layers of attention, the mean over the words, a layer for the classes."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.words = nn.Embedding(17 * 17, width)
        self.places = nn.Parameter(torch.randn(32, width) / 4)
        self.layers = nn.ModuleList(Layer(width, 4, 2 * width) for _ in range(2))
        self.classes = nn.Linear(width, 10)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words.long()) + self.places
        for layer in self.layers:
            x = layer(x, torch.zeros(1))
        answer: Tensor = self.classes(x.mean(1))
        return answer


@pytest.fixture(scope="session")
def words(digits: tuple[Array, Array]) -> Array:
    """(n, 32) of int64, 0..288."""
    pixels = (digits[0] * 16).round().astype(np.int64).reshape(-1, 32, 2)
    return np.asarray(pixels[..., 0] * 17 + pixels[..., 1])


@pytest.fixture(scope="session")
def words_task(words: Array, digits: tuple[Array, Array]) -> Task:
    cut = {"calibration": (0, 128), "validation": (1000, 1400), "test": (1400, 1797)}
    splits = {name: Split({"": words[a:b]}, digits[1][a:b]) for name, (a, b) in cut.items()}
    return Task("digits in words", splits, "top1", labels="0123456789")


@pytest.fixture(scope="session")
def reader_net(words: Array, digits: tuple[Array, Array]) -> nn.Module:
    torch.manual_seed(0)
    net = Reader()
    samples = Samples.of_arrays(words[:1000].astype(np.float32), digits[1][:1000])
    train(net, samples, CrossEntropy(), Schedule(epochs=8, batch=64, lr=0.003, bf16=False))
    return net


@pytest.fixture(scope="session")
def words_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[nn.Module], Model]:
    """A function that makes a Model of a net that takes words."""

    def make(net: nn.Module) -> Model:
        buffer = io.BytesIO()
        free = {"words": {0: "batch"}, "logits": {0: "batch"}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            example = (torch.zeros(2, 32, dtype=torch.int64),)
            names: dict[str, Any] = {
                "input_names": ["words"],
                "output_names": ["logits"],
                "dynamic_axes": free,
            }
            torch.onnx.export(net.eval(), example, buffer, dynamo=False, opset_version=17, **names)
        given = TensorSpec(name="words", dtype="int64", shape=("batch", 32), batch_axis=0)
        answer = TensorSpec(name="logits", dtype="float32", shape=("batch", 10), batch_axis=0)
        manifest = Manifest(name="reader", format="onnx", inputs=(given,), outputs=(answer,), decode="logits")
        return Model.create(
            manifest, {"model.onnx": buffer.getvalue()}, tmp_path_factory.mktemp("reader") / "m"
        )

    return make


@pytest.fixture(scope="session")
def reader(reader_net: nn.Module, words_task: Task, words_model: Callable[[nn.Module], Model]) -> Model:
    """The trained transformer, constants folded."""
    return Fuse()(words_model(reader_net), VNNI, words_task)
