"""ONNX to OpenVINO: the same answers, the same bytes every time, 8 bits where the file says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from farthing.engines.base import open_engine
from farthing.errors import ModelError, UnsupportedError
from farthing.forge import graph
from farthing.forge.fuse import Fuse
from farthing.forge.openvino.export import ExportOpenvino
from farthing.forge.quantize.static import StaticInt8
from farthing.model import Manifest, Model, TensorSpec
from farthing.target import Target
from farthing.task import Task

pytest.importorskip("openvino")
from farthing.engines.openvino import runtime
from farthing.forge.openvino.graph import from_files

Array = NDArray[Any]
VNNI = Target(name="vnni", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"))


def answers(model: Model, x: Array, output: str = "logits") -> Array:
    with open_engine(model, {"onnx": "onnxruntime"}.get(model.manifest.format, "openvino")) as engine:
        return engine.run({"image": x})[output]


def kinds(model: Model) -> Counter[tuple[str, str]]:
    """How often each kind of operator runs in which precision, as OpenVINO tells of what it compiled."""
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = runtime().Core().compile_model(str(model.file), "CPU", config)
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return Counter(
        (info["layerType"].astype(str), info["runtimePrecision"].astype(str))
        for info in infos
        if "layerType" in info
    )


@pytest.fixture(scope="module")
def fused(cnn: Model, digits_task: Task) -> Model:
    return Fuse()(cnn, VNNI, digits_task)


@pytest.fixture(scope="module")
def quantized(fused: Model, digits_task: Task) -> Model:
    return StaticInt8()(fused, VNNI, digits_task)


@pytest.fixture(scope="module")
def exported(fused: Model, digits_task: Task) -> Model:
    return ExportOpenvino()(fused, VNNI, digits_task)


def test_answers_are_those_of_the_onnx_model(cnn: Model, exported: Model, digits: Any) -> None:
    for count in (1, 7, 200):  # the batch stays free
        x = digits[0][:count]
        np.testing.assert_allclose(answers(exported, x), answers(cnn, x), rtol=1e-4, atol=1e-4)


def test_what_the_manifest_says_of_the_model_is_carried_over(fused: Model, exported: Model) -> None:
    assert exported.manifest.format == "openvino"
    assert list(exported.manifest.files) == ["model.xml", "model.bin"]
    for name in ("name", "inputs", "outputs", "decode", "labels", "quantization", "requires"):
        assert getattr(exported.manifest, name) == getattr(fused.manifest, name)


def test_the_file_is_small_and_says_nothing_of_where_it_was_made(fused: Model, exported: Model) -> None:
    text = exported.file.read_text()
    assert "rt_info" not in text
    assert not re.search(r">\s", text)
    long = [name for name in re.findall(r'name="([^"]+)"', text) if not re.fullmatch(r"\d+|m", name)]
    assert set(long) == {"image"}, (
        "names are numbers but for the input and the output, which are tensors' names"
    )
    assert exported.size_bytes < fused.size_bytes * 1.1


@pytest.mark.parametrize("source", ["fused", "quantized"])
def test_the_same_model_gives_the_same_bytes(
    source: str, request: pytest.FixtureRequest, digits_task: Task
) -> None:
    model = request.getfixturevalue(source)
    before = model.file.read_bytes()
    first, second = (ExportOpenvino()(model, VNNI, digits_task) for _ in range(2))
    assert first.digest == second.digest
    assert model.file.read_bytes() == before


def test_a_quantized_graph_runs_in_8_bits(quantized: Model, digits: Any, digits_task: Task) -> None:
    exported = ExportOpenvino()(quantized, VNNI, digits_task)
    assert exported.manifest.quantization == quantized.manifest.quantization
    assert exported.manifest.requires == quantized.manifest.requires
    run = kinds(exported)
    heavy = {kind: count for kind, count in run.items() if kind[0] in {"Convolution", "FullyConnected"}}
    assert heavy == {("Convolution", "u8"): 3, ("FullyConnected", "u8"): 1}
    assert (
        exported.path / "model.bin"
    ).stat().st_size < 0.7 * quantized.size_bytes  # numbers alone, no names
    x = digits[0][:300]
    same = answers(exported, x).argmax(1) == answers(quantized, x).argmax(1)
    assert same.mean() > 0.99


def test_operators_left_in_float_stay_so(fused: Model, digits_task: Task) -> None:
    proto = graph.load(fused.file)
    graph.name_nodes(proto)
    second = [node.name for node in proto.graph.node if node.op_type == "Conv"][1]
    mixed = StaticInt8(exclude=(second,))(fused, VNNI, digits_task)
    run = kinds(ExportOpenvino()(mixed, VNNI, digits_task))
    assert run["Convolution", "u8"] == 2
    assert run["Convolution", "f32"] == 1


def test_half_the_size_with_float16_weights(
    fused: Model, exported: Model, digits: Any, digits_task: Task
) -> None:
    halved = ExportOpenvino(weights="float16")(fused, VNNI, digits_task)
    assert (halved.path / "model.bin").stat().st_size < 0.51 * (exported.path / "model.bin").stat().st_size
    assert halved.manifest.quantization is not None
    assert halved.manifest.quantization.weights == "float16"
    x = digits[0][:100]
    np.testing.assert_allclose(answers(halved, x), answers(exported, x), rtol=0.02, atol=0.05)


def one_node(node: onnx.NodeProto, weights: dict[str, Array] | None = None) -> Model:
    value = helper.make_tensor_value_info
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    proto = helper.make_model(
        helper.make_graph(
            [node], "g", [value("image", 1, ["n", 4])], [value("logits", 1, ["n", 4])], tensors
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    spec: dict[str, Any] = {"dtype": "float32", "shape": ("n", 4), "batch_axis": 0}
    manifest = Manifest(
        name="one",
        format="onnx",
        inputs=(TensorSpec(name="image", **spec),),
        outputs=(TensorSpec(name="logits", **spec),),
    )
    return Model.create(manifest, {"model.onnx": proto.SerializeToString()})


def test_an_operator_that_openvino_lacks_is_named(digits_task: Task) -> None:
    model = one_node(helper.make_node("Wondrous", ["image"], ["logits"], domain="com.microsoft"))
    with pytest.raises(
        UnsupportedError, match=r"OpenVINO \d.* cannot convert one: .*com\.microsoft\.Wondrous"
    ):
        ExportOpenvino()(model, VNNI, digits_task)


def test_a_model_that_does_nothing_keeps_both_names(digits_task: Task) -> None:
    exported = ExportOpenvino()(
        one_node(helper.make_node("Identity", ["image"], ["logits"])), VNNI, digits_task
    )
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert np.array_equal(answers(exported, x), x)


def test_equal_constants_are_stored_once_and_weights_stay_apart(digits_task: Task) -> None:
    """Two products with equal small weights, and a sum of them."""
    eye = np.eye(4, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["image", "a"], ["x"]),
        helper.make_node("MatMul", ["x", "b"], ["y"]),
        helper.make_node("Add", ["x", "y"], ["logits"]),
    ]
    model = one_node(helper.make_node("Identity", ["image"], ["logits"]))
    proto = onnx.load(model.file)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(
        [numpy_helper.from_array(2 * eye, "a"), numpy_helper.from_array(2 * eye, "b")]
    )
    twice = Model.create(model.manifest, {"model.onnx": proto.SerializeToString()})
    exported = ExportOpenvino()(twice, VNNI, digits_task)
    assert exported.file.read_text().count('type="Const"') == 1
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    assert np.array_equal(answers(exported, x), 6 * x)


def test_another_format_is_refused(exported: Model, digits_task: Task) -> None:
    with pytest.raises(
        UnsupportedError, match="digits is openvino: only ONNX models are written as OpenVINO"
    ):
        ExportOpenvino()(exported, VNNI, digits_task)


def test_a_file_without_its_weights_says_so(exported: Model, tmp_path: Path) -> None:
    broken = exported.save(tmp_path / "broken")
    (broken.path / "model.bin").unlink()
    with pytest.raises(ModelError, match=r"OpenVINO cannot read .*model\.xml"):
        from_files(broken)


def test_nothing_is_written_home(fused: Model, tmp_path: Path) -> None:
    """Neither OpenVINO nor NNCF may keep numbers of users or calls there, in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from farthing.model import Model\n"
        "from farthing.forge.openvino.graph import from_onnx\n"
        "from farthing.forge.quantize.nncf import library\n"
        "from_onnx(Model.open(Path(sys.argv[1])))\n"
        "try: library()\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, str(fused.path)], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
