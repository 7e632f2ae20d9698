"""The stand-alone script: run as a user runs it, against prediction by Farthing on real pictures."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper
from PIL import Image as Pillow
from sklearn.datasets import load_sample_images

from farthing.device.predict import load
from farthing.errors import FarthingError, ModelError, UnsupportedError
from farthing.forge.openvino.export import ExportOpenvino
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.script import standalone
from farthing.forge.tflite.export import ExportTflite
from farthing.model import Manifest, Model, Preprocess, Resize, TensorSpec
from farthing.options import EngineOptions
from farthing.recipe import PassSection
from farthing.target import Target
from farthing.task import Split, Task

SPEC = TensorSpec(name="x", dtype="float32", shape=("n", 7), batch_axis=0)
CHINA, FLOWER = load_sample_images().images
CLASSES = 6
KINDS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
}


def picture_spec(
    preprocess: Preprocess, layout: str = "NCHW", dtype: str = "float32", batch: Any = "n"
) -> TensorSpec:
    channels = 1 if preprocess.colour == "GRAY" else 3
    how = preprocess.resize
    high, wide = preprocess.crop or ((how.height, how.width) if how else (0, 0))
    shape = (batch, channels, high, wide) if layout == "NCHW" else (batch, high, wide, channels)
    return TensorSpec(name="a picture", dtype=dtype, shape=shape, batch_axis=0, layout=layout)


def make(path: Path, spec: TensorSpec, preprocess: Preprocess | None, **changes: Any) -> Model:
    """A model that weighs every element of its input at random, and its script beside it."""
    sizes = [size for axis, size in enumerate(spec.shape) if axis != spec.batch_axis]
    count = int(np.prod([size for size in sizes if isinstance(size, int)]))
    weights = np.random.default_rng(count).normal(size=(count, CLASSES)).astype(np.float32)
    weights *= np.float32(3.0 / np.sqrt(count) / (1.0 if spec.dtype.startswith("float") else 100.0))
    flat = [-1, count]
    nodes = [
        helper.make_node("Cast", [spec.name], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["c", "flat"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    batch = spec.shape[spec.batch_axis] if spec.batch_axis is not None else 1
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(spec.name, KINDS[spec.dtype], spec.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array(flat, np.int64), "flat")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    fields: dict[str, Any] = {
        "name": "weigher",
        "format": "onnx",
        "inputs": (spec,),
        "outputs": (TensorSpec(name="y", dtype="float32", shape=(batch, CLASSES), batch_axis=0),),
        "preprocess": preprocess,
        "decode": "logits",
        "labels": tuple(f"class {index}" for index in range(CLASSES)),
    }
    model = Model.create(Manifest(**{**fields, **changes}), {"net.onnx": proto.SerializeToString()}, path)
    (path / "predict.py").write_text(standalone(model.manifest), encoding="utf-8")
    return model


def read(printed: str) -> list[list[tuple[str, float]]]:
    """What the script printed: for each file, labels and scores."""
    answers: list[list[tuple[str, float]]] = []
    for line in printed.splitlines():
        if not line.startswith("  "):
            answers.append([])
            continue
        score, label = line.split(maxsplit=1)
        answers[-1].append((label, float(score)))
    return answers


def assert_same(printed: str, model: Model, files: list[Path]) -> None:
    with load(model) as predictor:
        expected = [dict(zip(found.labels, found.scores, strict=True)) for found in predictor([*files])]
    answers = read(printed)
    assert len(answers) == len(files)
    for answer, scores in zip(answers, expected, strict=True):
        assert len(answer) == 5
        assert [score for _, score in answer] == pytest.approx(list(scores.values()), abs=1e-5)
        for label, score in answer:
            assert score == pytest.approx(scores[label], abs=1e-5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real pictures of many kinds: sizes, file formats, modes, a camera's orientation."""
    folder = tmp_path_factory.mktemp("pictures")
    exif = Pillow.Exif()
    exif[0x0112] = 6
    china, flower = Pillow.fromarray(CHINA), Pillow.fromarray(FLOWER)
    china.save(folder / "china.jpg")
    flower.crop((100, 50, 243, 350)).save(folder / "tall.png")
    flower.convert("L").save(folder / "grey.jpg", exif=exif)
    china.crop((0, 0, 90, 70)).convert("P").save(folder / "palette.gif")
    china.resize((80, 60)).convert("RGBA").save(folder / "alpha.png")
    flower.resize((300, 41)).convert("CMYK").save(folder / "wide.tiff")
    return sorted(folder.iterdir())


