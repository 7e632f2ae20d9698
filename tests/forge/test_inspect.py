"""Inspection: known figures for known nets, and honest gaps where something cannot be known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization
from torch import nn

from farthing.errors import ModelError
from farthing.forge import graph, macs, nets
from farthing.forge.convert import convert
from farthing.forge.inspect import Inspection, inspect
from farthing.model import Manifest, Model, TensorSpec

DIGITS_MACS = 28 * 28 * 32 * 9 + 14 * 14 * 64 * 32 * 9 + 3136 * 128 + 128 * 10


@pytest.fixture(scope="module")
def digits() -> Model:
    torch.manual_seed(0)
    return convert(nets.digits_cnn(), name="digits", example="1x1x28x28").model


def test_a_known_net(digits: Model) -> None:
    found = inspect(digits)
    assert (found.name, found.format, found.opset) == ("digits", "onnx", 17)
    assert (found.inputs, found.outputs) == (digits.manifest.inputs, digits.manifest.outputs)
    assert found.macs == DIGITS_MACS
    assert found.parameters is not None
    assert 421_642 <= found.parameters < 421_700  # a few constants may be stored beside the weights
    assert found.weights[0].dtype == "float32"
    assert found.weights[0].bytes == 4 * found.weights[0].count
    assert (found.operators["Conv"], found.operators["Gemm"]) == (2, 2)
    assert found.nodes == sum(found.operators.values())
    assert found.size_bytes == digits.size_bytes
    assert "CPUExecutionProvider" in found.providers
    assert found.runtime.startswith("onnxruntime 1.")
    assert found.notes == ()


def test_nodes_are_placed_as_they_run(digits: Model) -> None:
    found = inspect(digits)
    assert {placed.provider for placed in found.placement} == {"CPUExecutionProvider"}
    operators = [placed.operator for placed in found.placement]
    assert sum("Conv + Relu" in operator for operator in operators) == 2
    assert all(placed.microseconds >= 0 for placed in found.placement)
    assert found.placement[-1].shape == (1, 10)
    assert (found.activation_peak_bytes or 0) >= 28 * 28 * 32 * 4


def test_it_is_plain_data(digits: Model) -> None:
    found = inspect(digits)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Inspection) == found


def test_no_files_are_left_behind(digits: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inspect(digits)
    assert list(tmp_path.iterdir()) == []


def test_work_is_for_one_sample_whatever_is_fed(digits: Model) -> None:
    assert inspect(digits, {"input": np.zeros((4, 1, 28, 28), np.float32)}).macs == DIGITS_MACS
    fixed = convert(FixedBatch(), example="3x4").model
    assert fixed.manifest.inputs[0].fixed_batch == 3
    assert inspect(fixed).macs == 4 * 5


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(x.reshape(3, 4))
        return out


def test_a_published_figure() -> None:
    with torch.no_grad():
        model = convert(nets.resnet18(), example="1x3x64x64").model
    # 1.814 GMACs at 224 px: all but the last layer shrink with the area, 64 px has 4/49 of it
    at_224 = 1_814_073_344
    assert inspect(model).macs == (at_224 - 512_000) * 4 // 49 + 512_000


@pytest.mark.parametrize("form", [quantization.QuantFormat.QDQ, quantization.QuantFormat.QOperator])
def test_quantized_forms_count_the_same(digits: Model, tmp_path: Path, form: Any) -> None:
    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self.left = [{"input": np.random.default_rng(0).random((2, 1, 28, 28), np.float32)}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    out = tmp_path / "int8.onnx"
    quantization.quantize_static(str(digits.file), str(out), Reader(), quant_format=form, per_channel=True)
    found = inspect(out)
    assert found.macs == DIGITS_MACS
    assert {part.dtype for part in found.weights} >= {"int8", "float32"}


@pytest.mark.parametrize(
    ("module", "example", "expected"),
    [
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), "1x4x5x5", 5 * 5 * 4 * 3 * 9),
        (nn.Conv1d(4, 8, 3, groups=4), "1x4x10", 8 * 8 * 3),
        (nn.LSTM(4, 5, batch_first=True, bidirectional=True), "1x6x4", 6 * 2 * 4 * 5 * (4 + 5)),
        (nn.GRU(4, 5), "6x1x4", 6 * 3 * 5 * (4 + 5)),
    ],
    ids=["transposed", "depthwise", "lstm", "gru"],
)
def test_other_layers(module: nn.Module, example: str, expected: int) -> None:
    made = convert(module, example=example).model
    batch = made.manifest.inputs[0].fixed_batch or 1
    assert (inspect(made).macs or 0) * batch == expected


def product(nodes: list[onnx.NodeProto], shape: list[Any]) -> onnx.ModelProto:
    return helper.make_model(
        helper.make_graph(
            nodes,
            "product",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.ones((4, 4), np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def test_batched_products_and_transposed_factors() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Gemm", ["a", "w"], ["y"], transA=1),
    ]
    found, reason = macs.count(product(nodes, [4, 4]), {"x": np.ones((4, 4), np.float32)})
    assert (found, reason) == (64 + 64, "")


def test_work_that_cannot_be_counted_says_why() -> None:
    x = {"x": np.ones((4, 4), np.float32)}
    einsum = helper.make_node("Einsum", ["x", "w"], ["y"], equation="ij,jk->ik")
    assert macs.count(product([einsum], [4, 4]), x) == (None, "the operator Einsum is not counted")
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"])],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4, 4])],
    )
    condition = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    either = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    work, reason = macs.count(product([condition, either], [4, 4]), x)
    assert work is None
    assert "condition or loop" in reason


def test_a_file_without_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "bare.onnx"
    path.write_bytes(graph.save_bytes(product([helper.make_node("MatMul", ["x", "w"], ["y"])], ["n", 4])))
    found = inspect(path)
    assert found.name == "bare"
    assert found.macs == 16
    assert found.inputs[0].shape == ("n", 4)


def test_free_axes_need_feeds(tmp_path: Path) -> None:
    path = tmp_path / "free.onnx"
    path.write_bytes(
        graph.save_bytes(product([helper.make_node("MatMul", ["x", "w"], ["y"])], ["n", "rows", 4]))
    )
    found = inspect(path)
    assert found.macs is None
    assert found.placement == ()
    assert "free axes rows" in found.notes[0]
    assert inspect(path, {"x": np.ones((2, 3, 4), np.float32)}).placement


def test_other_formats_are_shown_as_far_as_known(tmp_path: Path) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 1), batch_axis=0)
    manifest = Manifest(name="f", format="fake", inputs=(spec,), outputs=(spec,))
    found = inspect(Model.create(manifest, {"m.json": b"{}"}, tmp_path / "fake"))
    assert found.format == "fake"
    assert found.operators == {}
    assert "ONNX" in found.notes[0]


def test_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError):
        inspect(tmp_path / "m.onnx")
    with pytest.raises(ModelError):
        inspect(tmp_path)
