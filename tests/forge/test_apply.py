"""Steps by name: options checked, results cached, users' passes contained, recipes replayed."""

from __future__ import annotations

import errno
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import numpy_helper

from farthing import plugins
from farthing.bundle import Bundle
from farthing.config import read, to_yaml
from farthing.errors import ConfigError, ModelError, PluginError, StorageError, TaskError
from farthing.forge import graph
from farthing.forge.apply import apply, build, read_by, versions
from farthing.forge.cache import Cache
from farthing.forge.quantize import calibrate
from farthing.forge.replay import replay
from farthing.forge.workshop import Workshop
from farthing.metrics import Metric
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.recipe import PassSection, Progress, Recipe, Step
from farthing.target import Budget, Target
from farthing.task import Split, Task

VNNI = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))
OLD = Target(name="old", arch="x86_64")
FUSE = Step(use="graph.fuse.v1")
COMPACT = Step(use="graph.compact.v1")
INT8 = Step(use="quantize.static.v1")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def halve(model: Model, target: Target, task: Task, factor: float = 0.5) -> Model:
    """A user's pass: the last bias is scaled."""
    proto = graph.load(model.file)
    tensor = proto.graph.initializer[-1]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    return Model.create(model.manifest, {"model.onnx": graph.save_bytes(proto)})


def test_an_unknown_pass_names_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"'quantize\.statik\.v1'; did you mean 'quantize\.static\.v1'"):
        build(Step(use="quantize.statik.v1"), VNNI)


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        ("quantize.static.v1", {"calibrater": "minmax"}, "'calibrater'; did you mean 'calibrator'"),
        (
            "quantize.static.v1",
            {"calibrator": "mimmax"},
            "'mimmax' at calibrator .* did you mean 'minmax'",
        ),
        ("quantize.static.v1", {"samples": "many"}, "Expected `int`, got `str`"),
        ("quantize.static.v1", {"samples": 0}, "quantize.static.v1: samples is a whole number from 1, not 0"),
        ("quantize.static.v1", {"samples": -3}, "from 1, not -3"),
        ("quantize.static.v1", {"percentile": 120}, "percentile is above 50 and at most 100, not 120"),
        ("quantize.nncf.v1", {"samples": 0}, "from 1, not 0"),
        ("graph.fuse.v1", {"level": 3}, "unknown key 'level'"),
        ("mine.halve.v1", {"faktor": 2}, r"mine\.halve\.v1: .*; did you mean 'factor'"),
    ],
)
@pytest.mark.usefixtures("registry")
def test_wrong_options_are_named(use: str, options: dict[str, Any], message: str) -> None:
    plugins.register("pass", "mine.halve.v1", halve)
    with pytest.raises(ConfigError, match=message):
        build(Step(use=use, options=options), VNNI)


def test_options_are_resolved_to_what_the_target_needs() -> None:
    for target, activations, reduced in ((VNNI, "uint8", False), (OLD, "uint8", True)):
        _, step = build(INT8, target)
        assert step.options["activations"] == activations
        assert step.options["reduce_range"] is reduced
        assert step.options["calibrator"] == "minmax"
        assert build(step, VNNI)[1] == step, "resolved once, it stays, whatever the target"


def test_steps_run_in_order_and_leave_a_lineage(cnn: Model, digits_task: Task, cache: Cache) -> None:
    made, steps = apply([FUSE, INT8, COMPACT], cnn, VNNI, digits_task, cache)
    assert [step.use for step in steps] == ["graph.fuse.v1", "quantize.static.v1", "graph.compact.v1"]
    assert [line.split("(")[0] for line in made.manifest.lineage] == [step.use for step in steps]
    assert "calibrator=minmax" in made.manifest.lineage[1]
    excluding = Step(use="quantize.static.v1", options={"exclude": ["a" * 50, "b" * 50]})
    made, _ = apply([FUSE, excluding], cnn, VNNI, digits_task, cache)
    assert "2 exclude" in made.manifest.lineage[1], "long lists are counted, not printed"
    assert "aaa" not in made.manifest.lineage[1]
    assert apply([], cnn, VNNI, digits_task, cache) == (cnn, ())