def run_inside(script: Path, files: list[Path], capsys: pytest.CaptureFixture[str]) -> str:
    before = sys.argv
    sys.argv = [str(script), *map(str, files)]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before
    return capsys.readouterr().out


WITHOUT_FARTHING = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
sys.exit("farthing was imported" if any(name.split(".")[0] == "farthing" for name in sys.modules) else 0)
"""


def run_alone(script: Path, files: list[Path]) -> subprocess.CompletedProcess[str]:
    """As a user runs it, in a Python that must not import Farthing."""
    return subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", WITHOUT_FARTHING, script, *files],
        cwd=script.parent.parent,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


IMAGENET = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize(
    ("preprocess", "layout", "dtype"),
    [
        (
            Preprocess(
                colour="RGB",
                resize=Resize(height=96, width=96, filter="bilinear", antialias=True, mode="cover"),
                crop=(84, 84),
                **IMAGENET,
            ),
            "NCHW",
            "float32",
        ),
        (
            Preprocess(
                colour="BGR",
                scale=1.0,
                resize=Resize(
                    height=64, width=80, filter="bicubic", antialias=False, mode="letterbox", fill=114
                ),
            ),
            "NHWC",
            "uint8",
        ),
        (
            Preprocess(
                colour="GRAY",
                scale=1 / 255,
                mean=(0.13,),
                std=(0.31,),
                resize=Resize(height=28, width=28, filter="lanczos", antialias=True),
            ),
            "NCHW",
            "float16",
        ),
    ],
)
def test_the_script_runs_without_farthing_and_scores_the_same(
    tmp_path: Path, pictures: list[Path], preprocess: Preprocess, layout: str, dtype: str
) -> None:
    model = make(tmp_path / "model", picture_spec(preprocess, layout, dtype), preprocess)
    done = run_alone(tmp_path / "model/predict.py", pictures)
    assert (done.returncode, done.stderr) == (0, "")
    assert_same(done.stdout, model, pictures)


SMALL = Preprocess(
    colour="RGB",
    resize=Resize(height=20, width=24, filter="bilinear", antialias=True),
    **IMAGENET,  # type: ignore[arg-type]
)
ANY = Target(name="any", arch="x86_64", isa=("avx2",))
PHOTOS = Task(
    "photos",
    {"calibration": Split({"": np.stack([photo[:400, :600] for photo in (CHINA, FLOWER)])})},
    "agreement",
    form="image",
)


def written(
    steps: list[PassSection], path: Path, preprocess: Preprocess | None = SMALL, **changes: Any
) -> Model:
    """The model of `make` after some passes, saved with its script."""
    spec = picture_spec(preprocess) if preprocess else SPEC
    model = make(path / "float", spec, preprocess, **changes)
    if preprocess:
        model = Model.create(model.manifest, {"net.onnx": convolution(spec)})
    for step in steps:
        model = step(model, ANY, PHOTOS)
    model = model.save(path / "model")
    (path / "model/predict.py").write_text(standalone(model.manifest), encoding="utf-8")
    return model


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([ExportOpenvino()], id="openvino"),
        pytest.param([StaticInt8(), ExportOpenvino()], id="openvino int8"),
        pytest.param([ExportTflite()], id="tflite"),
        pytest.param([StaticInt8(), ExportTflite(io="int8")], id="tflite int8"),
        pytest.param([StaticInt8(), ExportTflite(io="uint8")], id="tflite uint8"),
    ],
)
def test_scripts_for_other_engines_score_the_same(
    tmp_path: Path, pictures: list[Path], steps: list[PassSection]
) -> None:
    model = written(steps, tmp_path)
    package = {"openvino": "openvino", "tflite": "ai_edge_litert"}[model.manifest.format]
    pytest.importorskip(package)
    done = run_alone(tmp_path / "model/predict.py", pictures)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert_same(done.stdout, model, pictures)


@pytest.mark.parametrize("steps", [[ExportOpenvino()], [ExportTflite()]], ids=["openvino", "tflite"])
def test_arrays_and_raw_outputs_in_other_engines(tmp_path: Path, steps: list[PassSection]) -> None:
    model = written(steps, tmp_path, None, decode="", labels=())
    np.save(tmp_path / "a.npy", np.linspace(-1, 1, 7))
    done = run_alone(tmp_path / "model/predict.py", [tmp_path / "a.npy"])
    assert done.returncode == 0, done.stderr
    file, output = done.stdout.splitlines()
    with load(model) as predictor:
        expected = predictor(tmp_path / "a.npy")["y"]
    assert file == str(tmp_path / "a.npy")
    np.testing.assert_allclose(
        np.array(ast.literal_eval(output.split(maxsplit=1)[1]))[0], expected, rtol=1e-5
    )


@given(
    dtype=st.sampled_from(["int8", "uint8"]),
    scale=st.floats(1e-3, 3),
    zero=st.integers(-20, 60),
    colour=st.sampled_from(["RGB", "BGR", "GRAY"]),
    layout=st.sampled_from(["NCHW", "NHWC"]),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_quantized_input_is_fed_with_what_its_numbers_stand_for(
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    pictures: list[Path],
    dtype: str,
    scale: float,
    zero: int,
    colour: Any,
    layout: str,
) -> None:
    shift: Any = {"scale": 1 / 255, "mean": (0.45,), "std": (0.25,)} if colour == "GRAY" else IMAGENET
    preprocess = Preprocess(colour=colour, resize=SMALL.resize, **shift)
    spec = replace(picture_spec(preprocess, layout, dtype), scale=scale, zero_point=zero)
    path = tmp_path_factory.mktemp("model") / "model"
    model = make(path, spec, preprocess)
    assert_same(run_inside(path / "predict.py", pictures, capsys), model, pictures)


@pytest.mark.parametrize("decode", ["", "logits", "probabilities"])
def test_quantized_arrays_and_outputs(tmp_path: Path, capsys: Any, decode: str) -> None:
    spec = TensorSpec(name="x", dtype="int8", shape=("n", 7), batch_axis=0, scale=0.05, zero_point=-7)
    out = TensorSpec(name="y", dtype="uint8", shape=("n", 7), batch_axis=0, scale=0.125, zero_point=9)
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=TensorProto.INT32),
        helper.make_node("Add", ["c", "k"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT8, ["n", 7])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, ["n", 7])],
        [numpy_helper.from_array(np.array(100, np.int32), "k")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model"
    described = Manifest(name="q", format="onnx", inputs=(spec,), outputs=(out,), decode=decode)
    model = Model.create(described, {"net.onnx": proto.SerializeToString()}, path)
    (path / "predict.py").write_text(standalone(model.manifest))
    real, integers = tmp_path / "real.npy", tmp_path / "integers.npy"
    np.save(real, np.linspace(-6, 3, 7))
    np.save(integers, np.arange(7, dtype=np.int8))
    printed = run_inside(path / "predict.py", [real, integers], capsys)
    if decode:
        assert_same(printed, model, [real, integers])
        return
    values = [ast.literal_eval(line.split(maxsplit=1)[1])[0] for line in printed.splitlines()[1::2]]
    with load(model) as predictor:
        assert values == [answer["y"].tolist() for answer in predictor([real, integers])]
    np.save(real, np.full(7, np.nan))
    with pytest.raises(SystemExit, match="holds NaN"):
        run_inside(path / "predict.py", [real], capsys)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 7)), r"float64 [3, 7] does not fit: one sample is float32 [7]"),
        (np.zeros(8), r"float64 [8] does not fit: one sample is float32 [7]"),
        (np.zeros(()), r"float64 [] does not fit"),
        (np.zeros((1, 1, 7)), r"float64 [1, 1, 7] does not fit"),
        (np.zeros(7, np.complex64), r"complex64 [7] does not fit"),
        (np.array(list("abcdefg")), r"<U1 [7] does not fit"),
        (np.array([1, 2, np.nan, 4, 5, 6, 7]), "holds NaN or infinity: clean the data"),
        (np.array([1, 2, np.inf, 4, 5, 6, 7]), "holds NaN or infinity: clean the data"),
        (b"junk", "not an array file (.npy)"),
        (b"", "not an array file (.npy)"),
        (b"PK\x03\x04junk", "not an array file (.npy)"),
        (np.array([{}], object), "not an array file (.npy)"),
    ],
    ids=str,
)
def test_arrays_that_do_not_fit_are_one_line(tmp_path: Path, capsys: Any, array: Any, said: str) -> None:
    make(tmp_path / "model", SPEC, None)
    sample = tmp_path / "sample.npy"
    if isinstance(array, bytes):
        sample.write_bytes(array)
    else:
        np.save(sample, array, allow_pickle=True)
    with pytest.raises(SystemExit, match=re.escape(said)) as stopped:
        run_inside(tmp_path / "model/predict.py", [sample], capsys)
    assert str(stopped.value).count("\n") == 0
    assert "pickle" not in str(stopped.value)
    with load(Model.open(tmp_path / "model")) as predictor, pytest.raises(FarthingError):
        predictor(sample)


@pytest.mark.parametrize("crop", [None, (32, 40)])
@pytest.mark.parametrize("free", [False, True])
def test_pictures_of_a_wrong_size_are_one_line(
    tmp_path: Path, capsys: Any, crop: tuple[int, int] | None, free: bool
) -> None:
    preprocess = Preprocess(colour="RGB", scale=1 / 255, crop=crop)
    sides: tuple[Any, Any] = ("h", "w") if free and crop else (32, "w") if free else (32, 40)
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 3, *sides), batch_axis=0, layout="NCHW")
    content = onnx_mean(spec)
    Model.create(
        Manifest(
            name="m", format="onnx", inputs=(spec,), preprocess=preprocess,
            outputs=(TensorSpec(name="y", dtype="float32", shape=("n", 1), batch_axis=0),),
        ),
        {"net.onnx": content},
        tmp_path / "model",
    )  # fmt: skip
    script = tmp_path / "model/predict.py"
    script.write_text(standalone(Model.open(tmp_path / "model").manifest))
    for size, fits in (((32, 40), True), ((31, 40), False), ((40, 39), False), ((60, 70), crop is not None)):
        picture = tmp_path / "p.png"
        Pillow.fromarray(CHINA[: size[0], : size[1]]).save(picture)
        if fits:
            assert run_inside(script, [picture], capsys).startswith(str(picture))
        elif free and not crop and size[0] == 32:
            continue
        else:
            with pytest.raises(SystemExit, match=r"p\.png gives \d+ x \d+ but the model takes 32 x (40|any)"):
                run_inside(script, [picture], capsys)


def convolution(spec: TensorSpec) -> bytes:
    """A small network of the kind that is quantized: a convolution, a pooling, a product."""
    numbers = np.random.default_rng(0)
    weights = numbers.normal(size=(8, 3, 3, 3)).astype(np.float32)
    product = numbers.normal(size=(8, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", [spec.name, "k"], ["c"], name="conv", strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "w"], ["y"], name="product"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, spec.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(weights, "k"), numpy_helper.from_array(product, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(proto.SerializeToString())


def onnx_mean(spec: TensorSpec) -> bytes:
    """A model that answers the mean of its input."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Reshape", ["m", "s"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, spec.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.array([-1, 1], np.int64), "s")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(proto.SerializeToString())


