"""Measuring: who runs when, on which samples, what the figures are made of, and the child that measures memory."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from farthing import bench
from farthing.bench import Rule, Timed, memory
from farthing.bench.machine import Here
from farthing.engines.base import Tensors, open_engine
from farthing.errors import EngineError, MeasurementError, ModelError, RaceError, TaskError
from farthing.model import Manifest, Model, Preprocess, Resize, TensorSpec, checked
from farthing.options import EngineOptions
from farthing.task import ImageFiles, Split, Task
from farthing.testing import fake_model

Array = NDArray[Any]
QUICK = Rule(warmup=2, min_count=12, min_seconds=0.0)


def spec(name: str, *shape: int | str, axis: int | None = 0, **more: Any) -> TensorSpec:
    return TensorSpec(name=name, dtype=more.pop("dtype", "float32"), shape=shape, batch_axis=axis, **more)


def affine(batch: int | str = "n", decay: float | None = None, features: int = 2) -> Model:
    """y = x @ ones + 1 in the fake engine: one output, the sum of the features and one."""
    manifest = Manifest(
        name="affine", format="fake", inputs=(spec("x", batch, features),), outputs=(spec("y", batch, 1),)
    )
    tail = "" if decay is None else f', "decay": {decay}'
    weights = f"[{', '.join(['[1]'] * features)}]"
    return Model.create(manifest, {"m.json": f'{{"weights": {weights}, "bias": [1]{tail}}}'.encode()})


def rows(count: int, features: int = 2) -> Array:
    return np.arange(count * features, dtype=np.float32).reshape(count, features)


def task(x: Array, labels: Array | None = None, **splits: Array) -> Task:
    made = {"test": Split({"": x}, labels)} | {name: Split({"": array}) for name, array in splits.items()}
    return Task("rows", made, "error" if labels is not None else "cosine")


class Player:
    """An engine that notes who is called with what, and how long after it began it should answer."""

    name = "player"
    version = "1"

    def __init__(self, who: str, log: list[tuple[str, Any]], seconds: float = 0.0) -> None:
        self.who, self.log, self.seconds = who, log, seconds
        self.inputs = self.outputs = (spec("x", "n", 1),)
        self.stateful = False

    def run(self, feeds: Tensors) -> dict[str, Array]:
        self.log.append((self.who, feeds["x"]))
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            pass
        return {"x": feeds["x"]}


def turns(log: list[tuple[str, Any]]) -> str:
    """Who ran, blocks drawn together: "aaabb" is "ab"."""
    names = [who for who, _ in log]
    return "".join(name for i, name in enumerate(names) if i == 0 or names[i - 1] != name)


def race(*players: Player, rule: Rule = QUICK, tick: Any = None) -> list[Timed]:
    samples = [{"x": np.full((1, 1), k, np.float32)} for k in range(8)]
    return bench.race([(player, samples) for player in players], rule, tick)  # type: ignore[list-item]


# The race ---------------------------------------------------------------------------------------------------------


def test_a_race_is_interleaved_in_an_order_shuffled_for_each_round() -> None:
    log: list[tuple[str, Any]] = []
    rounds = len(
        race(*(Player(who, log, 2e-3) for who in "abc"), rule=Rule(warmup=0, min_count=1, min_seconds=0))[
            0
        ].rounds
    )
    calls = "".join(who for who, _ in log)
    calls = calls.removeprefix("aaabbbccc")  # all warm up
    block = len(calls) // (3 * rounds)
    orders = [calls[i : i + 3 * block : block] for i in range(0, len(calls), 3 * block)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders), "everyone once a round"
    assert len(set(orders)) > 2, "in orders that differ"


def test_every_entrant_is_timed_in_every_round() -> None:
    log: list[tuple[str, Any]] = []
    quick, slow = race(
        Player("a", log, 1e-5), Player("b", log, 4e-4), rule=Rule(warmup=2, min_count=30, min_seconds=0)
    )
    assert len(quick.rounds) == len(slow.rounds) >= 10
    assert len(slow.calls) >= 30
    assert len(quick.calls) > len(slow.calls), "a quick one fills its turn with more calls"
    assert np.median(quick.calls) < np.median(slow.calls)
    for timed, who in ((quick, "a"), (slow, "b")):
        assert timed.made == sum(name == who for name, _ in log)
        assert timed.made == len(timed.calls) + len(timed.rounds) + 3, (
            "an untimed call a turn, and the warm-up"
        )


def test_a_slow_model_makes_one_timed_call_a_turn() -> None:
    log: list[tuple[str, Any]] = []
    (timed,) = race(
        Player("a", log, 0.025), rule=Rule(warmup=1, min_count=3, min_seconds=0, max_seconds=0.01)
    )
    assert len(timed.calls) == len(timed.rounds) == 5, "five rounds, however little time there is"
    assert timed.made == 5 + 3
    assert min(timed.calls) >= 0.025


def test_a_race_goes_on_until_count_and_time_are_reached() -> None:
    ticks: list[tuple[int, int]] = []
    begin = time.perf_counter()
    (timed,) = race(
        Player("a", []), rule=Rule(warmup=0, min_count=3, min_seconds=0.2), tick=lambda *t: ticks.append(t)
    )
    assert time.perf_counter() - begin >= 0.2
    assert ticks[-1] == (20, 20)
    assert ticks == sorted(ticks)
    (longer,) = race(Player("a", []), rule=Rule(warmup=0, min_count=5000, min_seconds=0))
    assert len(longer.calls) >= 5000
    assert len(timed.calls) >= 3


def test_samples_take_turns() -> None:
    log: list[tuple[str, Any]] = []
    race(Player("a", log), rule=Rule(warmup=2, min_count=40, min_seconds=0))
    assert {float(x[0, 0]) for _, x in log} == set(map(float, range(8)))


def test_garbage_is_collected_as_before_once_a_race_is_over() -> None:
    class Failing(Player):
        def run(self, feeds: Tensors) -> dict[str, Array]:
            if len(self.log) > 20:
                assert not gc.isenabled()
                raise EngineError("out of order")
            return super().run(feeds)

    with pytest.raises(EngineError, match="out of order"):
        race(Failing("a", []))
    assert gc.isenabled()
    gc.disable()
    try:
        race(Player("a", []))
        assert not gc.isenabled()
    finally:
        gc.enable()


# What it is measured on -------------------------------------------------------------------------------------------


def test_samples_reach_the_model_as_its_manifest_says() -> None:
    """Whatever type the data has; along whatever axis the model wants its batch."""
    x = np.arange(24).reshape(4, 3, 2)
    inputs = (
        spec("first", "n", 3, 2),
        spec("second", 3, "n", 2, axis=1, dtype="float64"),
        spec("third", 3, 2, axis=None),
    )
    manifest = Manifest(name="m", format="fake", inputs=inputs, outputs=())
    data = Split({"first": x, "second": x, "third": x, "unused": x})
    fed = bench.feeds(task(rows(1)), data, manifest, [2, 3])
    assert list(fed) == ["first", "second", "third"]
    assert (fed["first"].dtype, fed["second"].dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(fed["first"], x[2:])
    np.testing.assert_array_equal(fed["second"], x[2:].swapaxes(0, 1))
    np.testing.assert_array_equal(fed["third"], x[2])
    assert fed["second"].flags.c_contiguous
    scalar = Manifest(name="m", format="fake", inputs=(spec("rate", axis=None),), outputs=())
    assert bench.feeds(task(rows(1)), Split({"rate": np.arange(3)}), scalar, [1])["rate"].shape == ()


def test_the_last_batch_of_a_model_with_a_fixed_batch_is_filled_up() -> None:
    """Ten samples in batches of 4: 4, 4, and 2 that are repeated; the answers of the repeats are dropped."""
    model, heard = affine(4), []
    with open_engine(model) as engine:
        found = bench.outputs(
            engine,
            model.manifest,
            task(rows(10)),
            task(rows(10)).split("test"),
            tick=lambda *t: heard.append(t),
        )
    np.testing.assert_array_equal(found["y"][:, 0], rows(10).sum(1) + 1)
    assert heard == [(4, 10), (8, 10), (10, 10)]


@settings(max_examples=40)
@given(count=st.integers(1, 150), batch=st.one_of(st.just("n"), st.integers(1, 70)))
def test_every_sample_is_answered_once_and_in_order(count: int, batch: int | str) -> None:
    model, data = affine(batch), task(rows(count))
    with open_engine(model) as engine:
        found = bench.outputs(engine, model.manifest, data, data.split("test"))["y"]
        some = np.random.default_rng(count).permutation(count)[: count // 2 + 1]
        picked = bench.outputs(engine, model.manifest, data, data.split("test"), some)["y"]
    np.testing.assert_array_equal(found[:, 0], rows(count).sum(1) + 1)
    np.testing.assert_array_equal(picked, found[some])


def test_samples_of_a_model_that_keeps_state_do_not_know_one_another() -> None:
    x = rows(6)
    model = affine(decay=0.5)
    manifest = Manifest(
        name="m",
        format="fake",
        inputs=(*model.manifest.inputs, spec("s", 1, 1, role="state")),
        outputs=(*model.manifest.outputs, spec("t", 1, 1, role="state")),
    )
    assert bench.batch_size(manifest, 64) == 1, "a stream holds one sample at a time"
    with open_engine(model) as engine:
        found = bench.outputs(engine, manifest, task(x), task(x).split("test"))["y"]
    np.testing.assert_array_equal(found[:, 0], x.sum(1) + 1)


class Answering(Player):
    """Answers with a given array, whatever it is asked."""

    def __init__(self, output: TensorSpec, answer: Callable[[int], Array]) -> None:
        super().__init__("a", [])
        self.outputs = (output,)
        self.answer = answer

    def run(self, feeds: Tensors) -> dict[str, Array]:
        return {self.outputs[0].name: self.answer(len(feeds["x"]))}


@pytest.mark.parametrize(
    ("output", "answer", "shape"),
    [
        (spec("y", "n", 3), lambda n: np.zeros((n, 3)), (5, 3)),
        (spec("y", 3, "n", axis=1), lambda n: np.zeros((3, n)), (5, 3)),
        (spec("y", "n", 3, axis=None), lambda n: np.zeros((n, 3)), (5, 3)),
        (spec("y", "n"), lambda n: np.zeros(n), (5,)),
    ],
)
def test_outputs_have_their_samples_first(output: TensorSpec, answer: Any, shape: Any) -> None:
    data = task(rows(5))
    manifest = affine().manifest
    found = bench.outputs(Answering(output, answer), manifest, data, data.split("test"))  # type: ignore[arg-type]
    assert found["y"].shape == shape


def test_a_model_of_one_sample_answers_without_a_batch_axis() -> None:
    manifest = Manifest(name="m", format="fake", inputs=(spec("x", 2, axis=None),), outputs=())
    engine = Answering(spec("y", 3, axis=None), lambda n: np.arange(3.0))
    data = task(rows(5))
    assert bench.outputs(engine, manifest, data, data.split("test"))["y"].shape == (5, 3)  # type: ignore[arg-type]


def test_an_output_that_is_not_one_row_a_sample_is_refused() -> None:
    data = task(rows(5))
    engine = Answering(spec("y", 3, axis=None), lambda n: np.zeros(3))
    with pytest.raises(TaskError, match=r"'y' answers 5 samples with shape \[1, 3\]: set its batch_axis"):
        bench.outputs(engine, affine().manifest, data, data.split("test"))  # type: ignore[arg-type]


def test_feeds_to_time_with_are_real_samples_or_seeded_numbers() -> None:
    manifest = affine(3).manifest
    made = bench.sample_feeds(manifest, 32, task(rows(1), validation=rows(5)))
    assert [feed["x"].shape for feed in made] == [(3, 2)] * 8
    assert {tuple(row) for feed in made for row in feed["x"].tolist()} == {
        tuple(row) for row in rows(5).tolist()
    }
    first, again = (bench.sample_feeds(affine().manifest, 4)[0]["x"] for _ in range(2))
    assert first.shape == (4, 2)
    np.testing.assert_array_equal(first, again)
    for dtype in ("uint8", "int8", "bool", "float16", "int64"):
        made = bench.random_array((30, 20), dtype, np.random.default_rng(0))
        assert made.dtype == dtype
        assert (len(np.unique(made)) > 200) == (dtype not in {"bool", "int64"})


def test_sizes_that_nobody_states_are_not_made_up() -> None:
    picture = spec("x", "n", 3, "height", "width")
    with pytest.raises(MeasurementError, match="'x' has the free axes height, width: give a task"):
        bench.random_feeds([picture], 1, np.random.default_rng(0))
    told = msgspec.structs.replace(picture, shape=("n", 3, 4, 5))
    assert bench.random_feeds([told], 2, np.random.default_rng(0))["x"].shape == (2, 3, 4, 5)
    model = fake_model()
    (free,) = model.manifest.inputs
    free = msgspec.structs.replace(free, shape=("n", "length"))
    open_sized = Model(model.path, checked(model.manifest, inputs=(free,)))
    with pytest.raises(MeasurementError, match="free axes length"):
        bench.peak_memory(open_sized, "fake", EngineOptions())


# Figures ----------------------------------------------------------------------------------------------------------


def test_figures_come_from_the_calls_that_were_timed() -> None:
    """1..1000 ms: the percentiles are known, and so is the throughput of batches of four."""
    calls = [k / 1000 for k in np.random.default_rng(0).permutation(1000) + 1]
    model = affine(4)
    with open_engine(model) as engine:
        timed = Timed(calls=calls, rounds=[0.5], made=1500)
        found = bench.summarise(model, engine, EngineOptions(), "offline", 4, timed, Here())
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == pytest.approx((500.5, 900, 990))
    assert found.p90_bound_ms is not None
    assert 905 < found.p90_bound_ms < 930
    assert (found.runs, found.batch) == (1000, 4)
    assert found.seconds == pytest.approx(500.5)
    assert found.throughput == pytest.approx(4 * 1000 / 500.5)
    assert (found.engine, found.options, found.model) == ("fake", EngineOptions(), model.digest)
    assert found.size_mb == model.size_bytes / 1e6
    assert found.machine
    assert found.energy_source == "unavailable"


def test_a_bench_has_all_that_can_be_known_here() -> None:
    model = affine()
    alone = bench.bench(model, rule=QUICK)
    assert (alone.scenario, alone.batch) == ("single_stream", 1)
    assert alone.load_ms is not None
    assert alone.load_ms > 0
    assert alone.prepare_ms is None
    assert alone.peak_memory_mb is not None
    assert alone.memory_mb is not None
    assert 5 < alone.peak_memory_mb < 1000
    assert -1 < alone.memory_mb < alone.peak_memory_mb
    batches = bench.bench(model, scenario="offline", batch=16, rule=QUICK, memory=False)
    assert (batches.batch, batches.peak_memory_mb) == (16, None)
    assert batches.throughput == pytest.approx(16 * batches.runs / batches.seconds)
    fixed = bench.bench(affine(8), rule=QUICK, memory=False)
    assert fixed.batch == 8, "a model keeps the batch it fixes, and its samples are counted so"


def test_preparing_pictures_is_timed_beside_the_model(tmp_path: Path) -> None:
    from PIL import Image

    for k in range(3):
        Image.fromarray(np.full((40, 50, 3), 80 * k, np.uint8)).save(tmp_path / f"{k}.png")
    paths = np.array(sorted(str(path) for path in tmp_path.glob("*.png")))
    resize = Resize(height=8, width=8, filter="bilinear", antialias=True)
    manifest = Manifest(
        name="m",
        format="fake",
        inputs=(spec("x", "n", 3, 8, 8, layout="NCHW"),),
        outputs=(spec("y", "n", 1),),
        preprocess=Preprocess(colour="RGB", scale=1 / 255, resize=resize),
    )
    pictures = Task("p", {"validation": ImageFiles({"": paths})}, "agreement", form="image")
    found = bench.prepare_ms(manifest, pictures)
    assert found is not None
    assert found > 0
    fed = bench.feeds(pictures, pictures.split("validation"), manifest, [1])
    np.testing.assert_allclose(fed["x"], 80 / 255, atol=1e-6)
    assert bench.prepare_ms(manifest, task(rows(3))) is None


def test_evaluate_scores_what_the_engine_answers() -> None:
    x = rows(30)
    truth = (x.sum(1) + 1)[:, None] + np.where(np.arange(30) < 15, 0.0, 0.5)[:, None]
    score, found = bench.evaluate(affine(), task(x, truth.astype(np.float32)))
    assert score.value == pytest.approx(0.25)
    np.testing.assert_array_equal(found["y"][:, 0], x.sum(1) + 1)


def test_a_metric_that_compares_wants_the_float_model() -> None:
    data = task(rows(30))
    with pytest.raises(TaskError, match="compares with the float model: give it as the reference"):
        bench.evaluate(affine(), data)
    assert bench.evaluate(affine(), data, reference=affine())[0].value == pytest.approx(1.0)


# Memory -----------------------------------------------------------------------------------------------------------


def product(features: int) -> Model:
    """x @ w in ONNX, w of features x features."""
    weights = np.random.default_rng(0).normal(size=(features, features)).astype(np.float32)
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", features])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", features])],
            [numpy_helper.from_array(weights, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    manifest = Manifest(
        name="product", format="onnx", inputs=(spec("x", "n", features),), outputs=(spec("y", "n", features),)
    )
    return Model.create(manifest, {"model.onnx": proto.SerializeToString()})


def test_memory_is_that_of_a_process_of_its_own() -> None:
    """It grows with the model, by its weights at least, and not with what this process holds."""
    small_peak, small = bench.peak_memory(product(16), "onnxruntime", EngineOptions())
    ballast = np.ones(40 << 20, np.float32)
    large_peak, large = bench.peak_memory(product(2048), "onnxruntime", EngineOptions())
    assert ballast.nbytes > 160e6
    weights = 2048 * 2048 * 4 / 1e6
    assert large - small > 0.9 * weights
    assert large_peak < small_peak + 5 * weights, "the parent's 168 MB are not in it"
    assert 0 < small < small_peak


def test_what_the_child_says_reaches_the_caller() -> None:
    with pytest.raises(
        MeasurementError, match=r"ended with 1: .*EngineError: engine onnxruntime runs onnx files"
    ):
        bench.peak_memory(affine(), "onnxruntime", EngineOptions())
    with pytest.raises(MeasurementError, match=r"ended with 1: .*the caller's thread: threads=1"):
        bench.peak_memory(affine(), "fake", EngineOptions(threads=2))


def test_a_model_damaged_meanwhile_is_seen_by_the_child() -> None:
    model = affine()
    model.file.write_bytes(b"{}")
    with pytest.raises(MeasurementError, match="SHA-256 differs"):
        bench.peak_memory(model, "fake", EngineOptions())
    with pytest.raises(ModelError, match="SHA-256 differs"):
        model.verify()


def test_a_child_that_is_killed_or_never_ends_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in for the interpreter that dies of a signal, as the kernel ends a process that takes all memory."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(EngineError, match="ended with SIGKILL: the engine crashed, or memory ran out"):
        bench.peak_memory(affine(), "fake", EngineOptions())
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(memory, "CHILD_SECONDS", 0.2)
    with pytest.raises(MeasurementError, match=r"took over 0\.2 s"):
        bench.peak_memory(affine(), "fake", EngineOptions())


def test_the_child_finds_the_same_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs with this process's import path, less the working directory, whatever lies there."""
    for name in ("numpy", "json", "farthing"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the wrong {name}')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", ".", *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep)  # an empty entry is the working directory, too
    assert bench.peak_memory(affine(), "fake", EngineOptions())[0] > 5


def test_a_race_names_the_entrant_that_fails() -> None:
    class Failing:
        def __init__(self, most: int) -> None:
            self.left = most

        def run(self, feeds: object) -> object:
            self.left -= 1
            if self.left < 0:
                raise EngineError("it broke")
            return feeds

    for most in (3, 60):  # while it warms up, and in a later round
        turns: list[int] = []
        entrants: Any = [(Failing(most if i == 1 else 10**9), [{}]) for i in range(3)]
        with pytest.raises(RaceError, match="it broke") as caught:
            bench.race(entrants, Rule(min_count=1000, min_seconds=0.0), turn=turns.append)
        assert (caught.value.entrant, turns[-1]) == (1, 1)
    models = [(affine(), "", EngineOptions()), (affine(features=3), "", EngineOptions(threads=2))]
    with pytest.raises(RaceError, match="computes in the caller's thread") as caught:
        bench.compare_engines(models)
    assert caught.value.entrant == 1
