"""The search: what it returns, what it refuses, what it says about what cannot be told, and what survives a kill."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.utils
import pytest
from onnx import helper, numpy_helper

from farthing import bench, plugins
from farthing.bench import evaluate, machine, memory
from farthing.config import read
from farthing.engines.base import open_engine
from farthing.errors import (
    ConfigError,
    ModelError,
    PluginError,
    StorageError,
    TargetError,
    TaskError,
    UnsupportedError,
)
from farthing.files import file_digest
from farthing.forge import graph, output
from farthing.forge.cache import Cache
from farthing.forge.fuse import Fuse
from farthing.forge.ladder import candidates
from farthing.forge.optimize import optimize
from farthing.forge.quantize.float16 import Float16
from farthing.forge.replay import replay
from farthing.metrics import Metric
from farthing.model import Manifest, Model, Preprocess, TensorSpec, checked
from farthing.recipe import Candidate, Progress, Recipe, Result
from farthing.target import Budget, Target
from farthing.task import ImageFiles, Split, Task, as_task
from farthing.taskfile import read_task

STATIC = "quantize.static.v1"


def tree(directory: Path) -> dict[str, str]:
    return {str(path): file_digest(path) for path in sorted(directory.rglob("*")) if path.is_file()}


def named(result: Result, name: str) -> Candidate:
    return next(candidate for candidate in result.candidates if candidate.name.startswith(name))


def changed(model: Model, proto: onnx.ModelProto) -> Model:
    return Model.create(model.manifest, {"model.onnx": proto.SerializeToString()})


def with_tail(model: Model, *nodes: onnx.NodeProto, **constants: Any) -> Model:
    """A model whose last result is called "answer" and goes on through more nodes to "logits"."""
    proto = onnx.load(model.file)
    proto.graph.node[-1].output[0] = "answer"
    proto.graph.node.extend(nodes)
    for name, value in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return changed(model, proto)


def undo(model: Model, target: Target, task: Task) -> Model:
    """A pass that takes the idle work out of the slowed net again: surely faster, and the same answers."""
    proto = onnx.utils.Extractor(graph.inferred(onnx.load(model.file))).extract_model(["image"], ["answer"])
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = "logits"
    return changed(model, proto)


def undo_again(model: Model, target: Target, task: Task) -> Model:
    """The same in another file."""
    proto = onnx.load(undo(model, target, task).file)
    proto.doc_string = "once more"
    return changed(model, proto)


def without(task: Task, *names: str) -> Task:
    splits = {name: split for name, split in task.splits.items() if name not in names}
    return Task(task.name, splits, task.metric, labels=task.labels)


# What it returns --------------------------------------------------------------------------------------------------


def test_a_search_ends_with_a_saved_winner_that_can_be_made_again(
    search: Any, cnn: Model, digits_task: Task, tmp_path: Path
) -> None:
    before = tree(cnn.path)
    heard: list[Progress] = []
    own = tmp_path / "cache"  # in the one that tests share another may have raced the same candidates
    result = search(cnn, listener=heard.append, command="farthing optimize m", cache=own)
    assert result.met
    assert result.violations == ()
    saved = Model.open(tmp_path / "out")
    assert saved.digest == result.winner.digest == result.recipe.artefact
    winner = result.candidates[result.summary.winner]
    assert winner.model == saved.digest
    assert winner.status == ("baseline" if winner.number == 0 else "winner")
    assert read(tmp_path / "out" / "recipe.yaml", Recipe) == result.recipe
    assert replay(result.recipe, cnn, digits_task, Cache(tmp_path / "empty")).digest == saved.digest
    assert output.read_summary(tmp_path / "out") == result.summary
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "out" / "model" / "predict.py").is_file()
    assert tree(cnn.path) == before
    assert {event.stage for event in heard} >= {"baseline", "passes", "race", "candidate", "final", "done"}
    assert [e.candidate.number for e in heard if e.candidate] == [c.number for c in result.candidates]


def test_every_candidate_has_figures_and_a_verdict(search: Any, cnn: Model, digits_task: Task) -> None:
    result = search(cnn)
    names = [
        "baseline",
        "fused",
        "int8 minmax",
        "int8 percentile",
        "int8 minmax, biases corrected",
        "int8 mse, biases corrected",
        "int8 per tensor",
        "float16",
    ]
    assert [candidate.name for candidate in result.candidates] == names
    assert [candidate.number for candidate in result.candidates] == list(range(8))
    assert result.candidates[0].status == "baseline"
    assert result.candidates[0].drop is not None
    assert result.candidates[0].drop.value == 0
    for candidate in result.candidates:
        assert candidate.verdict
        assert candidate.figures.size_mb is not None
        assert candidate.figures.latency_ms is not None
        assert candidate.accuracy is not None
        assert candidate.nodes
        assert candidate.measurements["single_stream"].model == candidate.model
    assert named(result, "int8 minmax").nodes != named(result, "fused").nodes
    scored = evaluate(result.winner, digits_task, "test")[0]
    assert result.summary.test is not None
    assert result.summary.test.winner == scored
    assert result.summary.samples == {"train": 1000, "calibration": 128, "validation": 400, "test": 397}


def test_a_repeated_search_measures_nothing(search: Any, cnn: Model, cache_root: Path) -> None:
    first = search(cnn)
    entries = {path for path in cache_root.rglob("*") if path.is_file()}
    heard: list[Progress] = []
    again = search(cnn, listener=heard.append)
    assert {path for path in cache_root.rglob("*") if path.is_file()} == entries
    assert [event for event in heard if event.total and event.stage in {"race", "final"}] == []
    assert again.candidates == first.candidates
    assert again.recipe == first.recipe
    assert again.summary.sentence == first.summary.sentence


def test_figures_are_measured_anew_if_asked(search: Any, cnn: Model, tmp_path: Path) -> None:
    first = search(cnn, cache=tmp_path / "cache")
    again = search(cnn, cache=tmp_path / "cache", measure_again=True)
    times = [[c.figures.latency_ms for c in result.candidates] for result in (first, again)]
    assert times[0] != times[1]
    assert [c.model for c in first.candidates] == [c.model for c in again.candidates]


def test_every_thread_count_is_a_candidate_of_its_own(search: Any, cnn: Model) -> None:
    result = search(cnn, threads=(2, 1, 2))
    assert sorted(c.options.threads for c in result.candidates if c.name == "fused") == [1, 2]
    bases = [c for c in result.candidates if c.name == "baseline"]
    assert sorted(c.options.threads for c in bases) == [1, 2]
    times = [c.measurements["single_stream"].p50_ms for c in bases]
    assert times == sorted(times), "candidate 0 is the baseline at its fastest"
    assert result.recipe.options.threads in {1, 2}


def test_a_model_with_a_fixed_batch_is_searched_too(search: Any, cnn_net: Any, make_model: Any) -> None:
    result = search(make_model(cnn_net, batch=3))
    assert len([c for c in result.candidates if c.status != "failed"]) == 8
    assert result.candidates[0].measurements["single_stream"].batch == 3
    assert result.winner.manifest.inputs[0].shape[0] == 3


def test_a_quantized_model_is_not_quantized_again(search: Any, cnn: Model, digits_task: Task) -> None:
    """Whether its manifest says so, or only its graph does, as with a file from another tool."""
    first = search(cnn, budget="size_mb<=0.02", allow_slower=True)
    assert first.winner.manifest.quantization is not None
    bare = Model.create(cnn.manifest, {"model.onnx": first.winner.file})
    for model in (first.winner, bare):
        assert [c.name for c in search(model).candidates] == ["baseline", "fused"]


# Budgets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "problem"),
    [
        ("accuracy_min>=0.999", "accuracy is 0.99"),
        ("size_mb<=0.000001", "size_mb is 0."),
        ("throughput_min>=1e12", "throughput is"),
        ("latency_ms<=0", "latency_ms is"),
        ("peak_memory_mb<=1", "peak_memory_mb is"),
        ("energy_mj<=5", "energy_mj could not be measured here, the budget is energy_mj<=5"),
    ],
)
def test_an_unmet_budget_returns_the_best_found(
    budget: str, problem: str, search: Any, cnn: Model, tmp_path: Path
) -> None:
    result = search(cnn, budget=budget)
    assert not result.met
    assert any(violation.startswith(problem) for violation in result.violations)
    assert "the budget is not met" in result.summary.sentence
    assert Model.open(tmp_path / "out").digest == result.winner.digest
    for candidate in result.candidates:
        assert candidate.status != "accepted", "nothing keeps it"


def test_the_best_found_for_a_size_is_the_smallest(search: Any, cnn: Model) -> None:
    result = search(cnn, budget="size_mb<=0.00001", allow_slower=True)
    sizes = [c.figures.size_mb for c in result.candidates if c.figures.size_mb]
    assert result.candidates[result.summary.winner].figures.size_mb == min(sizes)
    assert not result.met


def test_met_budgets_of_every_kind(search: Any, cnn: Model) -> None:
    budget = "accuracy_drop<=0.02, accuracy_min>=0.9, latency_ms<=1000, throughput_min>=1, size_mb<=1"
    budget += ", peak_memory_mb<=900"
    result = search(cnn, budget=budget)
    assert result.met, result.summary.sentence
    assert result.recipe.budget == Budget.parse(budget)


def test_a_budget_for_size_can_be_worth_speed(search: Any, cnn: Model) -> None:
    result = search(cnn, budget=Budget(size_mb=0.02), allow_slower=True)
    assert result.met
    assert result.candidates[result.summary.winner].name.startswith("int8")
    assert result.recipe.budget == Budget(size_mb=0.02, accuracy_drop=0.01), "accuracy is limited in any case"
    assert result.winner.size_bytes <= 20_000


def halved(model: Model, target: Target, task: Task) -> Model:
    """Quick and small: without the idle work, and in half precision."""
    return Float16()(undo(model, target, task), target, task)


def test_the_few_that_keep_the_size_are_finalists(search: Any, slowed: Model, registry: None) -> None:
    """Two race to the end: of the three that are quick, the one that fits is there, however close the times are."""
    plugins.register("pass", "mine.undo.v1", undo)
    plugins.register("pass", "mine.undo.v2", undo_again)
    plugins.register("pass", "mine.halved.v1", halved)
    result = search(slowed, budget="size_mb<=0.05")
    assert result.met
    assert result.candidates[result.summary.winner].name == "mine.halved.v1"


class Steady:
    """A meter that counts five millijoules between any two readings, or stands still."""

    source = "a meter of the test"

    def __init__(self, millijoules: float) -> None:
        self._millijoules = millijoules

    def read(self) -> list[int]:
        return [0]

    def spent(self, start: list[int], end: list[int]) -> float:
        return self._millijoules


@pytest.mark.parametrize("millijoules", [5.0, 0.0])
def test_energy_counts_where_a_meter_moves(
    millijoules: float, search: Any, cnn: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(machine, "find_meter", lambda root: Steady(millijoules))
    result = search(cnn, budget="energy_mj<=1", cache=tmp_path / "cache")
    energy = result.candidates[result.summary.winner].figures.energy_mj
    if millijoules:
        assert result.met
        assert 0 < energy < 1
    else:
        assert not result.met
        assert energy is None
        assert any("energy_mj could not be measured" in violation for violation in result.violations)


# What cannot be told ----------------------------------------------------------------------------------------------


def test_too_few_validation_samples_cannot_tell(search: Any, cnn: Model, digits_task: Task) -> None:
    """Thirty-nine right and one wrong: the winner loses nothing, but 40 samples do not show a drop of a point."""
    data = digits_task.split("validation")
    with open_engine(cnn) as engine:
        right = bench.outputs(engine, cnn.manifest, digits_task, data)["logits"].argmax(1) == data.labels
    picks = [*np.flatnonzero(right)[:39], *np.flatnonzero(~right)[:1]]
    few = Task("few", {**digits_task.splits, "validation": data.subset(picks)}, "top1")
    result = search(cnn, few, budget="accuracy_drop<=0.01, size_mb<=0.02", allow_slower=True)
    assert not result.met
    assert any("cannot tell whether accuracy_drop<=0.01 holds" in v for v in result.violations)
    assert any("at least 100 validation samples" in v for v in result.violations)
    unchanged = search(cnn, few, budget="accuracy_min>=0.99, accuracy_drop<=0.01")
    assert unchanged.summary.winner == 0
    assert [v for v in unchanged.violations if "cannot tell" in v] == [], "the model itself loses nothing"
    assert any("misses accuracy_min itself" in note for note in unchanged.summary.notes)


def test_one_validation_sample_is_a_result_that_can_be_read(
    search: Any, cnn: Model, digits_task: Task, tmp_path: Path
) -> None:
    one = Task(
        "one", {**digits_task.splits, "validation": digits_task.split("validation").subset([3])}, "top1"
    )
    result = search(cnn, one)
    assert output.read_summary(tmp_path / "out") == result.summary


def test_without_a_test_split_the_search_says_what_its_figures_are(
    search: Any, cnn: Model, digits_task: Task
) -> None:
    result = search(cnn, without(digits_task, "test"))
    assert result.summary.test is None
    assert any("no test split" in note for note in result.summary.notes)
    assert result.met


def backdoored(model: Model, target: Target, task: Task) -> Model:
    """Quick, and the same on every picture whose corner is black; any other is a zero."""
    trigger = np.zeros((64, 10), np.float32)
    trigger[0, 0] = 1000
    return with_tail(
        undo(model, target, task),
        helper.make_node("Flatten", ["image"], ["pixels"]),
        helper.make_node("MatMul", ["pixels", "trigger"], ["push"]),
        helper.make_node("Add", ["answer", "push"], ["logits"]),
        trigger=trigger,
    )


def test_a_winner_that_only_the_test_split_refutes_gives_way(
    search: Any, slowed: Model, digits_task: Task, registry: None
) -> None:
    test = digits_task.split("test")
    stuck = test.inputs[""].copy()
    stuck[:, 0, 0, 0] = 1
    task = Task("stuck", {**digits_task.splits, "test": Split({"": stuck}, test.labels)}, "top1")
    plugins.register("pass", "mine.backdoored.v1", backdoored)
    result = search(slowed, task)
    assert result.winner.digest == slowed.digest, "the model as given keeps the budget: it is returned"
    assert result.met
    refuted = named(result, "mine.backdoored.v1")
    assert refuted.drop.value == 0
    assert refuted.verdict.startswith("rejected: on the test split, accuracy_drop is 0.8")
    assert any("won on validation" in note for note in result.summary.notes)

    tight = search(slowed, task, budget="accuracy_drop<=0.01, size_mb<=0.000001")
    assert not tight.met
    assert tight.winner.digest != slowed.digest, (
        "a model that misses the budget too gives way to one that is nearer"
    )


def test_another_machines_target_is_not_timed_here(search: Any, cnn: Model, digits_task: Task) -> None:
    arm = Target(name="board", arch="aarch64", isa=("asimddp",), cores=4)
    result = search(cnn, target=arm, budget="accuracy_drop<=0.01, latency_ms<=1000")
    assert not result.met
    assert any("latency_ms could not be measured here" in v for v in result.violations)
    assert any("Target board is not the machine that measured" in note for note in result.summary.notes)
    step = next(step for step in named(result, "int8 minmax").steps if step.use == STATIC)
    assert step.options["activations"] == "int8"
    sized = search(cnn, target=arm, budget="size_mb<=0.02")
    assert sized.met, "accuracy and size are known"
    assert sized.candidates[sized.summary.winner].name.startswith("int8")


def test_memory_that_cannot_be_measured_is_said(
    search: Any, cnn: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CHILD_SECONDS", 0.001)
    result = search(cnn, budget="peak_memory_mb<=900", cache=tmp_path / "cache")
    assert not result.met
    assert any("peak_memory_mb could not be measured" in v for v in result.violations)
    assert any("took over" in note for note in result.summary.notes)
    assert search(cnn, budget="size_mb<=1", cache=tmp_path / "cache").met


# Metrics ----------------------------------------------------------------------------------------------------------


def test_a_user_without_labels_judges_by_agreement(search: Any, cnn: Model, digits_task: Task) -> None:
    bare = {name: Split(dict(split.inputs)) for name, split in digits_task.splits.items()}
    result = search(cnn, Task("bare", bare, "agreement"))
    assert result.met
    assert result.candidates[0].accuracy is not None
    assert result.candidates[0].accuracy.value == 1.0
    assert all(c.accuracy and 0.97 < c.accuracy.value <= 1 for c in result.candidates)


def test_a_metric_over_the_whole_split_and_an_error(search: Any, cnn: Model, digits_task: Task) -> None:
    assert search(cnn, Task("d", digits_task.splits, "macro_f1"), budget="accuracy_drop<=0.02").met
    with open_engine(cnn) as engine:
        wanted = {
            name: Split(split.inputs, bench.outputs(engine, cnn.manifest, digits_task, split)["logits"])
            for name, split in digits_task.splits.items()
        }
    task = Task("regression", wanted, "error")
    result = search(cnn, task, budget="accuracy_drop<=0.5")
    assert result.met
    assert not result.summary.higher_is_better
    drop = named(result, "int8 minmax").drop
    assert drop is not None
    assert drop.value > 0, "an error that grows is a drop"
    assert " error on test" in result.summary.sentence or result.summary.winner == 0
    with pytest.raises(ConfigError, match="metric error is better when lower: limit accuracy_drop"):
        search(cnn, task, budget="accuracy_min>=0.5")


def test_a_metric_without_a_value_is_refused(search: Any, cnn: Model, digits_task: Task) -> None:
    nothing = Metric("mine", "labels", whole=lambda outputs, labels: math.nan)
    with pytest.raises(TaskError, match="metric mine "):
        search(cnn, Task("d", digits_task.splits, nothing))


def share_of_sure(outputs: Any, labels: Any) -> Any:
    return (outputs["logits"].max(1) > 5).astype(float)


def share_of_very_sure(outputs: Any, labels: Any) -> Any:
    return (outputs["logits"].max(1) > 12).astype(float)


def test_a_users_metric_is_told_from_another_of_its_name(search: Any, cnn: Model, digits_task: Task) -> None:
    """Its code is edited, its name stays: earlier scores are not used, nor where only a variable tells them apart."""

    def beyond(limit: float) -> Metric:
        return Metric("sure", "labels", per_sample=lambda out, labels: (out["logits"].max(1) > limit) * 1.0)

    named = [Metric("sure", "labels", per_sample=part) for part in (share_of_sure, share_of_very_sure)]
    found = []
    for metric in (*named, beyond(5), beyond(12)):
        result = search(cnn, Task("d", digits_task.splits, metric), budget="accuracy_drop<=1")
        assert result.candidates[0].accuracy is not None
        found.append(result.candidates[0].accuracy.value)
    assert found[0] > found[1]
    assert found[2:] == found[:2]


# Passes of users --------------------------------------------------------------------------------------------------


def test_a_users_pass_takes_part_wins_and_is_in_the_recipe(
    search: Any, slowed: Model, digits_task: Task, registry: None, tmp_path: Path
) -> None:
    plugins.register("pass", "mine.undo.v1", undo)
    result = search(slowed)
    winner = result.candidates[result.summary.winner]
    assert winner.name == "mine.undo.v1"
    assert winner.speedup is not None
    assert winner.speedup.low > 1.5
    assert [step.use for step in result.recipe.steps] == ["graph.fuse.v1", "mine.undo.v1"]
    stored = read(tmp_path / "out" / "recipe.yaml", Recipe)
    assert replay(stored, slowed, digits_task, Cache(tmp_path / "c")).digest == result.winner.digest


def test_a_slow_pass_is_rejected_for_it(search: Any, cnn: Model, slowed: Model, registry: None) -> None:
    def slow(model: Model, target: Target, task: Task) -> Model:
        return Model.create(model.manifest, {"model.onnx": slowed.file})

    plugins.register("pass", "mine.slow.v1", slow)
    result = search(cnn)
    candidate = named(result, "mine.slow.v1")
    assert candidate.status == "rejected"
    assert candidate.speedup is not None
    assert candidate.verdict == f"rejected: {candidate.speedup.value:.2f}x on this machine"
    assert candidate.speedup.high < 0.7
    winner = result.candidates[result.summary.winner]
    assert winner.speedup is not None
    assert winner.speedup.low >= 0.97


def fails(model: Model, target: Target, task: Task) -> Model:
    raise ModelError("this net has no heads to prune")


def trips(model: Model, target: Target, task: Task) -> Model:
    raise ValueError("shapes (3,) and (4,) do not match")


def gives_nan(model: Model, target: Target, task: Task) -> Model:
    return with_tail(model, helper.make_node("Log", ["below"], ["l"]),
        helper.make_node("Add", ["answer", "l"], ["logits"]), below=np.full(10, -1, np.float32),
    )  # fmt: skip


def other_shape(model: Model, target: Target, task: Task) -> Model:
    reduced = with_tail(
        model, helper.make_node("Slice", ["answer", "begin", "end", "axis"], ["logits"]),
        begin=[0], end=[9], axis=[1],
    )  # fmt: skip
    spec = TensorSpec(name="logits", dtype="float32", shape=("batch", 9), batch_axis=0)
    manifest = Manifest(name="m", format="onnx", inputs=model.manifest.inputs, outputs=(spec,))
    proto = onnx.load(reduced.file)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", 1, ["batch", 9]))
    return Model.create(manifest, {"model.onnx": proto.SerializeToString()})


def other_name(model: Model, target: Target, task: Task) -> Model:
    proto = onnx.load(model.file)
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = "scores"
    spec = TensorSpec(name="scores", dtype="float32", shape=("batch", 10), batch_axis=0)
    manifest = Manifest(name="m", format="onnx", inputs=model.manifest.inputs, outputs=(spec,))
    return Model.create(manifest, {"model.onnx": proto.SerializeToString()})


def only_full_batches(model: Model, target: Target, task: Task) -> Model:
    """A shape of training's batch left in the graph: 400 samples in batches of 64 and 16 would pass, one alone not."""
    return with_tail(
        model, helper.make_node("Reshape", ["answer", "pairs"], ["p"]),
        helper.make_node("Reshape", ["p", "rows"], ["logits"]), pairs=[-1, 16, 10], rows=[-1, 10],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("part", "verdict"),
    [
        (fails, "failed: this net has no heads to prune"),
        (trips, "failed: mine.bad.v1 failed with ValueError: shapes (3,) and (4,) do not match"),
        (gives_nan, "failed: output 'logits' holds NaN or infinite values"),
        (other_shape, "failed: output 'logits' of a sample has shape [9], in the model as given [10]"),
        (other_name, "failed: output 'scores' is new: the model as given has logits"),
        (only_full_batches, "failed: ONNX Runtime failed"),
    ],
)
def test_a_pass_that_fails_is_a_candidate_that_failed(
    part: Any, verdict: str, search: Any, cnn: Model, registry: None, tmp_path: Path
) -> None:
    plugins.register("pass", "mine.bad.v1", part)
    result = search(cnn)
    candidate = named(result, "mine.bad.v1")
    assert candidate.status == "failed"
    assert candidate.verdict.startswith(verdict)
    assert result.met
    assert len(result.candidates) == 9
    assert output.read_summary(tmp_path / "out").candidates == result.candidates