@given(
    colour=st.sampled_from(["RGB", "BGR", "GRAY"]),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    dtype=st.sampled_from(list(KINDS)),
    kernel=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos", "box"]),
    antialias=st.booleans(),
    mode=st.sampled_from(["stretch", "cover", "letterbox"]),
    size=st.tuples(st.integers(12, 60), st.integers(12, 60)),
    fill=st.integers(0, 255),
    cut=st.booleans(),
    unit=st.booleans(),
)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_preprocess_is_written_out_rightly(
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    pictures: list[Path],
    colour: Any,
    layout: str,
    dtype: str,
    kernel: Any,
    antialias: bool,
    mode: Any,
    size: tuple[int, int],
    fill: int,
    cut: bool,
    unit: bool,
) -> None:
    how = Resize(height=size[0], width=size[1], filter=kernel, antialias=antialias, mode=mode, fill=fill)
    shift = {"scale": 0.5, "mean": (3.25,), "std": (1.5,)} if unit or colour == "GRAY" else IMAGENET
    crop = (size[0] - 5, size[1] - 6) if cut or mode == "cover" else None
    preprocess = Preprocess(colour=colour, resize=how, crop=crop, **shift)  # type: ignore[arg-type]
    path = tmp_path_factory.mktemp("model") / "model"
    model = make(path, picture_spec(preprocess, layout, dtype), preprocess)
    assert_same(run_inside(path / "predict.py", pictures, capsys), model, pictures)


