"""Make artefacts rung by rung and score them; where int8 costs too much, its worst operators go back to float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from farthing.config import convert
from farthing.errors import FarthingError
from farthing.forge.apply import apply, read_by, versions
from farthing.forge.cache import Cache, key_of
from farthing.forge.evaluate import Judge, Score, proxy
from farthing.forge.ladder import (
    STATIC,
    Rung,
    compensated,
    has_half,
    rounded,
    target_format,
    with_exclusions,
    with_half,
)
from farthing.forge.quantize import heads
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.runtime import Runtime
from farthing.forge.sensitivity.losses import fewest, losses, ranked
from farthing.forge.sensitivity.precisions import Place
from farthing.forge.timing import Clock, Variant
from farthing.forge.verdict import accuracy_refusal, hopeless, points
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.recipe import Candidate, Progress, Step
from farthing.target import Budget, Target
from farthing.task import Task

Judged = Callable[[Model, Runtime], tuple[Score, str]]
"""What scores a model and says why it is out; nothing if it is not."""


@dataclass
class Artefact:
    """A rung that was climbed.

    Attributes:
        rung: its name, engine and steps.
        runtime: what runs it, with one thread.
        steps: the same with their options resolved.
        model: what they made, None if they failed.
        score: its score on validation, on a few samples if those already rule it out.
        refusal: why it is out; empty if it is not.
        failed: whether a step or the model itself failed.
    """

    rung: Rung
    runtime: Runtime
    steps: tuple[Step, ...] = ()
    model: Model | None = None
    score: Score | None = None
    refusal: str = ""
    failed: bool = False

    def made(self, candidate: Candidate) -> bool:
        """Whether a candidate is this artefact, with any number of threads."""
        if self.model is None or self.model.digest != candidate.model:
            return False
        options = replace(candidate.options, threads=self.runtime.options.threads)
        return (candidate.engine, options) == (self.runtime.engine, self.runtime.options)


class Climber:
    """Makes and scores the artefacts of one search.

    Args:
        model: candidate 0.
        runtimes: what runs a rung, by the name of its engine.
        workshop: what passes may use; its listener hears of each rung, stage ``passes``.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        target: Target,
        budget: Budget,
        cache: Cache,
        judge: Judge,
        clock: Clock,
        runtimes: Mapping[str, Runtime],
        workshop: Workshop,
    ) -> None:
        self._model = model
        self._task = task
        self._target = target
        self._budget = budget
        self._cache = cache
        self._judge = judge
        self._clock = clock
        self._runtimes = runtimes
        self._workshop = workshop
        self.notes: list[str] = []

    def climb(self, rungs: Sequence[Rung]) -> list[Artefact]:
        """One artefact a rung, in their order."""
        made: list[Artefact] = []
        for number, rung in enumerate(rungs):
            self._say(f"{rung.name}, {rung.engine}", number, len(rungs))
            made.append(self._make(rung, made))
            self._say(self._outcome(made[-1]), number + 1, len(rungs), outcome=True)
        return made

    def give_back(self, made: Sequence[Artefact]) -> list[Artefact]:
        """Operators back in float, for each engine whose int8 artefacts all lose too much.

        First the decoder of a head that int8 breaks; if there is none, or that is too little, the fewest worst ones.
        """
        found: list[Artefact] = []
        for int8 in self._static(made):
            found += self._with_floats(int8, [*made, *found])
        return found

    def with_heads(self, made: Sequence[Artefact]) -> list[Artefact]:
        """For each engine its best int8 artefact with the decoder of the head in float, if int8 breaks that."""
        found: list[Artefact] = []
        for int8 in self._static(made):
            found += self._head(_best(int8), [*made, *found])
        return found

    def _static(self, made: Sequence[Artefact]) -> list[list[Artefact]]:
        """The static int8 artefacts of each engine that could be made and scored."""
        own = {
            name: [a for a in made if a.rung.engine == name and a.model and a.score]
            for name in self._runtimes
        }
        int8 = [[a for a in found if any(s.use == STATIC for s in a.steps)] for found in own.values()]
        return [found for found in int8 if found]

    def _with_floats(self, int8: Sequence[Artefact], made: Sequence[Artefact]) -> list[Artefact]:
        engine = int8[0].rung.engine
        own = [artefact for artefact in made if artefact.rung.engine == engine and rounded(artefact.rung)]
        if _good(own):
            return []
        found: list[Artefact] = []
        try:
            found += self._head(_best(int8), made)
            best = _best([*int8, *(artefact for artefact in found if artefact.score)])
            found += self._compensated(best.rung, found, made)
            if not _good(found):
                found += self._bisect(best.rung, self._ranked(best), [*made, *found])
        except FarthingError as error:
            if self._clock.ends_all(error):
                raise
            self.notes.append(
                f"Operators of {_best(int8).rung.name} could not be ranked, so none went back to float: {error}"
            )
        return found + self._halved(found, [*made, *found])

    def _head(self, best: Artefact, made: Sequence[Artefact]) -> list[Artefact]:
        """The int8 artefact with the decoder of its head in float, if int8 breaks that; the notes say what it is."""
        joins = self._joins(best)
        self._note_joins(joins)
        names = list(dict.fromkeys(name for join in joins for name in join.head))
        if not names:
            return []
        artefact = self._make(with_exclusions(best.rung, names, "head"), made)
        self._say(self._outcome(artefact), outcome=True)
        return [artefact]

    def _compensated(self, rung: Rung, found: Sequence[Artefact], made: Sequence[Artefact]) -> list[Artefact]:
        """An int8 rung with its rounding compensated, then equalized as well, until something is good enough."""
        tried: list[Artefact] = []
        for dearer in compensated(rung):
            if not _good([*found, *tried]):
                tried.append(self._make(dearer, [*made, *found, *tried]))
                self._say(self._outcome(tried[-1]), outcome=True)
        return tried

    def _joins(self, best: Artefact) -> list[heads.Join]:
        floating, quantize, step = self._before(best)
        key = key_of("heads", floating.digest, step, read_by(STATIC, self._task), versions(STATIC))
        return self._cache.value(key, list[heads.Join], lambda: heads.joins(floating, self._task, quantize))

    def _note_joins(self, joins: Sequence[heads.Join]) -> None:
        for join in joins:
            end = "its head was left in float" if join.head else "layers follow it, so the ranking decides"
            if (note := f"{join}; {end}.") not in self.notes:
                self.notes.append(note)

    def _halved(self, found: Sequence[Artefact], made: Sequence[Artefact]) -> list[Artefact]:
        """The last artefact that was good enough with its float operators in float16, where the target has that."""
        good = [artefact for artefact in _good(found) if any(s.use == STATIC for s in artefact.steps)]
        if not good or not has_half(self._target) or target_format(good[-1].rung.engine) != "onnx":
            return []
        artefact = self._make(with_half(good[-1].rung), made)
        self._say(self._outcome(artefact), outcome=True)
        return [artefact]

    def _make(self, rung: Rung, earlier: Sequence[Artefact], judged: Judged | None = None) -> Artefact:
        """The artefact of a rung, with the verdict of ``judged`` on it; `_judged` unless given."""
        judged = judged or self._judged
        artefact = Artefact(rung, self._runtimes[rung.engine].computing(rung.precision))
        try:
            artefact.model, artefact.steps = self._apply(rung.steps)
            twin = next((other for other in earlier if _same(artefact, other)), None)
            if twin:
                artefact.refusal = f"rejected: the same file as {twin.rung.name}"
                artefact.score = twin.score
            else:
                variant = Variant(model=artefact.model.digest, runtime=artefact.runtime)
                self._clock.trial(variant, artefact.model)
                artefact.score, artefact.refusal = judged(artefact.model, artefact.runtime)
        except FarthingError as error:
            if self._clock.ends_all(error):
                raise
            artefact.refusal, artefact.failed = f"failed: {error}", True
        return artefact

    def _apply(self, steps: Sequence[Step]) -> tuple[Model, tuple[Step, ...]]:
        return apply(steps, self._model, self._target, self._task, self._cache, self._workshop)

    def _judged(self, model: Model, runtime: Runtime) -> tuple[Score, str]:
        """A few samples first; the whole validation split only for what they do not rule out."""
        if few := proxy(self._task):
            score = self._judge.score(model, "validation", few, runtime)
            if hopeless(score, self._budget):
                refusal = accuracy_refusal(score, self._budget, self._task.metric)
                return score, f"{refusal}, on {few} samples"
        score = self._judge.score(model, "validation", runtime=runtime)
        return score, accuracy_refusal(score, self._budget, self._task.metric)

    def _judged_on_few(self, model: Model, runtime: Runtime) -> tuple[Score, str]:
        few = proxy(self._task)
        score = self._judge.score(model, "validation", few, runtime=runtime)
        refusal = accuracy_refusal(score, self._budget, self._task.metric)
        return score, f"{refusal}, on {few} samples" if refusal else ""

    def _before(self, best: Artefact) -> tuple[Model, StaticInt8, Step]:
        """What the static step of an artefact was given, and the step."""
        place = next(i for i, step in enumerate(best.steps) if step.use == STATIC)
        floating, _ = self._apply(best.steps[:place])
        return floating, convert(best.steps[place].options, StaticInt8, STATIC), best.steps[place]

    def _ranked(self, best: Artefact) -> list[str]:
        """Names of the quantized operators of an artefact, worst first."""
        floating, quantize, _ = self._before(best)
        text = f"ranking the operators of {best.rung.name}"
        place = Place(self._target, self._task, self._cache)
        return ranked(
            losses(floating, quantize, place, tick=lambda done, total: self._say(text, done, total))
        )

    def _bisect(self, rung: Rung, worst: list[str], made: Sequence[Artefact]) -> list[Artefact]:
        """Artefacts on the way to the fewest operators whose return is enough, small numbers first.

        A large validation split is asked for what bisection on a few samples found, and for no other.
        """
        tried: dict[int, Artefact] = {}

        def enough(count: int, judged: Judged) -> bool:
            others = [artefact for number, artefact in tried.items() if number != count]
            tried[count] = self._make(with_exclusions(rung, worst[:count]), [*made, *others], judged)
            self._say(self._outcome(tried[count]), outcome=True)
            return not tried[count].refusal

        few, least = proxy(self._task), 0
        if few:
            least = fewest(len(worst), lambda count: enough(count, self._judged_on_few))
            for number, artefact in tried.items():
                if number > least and not artefact.refusal:
                    artefact.refusal = f"rejected: {least} operators in float are enough, on {few} samples"
        if least in {0, len(worst)} or not enough(least, self._judged):
            fewest(len(worst), lambda count: enough(count, self._judged), least)
        return list(tried.values())

    def _outcome(self, artefact: Artefact) -> str:
        metric, words = self._task.metric, artefact.refusal
        if not words and artefact.score:
            sign = -1.0 if metric.higher_is_better else 1.0
            words = f"{metric.name} {points(sign * artefact.score.drop.value, metric)}"
        return f"{artefact.rung.name}, {artefact.rung.engine}: {words}"

    def _say(self, text: str, done: int = 0, total: int = 0, outcome: bool = False) -> None:
        event = Progress(stage="passes", text=text, done=done, total=total, outcome=outcome)
        self._workshop.listener(event)


def _same(one: Artefact, other: Artefact) -> bool:
    """Whether two artefacts are the same files, run by the same engine in the same way."""
    if one.model is None or other.model is None or one.runtime != other.runtime:
        return False
    return one.model.manifest.files == other.model.manifest.files


def _good(made: Sequence[Artefact]) -> list[Artefact]:
    """Those that nothing speaks against so far."""
    return [artefact for artefact in made if not artefact.refusal]


def _best(int8: Sequence[Artefact]) -> Artefact:
    """The artefact that loses least."""
    return min(int8, key=lambda artefact: artefact.score.drop.value if artefact.score else 0.0)
