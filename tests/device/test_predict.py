"""Prediction end to end: real pictures through real ONNX models in ONNX Runtime, and the fake engine."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image as Pillow
from sklearn.datasets import load_sample_images

from farthing import plugins
from farthing.config import to_yaml
from farthing.device.predict import Predictor, check_requires, load
from farthing.errors import ConfigError, EngineError, FeedError, ModelError, TaskError
from farthing.model import Manifest, Model, Preprocess, Resize, TensorSpec
from farthing.ops.decode import Detections, Prediction, softmax
from farthing.options import EngineOptions
from farthing.recipe import RECIPE_FILE, Recipe
from farthing.target import Budget, Target

CHINA, FLOWER = load_sample_images().images
SIDE = 24
PREPROCESS = Preprocess(
    colour="RGB",
    scale=1 / 255,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    resize=Resize(height=SIDE, width=SIDE, filter="bilinear", antialias=True),
)
WEIGHTS = np.random.default_rng(1).normal(size=(3 * SIDE * SIDE, 4)).astype(np.float32) / 12
LABELS = ("tea", "rice", "boat", "rose")


def onnx_bytes(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], **constants: Any) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def linear_model(path: Path, batch: int | str = "n", **changes: Any) -> Path:
    """Pictures of 24 x 24 to four classes by one matrix product."""
    content = onnx_bytes(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, [batch, 3, SIDE, SIDE])},
        {"y": (TensorProto.FLOAT, [batch, 4])},
        w=WEIGHTS,
    )
    fields: dict[str, Any] = {
        "name": "linear",
        "format": "onnx",
        "inputs": (
            TensorSpec(name="x", dtype="float32", shape=(batch, 3, SIDE, SIDE), batch_axis=0, layout="NCHW"),
        ),
        "outputs": (TensorSpec(name="y", dtype="float32", shape=(batch, 4), batch_axis=0, layout="NC"),),
        "preprocess": PREPROCESS,
        "decode": "logits",
        "labels": LABELS,
    }
    Model.create(Manifest(**{**fields, **changes}), {"model.onnx": content}, path)
    return path


def expected_scores(photo: NDArray[np.uint8]) -> NDArray[np.float64]:
    small = Pillow.fromarray(photo).resize((SIDE, photo.shape[0]), Pillow.Resampling.BILINEAR)
    small = small.resize((SIDE, SIDE), Pillow.Resampling.BILINEAR)
    values = (np.asarray(small, np.float32) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return softmax(values.transpose(2, 0, 1).reshape(-1) @ WEIGHTS.astype(np.float64))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return linear_model(tmp_path / "linear")


def test_a_picture_gets_labels_and_scores(directory: Path) -> None:
    with load(directory) as predictor:
        prediction = predictor(CHINA)
    assert isinstance(prediction, Prediction)
    scores = expected_scores(CHINA)
    order = np.argsort(-scores)
    assert prediction.labels == tuple(LABELS[index] for index in order)
    np.testing.assert_allclose(prediction.scores, scores[order], atol=1e-5)


def test_a_path_a_picture_and_an_array_are_the_same(directory: Path, tmp_path: Path) -> None:
    Pillow.fromarray(FLOWER).save(tmp_path / "flower.png")
    np.save(tmp_path / "flower.npy", FLOWER)
    with load(str(directory)) as predictor:
        expected = predictor(FLOWER)
        assert predictor(tmp_path / "flower.png") == expected
        assert predictor(str(tmp_path / "flower.png")) == expected
        assert predictor(tmp_path / "flower.npy") == expected
        assert predictor(Pillow.fromarray(FLOWER)) == expected
        assert predictor(Pillow.fromarray(FLOWER).convert("RGBA")) == expected
        grey = Pillow.fromarray(FLOWER).convert("L")
        assert predictor(np.asarray(grey)) == predictor(grey) == predictor(np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_a_list_gets_a_list_whatever_batch_the_model_has(tmp_path: Path, batch: int | str) -> None:
    pictures = [CHINA, FLOWER[:300], CHINA[..., 0], *[CHINA[i : i + 100] for i in range(34)]]
    with load(linear_model(tmp_path / "m", batch)) as predictor:
        together = predictor(pictures, top=2)
        for picture, prediction in zip(pictures, together, strict=True):
            alone = predictor(picture, top=2)
            assert alone.labels == prediction.labels
            np.testing.assert_allclose(alone.scores, prediction.scores, rtol=1e-4)
            assert len(alone.labels) == 2
        assert predictor([]) == []
        assert predictor((CHINA,))[0].labels == predictor(CHINA).labels


def test_without_labels_classes_are_numbers(tmp_path: Path) -> None:
    with load(linear_model(tmp_path / "m", labels=())) as predictor:
        assert sorted(predictor(CHINA).labels) == ["0", "1", "2", "3"]


def test_probabilities_and_no_decoder(tmp_path: Path) -> None:
    with load(linear_model(tmp_path / "raw", decode="")) as raw:
        outputs = raw(CHINA)
        assert outputs["y"].shape == (4,)
        assert [set(answer) for answer in raw([CHINA, FLOWER])] == [{"y"}, {"y"}]
    with load(linear_model(tmp_path / "p", decode="probabilities")) as predictor:
        prediction = predictor(CHINA)
        assert prediction.scores == tuple(sorted(outputs["y"].tolist(), reverse=True))


def test_a_zip_a_search_directory_and_a_model_open_too(directory: Path, tmp_path: Path) -> None:
    model = Model.open(directory)
    model.pack(tmp_path / "linear.zip")
    model.save(tmp_path / "search" / "model")
    answers = set()
    for source in (directory, tmp_path / "linear.zip", tmp_path / "search", model):
        with load(source) as predictor:
            answers.add(predictor(CHINA))
    assert len(answers) == 1


def test_the_output_of_a_search_runs_as_its_recipe_says(directory: Path, tmp_path: Path) -> None:
    model = Model.open(directory)
    model.save(tmp_path / "model")
    recipe = Recipe(
        model="a", task="b", target=Target(name="t", arch="x86_64"), steps=(), engine="onnxruntime",
        options=EngineOptions(precision="bfloat16"), budget=Budget(), artefact=model.digest,
    )  # fmt: skip
    (tmp_path / RECIPE_FILE).write_text(to_yaml(recipe))
    with pytest.raises(EngineError, match="bfloat16"):  # which this engine refuses: so the recipe was heeded
        load(tmp_path)
    load(tmp_path, options=EngineOptions()).close()
    load(tmp_path / "model").close()
    (tmp_path / RECIPE_FILE).write_text(to_yaml(replace(recipe, artefact="of another")))
    load(tmp_path).close()


def test_many_threads_get_the_same_answers(directory: Path) -> None:
    pictures = [CHINA, FLOWER, CHINA[:200], FLOWER[:, :200]]
    with load(directory, options=EngineOptions(threads=1)) as predictor:
        expected = [predictor(picture) for picture in pictures]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(predictor, pictures * 5)) == expected * 5


# --- models without preprocess ------------------------------------------------------------------------


def fake_model(path: Path, batch_axis: int | None = 0, decay: float | None = None, **changes: Any) -> Path:
    affine = {"weights": [[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]], "bias": [0.0, 0.5, 0.0], "decay": decay}
    shape = ("n", 2) if batch_axis == 0 else (2,)
    fields: dict[str, Any] = {
        "name": "affine",
        "format": "fake",
        "inputs": (TensorSpec(name="x", dtype="float32", shape=shape, batch_axis=batch_axis),),
        "outputs": (TensorSpec(name="y", dtype="float32", shape=(*shape[:-1], 3), batch_axis=batch_axis),),
        "decode": "logits",
        "labels": ("a", "b", "c"),
    }
    Model.create(Manifest(**{**fields, **changes}), {"m.json": json.dumps(affine).encode()}, path)
    return path


@pytest.mark.parametrize("batch_axis", [0, None])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.float16])
def test_an_array_that_fits_is_fed_as_it_is(tmp_path: Path, batch_axis: int | None, dtype: Any) -> None:
    sample = np.array([3, 1], dtype)
    with load(fake_model(tmp_path / "m", batch_axis)) as predictor:
        prediction = predictor(sample)
        assert prediction.labels == ("c", "a", "b")  # 5, 3, 1.5
        np.testing.assert_allclose(prediction.scores, softmax(np.array([5, 3, 1.5])), rtol=1e-6)
        np.save(tmp_path / "sample.npy", sample)
        assert predictor(tmp_path / "sample.npy") == prediction
        assert predictor([sample, np.array([0, 9], dtype)])[1].labels[0] == "b"
        if batch_axis == 0:
            assert predictor(sample[None]) == prediction


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros(3, np.float32),
        np.zeros((2, 2), np.float32),
        np.zeros(2, np.complex64),
        np.array(["a", "b"]),
        np.zeros(()),
        None,
        {"x": 1},
    ],
)
def test_an_array_that_does_not_fit_is_refused(tmp_path: Path, bad: Any) -> None:
    with (
        load(fake_model(tmp_path / "m")) as predictor,
        pytest.raises(
            FeedError, match=r"does not fit input 'x': one sample is float32 \[2\]; give several as a list"
        ),
    ):
        predictor(bad)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinity_are_refused(tmp_path: Path, value: float, dtype: Any) -> None:
    with np.errstate(over="ignore"):
        sample = np.array([1, value]).astype(dtype)
    np.save(tmp_path / "bad.npy", sample)
    with load(fake_model(tmp_path / "m")) as predictor:
        for given in (sample, sample[None], tmp_path / "bad.npy", [np.ones(2), sample]):
            with pytest.raises(
                FeedError, match=r"input 'x' holds NaN, infinity or a number too large .* at \[1\]"
            ):
                predictor(given)


def test_nan_is_refused_for_a_quantized_input_too(tmp_path: Path) -> None:
    """Its cast to an integer would be a number like any other."""
    spec = TensorSpec(name="x", dtype="int8", shape=("n", 7), batch_axis=0, scale=0.5, zero_point=3)
    manifest = Manifest(name="m", format="onnx", inputs=(spec,), outputs=(spec,))
    nodes = [helper.make_node("Identity", ["x"], ["x2"])]
    content = onnx_bytes(nodes, {"x": (TensorProto.INT8, ["n", 7])}, {"x2": (TensorProto.INT8, ["n", 7])})
    manifest = replace(manifest, outputs=(replace(spec, name="x2"),))
    with load(Model.create(manifest, {"m.onnx": content})) as predictor:
        assert predictor(np.full(7, 1.5))["x2"].tolist() == [1.5] * 7
        with pytest.raises(FeedError, match="holds NaN"):
            predictor(np.full(7, np.nan))


def test_a_stateful_model_takes_a_list_as_a_stream(tmp_path: Path) -> None:
    with load(fake_model(tmp_path / "m", decay=0.5, decode="")) as predictor:
        answers = predictor([np.array([1.0, 0.0])] * 3)
        assert [answer["y"][0] for answer in answers] == [1.0, 1.5, 1.75]


def test_samples_of_different_shape_cannot_share_a_batch(tmp_path: Path) -> None:
    content = onnx_bytes(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)],
        {"x": (TensorProto.FLOAT, ["n", "t"])},
        {"y": (TensorProto.FLOAT, ["n", 1])},
    )
    manifest = Manifest(
        name="mean",
        format="onnx",
        inputs=(TensorSpec(name="x", dtype="float32", shape=("n", "t"), batch_axis=0),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("n", 1), batch_axis=0),),
    )
    with load(Model.create(manifest, {"m.onnx": content})) as predictor:
        assert predictor(np.arange(5))["y"].tolist() == [2.0]
        with pytest.raises(FeedError, match="differ in shape: predict them one by one"):
            predictor([np.arange(5), np.arange(6)])


def test_a_picture_for_a_model_that_takes_none_is_explained(tmp_path: Path) -> None:
    with load(fake_model(tmp_path / "m")) as predictor:
        for picture in (Pillow.fromarray(CHINA), tmp_path / "x.jpg"):
            with pytest.raises(
                ModelError, match=r"does not say how to preprocess pictures: add .*farthing init"
            ):
                predictor(picture)


# --- detections ---------------------------------------------------------------------------------------


def test_boxes_come_back_in_pixels_of_the_picture(tmp_path: Path) -> None:
    """A "detector" that always finds the same two boxes of the letterboxed input."""
    boxes = np.array([[[0, 0, 32, 32], [8, 12, 16, 20], [1, 1, 2, 2]]], np.float32)
    scores = np.array([[0.4, 0.8, 0.0]], np.float32)
    constants = {"boxes0": boxes, "scores0": scores, "classes0": np.array([[1, 0, 0]], np.int64)}
    nodes = [helper.make_node("Identity", [f"{name}0"], [name]) for name in ("boxes", "scores", "classes")]
    content = onnx_bytes(
        nodes,
        {"x": (TensorProto.UINT8, [1, 32, 32, 3])},
        {
            "boxes": (TensorProto.FLOAT, [1, 3, 4]),
            "scores": (TensorProto.FLOAT, [1, 3]),
            "classes": (TensorProto.INT64, [1, 3]),
        },
        **constants,
    )
    specs = [("boxes", "float32", (1, 3, 4)), ("scores", "float32", (1, 3)), ("classes", "int64", (1, 3))]
    manifest = Manifest(
        name="boxes",
        format="onnx",
        inputs=(TensorSpec(name="x", dtype="uint8", shape=(1, 32, 32, 3), batch_axis=0, layout="NHWC"),),
        outputs=tuple(TensorSpec(name=n, dtype=d, shape=s, batch_axis=0) for n, d, s in specs),
        preprocess=Preprocess(
            colour="RGB",
            scale=1.0,
            resize=Resize(height=32, width=32, filter="bilinear", antialias=True, mode="letterbox"),
        ),
        decode="detections",
        labels=("person", "boat"),
    )
    with load(Model.create(manifest, {"m.onnx": content})) as predictor:
        found = predictor(np.zeros((64, 128, 3), np.uint8))  # shrunk by 4, with 8 rows above and below
        assert isinstance(found, Detections)
        assert found.boxes.tolist() == [[32, 16, 64, 48], [0, 0, 128, 64]]
        assert [found.label(index) for index in range(2)] == ["person", "boat"]
        assert len(predictor([np.zeros((32, 32, 3), np.uint8)] * 3)) == 3


def test_a_decoder_of_ones_own_reads_the_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_registered", {})
    sample = np.ones((4, 4, 3), np.uint8)
    with load(linear_model(tmp_path / "own", decode="mine.first")) as predictor:
        with pytest.raises(ModelError, match=r"no decoder is called 'mine\.first'.* register its decoder"):
            predictor(sample)
        one = Prediction(labels=("x",), scores=(1.0,))
        plugins.register("decoder", "mine.first", lambda outputs, labels, top: [one])
        assert predictor(sample) == one
        with pytest.raises(ModelError, match=r"'mine\.first' gives 1 answers for 2 samples"):
            predictor([sample, sample])


# --- refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), FeedError, "not a picture"),
        (np.zeros((4, 4, 3), np.float32), FeedError, "not a picture: float32"),
        ("missing.png", TaskError, "there is no picture"),
        ("missing.npy", TaskError, r"cannot read .*missing\.npy: No such file or directory"),
        (3, FeedError, "not a picture"),
        ([[[1, 2], [3]]], FeedError, "neither a picture nor an array"),
    ],
)
def test_what_is_not_a_picture(directory: Path, bad: Any, error: type[Exception], message: str) -> None:
    with load(directory) as predictor, pytest.raises(error, match=message):
        predictor(bad)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_junk_is_not_an_array(tmp_path: Path, data: st.DataObject) -> None:
    """In its header numpy meets anything from an unclosed bracket to a petabyte."""
    np.save(tmp_path / "x.npy", np.ones(2, np.float32))
    content = bytearray((tmp_path / "x.npy").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x.npy").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    if not (tmp_path / "m").exists():
        fake_model(tmp_path / "m")
    with load(tmp_path / "m") as predictor, contextlib.suppress(TaskError, FeedError):
        assert len(predictor(tmp_path / "x.npy").labels) == 3


@pytest.mark.parametrize(
    "content", [b"", b"text", b"PK\x03\x04text", b"\x80\x04\x95", b"\x93NUMPY\x01\x00\x08\x00{'a': ("]
)
def test_what_is_no_array_file_is_said_without_advice_to_unpickle(
    directory: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with (
        load(directory) as predictor,
        pytest.raises(TaskError, match=r"x\.npy is not an array file") as error,
    ):
        predictor(tmp_path / "x.npy")
    assert "allow_pickle" not in str(error.value)


def test_several_arrays_are_not_one(directory: Path, tmp_path: Path) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.savez(file, a=np.ones(2))
    with load(directory) as predictor, pytest.raises(TaskError, match=r"holds several arrays"):
        predictor(tmp_path / "x.npy")


def test_a_pickle_is_not_an_array(directory: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with load(directory) as predictor, pytest.raises(TaskError, match="pickles are refused"):
        predictor(tmp_path / "p.npy")


def test_top_is_at_least_one(directory: Path) -> None:
    with load(directory) as predictor, pytest.raises(ConfigError, match="at least 1, not 0"):
        predictor(CHINA, top=0)


def test_closed_means_closed(directory: Path) -> None:
    predictor = load(directory)
    predictor.close()
    predictor.close()
    with pytest.raises(EngineError, match="closed"):
        predictor(CHINA)


def test_labels_that_do_not_fit_the_output(tmp_path: Path) -> None:
    with (
        load(linear_model(tmp_path / "m", labels=("a", "b"))) as predictor,
        pytest.raises(ModelError, match="2 labels"),
    ):
        predictor(CHINA)


def test_a_model_with_two_inputs_is_for_the_engine(tmp_path: Path) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 2), batch_axis=0)
    two = (spec, TensorSpec(name="threshold", dtype="float32", shape=(1,), role="parameter"))
    with pytest.raises(ModelError, match=r"takes \['x', 'threshold'\]: prediction feeds one data input"):
        load(fake_model(tmp_path / "m", inputs=two))


def test_a_manifest_that_contradicts_itself_is_refused_at_once(tmp_path: Path) -> None:
    grey = Preprocess(colour="GRAY", scale=1.0, resize=PREPROCESS.resize)
    with pytest.raises(ModelError, match=r"has 3 channels, but preprocess\.colour GRAY gives 1"):
        load(linear_model(tmp_path / "m", preprocess=grey))


def test_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no manifest\.json"):
        load(tmp_path)


# --- instruction sets ---------------------------------------------------------------------------------


def test_a_model_that_requires_what_this_cpu_lacks_is_refused_unless_told_otherwise(tmp_path: Path) -> None:
    directory = fake_model(tmp_path / "m", requires=("sse4_1", "quantum9"))
    with pytest.raises(
        EngineError, match=r"made for CPUs with .*quantum9.*lacks.*Optimise it again.*ignore_requires"
    ):
        load(directory)
    with load(directory, ignore_requires=True) as predictor:
        assert predictor(np.array([3, 1])).labels[0] == "c"


def test_what_a_target_lacks_is_refused_by_name() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(1,))
    manifest = Manifest(name="m", format="onnx", inputs=(spec,), outputs=(spec,), requires=("vnni",))
    check_requires(manifest, Target(name="t", arch="x86_64", isa=("avx2", "avx_vnni")))
    check_requires(manifest, Target(name="t", arch="x86_64", isa=("avx512_vnni",)))
    with pytest.raises(EngineError, match=r"with vnni, which this machine \(x86_64\) lacks"):
        check_requires(manifest, Target(name="t", arch="x86_64", isa=("avx2",)))


def test_the_predictor_keeps_a_temporary_model_alive() -> None:
    manifest = Manifest(
        name="affine",
        format="fake",
        inputs=(TensorSpec(name="x", dtype="float32", shape=("n", 1), batch_axis=0),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("n", 1), batch_axis=0),),
    )
    predictor = Predictor(Model.create(manifest, {"m.json": b'{"weights": [[2.0]], "bias": [1.0]}'}))
    assert predictor(np.array([3.0]))["y"].tolist() == [7.0]
    predictor.close()
