"""The main job: the best measured artefact of a model for a task, a target and a budget.

Candidate 0 is the model as given. The ladder (fuse, int8 variants, dynamic, float16, users' passes) is climbed for
each engine; each artefact is scored with the task's metric on validation data, in the engine that will run it, a few
samples first; where int8 costs too much accuracy, its worst operators go back to float by bisection; what keeps the
accuracy is timed against the baseline, interleaved, over engines and thread counts; the winner is saved, opened from
its file, scored and timed once more, and only then looked at on the test split, once, together with the baseline.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from farthing import picture
from farthing.assets import default_cache
from farthing.bench import Tick
from farthing.bench.machine import Here, Machine
from farthing.errors import FarthingError
from farthing.forge import arguments, inside, output
from farthing.forge.apply import versions_of
from farthing.forge.cache import Cache, key_of
from farthing.forge.evaluate import Judge, proxy
from farthing.forge.ladder import Rung, fitting, ladder, rounds
from farthing.forge.ladder.candidates import Listing
from farthing.forge.ladder.climb import Artefact, Climber
from farthing.forge.ladder.courses import Courses
from farthing.forge.ladder.rounds import Rounds
from farthing.forge.runtime import find_runtimes
from farthing.forge.timing import Clock, Variant
from farthing.forge.verdict import accuracy_refusal, harmless, points, sentence, unresolved
from farthing.forge.workshop import Workshop
from farthing.measure import Figures, Interval, compare, violations
from farthing.model import Model, as_model
from farthing.options import make_options
from farthing.recipe import Candidate, Listener, Progress, Recipe, Result, Summary, TestScores, ignore
from farthing.target import BUDGET_NAMES, THIS, Budget, Target
from farthing.task import ImageFiles, Task, as_task


def optimize(
    model: Model | Path | str,
    task: Task | Path | str,
    target: Target | str = "this",
    budget: Budget | str = f"accuracy_drop<={arguments.DEFAULT_DROP}",
    out: Path | str = "optimized",
    *,
    engines: Sequence[str] = (),
    threads: Sequence[int] = (),
    effort: arguments.Effort = "quick",
    allow_slower: bool = False,
    cache: Path | None = None,
    measure_again: bool = False,
    machine: Machine | None = None,
    listener: Listener = ignore,
    command: str = "",
) -> Result:
    """Search for the best artefact of a model under a budget, and save it with its recipe and report.

    Args:
        model: the trained model, candidate 0, or its path.
        task: data and metric, or what `farthing.find_task` finds them by; search looks at its validation split, the
            test split is scored once.
        target: the device; unless ``machine`` is one, only accuracy and size are held to the budget.
        budget: limits; without one on accuracy, ``accuracy_drop<=0.01`` is added.
        out: output directory: absent, empty or an earlier result, which is replaced once all is done.
        engines: what may run the candidates; every engine that is installed and fits the target if empty. The first
            that opens the model as given runs the baseline.
        threads: thread counts to try; 1 and all cores if empty.
        effort: ``quick`` quantizes and trains nothing; ``normal`` also prunes, trains in 8 bits where quantization
            alone loses too much, and teaches a small student, some five minutes of training in all; ``thorough`` takes
            up to an hour, prunes as far as it goes and searches the student's architecture. Training needs a ``train``
            split. If what is cheaper keeps a budget that limits more than accuracy, ``normal`` trains nothing.
        allow_slower: let a slower model win if the budget asks for it (for size, say).
        cache: directory for results of passes and measurements; ``~/.cache/farthing`` if None.
        measure_again: do not use cached timings.
        machine: where candidates run and are timed (`farthing.bench.remote` reaches boards); this machine if None.
        listener: called with `Progress` events.
        command: how the caller can be repeated, for the report.

    Returns:
        The Result; ``met`` is False if no candidate keeps the budget: the winner is then the best found.

    Raises:
        FarthingError: bad input (see `farthing.errors`); nothing is left half-written.
    """
    arguments.check(target, budget, out, engines, threads)
    arguments.check_effort(effort)
    model, task = as_model(model), as_task(task, cache)
    search = _Search(
        model,
        task,
        target,
        budget,
        engines,
        threads,
        effort,
        allow_slower,
        cache,
        measure_again,
        machine,
        listener,
    )
    with output.claimed(Path(out)) as directory:
        winner, recipe, summary = search.run(command)
        return output.write(winner, recipe, summary, directory)


def _checked(paths: Sequence[Path], tick: Tick) -> int:
    picture.check(paths, tick)
    return len(paths)


class _Search:
    def __init__(
        self,
        model: Model,
        task: Task,
        target: Target | str,
        budget: Budget | str,
        engines: Sequence[str],
        threads: Sequence[int],
        effort: arguments.Effort,
        allow_slower: bool,
        cache: Path | None,
        measure_again: bool,
        machine: Machine | None,
        listener: Listener,
    ) -> None:
        self.model, self.task, self.listener = model, task, listener
        self.target = Target.find(target) if isinstance(target, str) else target
        self.machine = machine or Here()
        here = self.target.is_machine(self.machine.target)
        self.budget = arguments.with_accuracy(
            Budget.parse(budget) if isinstance(budget, str) else budget, task
        )
        self.budget = self.budget if here else self.target.held(self.budget)
        counts = sorted({*threads} or {1, self.target.cores or 1})
        counts = [make_options(count).threads for count in counts]
        self.effort: arguments.Effort = effort
        self.here = here
        self.allow_slower = allow_slower or not here
        arguments.check_task(task, model)
        self.runtime, self.runtimes = find_runtimes(model, engines, self.target, self.machine)
        self.cache = Cache(cache or default_cache())
        self.judge = Judge(task, model, self.runtime, self.machine, self.cache)
        self.clock = Clock(task, self.machine, self.cache, measure_again)
        self.climber = Climber(
            model,
            task,
            self.target,
            self.budget,
            self.cache,
            self.judge,
            self.clock,
            self.runtimes,
            Workshop(listener=listener, machine=self.machine),
        )
        self.rounds = Rounds(self.clock, self.budget, counts, self.allow_slower, self._ticker)
        self.where = (
            "on this machine"
            if machine is None or machine.target.name == THIS
            else f"on {machine.target.name}"
        )
        self.listing = self._listing()
        self.notes: list[str] = []
        if not here:
            self.notes.append(
                f"Target {self.target.name} is not the machine that measured: speeds are those of "
                f"{self.machine.description}; limits on latency, throughput, memory and energy could not be checked."
            )

    def run(self, command: str) -> tuple[Model, Recipe, Summary]:
        start = time.perf_counter()
        self.cache.sweep()
        self._check_pictures()
        self._say("baseline", f"scoring {self.model.manifest.name} as it is")
        self.clock.trial(Variant(model=self.model.digest, runtime=self.runtime), self.model)
        score = self.judge.score(self.model, "validation")
        rung = Rung("baseline", self.runtime.engine, exact=True)
        base = Artefact(rung, self.runtime, model=self.model, score=score)
        if problem := accuracy_refusal(score, self.budget, self.task.metric):
            problem = problem.removeprefix("rejected: ")
            self.notes.append(f"The model as given misses accuracy_min itself ({problem}).")
        rungs, unfit = fitting(ladder(self.model, [*self.runtimes], self.target), self.target)
        self.notes += [unfit] if unfit else []
        made = self.climber.climb(rungs)
        made += self.climber.give_back(made)
        made += self._trained(base, made, rungs)
        fit = [artefact for artefact in made if not artefact.refusal]
        self.listing.fill(base, made, self.rounds.times(base, fit), self.listener)
        artefact, candidate = self._pick([base, *made])
        artefact, candidate, test = self._tested(base, artefact, candidate)
        return self._conclude(artefact, candidate, test, command, time.perf_counter() - start)

    def _listing(self) -> Listing:
        return Listing(
            self.budget, self.clock, self.allow_slower, self.here, rounds.FINAL, self.where, self.cache
        )

    def _trained(self, base: Artefact, made: Sequence[Artefact], rungs: Sequence[Rung]) -> list[Artefact]:
        """What training gave, if the effort allows for it and the budget asks for it."""
        if self.effort == "quick" or (self.effort == "normal" and self._suffices(base, made)):
            return []
        courses = Courses(
            self.climber,
            self.model,
            self.task,
            self.target,
            rungs,
            self.effort,
            self.cache,
            Workshop(listener=self.listener, machine=self.machine),
            self.budget,
        )
        found = courses.run(made)
        self.notes += courses.notes
        return found

    def _suffices(self, base: Artefact, made: Sequence[Artefact]) -> bool:
        """Whether something keeps a budget that limits more than accuracy: nothing dearer is needed then."""
        limits = {name for name in BUDGET_NAMES if getattr(self.budget, name) is not None}
        if limits <= {"accuracy_drop", "accuracy_min"}:
            return False
        fit = [artefact for artefact in made if not artefact.refusal]
        listing = self._listing()
        listing.fill(base, made, self.rounds.times(base, fit), ignore)
        if listing.best().status != "accepted":
            return False
        self.notes.append(
            "The budget is met without training, so nothing was trained: --effort thorough trains in any case."
        )
        return True

    def _check_pictures(self) -> None:
        """Decode every picture of the task once, so that a broken one is known now and not after the search."""
        paths = [
            path
            for split in self.task.splits.values()
            if isinstance(split, ImageFiles)
            for path in split.inputs[""]
        ]
        if paths:
            text = f"checking {len(paths)} pictures"
            tick = self._ticker("baseline", text)
            self.cache.value(key_of("pictures", self.task.digest), int, lambda: _checked(paths, tick))

    # Choosing ---------------------------------------------------------------------------------------------------

    def _pick(self, artefacts: Sequence[Artefact]) -> tuple[Artefact, Candidate]:
        """The best candidate that a second look confirms, or the baseline."""
        seen: set[int] = set()
        while (best := self.listing.best()).status != "baseline":
            artefact = next(artefact for artefact in artefacts if artefact.made(best))
            refusal, p90_ms = ("", None) if best.number in seen else self._recheck(artefact, best)
            if refusal:
                self.listing.settle(best, refusal)
            elif p90_ms is not None:
                seen.add(best.number)
                self.listing.timed_again(best, p90_ms)
            else:
                return artefact, self.listing.settle(best)
        return artefacts[0], best

    def _recheck(self, artefact: Artefact, candidate: Candidate) -> tuple[str, float | None]:
        """Open the artefact from its file, score and time it once more.

        Returns:
            Why it must go, or nothing; and its p90 in the second timing, milliseconds.
        """
        if artefact.model is None:
            return "rejected: there is no file", None
        self._say("final", f"re-checking {candidate.name} from its file")
        few = proxy(self.task)
        try:
            before = self.judge.score(artefact.model, "validation", few, artefact.runtime).accuracy.value
            reopened = Model.open(artefact.model.path)
            again = self.judge.score(reopened, "validation", few, artefact.runtime, again=True)
            fresh = again.accuracy.value
            if fresh != before:
                return f"rejected: scored {before:.4f}, and {fresh:.4f} when opened again", None
            speedup, p90_ms = self._timed_again(artefact, candidate, reopened)
        except FarthingError as error:
            if self.clock.ends_all(error):
                raise
            return f"rejected: it could not be opened, scored and timed again: {error}", None
        if not harmless(speedup) and not self.allow_slower:
            return f"rejected: {speedup.value:.2f}x when timed again (lower bound {speedup.low:.2f}x)", None
        return "", p90_ms

    def _timed_again(
        self, artefact: Artefact, candidate: Candidate, reopened: Model
    ) -> tuple[Interval, float]:
        """Speedup and p90 (milliseconds) of a second race against the baseline."""
        base = self.listing.candidates[0]
        first = Variant(model=base.model, runtime=replace(self.runtime, options=base.options))
        own = Variant(model=candidate.model, runtime=replace(artefact.runtime, options=candidate.options))
        laps = self.clock.race(
            [(first, self.model)],
            [(own, reopened)],
            "single_stream",
            replace(
                rounds.FINAL, warmup=rounds.FINAL.warmup + 1
            ),  # another key in the cache: a second measurement
            self._ticker("final", "timing the winner again"),
        )
        return laps[1].speedup, laps[1].measurement.p90_ms

    # Concluding -------------------------------------------------------------------------------------------------

    def _tested(
        self, base: Artefact, won: Artefact, candidate: Candidate
    ) -> tuple[Artefact, Candidate, TestScores | None]:
        """The winner's test scores; a winner that they refute gives way to a baseline that keeps the budget."""
        test = self._test(won)
        refuted = self._broken_on_test(test)
        first = self.listing.candidates[0]
        if (
            test is None
            or not refuted
            or candidate.status == "baseline"
            or violations(first.figures, self.budget)
        ):
            return won, candidate, test
        self.listing.settle(candidate, f"rejected: {'; '.join(refuted)}")
        self.notes.append(
            f"{candidate.name} won on validation, but {'; '.join(refuted)}: the model as given is kept."
        )
        none = Interval(value=0.0, low=0.0, high=0.0)
        return base, first, replace(test, winner=test.baseline, drop=none)

    def _conclude(
        self, won: Artefact, candidate: Candidate, test: TestScores | None, command: str, seconds: float
    ) -> tuple[Model, Recipe, Summary]:
        model, metric = won.model or self.model, self.task.metric
        broken = [*violations(candidate.figures, self.budget), *self._broken_on_test(test)]
        self._caution(candidate, test)
        self._hint(broken)
        problem = unresolved(len(self.task.split("validation")), self.budget, metric)
        if problem and candidate.status != "baseline":
            broken.append(problem)
        drop, split = (test.drop, "test") if test else (candidate.drop, "validation")
        recipe, first = self._recipe(candidate, won), self.listing.candidates[0]
        self._say("final", "looking into baseline and winner")
        summary = Summary(
            model_name=self.model.manifest.name,
            task_name=self.task.name,
            metric=metric.name,
            higher_is_better=metric.higher_is_better,
            sentence=sentence(first, candidate, drop, split, metric, broken),
            met=not broken,
            violations=tuple(broken),
            notes=(*self.notes, *self.climber.notes, *self.listing.notes),
            budget=str(self.budget),
            winner=candidate.number,
            candidates=tuple(self.listing.candidates),
            test=test,
            samples={name: len(split) for name, split in self.task.splits.items()},
            anatomy=inside.anatomies([(first, self.model), (candidate, model)], self.machine, self.cache),
            matrix=inside.portability(
                self.model, [*self.runtimes.values()], self.task, self.machine, self.cache
            ),
            machine=self.machine.description,
            versions=recipe.versions,
            command=command,
            when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seconds=seconds,
        )
        self._say("done", summary.sentence)
        return model, recipe, summary

    def _test(self, won: Artefact) -> TestScores | None:
        if "test" not in self.task.splits:
            self.notes.append(
                "The task has no test split: the accuracy is that of the validation split the search looked at."
            )
            return None
        self._say("final", "scoring baseline and winner on the test split, once")
        base = self.judge.score(self.model, "test")
        score = self.judge.score(won.model or self.model, "test", runtime=won.runtime)
        return TestScores(
            baseline=base.accuracy, winner=score.accuracy, drop=score.drop, samples=score.samples
        )

    def _broken_on_test(self, test: TestScores | None) -> list[str]:
        """The accuracy limits that the test split shows to be exceeded."""
        if test is None:
            return []
        wanted = Budget(accuracy_drop=self.budget.accuracy_drop, accuracy_min=self.budget.accuracy_min)
        seen = violations(Figures(accuracy=test.winner.value, accuracy_drop=test.drop.value), wanted)
        return [f"on the test split, {problem}" for problem in seen]

    def _caution(self, candidate: Candidate, test: TestScores | None) -> None:
        """Notes on what the verdict does not say: a small test split, a winner that is slower in batches."""
        limit = self.budget.accuracy_drop
        if test and limit is not None and test.drop.value <= limit < test.drop.high:
            self.notes.append(
                f"The drop on the test split is within the budget, but {test.samples} samples cannot exclude "
                f"a drop of up to {points(test.drop.high, self.task.metric).lstrip('+')}."
            )
        offline = candidate.offline_speedup
        if offline and compare(offline) == "worse":
            self.notes.append(
                f"In batches the winner is slower than the best baseline: {offline.value:.2f}x its samples a second."
            )

    def _hint(self, broken: Sequence[str]) -> None:
        """A note on candidates that keep an unmet budget, but were rejected because they are slower."""
        slower = [
            other
            for other in self.listing.candidates
            if other.verdict.endswith(self.listing.where) and not violations(other.figures, self.budget)
        ]
        if broken and slower:
            best = max(slower, key=lambda other: other.speedup.value if other.speedup else 0.0)
            speed = f"{best.speedup.value:.2f}x" if best.speedup else "less than"
            self.notes.append(
                f"{best.name} keeps the budget at {speed} the baseline's speed: allow a slower model "
                "(--allow-slower) to let it win."
            )

    def _recipe(self, candidate: Candidate, won: Artefact) -> Recipe:
        return Recipe(
            model=self.model.digest,
            task=self.task.digest,
            target=self.target,
            steps=won.steps,
            engine=candidate.engine,
            options=candidate.options,
            budget=self.budget,
            artefact=candidate.model,
            accuracy=candidate.accuracy,
            versions={**versions_of(won.steps), won.runtime.engine: won.runtime.version},
        )

    # Speaking ---------------------------------------------------------------------------------------------------

    def _say(self, stage: str, text: str, done: int = 0, total: int = 0) -> None:
        self.listener(Progress(stage=stage, text=text, done=done, total=total))

    def _ticker(self, stage: str, text: str) -> Tick:
        return lambda done, total: self._say(stage, text, done, total)
