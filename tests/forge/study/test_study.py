"""The study: every method measured and none left out, and what few bits do to numbers, held against arithmetic."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from farthing.bench import Rule
from farthing.config import plain, to_yaml
from farthing.errors import ConfigError, ModelError, UnsupportedError
from farthing.forge import graph
from farthing.forge.cache import Cache
from farthing.forge.evaluate import Judge
from farthing.forge.fuse import Fuse
from farthing.forge.ladder import FUSE, Rung, int8, ladder, rounds
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.sensitivity.alone import Source
from farthing.forge.sensitivity.losses import calibration, whole_loss
from farthing.forge.sensitivity.precisions import Place
from farthing.forge.sensitivity.rounding import rounded_activations, steps
from farthing.forge.study import Study, of_recipe, post_training, study
from farthing.forge.study.front import ON_FRONT, front, placed
from farthing.forge.study.page import render, sentence
from farthing.forge.study.widths import WHAT, Widths, mse, observed, round_activations
from farthing.forge.timing import Clock
from farthing.measure import Figures, Interval, Measurement
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.recipe import Candidate, Progress, Recipe, Step
from farthing.target import Budget, Target
from farthing.task import Task

VNNI = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))
SHORT = Rule(warmup=1, min_count=5, min_seconds=0.02)
Run = Callable[..., Study]


@pytest.fixture(scope="module")
def run(cache_root: Path, digits_task: Task) -> Any:
    """A study in ONNX Runtime with short races and a cache that tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "SPRINT", SHORT)

        def call(model: Model, task: Task = digits_task, **options: Any) -> Study:
            return study(model, task, VNNI, **{"engines": ["onnxruntime"], "cache": cache_root, **options})

        yield call


@pytest.fixture(scope="module")
def found(run: Run, cnn: Model) -> Study:
    return run(cnn, subset=100)


# Methods ----------------------------------------------------------------------------------------------------------


def test_every_method_is_measured_and_none_left_out(found: Study, cnn: Model) -> None:
    names = [candidate.name for candidate in found.methods]
    assert names[0] == "baseline"
    tried = {rung.name for rung in ladder(cnn, ["onnxruntime"], VNNI)}
    assert tried < set(names)
    others = {"int8 mse", "int8 entropy", "int8 minmax, equalized", "int8 minmax, rounding compensated"}
    assert {*others, "int8 minmax, equalized, rounding compensated", "int4 blocks"} <= set(names) - tried
    assert names.count("int4 weights") == 1
    sizes = {candidate.name: candidate.figures.size_mb for candidate in found.methods}
    assert (sizes["int4 weights"] or 1) < (sizes["int8 minmax, rounding compensated"] or 0)
    for candidate in found.methods[1:]:
        if "the same file" in candidate.verdict:
            assert candidate.figures.latency_ms is None
            continue
        assert candidate.status == "accepted", candidate
        assert {*candidate.measurements} == {"single_stream", "offline"}
        assert candidate.drop is not None
        assert candidate.verdict == ON_FRONT or candidate.verdict.startswith("beaten by ")
        assert (candidate.verdict == ON_FRONT) == (candidate.number in found.front)
    assert found.samples["validation"] == 400
    assert found.versions["onnxruntime"]


def test_methods_of_recipes_join(run: Run, cnn: Model, digits_task: Task, tmp_path: Path) -> None:
    steps = (FUSE, Step(use="quantize.equalize.v1"), int8("percentile", per_channel=False))
    recipe = Recipe(
        model=cnn.digest,
        task="",
        target=VNNI,
        steps=steps,
        engine="onnxruntime",
        options=EngineOptions(),
        budget=Budget(),
    )
    (tmp_path / "mine.yaml").write_text(to_yaml(recipe))
    rung = of_recipe(tmp_path / "mine.yaml", cnn)
    found = run(cnn, methods=[rung], subset=100)
    [own] = [candidate for candidate in found.methods if candidate.name == "mine"]
    assert own.measurements
    assert [step.use for step in own.steps] == [step.use for step in steps]
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    assert of_recipe(tmp_path / "recipe.yaml", cnn).name == tmp_path.name, (
        "called by the directory of its search"
    )
    other = msgspec.structs.replace(recipe, model="0" * 64)
    (tmp_path / "other.yaml").write_text(to_yaml(other))
    with pytest.raises(ModelError, match=r"other.yaml is for model 000000000000"):
        of_recipe(tmp_path / "other.yaml", cnn)
    (tmp_path / "none.yaml").write_text(to_yaml(msgspec.structs.replace(recipe, engine="")))
    with pytest.raises(ConfigError, match="names no engine"):
        of_recipe(tmp_path / "none.yaml", cnn)