def test_pictures_that_already_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file, photo in zip(files, (CHINA, FLOWER), strict=True):
        Pillow.fromarray(photo[:32, :40]).save(file)
    preprocess = Preprocess(colour="RGB", scale=1 / 255)
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 3, 32, 40), batch_axis=0, layout="NCHW")
    model = make(tmp_path / "model", spec, preprocess)
    assert_same(run_inside(tmp_path / "model/predict.py", files, capsys), model, files)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_of_fixed_batch(tmp_path: Path, pictures: list[Path], capsys: Any, batch: int) -> None:
    preprocess = Preprocess(
        colour="RGB", scale=0.01, resize=Resize(height=20, width=20, filter="box", antialias=True)
    )
    model = make(tmp_path / "model", picture_spec(preprocess, batch=batch), preprocess)
    assert_same(run_inside(tmp_path / "model/predict.py", pictures, capsys), model, pictures)


@pytest.mark.parametrize(("shape", "axis"), [(("n", 7), 0), ((7, 1), 1), ((1, 7), None)])
def test_a_model_that_takes_no_pictures_reads_arrays(
    tmp_path: Path, capsys: Any, shape: Any, axis: int | None
) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=shape, batch_axis=axis)
    outputs = (TensorSpec(name="y", dtype="float32", shape=(1, CLASSES), batch_axis=0),)
    model = make(tmp_path / "model", spec, None, **({} if axis == 0 else {"outputs": outputs}))
    sample = tmp_path / "sample.npy"
    np.save(sample, np.arange(7).reshape((1, 7) if axis is None else (7,)))
    assert_same(run_inside(tmp_path / "model/predict.py", [sample], capsys), model, [sample])