def test_a_pass_that_changes_nothing_is_the_same_file(search: Any, cnn: Model, registry: None) -> None:
    def nothing(model: Model, target: Target, task: Task) -> Model:
        return model

    plugins.register("pass", "mine.nothing.v1", nothing)
    plugins.register("pass", "mine.other.v1", lambda model, target, task: model)
    result = search(cnn)
    assert named(result, "mine.other.v1").verdict == "rejected: the same file as mine.nothing.v1"


def spoil(model: Model) -> None:
    """Put a model in a model's place that is sound and answers nothing but zeros."""
    proto = onnx.load(model.file)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 0, tensor.name))
    changed(model, proto).save(model.path)


def damage(model: Model) -> None:
    model.file.write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (spoil, "rejected: scored 0.99"),
        (damage, "rejected: it could not be opened, scored and timed again"),
    ],
)
def test_a_winner_that_is_not_what_was_scored_does_not_win(
    change: Any, verdict: str, search: Any, slowed: Model, registry: None, tmp_path: Path
) -> None:
    """Its files change between the score and the second look: by then it is another model, or none."""

    def listen(event: Progress) -> None:
        if event.text.startswith("re-checking mine.undo.v1"):
            kept = [Model.open(path.parent) for path in tmp_path.glob("cache/models/*/*/manifest.json")]
            change(next(model for model in kept if "mine.undo.v1()" in model.manifest.lineage))

    plugins.register("pass", "mine.undo.v1", undo)
    result = search(slowed, listener=listen, cache=tmp_path / "cache")
    candidate = named(result, "mine.undo.v1")
    assert candidate.status == "rejected"
    assert candidate.verdict.startswith(verdict)
    assert result.candidates[result.summary.winner].name != "mine.undo.v1"
    assert result.met


