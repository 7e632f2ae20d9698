"""Recipe: how an artefact was made, as plain data that replays. Pass: one step of it. Result: what a search found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from farthing.config import Section
from farthing.measure import Figures, Interval, Measurement
from farthing.model import Bundle, Model
from farthing.target import Budget, Target
from farthing.task import Task


class Step(Section, frozen=True, kw_only=True):
    """One pass by its versioned name, with its options."""

    use: str
    options: dict[str, Any] = {}

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={value}" for key, value in self.options.items() if not isinstance(value, list))
        more = [f"{len(value)} {key}" for key, value in self.options.items() if isinstance(value, list)]
        return f"{self.use}({', '.join(filter(None, [inside, *more]))})"


class Recipe(Section, frozen=True, kw_only=True):
    """Everything that decides an artefact; replaying it measures nothing.

    Attributes:
        model, task: digests of the input model and of the task's data; a replay on others is refused.
        target: the device it was made for, resolved.
        steps: passes in order, their options resolved to numbers.
        engine, threads: how the result is meant to run.
        budget: what it was searched under.
        artefact: digest of the model that the steps gave.
        versions: of Farthing and the libraries that took part.
    """

    model: str
    task: str
    target: Target
    steps: tuple[Step, ...]
    engine: str
    threads: int
    budget: Budget
    artefact: str = ""
    versions: dict[str, str] = {}


@runtime_checkable
class Pass(Protocol):
    """A plain Model in, a plain Model (or Bundle) out; never mutates its input.

    Built-in passes are Sections: their fields are their options. A plain function serves as well.
    A class may say ``reads`` (splits it looks at, part of the cache key; default ``("calibration",)``) and
    ``libraries`` (packages whose version decides its result).
    """

    def __call__(self, model: Model, target: Target, task: Task) -> Model | Bundle: ...


class PassSection(Section, frozen=True, kw_only=True):
    """Base of built-in passes: fields are options."""

    reads: ClassVar[tuple[str, ...]] = ("calibration",)
    libraries: ClassVar[tuple[str, ...]] = ()

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        raise NotImplementedError


Status = Literal["baseline", "accepted", "rejected", "failed", "winner"]


class Candidate(Section, frozen=True, kw_only=True):
    """One artefact in one engine with so many threads, and what became of it.

    Attributes:
        name: short, as in ``int8 percentile``.
        number: 0 is the baseline.
        steps: passes that made it from the input model.
        model: digest; ``path`` its directory.
        figures: what the budget is held against; ``latency_ms`` is p90, single stream, batch 1.
        drop: accuracy lost against the baseline on validation, with its interval.
        speedup: baseline p50 / its p50, interleaved, single stream.
        measurements: what the figures come from, by scenario.
        status, verdict: how it ended, and why in a few words.
    """

    name: str
    number: int
    steps: tuple[Step, ...]
    engine: str
    threads: int
    model: str = ""
    path: str = ""
    figures: Figures = Figures()
    drop: Interval | None = None
    speedup: Interval | None = None
    offline_speedup: Interval | None = None
    measurements: dict[str, Measurement] = {}
    status: Status = "rejected"
    verdict: str = ""


class Result:
    """What a search returns.

    Attributes:
        winner: the best artefact found, saved and re-checked; the input model itself if nothing beat it.
        met: whether it keeps every limit of the budget.
        violations: the limits it exceeds, a sentence each.
        candidates: all that were tried, the baseline first.
        recipe: how to make the winner again.
        sentence: the verdict in one sentence.
        notes: what a reader must know beside it.
        directory: where all of it was written.
    """

    def __init__(
        self,
        *,
        winner: Model,
        met: bool,
        violations: tuple[str, ...],
        candidates: tuple[Candidate, ...],
        recipe: Recipe,
        sentence: str,
        notes: tuple[str, ...],
        directory: Path,
    ) -> None:
        self.winner = winner
        self.met = met
        self.violations = violations
        self.candidates = candidates
        self.recipe = recipe
        self.sentence = sentence
        self.notes = notes
        self.directory = directory

    def __repr__(self) -> str:
        return f"Result({self.sentence!r}, met={self.met})"


class Progress(Section, frozen=True, kw_only=True):
    """One event of a long piece of work.

    Attributes:
        stage: what is under way, as in ``baseline``, ``passes``, ``accuracy``, ``race``, ``final``.
        text: one line for a person.
        done, total: how far the stage is; total 0 means unknown.
        candidate: the candidate it is about, once its verdict is known.
    """

    stage: str
    text: str
    done: int = 0
    total: int = 0
    candidate: Candidate | None = None


Listener = Callable[[Progress], None]


def ignore(event: Progress) -> None:
    """A listener that does not listen."""
