"""Attention whose mask is minus infinity, as torch writes it: no scale fits that, and in float16 a runtime crashes."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from farthing.bench import evaluate
from farthing.errors import TaskError, UnsupportedError
from farthing.forge import graph
from farthing.forge.apart import in_child
from farthing.forge.convert import convert
from farthing.forge.fuse import Fuse
from farthing.forge.quantize.calibrate import ranges
from farthing.forge.quantize.float16 import Float16
from farthing.forge.quantize.gptq import Gptq
from farthing.forge.quantize.heads import joins
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.sensitivity.alone import HIGHEST, sqnr
from farthing.forge.study.widths import observed
from farthing.model import Model
from farthing.target import Target
from farthing.task import Split, Task

VNNI = Target(name="vnni", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"))
WORDS = 12


class Causal(nn.Module):
    """A word sees those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(300, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu", dropout=0.0)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classes = nn.Linear(32, 10)

    def forward(self, words: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(WORDS)
        answer: Tensor = self.classes(self.layers(self.words(words), mask=mask).mean(1))
        return answer


@pytest.fixture(scope="module")
def task() -> Task:
    words = np.random.default_rng(0).integers(0, 300, (40, WORDS))
    return Task("words", {name: Split({"": words}) for name in ("calibration", "validation")}, "cosine")


@pytest.fixture(scope="module")
def causal(task: Task) -> Model:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = convert(Causal().eval(), example=task.split("calibration").inputs[""][:2]).model
    return Fuse()(made, VNNI, task)


@pytest.mark.parametrize(
    "quantize", [StaticInt8(), StaticInt8(calibrator="mse"), StaticInt8(calibrator="percentile"), Gptq()]
)
def test_what_is_infinite_stays_float_and_all_else_is_rounded(
    causal: Model, task: Task, quantize: StaticInt8, recwarn: pytest.WarningsRecorder
) -> None:
    made = quantize(causal, VNNI, task)
    assert evaluate(made, task, "validation", reference=causal)[0].value > 0.995
    assert not [one for one in recwarn if issubclass(one.category, RuntimeWarning)]
    proto = graph.load(made.file)
    back = {node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    products = [node for node in proto.graph.node if node.op_type in {"MatMul", "Gemm"}]
    assert len(products) >= 12
    assert all(back.issuperset(node.input[:2]) for node in products)
    masks = [node for node in proto.graph.node if node.op_type == "Where"]
    assert masks
    assert not back.intersection(name for node in masks for name in node.input)


def test_infinite_tensors_have_no_range(causal: Model, task: Task) -> None:
    with_masks = {
        name for node in graph.load(causal.file).graph.node if node.op_type == "Where" for name in node.output
    }
    for calibrator in ("minmax", "entropy"):
        found = ranges(causal, task, calibrator, 99.99, 40)  # type: ignore[arg-type]
        assert found
        assert not with_masks.intersection(found)
    assert all(np.isfinite(ends).all() for ends in observed(causal, task).values())
    assert joins(causal, task, StaticInt8()) == []


def test_infinity_in_both_is_no_noise() -> None:
    masked = np.array([1.0, -np.inf, 3.0])
    assert sqnr(masked, masked) == HIGHEST
    assert sqnr(masked, masked + 0.1) == sqnr(masked[::2], masked[::2] + 0.1)
    assert sqnr(masked, np.array([1.0, 0.0, 3.0])) is None
    assert sqnr(np.array([1.0, 2.0]), np.array([1.0, np.inf])) is None
    assert sqnr(np.array([1.0, 2.0]), np.array([1.0, np.nan])) is None


def test_nan_is_refused_each_time_it_is_met(causal: Model, task: Task) -> None:
    proto = graph.load(causal.file)
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("classes.bias"):
            tensor.raw_data = np.full(10, np.nan, np.float32).tobytes()
    broken = Model.create(causal.manifest, {"model.onnx": graph.save_bytes(proto)})
    for quantize in (StaticInt8(), StaticInt8(per_channel=False), StaticInt8(calibrator="mse")):
        with pytest.raises(TaskError, match="is NaN on the calibration data"):
            quantize(broken, VNNI, task)


def test_float16_that_the_runtime_crashes_on_is_refused(causal: Model, task: Task) -> None:
    """ONNX Runtime 1.31 crashes on this one; a later one may not, and then it has to be right."""
    feeds = [{causal.manifest.inputs[0].name: task.split("validation").inputs[""][:2]}]
    said = ""
    try:
        made = Float16()(causal, VNNI, task)
    except UnsupportedError as refusal:
        said = str(refusal)
    else:
        assert in_child(made, "onnxruntime", "", "", feeds, 60).arrays
    assert not said or re.search(r"does not load .* in float16: its process crashed with SIGSEGV", said)
    kept = Float16(keep=("Transpose",))(causal, VNNI, task)
    assert kept.size_bytes < 0.8 * causal.size_bytes
    assert evaluate(kept, task, "validation", reference=causal)[0].value > 0.999