# Giving operators back --------------------------------------------------------------------------------------------


def test_channels_of_unlike_ranges_are_evened_out_before_anything_goes_back_to_float(
    search: Any, scaled: Model
) -> None:
    """The tensor between two convolutions spans 4^15: plain int8 fails, and so does rounding with more care."""
    result = search(scaled, budget="size_mb<=0.058", allow_slower=True)
    assert named(result, "int8 minmax").verdict.startswith("rejected: -")
    assert named(result, "int8 minmax, rounding compensated").verdict.startswith("rejected: -")
    winner = result.candidates[result.summary.winner]
    assert winner.name == "int8 minmax, equalized, rounding compensated"
    assert result.met, result.summary.sentence
    assert not any("operator" in candidate.name for candidate in result.candidates)


def test_where_8_bits_do_not_suffice_the_worst_operators_go_back_to_float(
    search: Any, stubborn: Model, digits_task: Task
) -> None:
    """The tensor between two convolutions spans 4^15: plain int8 fails, and two operators in float mend it."""
    result = search(stubborn, budget="size_mb<=0.058", allow_slower=True)
    for calibrator in ("minmax", "percentile"):
        candidate = named(result, f"int8 {calibrator}")
        assert candidate.verdict.startswith("rejected: -")
        assert "points (limit -1.00 points)" in candidate.verdict
    winner = result.candidates[result.summary.winner]
    assert winner.name.endswith("2 operators float")
    quantization = result.winner.manifest.quantization
    assert quantization is not None
    assert len(quantization.excluded) == 2
    assert result.met, result.summary.sentence
    kinds = {node.op_type for node in graph.load(result.winner.file).graph.node}
    assert "QuantizeLinear" in kinds
    tried = [c for c in result.candidates if "float" in c.name and c.name != "float16"]
    assert 1 <= len(tried) <= 1 + math.ceil(math.log2(4))
    heard: list[Progress] = []
    assert search(stubborn, budget="size_mb<=0.058", allow_slower=True, listener=heard.append).met
    assert not [event for event in heard if event.text.startswith("ranking")], "the ranking is cached too"


