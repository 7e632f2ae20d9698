"""What a search trains when it may: pruned networks, networks trained in 8 bits, students; each goes up the ladder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from farthing.config import Section
from farthing.errors import FarthingError
from farthing.forge.apply import apply, build, versions
from farthing.forge.arguments import Effort
from farthing.forge.cache import Cache, key_of
from farthing.forge.ladder import FUSE, INTEGERS, STATIC, Rung, rounded
from farthing.forge.ladder.climb import Artefact, Climber
from farthing.forge.training.schedule import Augment, Schedule, has_bf16
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.recipe import Progress, Step
from farthing.target import Budget, Target
from farthing.task import CLASS_METRICS, Task

QAT = "quantize.qat.v1"
PRUNE = "prune.structured.v1"
STUDENT = "distill.student.v1"
SEARCH = "search.architecture.v1"
TAILS = ("int8 minmax", "int8 mse, biases corrected", "int4 weights")
"""Of the rungs that quantize, those that trained networks are tried on."""


class Plan(NamedTuple):
    """How far an effort goes.

    Attributes:
        seconds: that trainings may take in all: as estimated from a few steps, and as they did take.
        epochs: least and most of one training.
        prunings: ratios tried, at most.
        trials: networks that a search of the student's architecture trains; 0 searches none.
    """

    seconds: float
    epochs: tuple[int, int]
    prunings: int
    trials: int


PLANS = {"normal": Plan(300.0, (4, 24), 2, 0), "thorough": Plan(3600.0, (8, 60), 5, 12)}
SEARCHED = 4.0  # slots of the time that a search may take
SCORING = 20.0  # seconds that making files of what was trained, and scoring them, may take beside
FEWEST = 4  # networks that a search trains at least
TRAINED = 0.6  # of the epochs of all its networks those that are trained: most networks are given up before their end


class Pace(Section, frozen=True, kw_only=True):
    """Seconds that something takes: an epoch of training, its teacher included, or a training."""

    seconds: float


class Courses:
    """The trainings of one search, dear rungs behind the cheap ones.

    Args:
        climber: makes and scores what is trained.
        model: as given.
        task: needs a ``train`` split.
        rungs: of the ladder: their engines and their ways to quantize.
        effort: how far to go.
        cache: keeps how long an epoch and each training took, so that the same search plans the same again.
        workshop: hears of progress; its machine is where networks are timed.
        budget: a student's architecture is searched under its limits on accuracy, size and time.
        clock: seconds.
    """

    def __init__(
        self,
        climber: Climber,
        model: Model,
        task: Task,
        target: Target,
        rungs: Sequence[Rung],
        effort: Effort,
        cache: Cache,
        workshop: Workshop,
        budget: Budget,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._climber, self._model, self._task, self._target = climber, model, task, target
        self._rungs, self._cache, self._workshop = rungs, cache, workshop
        self._plan = PLANS[effort]
        self._effort, self._budget = effort, budget
        self._left = self._plan.seconds
        self._pace, self._slowdown = 0.0, 1.0
        self._clock = clock
        self.notes: list[str] = []

    def run(self, made: Sequence[Artefact]) -> list[Artefact]:
        """What trainings gave, in the order they were tried; what cannot be trained is a note, or failed.

        Args:
            made: the artefacts of the ladder.
        """
        if problem := self._refusal():
            self.notes.append(problem)
            return []
        found: list[Artefact] = []
        found += self._in_8_bits("", (FUSE,), made)
        found += self._pruned()
        found += self._student()
        return found

    def _refusal(self) -> str:
        """Why nothing is trained; empty if there is no reason."""
        name = f"Nothing was trained (--effort {self._effort})"
        if "train" not in self._task.splits:
            return f"{name}: task {self._task.name} has no train split; give it one."
        if not any(rung.exact for rung in self._rungs):
            return f"{name}: no engine here takes float models."
        try:
            self._pace = self._paced()
        except FarthingError as error:
            return f"{name}: {error}"
        if self._pace * self._plan.epochs[0] > self._plan.seconds:
            dearer = " or `--effort thorough`" if self._effort == "normal" else ""
            return (
                f"{name}: an epoch takes some {self._pace:.0f} s here, too long for this effort; make the train split "
                f"smaller, or train by a recipe of your own{dearer}."
            )
        return ""

    # Trainings --------------------------------------------------------------------------------------------------

    def _in_8_bits(self, name: str, steps: tuple[Step, ...], made: Sequence[Artefact]) -> list[Artefact]:
        """Training with the rounding, where all that quantization without training gave loses too much."""
        own = [one for one in made if rounded(one.rung)]
        if not own or any(not one.refusal for one in own):
            return []
        if (schedule := self._schedule(0.5, lr=5e-4, bf16=False)) is None:
            return []
        qat = Step(use=QAT, options={"schedule": schedule})
        rungs = []
        for rung in self._tails():
            if any(step.use == STATIC for step in rung.steps) and rung.name.startswith(TAILS[0]):
                rest = tuple(qat if step.use == STATIC else step for step in rung.steps[1:])
                words = "int8 trained" if not name else f"{name}, int8 trained"
                rungs.append(replace(rung, name=words, steps=(*steps, *rest)))
        return self._timed(rungs, qat) if rungs else []

    def _pruned(self) -> list[Artefact]:
        """Fewer channels, as few as the accuracy allows: each ratio lies between what was enough and what was not."""
        found: list[Artefact] = []
        kept, broken = 0.0, 1.0
        known: list[tuple[dict[str, int], bool]] = []
        for _ in range(self._plan.prunings):
            ratio = round((kept + broken) / 2, 3)
            widths = self._widths(ratio)
            if twin := [
                good for other, good in known if other == widths
            ]:  # layers keep a few channels in any case
                kept, broken = (ratio, broken) if twin[0] else (kept, ratio)
                continue
            if (schedule := self._schedule(1.0, lr=2e-3)) is None:
                break
            name = f"{ratio:.0%} pruned"
            options = {"ratio": ratio, "widths": widths, "teacher": "self", "schedule": schedule}
            steps = (FUSE, Step(use=PRUNE, options=options))
            own = self._course(name, steps)
            if all(one.model is None for one in own):
                return [*found, *own]
            own += self._in_8_bits(name, steps, own)
            found += own
            good = any(not one.refusal for one in own)
            known.append((widths, good))
            kept, broken = (ratio, broken) if good else (kept, ratio)
        return found

    def _widths(self, ratio: float) -> dict[str, int]:
        """How wide a ratio leaves the layers, planned once; empty where it cannot be."""
        target, task = self._target, self._task
        step = Step(use=PRUNE, options={"ratio": ratio})
        try:
            fused, _ = apply((FUSE,), self._model, target, task, self._cache, self._workshop)
            about = [task.split("train").digest, target, self._workshop.machine.target, versions(PRUNE)]
            made: Any = build(step, target)[0]
            return self._cache.value(
                key_of("widths", fused.digest, step, *about),
                dict[str, int],
                lambda: made.planned(fused, target, task, self._workshop).widths,
            )
        except FarthingError:  # the course fails for the same reason, and says so
            return {}

    def _student(self) -> list[Artefact]:
        """A small network of another architecture, taught by the model; searched if the effort allows for it."""
        if self._task.metric.name not in CLASS_METRICS or len(self._model.manifest.inputs) != 1:
            return []
        if self._plan.trials and (search := self._searched()):
            return self._course("searched student", (search, FUSE))
        if (schedule := self._schedule(1.5, lr=5e-3)) is None:
            return []
        step = Step(use=STUDENT, options={"teacher": "self", "schedule": schedule})
        return self._course("student", (step, FUSE))

    def _searched(self) -> Step | None:
        """A search that ends within its share of the time, the winner trained; None if that is too short."""
        least, most = self._plan.epochs
        seconds = min(self._left, self._slot * SEARCHED)
        pace = self._pace * self._slowdown
        schedules = seconds / pace / least  # that could be trained from end to end
        trials = min(self._plan.trials, int((schedules - 1) / TRAINED))
        if trials < FEWEST:
            self.notes.append(
                f"The student's architecture was not searched: {FEWEST} networks would take longer than the "
                f"{seconds / 60:.0f} minutes that are left for it within --effort {self._effort}."
            )
            return None
        epochs = min(most, int(seconds / pace / (trials * TRAINED + 1)))
        self._left -= seconds
        budget = self._budget
        limits = {
            "size_kb": None if budget.size_mb is None else 1000 * budget.size_mb,
            "latency_ms": budget.latency_ms,
        }
        options: dict[str, Any] = {
            "teacher": "self",
            "schedule": self._epochs(epochs, lr=5e-3),
            "trials": trials,
            "hours": round((seconds - epochs * pace) / 3600, 3),
            "limits": {name: limit for name, limit in limits.items() if limit is not None},
        }
        drop = {} if budget.accuracy_drop is None else {"accuracy_drop": budget.accuracy_drop}
        return Step(use=SEARCH, options={**options, **drop})

    def _course(self, name: str, steps: tuple[Step, ...]) -> list[Artefact]:
        """A training, then each engine's way to run what it gave in float and in 8 bits."""
        rungs = [
            replace(rung, name=f"{name}, {rung.name}", steps=(*steps, *rung.steps[1:]))
            for rung in self._tails()
        ]
        rungs = [replace(rung, exact=False) for rung in rungs]
        first = self._timed(rungs[:1], next(step for step in steps if step != FUSE))
        return first if first[0].model is None else [*first, *self._climbed(rungs[1:])]

    def _tails(self) -> list[Rung]:
        """Of the ladder's rungs those that trained networks are tried on, float ones first."""
        names = {f"{tail}{end}" for tail in TAILS for end in ("", *INTEGERS.values())}
        tails = [
            rung for rung in self._rungs if rung.steps[:1] == (FUSE,) and (rung.exact or rung.name in names)
        ]
        return sorted(tails, key=lambda rung: not rung.exact)

    def _climbed(self, rungs: Sequence[Rung]) -> list[Artefact]:
        return self._climber.climb(rungs) if rungs else []

    def _timed(self, rungs: Sequence[Rung], training: Step) -> list[Artefact]:
        """Climb; if the training among their steps took longer than was thought, the next one gets fewer epochs."""
        steps = [rung.steps for rung in rungs]
        key = key_of("took", self._model.digest, steps, self._task.split("train").digest, self._target)
        began = self._clock()
        made = self._climbed(rungs)
        took = self._cache.value(key, Pace, lambda: Pace(seconds=self._clock() - began)).seconds
        if training.use != SEARCH:  # a search keeps to its time by itself
            thought = training.options["schedule"]["epochs"] * self._pace * self._slowdown
            self._left -= max(0.0, took - SCORING) - thought
            self._slowdown *= (took - SCORING) / thought
            self._slowdown = max(1.0, self._slowdown)
        return made

    # Time -------------------------------------------------------------------------------------------------------

    def _schedule(self, share: float, **options: Any) -> dict[str, Any] | None:
        """A schedule of as many epochs as a share of a slot allows for; None if no time is left."""
        least, most = self._plan.epochs
        pace = self._pace * self._slowdown
        epochs = max(least, min(int(most * share), int(self._slot * share / pace)))
        cost = epochs * pace
        if cost > self._left:
            if not any("no time" in note for note in self.notes):
                self.notes.append(
                    f"There was no time for more training within --effort {self._effort} (some "
                    f"{self._plan.seconds / 60:.0f} minutes of it)."
                )
            return None
        self._left -= cost
        return self._epochs(epochs, **options)

    @property
    def _slot(self) -> float:
        """Seconds: the time in as many parts as let every training have its share."""
        return self._plan.seconds / (2 + 2 * self._plan.prunings)

    def _epochs(self, epochs: int, **options: Any) -> dict[str, Any]:
        return {"epochs": epochs, "augment": self._augment(), **options}

    def _augment(self) -> Augment:
        """Pictures that are to be told apart may be turned and moved a little."""
        image = self._task.form == "image" and self._task.metric.name in CLASS_METRICS
        return "affine" if image else "none"

    def _paced(self) -> float:
        """Seconds of an epoch, from a few steps of training, measured once."""
        self._workshop.listener(Progress(stage="passes", text="timing an epoch of training"))
        train = self._task.split("train").digest
        key = key_of("pace", self._model.digest, train, self._task.metric.name, self._target, has_bf16())
        schedule = Schedule(augment=self._augment())

        def look() -> Pace:
            from farthing.forge.training.pace import pace  # a search that is repeated needs no PyTorch

            return Pace(seconds=pace(self._model, self._task.only({"train", "calibration"}), schedule))

        return self._cache.value(key, Pace, look).seconds
