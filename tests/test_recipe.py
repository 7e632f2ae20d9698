"""Recipes and results as plain data; passes as a protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farthing import recipe
from farthing.config import canonical, convert, parse, read, to_yaml
from farthing.errors import ConfigError
from farthing.measure import Figures, Interval
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.recipe import Candidate, Pass, PassSection, Recipe, Result, Step, Summary
from farthing.target import Budget, Target
from farthing.task import Task
from farthing.testing import fake_model

WHOLE = Recipe(
    model="0" * 64,
    task="1" * 64,
    target=Target(name="door", arch="aarch64", isa=("asimd",), cores=4, memory_mb=512),
    steps=(
        Step(use="graph.fuse.v1"),
        Step(
            use="quantize.static.v1",
            options={"calibrator": "percentile", "percentile": 99.99, "exclude": ["a", "b"]},
        ),
    ),
    engine="onnxruntime",
    options=EngineOptions(threads=2),
    budget=Budget(accuracy_drop=0.01, latency_ms=5),
    artefact="2" * 64,
    versions={"farthing": "0.1.0", "onnx": "1.23.2"},
)
CANDIDATE = Candidate(
    name="int8 percentile",
    number=3,
    steps=WHOLE.steps,
    engine="onnxruntime",
    options=EngineOptions(threads=2),
    figures=Figures(accuracy=0.97, latency_ms=1.5),
    drop=Interval(value=0.001, low=-0.001, high=0.003),
    status="winner",
    verdict="2.9x",
)

numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | st.text(max_size=9)
values = leaves | st.lists(leaves, max_size=3) | st.dictionaries(st.text(max_size=5), leaves, max_size=3)
options = st.dictionaries(st.text(min_size=1, max_size=9), values, max_size=4)


def test_a_recipe_replays_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(to_yaml(WHOLE), encoding="utf-8")
    assert read(tmp_path / "recipe.yaml", Recipe) == WHOLE


@settings(max_examples=50)
@given(st.lists(st.builds(Step, use=st.text(max_size=9), options=options), max_size=3))
def test_any_options_survive_yaml(steps: list[Step]) -> None:
    one = Recipe(
        model="m",
        task="t",
        target=WHOLE.target,
        steps=tuple(steps),
        engine="e",
        options=EngineOptions(),
        budget=WHOLE.budget,
    )
    assert convert(parse(to_yaml(one).encode(), ".yaml", "y"), Recipe, "y") == one
    assert canonical(convert(parse(canonical(one), ".json", "j"), Recipe, "j")) == canonical(one)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "missing required field `model`"),
        ("model: a\ntask: b\nsteps: [{us: c}]", "unknown key|missing required field"),
        ("model: a\ntask: b\noptions: {threads: many}", "Expected `int`|missing"),
    ],
)
def test_recipes_that_cannot_be_understood(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "recipe.yaml", Recipe)


def test_a_misspelt_limit_in_a_recipe_is_named(tmp_path: Path) -> None:
    text = to_yaml(WHOLE).replace("latency_ms", "latency")
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match="unknown key 'latency' at budget; did you mean 'latency_ms'"):
        read(tmp_path / "recipe.yaml", Recipe)


def test_a_step_reads_as_what_it_does() -> None:
    assert str(Step(use="graph.fuse.v1")) == "graph.fuse.v1()"
    assert str(WHOLE.steps[1]) == "quantize.static.v1(calibrator=percentile, percentile=99.99, 2 exclude)"


def test_a_candidate_and_a_summary_survive_json() -> None:
    summary = Summary(
        model_name="net",
        task_name="mnist-5k",
        metric="top1",
        sentence="2.9x faster",
        met=True,
        violations=(),
        notes=("a note",),
        budget="accuracy_drop<=0.01",
        winner=3,
        candidates=(CANDIDATE,),
    )
    assert convert(parse(canonical(summary), ".json", "j"), Summary, "j") == summary
    result = Result(fake_model(), WHOLE, summary, Path("out"))
    assert (result.met, result.violations, result.candidates) == (True, (), (CANDIDATE,))
    assert "2.9x faster" in repr(result)


def test_sections_and_functions_are_passes() -> None:
    class Nothing(PassSection, frozen=True, kw_only=True):
        strength: float = 1.0

        def __call__(self, model: Model, target: Target, task: Task) -> Model:
            return model

    def nothing(model: Model, target: Target, task: Task) -> Model:
        return model

    assert isinstance(Nothing(), Pass)
    assert isinstance(nothing, Pass)
    assert Nothing.reads == ("calibration",)
    unused: Any = None
    with pytest.raises(NotImplementedError):
        PassSection()(fake_model(), WHOLE.target, unused)
    recipe.ignore(recipe.Progress(stage="baseline", text="x"))
