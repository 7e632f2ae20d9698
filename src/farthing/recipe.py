"""Recipe: how an artefact was made, as plain data that replays. Pass: one step of it. Result: what a search found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from farthing.anatomy import Anatomy, Matrix
from farthing.bundle import Bundle
from farthing.config import Section
from farthing.measure import Figures, Interval, Measurement
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.target import Budget, Target
from farthing.task import Task

RECIPE_FILE = "recipe.yaml"  # where a search puts it, beside its winner


class Step(Section, frozen=True, kw_only=True):
    """One pass by its versioned name, with its options."""

    use: str
    options: dict[str, Any] = {}

    def __str__(self) -> str:
        given = {key: value for key, value in self.options.items() if value not in (None, [], ())}
        inside = (f"{len(v)} {k}" if isinstance(v, list) else f"{k}={v}" for k, v in given.items())
        return f"{self.use}({', '.join(inside)})"


class Recipe(Section, frozen=True, kw_only=True):
    """Everything that decides an artefact; replaying it measures nothing.

    Attributes:
        model, task: digests of the input model and of the task's data; a replay on others is refused.
        target: the device it was made for, resolved.
        steps: passes in order, their options resolved to numbers.
        engine, options: what is meant to run the result, and how.
        budget: what it was searched under.
        artefact: digest of the model that the steps gave.
        accuracy: the metric on the validation split: what a replay is held to that trains on another machine.
        versions: of Farthing and the libraries that took part.
    """

    model: str
    task: str
    target: Target
    steps: tuple[Step, ...]
    engine: str
    options: EngineOptions
    budget: Budget
    artefact: str = ""
    accuracy: Interval | None = None
    versions: dict[str, str] = {}


@runtime_checkable
class Pass(Protocol):
    """A plain Model in, a plain Model (or Bundle) out; never mutates its input.

    Built-in passes are Sections: their fields are their options. A plain function serves as well.
    A pass may say ``reads`` (splits it looks at; default ``("calibration",)``): a search hands it no others, because
    these are part of the cache key. And ``libraries``: packages whose version decides its result.

    A pass that is a Section may have three methods more, each of which gives a pass again, asked in this order.
    ``resolved(target)`` fixes the options that follow from the target. ``planned(model, target, task, workshop)`` fills
    in as options what would have to be looked for or measured; it goes through the cache and into the recipe, so a
    replay plans nothing, and what is filled in already is left as it is. ``within(workshop)`` is the pass with progress
    and with a directory that outlives a kill, for passes that take long; called without it, they do without. The
    workshop is a `farthing.forge.workshop.Workshop`.
    """

    def __call__(self, model: Model, target: Target, task: Task) -> Model | Bundle: ...


FLOATS = ("float", "sparse", "branched")
"""Forms of ONNX models in float32."""


class PassSection(Section, frozen=True, kw_only=True):
    """Base of built-in passes: fields are options.

    ``forms`` says what a pass takes, and what it makes of that: form -> form, as `farthing.forge.order` names them. One
    that says nothing may stand anywhere in a chain.
    """

    reads: ClassVar[tuple[str, ...]] = ("calibration",)
    libraries: ClassVar[tuple[str, ...]] = ()
    forms: ClassVar[Mapping[str, str]] = {}

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        raise NotImplementedError


Status = Literal["baseline", "accepted", "rejected", "failed", "winner"]


class Candidate(Section, frozen=True, kw_only=True):
    """One artefact in one engine, run in one way, and what became of it.

    Attributes:
        name: short, as in ``int8 percentile``.
        number: 0 is the baseline.
        steps: passes that made it from the input model.
        engine, options: what ran it, and how.
        exact: whether it computes in float32 like the model as given: what others of its engine are compared with.
        model: digest of the artefact; empty if it could not be made.
        nodes: operators in its graph, None if the format has none.
        figures: what the budget is held against; ``latency_ms`` is p90, single stream, batch 1.
        accuracy, drop: the metric on validation, and what it lost against the baseline, with intervals.
        speedup: best baseline's p50 / its p50, interleaved, single stream; ``offline_speedup`` in batches.
        over_float: p50 of the fastest float32 candidate of any engine / its p50, interleaved, single stream;
            ``over_engine`` the same with the fastest of its own engine. Of finalists only.
        measurements: what the figures come from, by scenario.
        status, verdict: how it ended, and why in a few words.
    """

    name: str
    number: int
    steps: tuple[Step, ...]
    engine: str
    options: EngineOptions
    exact: bool = False
    model: str = ""
    nodes: int | None = None
    figures: Figures = Figures()
    accuracy: Interval | None = None
    drop: Interval | None = None
    speedup: Interval | None = None
    offline_speedup: Interval | None = None
    over_float: Interval | None = None
    over_engine: Interval | None = None
    measurements: dict[str, Measurement] = {}
    status: Status = "rejected"
    verdict: str = ""


class TestScores(Section, frozen=True, kw_only=True):
    """The one look at the test split."""

    baseline: Interval
    winner: Interval
    drop: Interval
    samples: int


class Summary(Section, frozen=True, kw_only=True):
    """What a search found, as plain data (``result.json``); the report is drawn from it.

    Attributes:
        model_name, task_name, metric: what was optimised, and by which metric.
        higher_is_better: whether higher values of the metric are better; False for errors.
        sentence, met, violations, notes: as in `Result`.
        budget: the limits in words.
        winner: number of the winning candidate.
        candidates: all, the baseline first.
        test: the metric of baseline and winner on the untouched test split, and the drop; None without one.
        samples: size of each split.
        anatomy: the inside of baseline and winner: bytes by layer, placement by node.
        matrix: whether the engines that took part compute the same from the model as given; None if there was only one.
        machine, versions, command, when, seconds: how to make sense of the figures, and to repeat them.
    """

    model_name: str
    task_name: str
    metric: str
    higher_is_better: bool = True
    sentence: str
    met: bool
    violations: tuple[str, ...]
    notes: tuple[str, ...]
    budget: str
    winner: int
    candidates: tuple[Candidate, ...]
    test: TestScores | None = None
    samples: dict[str, int] = {}
    anatomy: tuple[Anatomy, ...] = ()
    matrix: Matrix | None = None
    machine: str = ""
    versions: dict[str, str] = {}
    command: str = ""
    when: str = ""
    seconds: float = 0.0


class Result:
    """What a search returns.

    Attributes:
        winner: the best artefact found, saved and re-checked; the input model itself if nothing beat it.
        met: whether it keeps every limit of the budget.
        violations: the limits it exceeds, a sentence each.
        candidates: all that were tried, the baseline first.
        recipe: how to make the winner again.
        summary: all of it as plain data, with the verdict in one sentence.
        directory: where all of it was written.
    """

    def __init__(self, winner: Model, recipe: Recipe, summary: Summary, directory: Path) -> None:
        self.winner = winner
        self.recipe = recipe
        self.summary = summary
        self.directory = directory
        self.met = summary.met
        self.violations = summary.violations
        self.candidates = summary.candidates

    def __repr__(self) -> str:
        return f"Result({self.summary.sentence!r}, met={self.met})"


class Progress(Section, frozen=True, kw_only=True):
    """One event of a long piece of work.

    Attributes:
        stage: what is under way, as in ``baseline``, ``passes``, ``accuracy``, ``race``, ``final``.
        text: one line for a person.
        done, total: how far the stage is; total 0 means unknown.
        outcome: whether the text says what came of something, and not only what is under way.
        candidate: the candidate it is about, once its verdict is known.
    """

    stage: str
    text: str
    done: int = 0
    total: int = 0
    outcome: bool = False
    candidate: Candidate | None = None


Listener = Callable[[Progress], None]


def ignore(event: Progress) -> None:
    """A listener that does not listen."""