def test_a_method_that_fails_is_in_the_table_with_its_reason(run: Run, cnn: Model) -> None:
    broken = Rung("broken", "onnxruntime", (Step(use="quantize.static.v1", options={"samples": 0}),))
    found = run(cnn, methods=[broken], subset=100)
    [candidate] = [candidate for candidate in found.methods if candidate.name == "broken"]
    assert candidate.status == "failed"
    assert "samples is a whole number from 1" in candidate.verdict
    assert candidate.number not in found.front


def test_post_training_methods_follow_each_engine_and_its_target(cnn: Model) -> None:
    rungs = post_training(cnn, ["onnxruntime", "litert"], VNNI)
    for engine in ("onnxruntime", "litert"):
        names = [rung.name for rung in rungs if rung.engine == engine]
        assert len(names) == len(set(names))
        assert "int8 minmax, equalized, biases corrected" in names
    npu = Target(name="npu", arch="other", dtypes=("int8", "uint8"))
    integer = [
        rung.name for rung in post_training(cnn, ["litert"], npu) if rung.name.startswith("int8 entropy")
    ]
    assert integer == ["int8 entropy, uint8 in and out"]


def test_the_same_study_again_measures_nothing(
    run: Run, cnn: Model, found: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, name in ((Judge, "_compute"), (Clock, "_time")):
        monkeypatch.setattr(kind, name, None)
    heard: list[Progress] = []
    again = run(cnn, subset=100, listener=heard.append)
    assert msgspec.structs.replace(again, when="", seconds=0) == msgspec.structs.replace(
        found, when="", seconds=0
    )
    assert [event.candidate.number for event in heard if event.candidate] == [*range(len(found.methods))]


worths = st.tuples(*[st.sampled_from([1.0, 2.0, 3.0])] * 3)


@given(st.lists(worths, min_size=1, max_size=12))
def test_who_is_on_the_front_is_beaten_by_nobody(worths: list[tuple[float, float, float]]) -> None:
    candidates = [candidate(number, *worth) for number, worth in enumerate(worths)]
    best = front(candidates)
    assert best
    for number, own in enumerate(worths):
        beaten = any(
            other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in worths
        )
        assert (number in best) == (not beaten)
    for one in placed(candidates):
        assert (one.verdict == ON_FRONT) == (one.number in best)


def test_a_few_per_cent_of_latency_beat_nobody() -> None:
    near = [candidate(0, 0.0, 1.00, 1.0), candidate(1, 0.0, 0.98, 1.0), candidate(2, 0.0, 0.90, 1.0)]
    assert front(near[:2]) == (0, 1)
    assert front(near) == (2,)


def candidate(number: int, loss: float, latency: float, size: float) -> Candidate:
    measured = Measurement(
        model="m", engine="e", engine_version="0", options=EngineOptions(), machine="none", scenario="single_stream",
        batch=1, runs=10, seconds=1.0, p50_ms=latency, p90_ms=latency, p99_ms=latency, throughput=1.0, size_mb=size,
        when="",
    )  # fmt: skip
    return Candidate(
        name=f"c{number}", number=number, steps=(), engine="e", options=EngineOptions(),
        drop=Interval(value=loss, low=loss, high=loss), figures=Figures(size_mb=size),
        measurements={"single_stream": measured},
    )  # fmt: skip


# Widths -----------------------------------------------------------------------------------------------------------


def test_eight_bits_of_both_lose_what_static_int8_loses(
    found: Study, cnn: Model, digits_task: Task, tmp_path: Path
) -> None:
    """The same ranges and scales, once as Q/DQ nodes in integers and once as rounded floats."""
    model = Fuse()(cnn, VNNI, digits_task)
    place = Place(VNNI, digits_task, Cache(tmp_path))
    int8 = StaticInt8()(model, VNNI, digits_task)
    [both] = [width for width in found.widths if (width.bits, width.rounded) == (8, "both")]
    assert both.output_sqnr == pytest.approx(whole_loss(model, int8, place), abs=1.5)


def test_fewer_bits_lose_more_and_take_less(found: Study) -> None:
    by = {(width.bits, width.rounded): width for width in found.widths}
    assert [*by] == [(32, "both"), *((bits, what) for bits in (16, 8, 4) for what in WHAT)]
    assert by[32, "both"].output_mse == 0
    for what in WHAT:
        ratios = [by[bits, what].output_sqnr for bits in (16, 8, 4)]
        assert None not in ratios
        assert ratios == sorted(ratios, reverse=True)  # type: ignore[type-var]
    assert by[8, "activations"].bytes == by[32, "both"].bytes
    assert by[4, "weights"].bytes == by[4, "both"].bytes < by[8, "both"].bytes < by[16, "both"].bytes
    for layer in found.layers:
        for field in ("weights_sqnr", "results_sqnr"):
            values = [getattr(width, field) for width in layer.widths]
            assert values == sorted(values, reverse=True)
        assert layer.widths[0].weights_mse == 0


def test_sizes_and_errors_of_a_layer_are_arithmetic(found: Study, cnn: Model, digits_task: Task) -> None:
    model = Fuse()(cnn, VNNI, digits_task)
    proto = graph.load(model.file)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    layer = found.layers[-1]
    node = next(node for node in proto.graph.node if node.name == layer.name)
    w = stored[node.input[1]]
    assert w.shape == (10, 128)
    assert layer.parameters == 1290
    assert [width.bytes for width in layer.widths] == [5160, 2600, 1280 + 40 + 40, 640 + 40 + 40]
    step = np.abs(w).max(1, keepdims=True) / 7
    assert layer.widths[3].weights_mse == pytest.approx(
        np.mean((np.round(w / step) * step - w) ** 2), rel=1e-4
    )
    half = w.astype(np.float16).astype(np.float64)
    assert layer.widths[1].weights_mse == pytest.approx(np.mean((half - w) ** 2), rel=1e-4)


@given(st.floats(-50, 0), st.floats(0, 50), st.sampled_from([2, 4, 8, 16]), st.integers(0, 1000))
def test_the_nodes_that_round_do_what_rounding_arrays_does(
    low: float, high: float, bits: int, seed: int
) -> None:
    """On a graph whose only operators are the input itself and a sum with zero."""
    x = (np.random.default_rng(seed).normal(size=(4, 8)) * 20).astype(np.float32)
    value = helper.make_tensor_value_info
    node = helper.make_node("Add", ["x", "zero"], ["y"], name="sum")
    shape = [value("x", TensorProto.FLOAT, [4, 8])], [value("y", TensorProto.FLOAT, [4, 8])]
    zero = numpy_helper.from_array(np.zeros(8, np.float32), "zero")
    proto = helper.make_model(
        helper.make_graph([node], "g", *shape, [zero]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    source = Source(proto)
    round_activations(source, {"x": (low, high), "y": (low, high)}, bits)
    found = graph.run(source.proto, {"x": x}, optimise=False)["y"]
    wanted = rounded_activations(rounded_activations(x, low, high, bits), low, high, bits)
    step = steps(low, high, bits)[0] if bits < 16 else 0.0
    gap = np.abs(found - wanted)
    assert (gap <= 1.01 * step + 1e-4).all()
    assert (gap <= 1e-5 * np.abs(wanted) + 1e-6).mean() > 0.9, (
        "float32 may round a value halfway to the other side"
    )


def test_rounded_models_keep_their_inputs_and_outputs(cnn: Model, digits_task: Task) -> None:
    model = Fuse()(cnn, VNNI, digits_task)
    looked = Widths(model, observed(model, digits_task), calibration(model, digits_task, 16))
    for bits in (32, 16, 8, 3):
        made = looked.rounded(bits, "both")
        assert made.manifest == msgspec.structs.replace(model.manifest, files=made.manifest.files)
    same = looked.rounded(32, "both")
    assert looked.errors(same) == (0.0, 150.0)
    assert mse(np.ones(2), np.array([1.0, np.inf])) is None


# Data, page, refusals ---------------------------------------------------------------------------------------------


def test_it_is_plain_data(found: Study) -> None:
    assert msgspec.json.decode(msgspec.json.encode(plain(found)), type=Study) == found


def test_the_page_holds_all_of_it_and_escapes_what_others_wrote(found: Study) -> None:
    page = render(msgspec.structs.replace(found, model_name="<b>x</b>"))
    assert "<b>x" not in page
    assert len(re.findall(r'<tr id="c\d+"', page)) == len(found.methods)
    for layer in found.layers:
        assert layer.name in page
    assert "turned down" not in page.partition('id="plot-data"')[0], "a study turns nothing down"
    assert re.search(r"variants of digits measured on digits\. No other beats these", sentence(found))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"widths": [12]}, "widths are 32, 16, or from 8 down to 2 bits, not 12"),
        ({"widths": []}, "widths are 32, 16"),
        ({"samples": 0}, "samples and subset are from 1"),
        ({"methods": [Rung("mine", "openvino")]}, "mine is for engine openvino; the study has onnxruntime"),
    ],
    ids=str,
)
def test_what_means_nothing_is_refused(run: Run, cnn: Model, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        run(cnn, **options)


def test_a_quantized_model_is_refused(run: Run, cnn: Model, digits_task: Task) -> None:
    int8 = StaticInt8()(Fuse()(cnn, VNNI, digits_task), VNNI, digits_task)
    with pytest.raises(UnsupportedError, match="quantized already"):
        run(int8)