def test_probabilities_and_numbers_for_labels(tmp_path: Path, capsys: Any) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 7), batch_axis=0)
    model = make(tmp_path / "model", spec, None, decode="probabilities", labels=())
    sample = tmp_path / "sample.npy"
    np.save(sample, np.ones(7, np.float32))
    assert_same(run_inside(tmp_path / "model/predict.py", [sample], capsys), model, [sample])


def test_raw_outputs_are_printed_whole(tmp_path: Path, capsys: Any) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 7), batch_axis=0)
    model = make(tmp_path / "model", spec, None, decode="", labels=())
    sample = tmp_path / "sample.npy"
    np.save(sample, np.ones((1, 7), np.float32))
    file, output = run_inside(tmp_path / "model/predict.py", [sample], capsys).splitlines()
    assert file == str(sample)
    name, values = output.split(maxsplit=1)
    with load(model) as predictor:
        assert name == "y"
        assert np.array(eval(values))[0] == pytest.approx(predictor(sample)["y"])


def test_a_deep_picture_stops_the_script(tmp_path: Path, capsys: Any) -> None:
    preprocess = Preprocess(
        colour="GRAY", scale=1.0, resize=Resize(height=4, width=4, filter="box", antialias=True)
    )
    make(tmp_path / "model", picture_spec(preprocess), preprocess)
    Pillow.new("I;16", (9, 9)).save(tmp_path / "deep.png")
    with pytest.raises(SystemExit, match="more than 8 bits"):
        run_inside(tmp_path / "model/predict.py", [tmp_path / "deep.png"], capsys)