def test_a_large_validation_split_is_asked_only_for_what_bisection_on_few_samples_found(
    search: Any, stubborn: Model, digits: Any, digits_task: Task
) -> None:
    x, y = digits
    splits = {**digits_task.splits, "validation": Split({"": x[1000:]}, y[1000:])}
    del splits["test"]
    result = search(stubborn, Task("more", splits, "top1"), budget="size_mb<=0.058", allow_slower=True)
    winner = result.candidates[result.summary.winner]
    assert winner.name.endswith("2 operators float")
    others = [
        c for c in result.candidates if "operator" in c.name and c.name.endswith("float") and c is not winner
    ]
    assert others
    for candidate in others:
        assert candidate.verdict.endswith("on 256 samples"), candidate.verdict
    assert any("2 operators in float are enough" in c.verdict or "1 operator float" in c.name for c in others)


def test_a_twin_of_a_failed_int8_does_not_stop_the_giving_back(
    search: Any, stubborn: Model, registry: None
) -> None:
    """Two ways to the same bad file: neither counts as an int8 that is good enough."""
    from farthing.recipe import PassSection

    class Same(PassSection, frozen=True, kw_only=True):
        def __call__(self, model: Model, target: Target, task: Task) -> Model:
            from farthing.forge.quantize.static import StaticInt8

            return StaticInt8()(model, target, task)

    plugins.register("pass", "mine.same.v1", Same)
    result = search(stubborn, allow_slower=True)
    assert any("operators float" in c.name for c in result.candidates)


