"""Weights stored in 8 bits and widened when a model is loaded, held against rounding them in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from farthing.bench import evaluate
from farthing.errors import ConfigError, UnsupportedError
from farthing.forge import graph
from farthing.forge.apply import apply
from farthing.forge.cache import Cache
from farthing.forge.convert import convert
from farthing.forge.fuse import Compact, Fuse
from farthing.forge.ladder import WEIGHTS, ladder
from farthing.forge.openvino.export import ExportOpenvino
from farthing.forge.quantize.weights import WeightsOnly
from farthing.forge.sensitivity.precisions import Place, Weights, whole
from farthing.model import Model
from farthing.recipe import Step
from farthing.target import Target
from farthing.task import Split, Task

VNNI = Target(name="vnni", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"))


class Mixed(nn.Module):
    """Layers each of which lays out its weights in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 24, 5, padding=2, groups=2)
        self.turned = nn.ConvTranspose1d(24, 16, 4, stride=2)
        self.gru = nn.GRU(16, 32, batch_first=True)
        self.lstm = nn.LSTM(32, 24, batch_first=True, bidirectional=True)
        self.dense = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.turned(torch.relu(self.conv(x)))).transpose(1, 2)
        answer: Tensor = self.dense(self.lstm(self.gru(x)[0])[0][:, -1])
        return answer


@pytest.fixture(scope="module")
def task() -> Task:
    windows = np.random.default_rng(0).normal(size=(24, 6, 12)).astype(np.float32)
    return Task("w", {name: Split({"": windows}) for name in ("calibration", "validation")}, "cosine")


@pytest.fixture(scope="module")
def mixed(task: Task) -> Model:
    torch.manual_seed(0)
    made = convert(Mixed().eval(), example=task.split("validation").inputs[""][:2]).model
    return Fuse()(made, VNNI, task)


@pytest.fixture(scope="module")
def small(mixed: Model, task: Task) -> Model:
    return WeightsOnly(least=1)(mixed, VNNI, task)


def answers(model: Model, task: Task) -> np.ndarray:
    feeds = {model.manifest.inputs[0].name: task.split("validation").inputs[""]}
    return next(iter(graph.run(model.file.read_bytes(), feeds).values()))


def test_it_computes_what_rounded_weights_give(
    mixed: Model, small: Model, task: Task, tmp_path: Path
) -> None:
    before = mixed.file.read_bytes()
    rounded = whole(mixed, Weights(bits=8), Place(VNNI, task, Cache(tmp_path)))
    expected, found = answers(rounded, task), answers(small, task)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - answers(mixed, task)).max() > 1e-5, "rounding shows"
    assert mixed.file.read_bytes() == before
    kinds = {t.name: t.data_type for t in graph.load(small.file).graph.initializer}
    eight = [name for name, kind in kinds.items() if kind == TensorProto.INT8]
    assert len(eight) == 7
    assert small.size_bytes < 0.45 * mixed.size_bytes
    assert small.manifest.quantization is not None
    assert small.manifest.quantization.weights == "int8"
    assert WeightsOnly(least=1)(mixed, VNNI, task).digest == small.digest


def test_runtimes_widen_the_weights_once_when_they_load_them(small: Model, tmp_path: Path) -> None:
    graph.Session(small.file.read_bytes(), save=str(tmp_path / "loaded.onnx"))
    loaded = onnx.load(tmp_path / "loaded.onnx").graph
    assert not [node for node in loaded.node if node.op_type in {"Cast", "Mul"}]
    assert not [tensor for tensor in loaded.initializer if tensor.data_type == TensorProto.INT8]


def test_openvino_keeps_them_small(mixed: Model, small: Model, task: Task) -> None:
    pytest.importorskip("openvino")
    plain, packed = (ExportOpenvino()(model, VNNI, task) for model in (mixed, small))
    assert packed.size_bytes < 0.75 * plain.size_bytes
    assert evaluate(packed, task, "validation", engine="openvino", reference=mixed)[0].value > 0.9999


def test_what_is_excluded_or_small_stays_float(mixed: Model, task: Task) -> None:
    proto = graph.load(mixed.file)
    gru = next(node for node in proto.graph.node if node.op_type == "GRU")
    model = WeightsOnly(exclude=(gru.name,))(mixed, VNNI, task)
    made = graph.load(model.file).graph
    floats = {tensor.name for tensor in made.initializer if tensor.data_type == TensorProto.FLOAT}
    assert set(gru.input[1:3]) <= floats
    dims = {tensor.name: graph.elements(tensor) for tensor in made.initializer}
    assert min(count for name, count in dims.items() if name.endswith("/8")) >= 256
    with pytest.raises(UnsupportedError, match="has no layer with 100000 stored weights or more"):
        WeightsOnly(least=100_000)(mixed, VNNI, task)
    with pytest.raises(ConfigError, match="least is a whole number from 1, not 0"):
        WeightsOnly(least=0)


def test_weights_that_two_layers_share_are_stored_once(task: Task) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(6, 6, 9, padding=4)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.conv(torch.relu(self.conv(x)))
            return answer

    torch.manual_seed(0)
    model = Fuse()(
        convert(Shared().eval(), example=task.split("validation").inputs[""][:2]).model, VNNI, task
    )
    made = WeightsOnly()(model, VNNI, task)
    stored = [t for t in graph.load(made.file).graph.initializer if t.data_type == TensorProto.INT8]
    assert len(stored) == 1
    assert evaluate(made, task, "validation", reference=model)[0].value > 0.999


def test_a_search_offers_it_where_layers_keep_state(mixed: Model, cnn: Model) -> None:
    for engine in ("onnxruntime", "openvino"):
        [rung] = [rung for rung in ladder(mixed, [engine], VNNI) if rung.name == "int8 weights"]
        assert rung.steps[1].use == WEIGHTS
        assert rung.dtypes == ("float32",)
        assert "int8 weights" not in [rung.name for rung in ladder(cnn, [engine], VNNI)]


def test_no_step_widens_them_in_the_file_again(
    mixed: Model, small: Model, task: Task, tmp_path: Path
) -> None:
    assert Compact()(small, VNNI, task).size_bytes < small.size_bytes
    with pytest.raises(ConfigError, match="weights stored in 8 bits"):
        apply([Step(use=WEIGHTS), Step(use="graph.fuse.v1")], mixed, VNNI, task, Cache(tmp_path))
