"""Small nets trained in-process on scikit-learn's real digits (8 x 8 pixels), as models and tasks."""

from __future__ import annotations

import copy
import io
import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import nn

from farthing import plugins
from farthing.bench import Rule
from farthing.forge import optimize
from farthing.forge.ladder import rounds
from farthing.forge.training.loop import train
from farthing.forge.training.losses import CrossEntropy
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.model import Manifest, Model, TensorSpec
from farthing.recipe import Result
from farthing.target import Target
from farthing.task import Split, Task

Array = NDArray[Any]
CUT = {"train": (0, 1000), "calibration": (0, 128), "validation": (1000, 1400), "test": (1400, 1797)}


@pytest.fixture(scope="session")
def digits() -> tuple[Array, Array]:
    """1,797 pictures (n, 1, 8, 8), values 0..1, in a fixed random order, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = (data.images[order, None] / 16).astype(np.float32)
    return x, data.target[order].astype(np.int64)


@pytest.fixture(scope="session")
def digits_task(digits: tuple[Array, Array]) -> Task:
    x, y = digits
    splits = {name: Split({"": x[a:b]}, y[a:b]) for name, (a, b) in CUT.items()}
    return Task("digits", splits, "top1", labels="0123456789")


def trained(net: nn.Module, digits: tuple[Array, Array], epochs: int) -> nn.Module:
    x, y = digits
    samples = Samples.of_arrays(x[:1000], y[:1000])
    train(net, samples, CrossEntropy(), Schedule(epochs=epochs, batch=64, lr=0.01, bf16=False))
    return net


def block(i: int, o: int) -> list[nn.Module]:
    return [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]


@pytest.fixture(scope="session")
def cnn_net(digits: tuple[Array, Array]) -> nn.Module:
    """Three convolutions with batch normalization, some 97 % of digits right."""
    torch.manual_seed(0)
    pool = nn.MaxPool2d(2)
    layers = [*block(1, 16), *block(16, 32), pool, *block(32, 32), pool, nn.Flatten(), nn.Linear(128, 10)]
    return trained(nn.Sequential(*layers), digits, epochs=6)


@pytest.fixture(scope="session")
def mlp_net(digits: tuple[Array, Array]) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)]
    return trained(nn.Sequential(*layers), digits, epochs=4)


def onnx_bytes(net: nn.Module, batch: int | None = None, opset: int = 17, fold: bool = True) -> bytes:
    """A net as ONNX by the exporter that traces; ``batch`` fixes the batch, else it is free."""
    buffer = io.BytesIO()
    mode = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            (torch.zeros(batch or 2, 1, 8, 8),),
            buffer,
            dynamo=False,
            opset_version=opset,
            training=mode,
            do_constant_folding=fold,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes=None if batch else {"image": {0: "batch"}, "logits": {0: "batch"}},
        )
    return buffer.getvalue()


MakeModel = Callable[..., Model]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """A function that makes a Model of digits from a torch net, ONNX bytes or an ONNX graph."""

    def make(source: nn.Module | bytes | onnx.ModelProto, batch: int | None = None, **export: Any) -> Model:
        if isinstance(source, nn.Module):
            source = onnx_bytes(source, batch, **export)
        data = source if isinstance(source, bytes) else source.SerializeToString()
        return Model.create(manifest(batch), {"model.onnx": data}, tmp_path_factory.mktemp("model") / "m")

    return make


def manifest(batch: int | None = None, outputs: Sequence[str] = ("logits",)) -> Manifest:
    size = batch or "batch"
    image = TensorSpec(name="image", dtype="float32", shape=(size, 1, 8, 8), batch_axis=0, layout="NCHW")
    answers = [TensorSpec(name=name, dtype="float32", shape=(size, 10), batch_axis=0) for name in outputs]
    labels = tuple("0123456789")
    return Manifest(
        name="digits", format="onnx", inputs=(image,), outputs=tuple(answers), decode="logits", labels=labels
    )


@pytest.fixture(scope="session")
def cnn(cnn_net: nn.Module, make_model: MakeModel) -> Model:
    """The trained CNN with its batch normalization not yet folded."""
    return make_model(cnn_net, fold=False)


@pytest.fixture(scope="session")
def scaled(cnn_net: nn.Module, make_model: MakeModel) -> Model:
    """The CNN with the channels between its first two convolutions scaled by powers of 4, and scaled back after.

    ReLU lets a positive factor through, so in float nothing changes; in 8 bits with one scale for the tensor
    only the largest four channels are left (the reverse of Nagel et al. 2019, https://arxiv.org/abs/1906.04721).
    """
    net = copy.deepcopy(cnn_net)
    factors = 4.0 ** torch.arange(16)
    norm, after = net[1], net[3]
    with torch.no_grad():
        norm.weight *= factors
        norm.bias *= factors
        after.weight /= factors[None, :, None, None]
    return make_model(net)


@pytest.fixture(scope="session")
def stubborn(scaled: Model, make_model: MakeModel) -> Model:
    """The scaled CNN with a second reader of what lies between the two convolutions, which counts for nothing.

    So its channels cannot be evened out: only operators in float are left.
    """
    proto = onnx.load(scaled.file)
    relu = next(node.output[0] for node in proto.graph.node if node.op_type == "Relu")
    proto.graph.node[-1].output[0] = "answer"
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((8 * 8 * 16, 10), np.float32), "zero"))
    proto.graph.node.append(helper.make_node("Flatten", [relu], ["flat"]))
    proto.graph.node.append(helper.make_node("MatMul", ["flat", "zero"], ["nothing"]))
    proto.graph.node.append(helper.make_node("Add", ["answer", "nothing"], ["logits"]))
    return make_model(proto)


@pytest.fixture(scope="session")
def slowed(cnn: Model, make_model: MakeModel) -> Model:
    """The CNN with sixty products added that count for nothing."""
    proto = onnx.load(cnn.file)
    idle = proto.graph.node[-1].output[0] = "answer"
    eye = numpy_helper.from_array(np.eye(64, dtype=np.float32), "eye")
    zero = numpy_helper.from_array(np.zeros((64, 10), np.float32), "zero")
    proto.graph.initializer.extend([eye, zero])
    names = ["idle", *(f"idle{i}" for i in range(60))]
    nodes = [helper.make_node("MatMul", [a, "eye"], [b]) for a, b in itertools.pairwise(names)]
    nodes.insert(0, helper.make_node("Flatten", ["image"], ["idle"]))
    nodes.append(helper.make_node("MatMul", [names[-1], "zero"], ["nothing"]))
    nodes.append(helper.make_node("Add", [idle, "nothing"], ["logits"]))
    proto.graph.node.extend(nodes)
    return make_model(proto)


Search = Callable[..., Result]


@pytest.fixture
def search(tmp_path: Path, cache_root: Path, digits_task: Task, monkeypatch: pytest.MonkeyPatch) -> Search:
    """A search with short races, one thread and a cache that tests share; the output is ``tmp_path / "out"``."""
    monkeypatch.setattr(rounds, "SPRINT", Rule(warmup=2, min_count=5, min_seconds=0.05))
    monkeypatch.setattr(rounds, "FINAL", Rule(warmup=2, min_count=20, min_seconds=0.15))
    monkeypatch.setattr(rounds, "FINALISTS", 2)

    def run(model: Model, task: Task = digits_task, **options: Any) -> Result:
        options = {
            "out": tmp_path / "out",
            "cache": cache_root,
            "engines": ("onnxruntime",),
            "threads": (1,),
            **options,
        }
        return optimize.optimize(model, task, **options)

    return run


@pytest.fixture(scope="session")
def mlp(mlp_net: nn.Module, make_model: MakeModel) -> Model:
    return make_model(mlp_net)


@pytest.fixture(scope="session")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that tests share, as runs do."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is known in that test only."""
    monkeypatch.setattr(plugins, "_registered", dict(plugins._registered))


VNNI = Target(name="vnni", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"), cores=1)
PLAIN_X86 = Target(name="old", arch="x86_64", isa=("avx2",), cores=1)
ARM = Target(name="arm", arch="aarch64", isa=("asimd", "asimddp"), cores=4)


@pytest.fixture(params=[VNNI, PLAIN_X86, ARM], ids=lambda target: target.name)
def any_target(request: pytest.FixtureRequest) -> Target:
    return request.param  # type: ignore[no-any-return]