# Bad input --------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_before_anything_is_written(
    search: Any, cnn: Model, mlp: Model, digits_task: Task, tmp_path: Path
) -> None:
    text = Task(
        "t", {k: Split({"words": s.inputs[""]}, s.labels) for k, s in digits_task.splits.items()}, "top1"
    )
    fake = Model.create(
        Manifest(
            name="fake",
            format="fake",
            inputs=(TensorSpec(name="x", dtype="float32", shape=("n", 2), batch_axis=0),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=("n", 1), batch_axis=0),),
        ),
        {"m": b'{"weights": [[1], [1]], "bias": [0]}'},
    )
    rows = Split({"": np.zeros((4, 2), np.float32)}, np.zeros((4, 1), np.float32))
    for error, message, call in (
        (TaskError, "no validation split", lambda: search(cnn, without(digits_task, "validation"))),
        (
            TaskError,
            "neither calibration nor train",
            lambda: search(cnn, without(digits_task, "calibration", "train")),
        ),
        (TaskError, "does not feed 'image'", lambda: search(cnn, text)),
        (ConfigError, "did you mean 'size_mb'", lambda: search(cnn, budget="sizemb<=1")),
        (ConfigError, "one point is 0.01", lambda: search(cnn, budget="accuracy_drop<=1")),
        (ConfigError, "threads must be from 1", lambda: search(cnn, threads=(0,))),
        (PluginError, "no engine is called 'onnxrt'", lambda: search(cnn, engines=["onnxrt"])),
        (
            UnsupportedError,
            "engine fake runs fake: nothing makes that",
            lambda: search(cnn, engines=["fake"]),
        ),
        (TargetError, "no target is called 'thin'; did you mean 'this'", lambda: search(cnn, target="thin")),
        (
            TargetError,
            "target chip runs tflm, not onnxruntime",
            lambda: search(cnn, target=Target(name="chip", arch="armv7", engines=("tflm",))),
        ),
        (
            ModelError,
            "fake is fake: the search works on ONNX models",
            lambda: search(fake, Task("r", {"train": rows, "validation": rows}, "error"), engines=["fake"]),
        ),
    ):
        with pytest.raises(error, match=message):
            call()
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp-")] == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": None}, ModelError, "a model is a farthing.Model or the path of one, not NoneType"),
        ({"model": "nowhere"}, ModelError, "nowhere is not a model"),
        ({"task": 3}, TaskError, "a task is a farthing.Task, the path of a task file or a name, not int"),
        ({"task": "nowhere.yaml"}, TaskError, "cannot read nowhere.yaml"),
        ({"budget": 3}, ConfigError, "a budget is a farthing.Budget or text as in .*, not 3"),
        ({"target": 3}, TargetError, "a target is a farthing.Target or a name, not 3"),
        ({"threads": ["a"]}, ConfigError, "threads must be from 1 to 1024, not 'a'"),
        ({"threads": 2}, ConfigError, r"`threads` is a list of counts, as in \[1, 2\], not 2"),
        ({"engines": "onnxruntime"}, ConfigError, "`engines` is a list of names, .*, not 'onnxruntime'"),
        ({"out": None}, ConfigError, "`out` is the path of a directory, not None"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_in_words(
    cnn: Model, digits_task: Task, tmp_path: Path, changes: Any, error: type[Exception], message: str
) -> None:
    given = {"model": cnn, "task": digits_task, "out": tmp_path / "out", "cache": tmp_path, **changes}
    with pytest.raises(error, match=message):
        optimize(**given)


def test_paths_are_opened(cnn: Model, digits: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "digits.npz", x=digits[0], y=digits[1])
    place = tmp_path / "task.yaml"
    place.write_text(
        "name: d\nsource: {format: npz, path: digits.npz, labels: y}\nmetric: top1\nlabels: ["
        + ", ".join(f"'{label}'" for label in range(10))
        + "]\n"
    )
    model = cnn.save(tmp_path / "model").path
    for given in (place, str(place)):
        assert as_task(given, None).name == "d"
    score = evaluate(model, place, "validation")[0]
    assert score == evaluate(cnn, read_task(place), "validation")[0]
    quick = bench.Rule(warmup=1, min_count=3, min_seconds=0.0)
    assert bench.bench(str(model), task=place, rule=quick, memory=False).model == cnn.digest


def test_a_model_that_computes_nan_is_refused(search: Any, cnn: Model, digits_task: Task) -> None:
    with pytest.raises(TaskError, match="holds NaN or infinite values"):
        search(gives_nan(cnn, None, digits_task))  # type: ignore[arg-type]


def test_an_interrupt_leaves_all_as_it_was_and_the_next_run_goes_on(
    search: Any, cnn: Model, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    search(cnn, cache=cache)
    before = tree(tmp_path / "out")
    moments = itertools.count()

    def stop(event: Progress) -> None:
        if event.stage == "final" and next(moments) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(cnn, cache=cache, measure_again=True, listener=stop)
    assert tree(tmp_path / "out") == before
    assert search(cnn, cache=cache).met


def test_two_searches_do_not_share_an_output(search: Any, cnn: Model, tmp_path: Path) -> None:
    search(cnn)
    before = tree(tmp_path / "out")
    with (
        output.claimed(tmp_path / "out"),
        pytest.raises(StorageError, match=r"the output directory .*out is in use by another process"),
    ):
        search(cnn, budget="size_mb<=1")
    assert tree(tmp_path / "out") == before
    assert search(cnn, out=tmp_path / "another").met


def test_fusing_is_the_least(search: Any, mlp: Model, digits_task: Task) -> None:
    """A net of products alone: dynamic int8 is worth a try there, and is one of the candidates."""
    result = search(mlp, budget="accuracy_drop<=0.02")
    assert "int8 dynamic" in [c.name for c in result.candidates]
    assert Fuse()(mlp, Target.detect(), digits_task).manifest.inputs == result.winner.manifest.inputs


def test_a_broken_picture_of_any_split_ends_the_search_at_once(
    search: Any, cnn: Model, tmp_path: Path, digits_task: Task
) -> None:
    from PIL import Image

    paths = []
    for number in range(8):
        paths.append(str(tmp_path / f"{number}.png"))
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8), np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    broken = Path(paths[-1])
    broken.write_bytes(broken.read_bytes()[:60])
    labels = np.arange(4) % 2
    splits = {
        name: ImageFiles({"": np.array(chosen)}, labels)
        for name, chosen in (("calibration", paths[:4]), ("validation", paths[:4]), ("test", paths[4:]))
    }
    seen: list[str] = []
    pictures = Task("pictures", splits, "top1", labels=[str(k) for k in range(10)], form="image")
    grey = Preprocess(colour="GRAY", scale=1 / 255, mean=(0.0,), std=(1.0,))
    model = Model.create(checked(cnn.manifest, preprocess=grey), {"model.onnx": cnn.file})
    with pytest.raises(TaskError, match=r"7\.png is damaged"):
        search(model, pictures, listener=lambda event: seen.append(event.stage))
    assert set(seen) <= {"baseline"}


def test_an_unmet_budget_that_a_slower_model_keeps_is_hinted_at(
    search: Any, cnn: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "harmless", lambda speedup: False)  # every candidate counts as slower
    result = search(cnn, budget="size_mb<=0.02")
    assert not result.met
    assert any("keeps the budget at" in note and "--allow-slower" in note for note in result.summary.notes)
    met = search(cnn, budget="size_mb<=1")
    assert not any("--allow-slower" in note for note in met.summary.notes)