def test_results_come_from_the_cache_whatever_the_process_forgot(
    cnn: Model, digits_task: Task, cache: Cache
) -> None:
    first, _ = apply([FUSE, INT8], cnn, VNNI, digits_task, cache)
    second, _ = apply([FUSE, INT8], cnn, VNNI, digits_task, cache)
    assert first.path == second.path
    assert first.path.is_relative_to(cache.root)
    fresh, _ = apply([FUSE, INT8], cnn, VNNI, digits_task, Cache(cache.root.with_name("other")))
    assert fresh.digest == first.digest


def test_what_decides_a_result_decides_its_place_in_the_cache(
    cnn: Model, digits_task: Task, cache: Cache, digits: Any
) -> None:
    x, y = digits
    other_data = Task("d", {"calibration": Split({"": x[500:600]}, y[500:600])}, "top1")
    splits = {**digits_task.splits, "test": Split({"": x[:10]}, y[:10])}
    other_test = Task("d", splits, "top1", labels=digits_task.labels)

    def place(task: Task = digits_task, target: Target = VNNI, **options: Any) -> Path:
        step = Step(use="quantize.static.v1", options=options)
        return apply([FUSE, step], cnn, target, task, cache)[0].path

    assert place() == place()
    assert place(other_test) == place(), "int8 looks at calibration data alone"
    different = [place(), place(other_data), place(target=OLD), place(samples=64), place(per_channel=False)]
    assert len(set(different)) == len(different)
    assert (
        apply([FUSE], cnn, VNNI, other_data, cache)[0].path
        == apply([FUSE], cnn, VNNI, digits_task, cache)[0].path
    )


@pytest.mark.usefixtures("registry")
def test_a_users_function_is_a_pass(cnn: Model, digits_task: Task, cache: Cache) -> None:
    plugins.register("pass", "mine.halve.v1", halve)
    step = Step(use="mine.halve.v1", options={"factor": 0.25})
    made, steps = apply([FUSE, step], cnn, VNNI, digits_task, cache)
    assert steps[1] == step
    fused, _ = apply([FUSE], cnn, VNNI, digits_task, cache)
    bias = [numpy_helper.to_array(graph.load(m.file).graph.initializer[-1]) for m in (fused, made)]
    np.testing.assert_array_equal(bias[1], bias[0] * np.float32(0.25))
    assert apply([FUSE, step], cnn, VNNI, digits_task, cache)[0].path == made.path
    assert versions("mine.halve.v1") == {"farthing": versions("graph.fuse.v1")["farthing"]}


class Counting(PassSection, frozen=True, kw_only=True):
    """A user's pass as a class that looks at training data."""

    reads = ("train",)
    libraries = ("numpy", "no-such-package")

    times: int = 1

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        return halve(model, target, task, 1 / (self.times * len(task.split("train"))))


@pytest.mark.usefixtures("registry")
def test_a_users_class_says_what_it_reads(cnn: Model, digits_task: Task, cache: Cache) -> None:
    plugins.register("pass", "mine.counting.v1", Counting)
    step = Step(use="mine.counting.v1", options={"times": 2})
    first, steps = apply([step], cnn, VNNI, digits_task, cache)
    assert steps[0].options == {"times": 2}
    shorter = Task("d", {**digits_task.splits, "train": digits_task.split("train").subset(range(10))}, "top1")
    assert apply([step], cnn, VNNI, shorter, cache)[0].digest != first.digest
    assert set(versions("mine.counting.v1")) == {"farthing", "numpy", "no-such-package"}