def test_a_wrong_call_and_a_wrong_file_are_one_line(tmp_path: Path) -> None:
    preprocess = Preprocess(
        colour="GRAY", scale=1.0, resize=Resize(height=4, width=4, filter="box", antialias=True)
    )
    make(tmp_path / "model", picture_spec(preprocess), preprocess)
    (tmp_path / "text.png").write_text("no picture")

    def run(*words: str) -> tuple[int, str]:
        command = [sys.executable, tmp_path / "model/predict.py", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    assert run() == (2, "usage: python predict.py picture.jpg ...\n")
    assert run("absent.png") == (1, "absent.png: No such file or directory\n")
    code, said = run("text.png")
    assert code == 1
    assert said.startswith("text.png: cannot identify image file")
    assert said.count("\n") == 1


STATE = TensorSpec(name="s", dtype="float32", shape=(1,), role="state")


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "name": "m",
        "format": "onnx",
        "inputs": (SPEC,),
        "outputs": (SPEC,),
        "decode": "logits",
    }
    return Manifest(**{**fields, **changes})


def test_it_is_short() -> None:
    common = Preprocess(
        colour="RGB",
        resize=Resize(height=256, width=256, filter="bilinear", antialias=True, mode="cover"),
        crop=(224, 224),
        **IMAGENET,  # type: ignore[arg-type]
    )
    spec = picture_spec(common)
    text = standalone(
        manifest(inputs=(spec,), preprocess=common, labels=("cat", "dog")), EngineOptions(threads=3)
    )
    assert len(text.splitlines()) <= 55
    assert "options.intra_op_num_threads = 3" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    "text", ['"""', "'''\nimport os", "\\", "a\nb", "'; import os #", "\u2028x", "猫", "{x}"]
)
def test_no_name_can_become_code(text: str) -> None:
    spec = TensorSpec(name=text, dtype="float32", shape=("n", 7), batch_axis=0)
    many = tuple(f"{text}{index}" for index in range(40))
    for labels in ((text,), many):
        source = standalone(
            manifest(name=text, inputs=(spec,), outputs=(spec,), labels=labels, requires=(text,))
        )
        tree = ast.parse(source)
        assert sum(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree)) == 5
        (given,) = [node for node in tree.body if ast.unparse(node).startswith("LABELS")]
        assert isinstance(given, ast.Assign)
        assert tuple(ast.literal_eval(given.value)) == labels


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"format": "fake"}, UnsupportedError, "runs onnx, openvino, tflite models, not .fake."),
        (
            {"inputs": (SPEC, TensorSpec(name="z", dtype="float32", shape=(1,)))},
            UnsupportedError,
            r"has \['x', 'z'\]",
        ),
        (
            {"inputs": (STATE,), "outputs": (STATE,)},
            UnsupportedError,
            r"keeps no state, but m has \['s'\]",
        ),
        ({"inputs": (replace(SPEC, dtype="str"),)}, UnsupportedError, "numbers that numpy knows, not str"),
        ({"decode": "detections"}, UnsupportedError, "does not decode 'detections'"),
        ({"preprocess": Preprocess(colour="RGB", scale=1.0)}, ModelError, "pictures go into NCHW or NHWC"),
    ],
)
def test_what_a_short_script_cannot_do_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        standalone(manifest(**changes))
