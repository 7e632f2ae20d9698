"""Inspection of TFLite, OpenVINO and TorchScript: the same figures as for the ONNX file they were made of."""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from farthing.bench import Rule
from farthing.errors import ModelError
from farthing.forge import nets
from farthing.forge.convert import convert
from farthing.forge.inspect import Inspection, inspect
from farthing.forge.ladder.candidates import Listing
from farthing.model import Model, checked
from farthing.target import Budget, Target
from farthing.testing import fake_model

DIGITS_MACS = 28 * 28 * 32 * 9 + 14 * 14 * 64 * 32 * 9 + 3136 * 128 + 128 * 10
PARAMETERS = 421_642


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    return nets.digits_cnn().eval()


@pytest.fixture(scope="module")
def digits(net: Any) -> Model:
    return convert(net, name="digits", example="1x1x28x28").model


@pytest.fixture(scope="module")
def tflite(digits: Model) -> Model:
    pytest.importorskip("ai_edge_litert")
    from farthing.forge.tflite.export import ExportTflite

    return ExportTflite()(digits, Target.detect(), None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def openvino(digits: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    ov = pytest.importorskip("openvino")
    place = tmp_path_factory.mktemp("ir")
    ov.save_model(ov.Core().read_model(digits.file), place / "model.xml", compress_to_fp16=False)
    files = {name: place / name for name in ("model.xml", "model.bin")}
    return Model.create(checked(digits.manifest, format="openvino"), files)


@pytest.fixture(scope="module")
def torchscript(net: Any, digits: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("script") / "model.pt"
    torch.jit.trace(net, torch.zeros(1, 1, 28, 28)).save(str(path))
    return Model.create(checked(digits.manifest, format="torchscript"), {"model.pt": path})


def same_net(found: Inspection) -> None:
    assert found.macs == DIGITS_MACS
    assert found.weights[0].dtype == "float32"
    assert PARAMETERS <= (found.parameters or 0) < PARAMETERS + 60
    assert sum(layer.bytes for layer in found.layers) == sum(part.bytes for part in found.weights)
    assert found.layers[0].bytes >= 3136 * 128 * 4
    assert [layer.bytes for layer in found.layers] == sorted((x.bytes for x in found.layers), reverse=True)
    assert found.nodes == sum(found.operators.values())
    assert msgspec.json.decode(msgspec.json.encode(found), type=Inspection) == found


def test_onnx_has_layers(digits: Model) -> None:
    found = inspect(digits)
    same_net(found)
    assert [layer.operator for layer in found.layers[:4]] == ["Gemm", "Conv", "Gemm", "Conv"]
    assert {placed.precision for placed in found.placement} == {"float32"}


def test_tflite(tflite: Model) -> None:
    found = inspect(tflite)
    same_net(found)
    assert (found.operators["CONV_2D"], found.operators["FULLY_CONNECTED"]) == (2, 2)
    assert [layer.operator for layer in found.layers[:2]] == ["FULLY_CONNECTED", "CONV_2D"]
    assert [placed.operator for placed in found.placement].count("CONV_2D") == 2
    assert {placed.provider for placed in found.placement} <= {"delegate (XNNPACK)", "built-in kernel"}
    assert found.runtime.startswith("litert ")
    assert "times of single nodes" in found.notes[0]


def test_weights_of_8_bits_show_in_the_precision(digits: Model) -> None:
    pytest.importorskip("ai_edge_litert")
    from farthing.forge.tflite.export import ExportTflite

    made = ExportTflite(weights="int8")(digits, Target.detect(), None)  # type: ignore[arg-type]
    found = inspect(made)
    assert found.macs == DIGITS_MACS
    assert "float32 with int8 weights" in {placed.precision for placed in found.placement}
    assert found.weights[0].dtype == "int8"


def test_what_a_delegate_leaves_is_the_runtimes_own(tflite: Model) -> None:
    """LiteRT lists one more node for a delegate, which reads and makes what lies at the edges of its part."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    from farthing.forge.inspect.of_tflite import _Net, _partition

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(tflite.file.read_bytes(), 0))
    net = _Net(schema, model)
    ours = [
        {"op_name": net.kind(op), "inputs": op.inputs, "outputs": op.outputs} for op in net.main.operators
    ]
    first, second = ours[1], ours[2]  # a convolution and its pooling go to the delegate
    given = [*first["inputs"], *[i for i in second["inputs"] if i not in first["outputs"]]]
    part = {"op_name": "DELEGATE", "inputs": given, "outputs": second["outputs"]}
    placed = _partition(net, [*ours, part])
    assert [p.provider.startswith("delegate") for p in placed] == [False, True, True] + [False] * (
        len(ours) - 3
    )
    assert all(p.provider == "built-in kernel" for p in _partition(net, ours))


def test_openvino(openvino: Model) -> None:
    found = inspect(openvino)
    same_net(found)
    assert found.operators["Convolution"] == 2
    assert "CPU" in found.providers
    assert [p.precision for p in found.placement if "Convolution" in p.operator] == ["float32", "float32"]
    assert all((p.microseconds or 0) >= 0 for p in found.placement)
    assert found.opset
    assert found.notes == ()


def test_zeros_are_counted_in_every_format_and_shrink_its_zip(
    net: Any, digits: Model, tmp_path: Path
) -> None:
    """Four of five weights set to zero: read back from each file, beside the zip that Python writes of it."""
    from farthing.forge.openvino.export import ExportOpenvino
    from farthing.forge.tflite.export import ExportTflite

    sparse = copy.deepcopy(net)
    with torch.no_grad():
        for weight in (each for each in sparse.parameters() if each.dim() > 1):
            weight[torch.rand_like(weight) < 0.8] = 0.0
    weights = torch.cat([each.detach().flatten() for each in sparse.parameters() if each.dim() > 1])
    share = float((weights == 0).float().mean())
    dense, onnx = inspect(digits, run=False), convert(sparse, name="sparse", example="1x1x28x28").model
    torch.jit.trace(sparse, torch.zeros(1, 1, 28, 28)).save(str(tmp_path / "model.pt"))
    script = Model.create(checked(onnx.manifest, format="torchscript"), {"model.pt": tmp_path / "model.pt"})
    target, task = Target.detect(), None
    for made in (onnx, ExportTflite()(onnx, target, task), ExportOpenvino()(onnx, target, task), script):  # type: ignore[arg-type]
        found = inspect(made, run=False)
        assert found.zeros == pytest.approx(share, abs=1e-3), made.manifest.format
        assert dense.zipped_bytes is not None
        assert found.zipped_bytes is not None
        assert found.zipped_bytes < dense.zipped_bytes / 2
        with zipfile.ZipFile(tmp_path / "made.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name in made.manifest.files:
                file.write(made.path / name)
        assert found.zipped_bytes == sum(entry.compress_size for entry in file.infolist())
    assert dense.zeros == pytest.approx(0.0, abs=1e-3)


def test_openvino_without_its_weights(openvino: Model, tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_bytes((openvino.path / "model.xml").read_bytes())
    with pytest.raises(ModelError, match="OpenVINO"):
        inspect(tmp_path / "model.xml")


def test_torchscript(torchscript: Model) -> None:
    found = inspect(torchscript)
    same_net(found)
    assert (found.operators["aten::_convolution"], found.operators["aten::linear"]) == (2, 2)
    assert [layer.operator for layer in found.layers] == ["Linear", "Conv2d", "Linear", "Conv2d"]
    assert [p.operator for p in found.placement].count("aten::linear") == 2


def test_bare_files_are_told_by_their_content(tflite: Model, openvino: Model, torchscript: Model) -> None:
    for model in (tflite, openvino, torchscript):
        found = inspect(model.file)
        assert (found.format, found.parameters) == (model.manifest.format, inspect(model).parameters)
    assert inspect(tflite.file).macs == DIGITS_MACS
    assert inspect(openvino.file).size_bytes == openvino.size_bytes
    assert "says no shapes" in inspect(torchscript.file).notes[0]
    feeds = {"input": np.zeros((1, 1, 28, 28), np.float32)}
    assert inspect(torchscript, feeds).placement


def test_nothing_is_run_when_not_asked(tflite: Model, openvino: Model, digits: Model) -> None:
    for model in (tflite, openvino, digits):
        found = inspect(model, run=False)
        assert found.layers
        assert found.placement == ()


@pytest.mark.parametrize("cut", [5, 40, 1000])
def test_a_damaged_tflite_file(tflite: Model, tmp_path: Path, cut: int) -> None:
    data = tflite.file.read_bytes()
    (tmp_path / "cut.tflite").write_bytes(data[: 8 + cut])
    with pytest.raises(ModelError):
        inspect(tmp_path / "cut.tflite")


def test_a_damaged_archive(torchscript: Model, tmp_path: Path) -> None:
    data = torchscript.file.read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError):
        inspect(tmp_path / "cut.pt")


def test_a_search_counts_operators_in_every_format(digits: Model, tflite: Model, openvino: Model) -> None:
    counted = Listing(Budget(), Any, False, True, Rule())  # type: ignore[arg-type]  # no clock is asked here
    assert [counted._node_count(model) for model in (digits, tflite, openvino)] == [
        inspect(model, run=False).nodes for model in (digits, tflite, openvino)
    ]
    assert counted._node_count(tflite)
    assert counted._node_count(fake_model()) is None