@pytest.mark.usefixtures("registry")
def test_a_function_with_options_says_what_it_reads(cnn: Model, digits_task: Task, cache: Cache) -> None:
    def reader(model: Model, target: Target, task: Task, factor: float = 1.0) -> Model:
        return halve(model, target, task, factor / len(task.split("validation")))

    reader.reads = ("validation",)  # type: ignore[attr-defined]
    plugins.register("pass", "mine.reader.v1", reader)
    step = Step(use="mine.reader.v1", options={"factor": 2.0})
    shorter = Task(
        "d", {**digits_task.splits, "validation": digits_task.split("validation").subset(range(9))}, "top1"
    )
    digests = {apply([step], cnn, VNNI, task, cache)[0].digest for task in (digits_task, shorter)}
    assert len(digests) == 2


@pytest.mark.usefixtures("registry")
def test_changed_code_is_not_answered_from_the_cache(cnn: Model, digits_task: Task, tmp_path: Path) -> None:
    """A user edits the file of a pass and runs the search again."""
    source = """
        from farthing.model import Model
        from farthing.forge import graph
        def tag(model, target, task):
            proto = graph.load(model.file)
            proto.doc_string = "NUMBER"
            return Model.create(model.manifest, {"model.onnx": graph.save_bytes(proto)})
    """
    found = []
    for number in ("1", "2", "1"):
        place = tmp_path / f"mine{len(found)}.py"
        place.write_text(textwrap.dedent(source).replace("NUMBER", number))
        spec = importlib.util.spec_from_file_location(place.stem, place)
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        sys.modules[place.stem] = module
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        plugins._registered.pop(("pass", "mine.tag.v1"), None)
        plugins.register("pass", "mine.tag.v1", module.tag)
        made, _ = apply([Step(use="mine.tag.v1")], cnn, VNNI, digits_task, Cache(tmp_path / "cache"))
        found.append((graph.load(made.file).doc_string, made.path))
        del sys.modules[place.stem]
    assert [text for text, _ in found] == ["1", "2", "1"]
    assert found[0] == found[2], "what was there before is found again"


@pytest.mark.usefixtures("registry")
def test_a_function_that_closes_over_variables_runs_each_time(
    cnn: Model, digits_task: Task, cache: Cache
) -> None:
    """Its text does not say what it does: halving and doubling look the same."""

    def make(factor: float) -> Any:
        return lambda model, target, task: halve(model, target, task, factor)

    found = []
    for factor in (0.5, 2.0):
        plugins._registered["pass", "mine.scale.v1"] = make(factor)
        found.append(apply([Step(use="mine.scale.v1")], cnn, VNNI, digits_task, cache)[0].digest)
    assert found[0] != found[1]


def slow_leak(model: Model, target: Target, task: Task) -> Model:
    model.file.write_bytes(model.file.read_bytes() + b" ")
    return model


def boom(model: Model, target: Target, task: Task) -> Model:
    raise ValueError("axis 3 is out of bounds")


def refuses(model: Model, target: Target, task: Task) -> Model:
    raise ModelError("this net has no attention")


def gives_a_path(model: Model, target: Target, task: Task) -> Any:
    return model.path


def breaks_the_graph(model: Model, target: Target, task: Task) -> Model:
    proto = graph.load(model.file)
    proto.graph.node[0].input[0] = "nowhere"
    return Model.create(model.manifest, {"model.onnx": proto.SerializeToString()})


def makes_a_bundle(model: Model, target: Target, task: Task) -> Bundle:
    return Bundle.create("parts", "parts", {"a": model}, model.path.parent / "bundle")


class NotASection:
    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        return model


