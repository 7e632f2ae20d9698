"""Files of the engines' own formats, taken as they are."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from rows import BIAS, WEIGHTS, Row, litert, openvino, spec, torchscript
from rows.litert import Graph, tflite_model

from farthing.bench import evaluate
from farthing.engines.base import open_engine
from farthing.errors import ModelError, UnsupportedError
from farthing.forge.convert import Conversion, convert
from farthing.model import Manifest, Model, Preprocess
from farthing.task import Split, Task

X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
ROWS = [litert.ROW, openvino.ROW, torchscript.ROW]
every = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.engine)


@pytest.fixture(autouse=True)
def packages(request: pytest.FixtureRequest) -> None:
    row = request.node.callspec.params.get("row") if hasattr(request.node, "callspec") else None
    for package in ("onnx", "openvino", "ai_edge_litert", "torch") if row is None else ("onnx", row.package):
        if not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed")


def files_of(model: Model, place: Path) -> Path:
    """The bare files of a model, without its manifest; the path of the first."""
    for name in model.manifest.files:
        shutil.copyfile(model.path / name, place / name)
    return place / model.file.name


def brought(row: Row, model: Model, place: Path, **more: object) -> Conversion:
    more = {"keep": True, "example": "1x4", **more} if row.engine == "torchscript" else more
    return convert(files_of(model, place), **more)


@every
def test_a_file_describes_itself_and_stays_as_it_is(row: Row, tmp_path: Path) -> None:
    source = row.affine("batch")
    made = brought(row, source, tmp_path)
    manifest = made.model.manifest
    assert manifest.format == source.manifest.format
    assert list(manifest.files.values()) == list(source.manifest.files.values())
    assert [(s.dtype, s.shape, s.batch_axis) for s in (*manifest.inputs, *manifest.outputs)] == [
        ("float32", ("batch", 4), 0),
        ("float32", ("batch", 3), 0),
    ]
    assert manifest.inputs[0].name == "x"
    assert manifest.lineage == (f"convert.{manifest.format}.v1",)
    assert made.checked.startswith(f"{row.engine} ")
    assert "a batch of 8 equal to single samples" in made.checked
    assert "axis 0 of 'x' taken as the batch axis" in made.assumptions
    with open_engine(made.model) as engine:
        answer = engine.run({"x": X})[manifest.outputs[0].name]
    np.testing.assert_allclose(answer, X @ WEIGHTS + BIAS, atol=1e-6)


@every
def test_a_fixed_batch_stays_fixed(row: Row, tmp_path: Path) -> None:
    if row.engine == "torchscript":
        pytest.skip("a script fixes no sizes")
    made = brought(row, row.affine(2), tmp_path)
    assert made.model.manifest.inputs[0].shape == (2, 4)
    assert made.model.manifest.inputs[0].batch_axis == 0


@every
def test_a_file_that_keeps_a_state_is_said_to(row: Row, tmp_path: Path) -> None:
    assert row.inner_state
    made = brought(row, row.inner_state(), tmp_path)
    assert any("session()" in sentence for sentence in made.assumptions)
    assert made.model.manifest.inputs[0].shape[1:] == (4,)
    with open_engine(made.model) as engine:
        assert engine.stateful


@every
def test_state_tensors_are_the_owner_s_to_name(row: Row, tmp_path: Path) -> None:
    assert row.stateful
    source = row.stateful()
    known = source.manifest
    if row.engine == "torchscript":
        outputs = [spec("output_0", "batch", 3), spec("output_1", "batch", 3, role="state")]
        known = Manifest(name="m", format="torchscript", inputs=known.inputs, outputs=tuple(outputs))
    made = brought(
        row,
        source,
        tmp_path,
        manifest=known,
        **({"example": "1x4,1x3"} if row.engine == "torchscript" else {}),
    )
    with open_engine(made.model) as engine:
        assert [one.name for one in engine.inputs] == ["x"]
        name = engine.outputs[0].name
        first, second = engine.run({"x": X[:1]})[name], engine.run({"x": X[:1]})[name]
    np.testing.assert_allclose(second, 1.5 * first, atol=1e-5)


@every
def test_what_the_owner_says_goes_along(row: Row, tmp_path: Path) -> None:
    owner = Manifest(name="mine", format="onnx", inputs=(), outputs=(), labels=("a", "b", "c"), licence="MIT")
    made = brought(row, row.affine("batch"), tmp_path, manifest=owner)
    assert (made.model.manifest.name, made.model.manifest.labels) == ("mine", ("a", "b", "c"))
    owner = Manifest(name="mine", format="onnx", inputs=(), outputs=(), labels=("a", "b"))
    with pytest.raises(ModelError, match="2 labels were given"):
        brought(row, row.affine("batch"), tmp_path, manifest=owner)


@every
def test_damage_is_told_with_the_path_the_caller_gave(row: Row, tmp_path: Path) -> None:
    source = files_of(row.affine("batch"), tmp_path)
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    more = {"keep": True, "example": "1x4"} if row.engine == "torchscript" else {}
    with pytest.raises(ModelError, match=str(source)):
        convert(source, **more)


def integers(scale: float, zero: int) -> Model:
    """int8 to uint8 numbers of one scale."""

    def build(graph: Graph, x: int, y: int) -> None:
        for number, start in ((x, zero), (y, 3)):
            table = graph.s.QuantizationParametersT()
            table.scale, table.zeroPoint = [scale], [start]
            graph.graph.tensors[number].quantization = table
        graph.operator("QUANTIZE", [x], [y], "Quantize")

    return tflite_model(build, [spec("x", "n", 4, dtype="int8")], [spec("y", "n", 4, dtype="uint8")])


def test_numbers_that_stand_for_others_are_described(tmp_path: Path) -> None:
    made = convert(files_of(integers(0.5, -128), tmp_path))
    assert "x is quantized: real value = 0.5 * (int8 number - -128)" in made.assumptions
    assert "y is quantized: real value = 0.5 * (uint8 number - 3)" in made.assumptions
    scales = [(s.scale, s.zero_point) for s in (*made.model.manifest.inputs, *made.model.manifest.outputs)]
    assert scales == [(0.5, -128), (0.5, 3)]


def test_a_quantized_file_is_fed_real_numbers_by_a_task(tmp_path: Path) -> None:
    """The same network in float and in integers gets the same samples: rows whose largest number is the label."""
    labels = np.arange(40) % 4
    split = Split({"": np.eye(4, dtype=np.float32)[labels] * 20 + 1}, labels)
    task = Task("rows", {"validation": split}, "top1")
    model = convert(files_of(integers(0.25, -128), tmp_path)).model
    found, _ = evaluate(model, task, "validation")
    assert found.value == 1.0


@pytest.mark.parametrize(("scale", "zero"), [(float("nan"), 0), (-1.0, 0), (0.5, 300)])
def test_scales_that_mean_nothing_are_refused(tmp_path: Path, scale: float, zero: int) -> None:
    with pytest.raises(ModelError, match=r"x has scale .* which no int8 tensor can have"):
        convert(files_of(integers(scale, zero), tmp_path))


def test_openvino_s_weights(tmp_path: Path) -> None:
    source = files_of(openvino.affine("batch"), tmp_path)
    assert "weights taken from m.bin beside it" in convert(source).assumptions
    (tmp_path / "m.bin").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="names no file of weights"):
        convert(source)
    made = convert(source, weights=tmp_path / "elsewhere")
    assert list(made.model.manifest.files) == ["model.xml", "model.bin"]


def test_torchscript_still_becomes_onnx_unless_it_is_kept(tmp_path: Path) -> None:
    source = files_of(torchscript.affine("batch"), tmp_path)
    assert convert(source, example="1x4").model.manifest.format == "onnx"
    with pytest.raises(ModelError, match="does not say what it takes"):
        convert(source, keep=True)
    with pytest.raises(ModelError, match="fails on the example"):
        convert(source, keep=True, example="1x5")
    with pytest.raises(ModelError, match=r"takes 1 inputs \(x\), the example has 2"):
        convert(source, keep=True, example="1x4,1x4")


def test_what_makes_no_sense_for_files_taken_as_they_are(tmp_path: Path) -> None:
    source = files_of(litert.affine("batch"), tmp_path)
    with pytest.raises(UnsupportedError, match="leave the opset out"):
        convert(source, opset=17)
    with pytest.raises(ModelError, match="which holds its own"):
        convert(source, weights=tmp_path / "w.pt")


def test_pictures_by_the_owner_s_word(tmp_path: Path) -> None:
    def build(graph: Graph, x: int, y: int) -> None:
        graph.operator("RELU", [x], [y])

    model = tflite_model(build, [spec("x", "n", 8, 8, 3)], [spec("y", "n", 8, 8, 3)])
    owner = Manifest(
        name="m", format="onnx", inputs=(), outputs=(), preprocess=Preprocess(colour="RGB", scale=1 / 255)
    )
    made = convert(files_of(model, tmp_path), manifest=owner)
    assert made.model.manifest.inputs[0].layout == "NHWC"
    assert made.model.manifest.preprocess == owner.preprocess