@pytest.mark.parametrize(
    ("part", "kind", "message"),
    [
        (boom, PluginError, r"mine\.bad\.v1 failed with ValueError: axis 3 is out of bounds"),
        (refuses, ModelError, "^this net has no attention$"),
        (gives_a_path, ModelError, r"mine\.bad\.v1 gives a PosixPath: a step of a search must give a Model"),
        (makes_a_bundle, ModelError, "gives a Bundle"),
        (breaks_the_graph, ModelError, "breaks the rules of ONNX"),
        (slow_leak, ModelError, r"mine\.bad\.v1 changed the model it was given, which a pass must not do"),
        (NotASection, PluginError, "a pass is a function, or a class made from"),
    ],
)
@pytest.mark.usefixtures("registry")
def test_what_a_users_pass_does_wrong_is_said_and_not_kept(
    part: Any,
    kind: type[Exception],
    message: str,
    cnn: Model,
    digits_task: Task,
    cache: Cache,
    tmp_path: Path,
) -> None:
    plugins.register("pass", "mine.bad.v1", part)
    model = cnn.save(tmp_path / "model")
    with pytest.raises(kind, match=message):
        apply([Step(use="mine.bad.v1")], model, VNNI, digits_task, cache)
    assert cache.size_bytes() == 0


@pytest.mark.usefixtures("registry")
def test_an_interrupt_is_no_failure_of_a_pass(cnn: Model, digits_task: Task, cache: Cache) -> None:
    def interrupted(model: Model, target: Target, task: Task) -> Model:
        raise KeyboardInterrupt

    plugins.register("pass", "mine.stopped.v1", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apply([Step(use="mine.stopped.v1")], cnn, VNNI, digits_task, cache)


class Tuned(PassSection, frozen=True, kw_only=True):
    """A user's pass that looks for an option, takes long, and says how it goes."""

    reads = ("train", "validation", "calibration")

    size: int | None = None
    spare: int = 3

    def planned(self, model: Model, target: Target, task: Task, workshop: Workshop) -> Tuned:
        if self.size is not None:
            return self
        workshop.listener(Progress(stage="plan", text=f"measuring on {workshop.machine.description}"))
        return replace(self, size=len(task.split("validation")))

    def within(self, workshop: Workshop) -> Callable[[Model, Target, Task], Model]:
        def run(model: Model, target: Target, task: Task) -> Model:
            assert workshop.cache is not None
            assert workshop.state is not None
            before = sorted(path.name for path in workshop.state.iterdir())
            workshop.listener(Progress(stage="train", text=f"{self.size} {before}"))
            (workshop.state / f"part{len(before)}").write_bytes(b"")
            if len(before) < self.spare - 1:
                raise KeyboardInterrupt
            return halve(model, target, task)

        return run

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        return self.within(Workshop())(model, target, task)


@pytest.mark.usefixtures("registry")
def test_a_pass_plans_once_and_goes_on_where_it_was_stopped(
    cnn: Model, digits_task: Task, cache: Cache
) -> None:
    plugins.register("pass", "mine.tuned.v1", Tuned)
    events: list[Progress] = []
    steps = [FUSE, Step(use="mine.tuned.v1")]

    def run(listener: Any = events.append) -> tuple[Model, tuple[Step, ...]]:
        return apply(steps, cnn, VNNI, digits_task, cache, Workshop(listener=listener))

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run()
    made, done = run()
    said = [(event.stage, event.text) for event in events]
    assert said[0] == ("plan", f"measuring on {Workshop().machine.description}")
    assert said[1:] == [
        ("train", "400 []"),
        ("train", "400 ['part0']"),
        ("train", "400 ['part0', 'part1']"),
    ]
    assert done[1].options == {"size": 400, "spare": 3}
    assert not list((cache.root / "work").glob("*/*"))
    events.clear()
    assert run()[0].digest == made.digest
    assert events == []
    assert made.manifest.lineage[-1] == "mine.tuned.v1(size=400, spare=3)"


@pytest.mark.usefixtures("registry")
def test_a_replay_plans_nothing(cnn: Model, digits_task: Task, cache: Cache, tmp_path: Path) -> None:
    plugins.register("pass", "mine.tuned.v1", Tuned)
    step = Step(use="mine.tuned.v1", options={"spare": 1})
    made, steps = apply([step], cnn, VNNI, digits_task, cache)
    recorded = Recipe(
        model=cnn.digest,
        task=digits_task.digest,
        target=VNNI,
        steps=steps,
        engine="onnxruntime",
        options=EngineOptions(),
        budget=Budget(),
        artefact=made.digest,
    )
    events: list[Progress] = []
    again = replay(recorded, cnn, digits_task, Cache(tmp_path / "empty"), listener=events.append)
    assert again.digest == made.digest
    assert [event.stage for event in events] == ["train"]


@pytest.mark.usefixtures("registry")
def test_a_plan_sees_only_the_splits_it_declares(cnn: Model, digits_task: Task, cache: Cache) -> None:
    class Peeking(Tuned, frozen=True, kw_only=True):
        reads = ("train", "calibration")

    plugins.register("pass", "mine.peeking.v1", Peeking)
    with pytest.raises(TaskError, match="looks at the validation split, but does not declare it"):
        apply([Step(use="mine.peeking.v1")], cnn, VNNI, digits_task, cache)


def plain_loss(outputs: Any, batch: Any) -> Any:
    return outputs[0].sum()


@pytest.mark.usefixtures("registry")
def test_what_a_training_pass_sees_is_its_loss_too(digits_task: Task) -> None:
    plugins.register("pass", "mine.tuned.v1", Tuned)
    seen = [read_by("mine.tuned.v1", digits_task)]
    for loss in (plain_loss, lambda outputs, batch: outputs[0].mean()):
        task = Task("digits", digits_task.splits, "top1", labels="0123456789", loss=loss)
        seen.append(read_by("mine.tuned.v1", task))
        assert read_by("quantize.static.v1", task) == read_by("quantize.static.v1", digits_task)
    assert len({str(one) for one in seen}) == 3
    closed = 2.0
    hidden = Task("digits", digits_task.splits, "top1", loss=lambda outputs, batch: outputs[0].sum() * closed)
    assert None in read_by("mine.tuned.v1", hidden), "what a closure holds cannot be known"


@pytest.fixture
def recipe(cnn: Model, digits_task: Task, cache: Cache) -> Recipe:
    made, steps = apply([FUSE, INT8, COMPACT], cnn, VNNI, digits_task, cache)
    return Recipe(
        model=cnn.digest,
        task=digits_task.digest,
        target=VNNI,
        steps=steps,
        engine="onnxruntime",
        options=EngineOptions(),
        budget=Budget(accuracy_drop=0.01),
        artefact=made.digest,
        versions={name: number for step in steps for name, number in versions(step.use).items()},
    )


def test_a_recipe_replays_from_its_file_to_the_same_artefact(
    recipe: Recipe, cnn: Model, digits_task: Task, tmp_path: Path
) -> None:
    """Through YAML, in an empty cache, on whatever machine: the target is in the recipe."""
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    stored = read(tmp_path / "recipe.yaml", Recipe)
    assert stored == recipe
    assert replay(stored, cnn, digits_task, Cache(tmp_path / "empty")).digest == recipe.artefact


def test_a_replay_on_another_model_or_other_data_is_refused(
    recipe: Recipe, mlp: Model, cnn: Model, digits_task: Task, cache: Cache
) -> None:
    with pytest.raises(
        ModelError, match=f"for model {cnn.digest[:12]}, not {mlp.digest[:12]}: give the model"
    ):
        replay(recipe, mlp, digits_task, cache)
    other = Task("mine", {**digits_task.splits, "test": digits_task.split("validation")}, "top1")
    with pytest.raises(TaskError, match=r"made with other data .* than task mine has"):
        replay(recipe, cnn, other, cache)


def test_a_replay_that_differs_says_which_versions_do(
    recipe: Recipe, cnn: Model, digits_task: Task, cache: Cache
) -> None:
    older = replace(recipe, artefact="0" * 64, versions={**recipe.versions, "onnx": "1.0"})
    with pytest.raises(ModelError, match=r"the recipe recorded 000000000000; .*'onnx': \('1\.0', '1\."):
        replay(older, cnn, digits_task, cache)
    same = replace(recipe, artefact="0" * 64)
    with pytest.raises(ModelError, match="versions that differ: none"):
        replay(same, cnn, digits_task, cache)


def test_a_recipe_of_the_baseline_gives_the_model_itself(
    recipe: Recipe, cnn: Model, digits_task: Task, cache: Cache
) -> None:
    assert (
        replay(replace(recipe, steps=(), artefact=cnn.digest), cnn, digits_task, cache).digest == cnn.digest
    )


def test_a_recipe_whose_pass_is_not_registered_says_so(
    recipe: Recipe, cnn: Model, digits_task: Task, cache: Cache
) -> None:
    with pytest.raises(PluginError, match=r"no pass is called 'mine\.gone\.v1'"):
        replay(replace(recipe, steps=(Step(use="mine.gone.v1"),)), cnn, digits_task, cache)


def test_data_fed_in_another_way_is_not_answered_from_the_cache(tmp_path: Path) -> None:
    """The same pixels as raw tensors and as pictures, which the manifest scales: the ranges differ."""
    pixels = np.zeros((4, 8, 8), np.uint8)
    labels = np.arange(4)
    tasks = [
        Task("t", {"calibration": Split({"": pixels}, labels)}, "top1", form=form)
        for form in ("image", "tensor")
    ]
    seen = [read_by("quantize.static.v1", task) for task in tasks]
    assert seen[0] != seen[1]
    assert read_by("graph.fuse.v1", tasks[0]) == read_by("graph.fuse.v1", tasks[1]) == []


def share_right(outputs: Any, labels: Any) -> Any:
    return (next(iter(outputs.values())).argmax(1) == labels).astype(float)


def test_a_pass_gets_the_splits_it_declares_and_no_others(
    cnn: Model, digits_task: Task, cache: Cache, registry: None
) -> None:
    """An undeclared look would not change the key, and a stale result would be taken for a fresh one."""

    def peeks(model: Model, target: Target, task: Task, split: Any = "validation") -> Model:
        return halve(model, target, task, 1 / len(task.split(split)))

    plugins.register("pass", "mine.peeks.v1", peeks)
    with pytest.raises(TaskError, match=r"the validation split, .* `reads` \(now \['calibration'\]\)"):
        apply([Step(use="mine.peeks.v1")], cnn, VNNI, digits_task, cache)
    apply([Step(use="mine.peeks.v1", options={"split": "calibration"})], cnn, VNNI, digits_task, cache)
    peeks.reads = "validation"  # type: ignore[attr-defined]
    apply([Step(use="mine.peeks.v1")], cnn, VNNI, digits_task, cache)


def test_metrics_of_one_name_are_told_apart_in_the_key_of_a_users_pass(
    cnn: Model, digits_task: Task, cache: Cache, registry: None
) -> None:
    plugins.register("pass", "mine.halve.v1", halve)

    def task(metric: Metric) -> Task:
        return Task("d", digits_task.splits, metric, labels=digits_task.labels)

    def made(of: Task) -> Path:
        return apply([Step(use="mine.halve.v1")], cnn, VNNI, of, cache)[0].path

    right = task(Metric("mine", "labels", per_sample=share_right))
    wrong = task(Metric("mine", "labels", per_sample=share_right, higher_is_better=False))
    unknown = task(Metric("mine", "labels", per_sample=lambda outputs, labels: share_right(outputs, made)))
    assert made(right) == made(right)
    assert made(right) != made(wrong)
    assert None in read_by("mine.halve.v1", unknown), "closes over a variable"
    assert made(unknown) != made(unknown), "so its results are not kept"
    seen = [read_by("quantize.static.v1", one) for one in (right, wrong, unknown)]
    assert seen[0] == seen[1] == seen[2], "ours look at no metric"


def test_calibration_is_shared_by_the_views_of_a_task(
    cnn: Model, digits_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    collect = calibrate._observed
    monkeypatch.setattr(calibrate, "_observed", lambda *given: ran.append("") or collect(*given))
    task = Task("d", {"calibration": digits_task.split("calibration").subset(range(8))}, "top1")
    first, second = (
        calibrate.ranges(cnn, task.only(names), "minmax", 99.99, 8)
        for names in (("calibration",), ("calibration", "train"))
    )
    assert first is second
    assert len(ran) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where it may be mounted."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fresh(task: Task) -> Task:
    """A task whose calibration data no process has seen, so that nothing remembers its ranges."""
    return Task("fresh", {"calibration": task.split("calibration").subset(range(16))}, "top1")


def fill(disk: Path, left: int) -> None:
    """Leave so many bytes of a small disk."""
    (disk / "filler").unlink(missing_ok=True)
    (disk / "filler").write_bytes(b"x" * max(0, os.statvfs(disk).f_bavail * 4096 - left))


@pytest.mark.parametrize("use", ["quantize.static.v1", "quantize.dynamic.v1"])
def test_a_full_temporary_disk_is_no_failure_of_a_pass(
    use: str, cnn: Model, digits_task: Task, small_disk: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the room ends: in a copy, in a file that a tool cuts short without a word, in the result."""
    model, _ = apply([FUSE], cnn, VNNI, digits_task, cache)
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    refusals = []
    for left in range(0, 6 * cnn.size_bytes, cnn.size_bytes // 4):
        fill(small_disk, left)
        kept = cache.root / str(left)
        try:
            apply([Step(use=use)], model, VNNI, fresh(digits_task), Cache(kept))
            refusals.append("")
        except StorageError as error:
            refusals.append(str(error))
        assert os.listdir(small_disk) == ["filler"]
        assert bool(list(kept.rglob("model.onnx"))) is not bool(refusals[-1])
    assert all("space" in text and str(small_disk) in text for text in refusals if text)
    assert [bool(text) for text in refusals] == sorted((bool(text) for text in refusals), reverse=True)
    assert refusals[0]
    assert not refusals[-1]


def test_a_limit_on_file_size_is_no_failure_of_a_pass(cnn: Model, digits_task: Task, cache: Cache) -> None:
    """The same without any right to mount; ONNX Runtime's tools fail with errors that speak of other things."""
    model, _ = apply([FUSE], cnn, VNNI, digits_task, cache)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (model.size_bytes + 100, hard))
    try:
        with pytest.raises(
            StorageError, match=r"quantize\.static\.v1 cannot write to .*: File too large: free"
        ):
            apply([INT8], model, VNNI, fresh(digits_task), cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    apply([INT8], model, VNNI, digits_task, cache)


@pytest.mark.usefixtures("registry")
def test_a_users_pass_that_fills_a_disk_ends_the_search(cnn: Model, digits_task: Task, cache: Cache) -> None:
    def full(model: Model, target: Target, task: Task) -> Model:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/mnt/card/notes")
        except OSError as error:
            raise RuntimeError("cannot take notes") from error

    plugins.register("pass", "own.full.v1", full)
    with pytest.raises(StorageError, match=r"own\.full\.v1 cannot write to /mnt/card/notes: No space left"):
        apply([Step(use="own.full.v1")], cnn, VNNI, digits_task, cache)


def test_a_pass_writes_nothing_into_the_cache_but_its_result(
    cnn: Model, digits_task: Task, cache: Cache
) -> None:
    """ONNX Runtime's tools write beside the file they open: it must not be the one that is kept."""
    model, _ = apply([FUSE], cnn, VNNI, digits_task, cache)
    assert model.path.is_relative_to(cache.root)
    before = model.path.stat().st_mtime_ns  # a file that came and went would show
    apply(
        [Step(use="quantize.static.v1", options={"calibrator": "entropy"})],
        model,
        VNNI,
        fresh(digits_task),
        cache,
    )
    apply([Step(use="quantize.dynamic.v1")], model, VNNI, digits_task, cache)
    apply([Step(use="quantize.float16.v1")], model, VNNI, digits_task, cache)
    assert model.path.stat().st_mtime_ns == before
