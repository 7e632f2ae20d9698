"""The main job: the best measured artefact of a model for a task, a target and a budget.

Candidate 0 is the model as given. The ladder (fuse, int8 variants, dynamic, float16, users' passes) is climbed;
each artefact is scored with the task's metric on validation data, in the engine that will run it, a few samples
first; where int8 costs too much accuracy, its worst operators go back to float by bisection; what keeps the
accuracy is timed against the baseline, interleaved, over thread counts; the winner is saved, opened from its
file, scored and timed once more, and only then looked at on the test split, once, together with the baseline.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

import farthing
from farthing import files
from farthing.assets import default_cache
from farthing.bench import Rule, Tick
from farthing.engines.base import EngineOptions, open_engine
from farthing.errors import ConfigError, FarthingError, TargetError
from farthing.forge import exclude, graph, output
from farthing.forge.apply import apply, versions
from farthing.forge.cache import Cache
from farthing.forge.evaluate import PROXY_SAMPLES, Judge, Score
from farthing.forge.ladder import Rung, ladder, with_exclusions
from farthing.forge.timing import Clock, Lap, Variant
from farthing.forge.verdict import accuracy_refusal, choose, harmless, hopeless, points, sentence, speed_words, unresolved
from farthing.measure import Figures, machine_name, violations
from farthing.model import Model
from farthing.recipe import Candidate, Listener, Progress, Recipe, Result, Step, Summary, TestScores, ignore
from farthing.target import Budget, Target
from farthing.task import Task

DEFAULT_BUDGET = "accuracy_drop<=0.01"
SPRINT = Rule(warmup=3, min_count=30, min_seconds=1.5, max_seconds=40.0)
FINAL = Rule(warmup=10, min_count=200, min_seconds=4.0, max_seconds=90.0)
FINALISTS = 5
SLOW = 0.9


@dataclass
class Artefact:
    """A rung that was made: its model, its score on validation, and why it is out, if it is."""

    rung: Rung
    steps: tuple[Step, ...] = ()
    model: Model | None = None
    score: Score | None = None
    refusal: str = ""
    failed: bool = False
    laps: list[Lap] = field(default_factory=list)


def optimize(
    model: Model,
    task: Task,
    target: Target | str = "this",
    budget: Budget | str = DEFAULT_BUDGET,
    out: Path | str = "optimized",
    *,
    engine: str = "onnxruntime",
    threads: Sequence[int] = (),
    allow_slower: bool = False,
    cache: Path | None = None,
    measure_again: bool = False,
    listener: Listener = ignore,
    command: str = "",
) -> Result:
    """Search for the best artefact of a model under a budget, and save it with its recipe and report.

    Args:
        model: the trained model, candidate 0.
        task: data and metric; search looks at its validation split, the test split is scored once.
        target: the device; timing needs ``this`` machine.
        budget: limits; without one on accuracy, ``accuracy_drop<=0.01`` is added.
        out: output directory: absent, empty or an earlier result, which is replaced once all is done.
        engine: what runs the candidates.
        threads: thread counts to try; 1 and all cores if empty.
        allow_slower: let a slower model win if the budget asks for it (for size, say).
        cache: directory for results of passes and measurements; ``~/.cache/farthing`` if None.
        measure_again: do not use cached timings.
        listener: called with `Progress` events.
        command: how the caller can be repeated, for the report.

    Returns:
        The Result; ``met`` is False if no candidate keeps the budget: the winner is then the best found.

    Raises:
        FarthingError: bad input (see `farthing.errors`); nothing is left half-written.
    """
    out = Path(out)
    search = _Search(model, task, target, budget, engine, threads, allow_slower, cache, measure_again, listener)
    output.claim(out)
    with files.lock(out.parent / f".{out.name}.lock", f"the output directory {out}"):
        winner, recipe, summary = search.run(command)
        return output.write(winner, recipe, summary, out)


def _with_accuracy(budget: Budget, task: Task) -> Budget:
    """The budget with a limit on accuracy in any case: nothing is returned that nobody judged."""
    if budget.accuracy_min is not None and not task.metric.higher_is_better:
        raise ConfigError(f"metric {task.metric.name} is an error, lower is better: limit accuracy_drop instead of accuracy_min")
    if budget.accuracy_drop is None and budget.accuracy_min is None:
        return msgspec.structs.replace(budget, accuracy_drop=Budget.parse(DEFAULT_BUDGET).accuracy_drop)
    return budget


def _accuracy_only(budget: Budget) -> Budget:
    return Budget(accuracy_drop=budget.accuracy_drop, accuracy_min=budget.accuracy_min)


class _Search:
    def __init__(
        self,
        model: Model,
        task: Task,
        target: Target | str,
        budget: Budget | str,
        engine: str,
        threads: Sequence[int],
        allow_slower: bool,
        cache: Path | None,
        measure_again: bool,
        listener: Listener,
    ) -> None:
        self.model, self.task, self.engine = model, task, engine
        self.target = Target.find(target) if isinstance(target, str) else target
        if self.target.engines and engine not in self.target.engines:
            raise TargetError(f"target {self.target.name} runs {', '.join(self.target.engines)}, not {engine}")
        self.budget = _with_accuracy(Budget.parse(budget) if isinstance(budget, str) else budget, task)
        self.threads = tuple(threads) or tuple(sorted({1, self.target.cores or 1}))
        self.allow_slower = allow_slower
        self.listener = listener
        self.cache = Cache(cache or default_cache())
        task.check(model.manifest)
        task.split("validation")
        if "calibration" not in task.splits:
            raise ConfigError(f"task {task.name} has neither calibration nor train data: int8 needs some; add a split")
        with open_engine(model, engine, EngineOptions(threads=1)) as opened:
            self.version = opened.version
        self.judge = Judge(task, model, engine, self.version, self.cache)
        self.clock = Clock(task, self.target, engine, self.version, self.cache, measure_again)
        self.candidates: list[Candidate] = []
        self.notes: list[str] = []

    def run(self, command: str) -> tuple[Model, Recipe, Summary]:
        start = time.perf_counter()
        self._say("baseline", f"scoring {self.model.manifest.name} as it is")
        base = Artefact(Rung("baseline"), model=self.model, score=self.judge.score(self.model, "validation"))
        if base.score and (problem := accuracy_refusal(base.score, self.budget, self.task.metric)):
            self.notes.append(f"The model as given misses accuracy_min itself ({problem.removeprefix('rejected: ')}).")
        made = self._climb(ladder(self.model))
        made += self._give_back(made)
        fit = [artefact for artefact in made if not artefact.refusal and artefact.model]
        self._time(base, fit)
        self._list(base, made)
        artefact, candidate = self._pick({a.model.digest: a for a in [base, *made] if a.model})
        return self._conclude(base, artefact, candidate, command, time.perf_counter() - start)

    # Making and scoring -----------------------------------------------------------------------------------------

    def _climb(self, rungs: Sequence[Rung]) -> list[Artefact]:
        made: list[Artefact] = []
        for number, rung in enumerate(rungs):
            self._say("passes", rung.name, number, len(rungs))
            made.append(self._make(rung, made))
            self._say("passes", f"{rung.name}: {made[-1].refusal or self._score_words(made[-1])}", number + 1, len(rungs))
        return made

    def _make(self, rung: Rung, earlier: Sequence[Artefact]) -> Artefact:
        artefact = Artefact(rung)
        try:
            artefact.model, artefact.steps = apply(rung.steps, self.model, self.target, self.task, self.cache)
            content = artefact.model.manifest.files
            twin = next((a for a in earlier if a.model and a.model.manifest.files == content), None)
            if twin:
                artefact.refusal = f"rejected: the same file as {twin.rung.name}"
                artefact.score = twin.score
            else:
                self._judge(artefact)
        except FarthingError as error:
            artefact.refusal, artefact.failed = f"failed: {error}", True
        return artefact

    def _judge(self, artefact: Artefact) -> None:
        """A few samples first; the whole validation split only for what they do not rule out."""
        if artefact.model is None:
            return
        if len(self.task.split("validation")) > 2 * PROXY_SAMPLES:
            artefact.score = self.judge.score(artefact.model, "validation", PROXY_SAMPLES)
            if hopeless(artefact.score, self.budget):
                refusal = accuracy_refusal(artefact.score, self.budget, self.task.metric)
                artefact.refusal = f"{refusal}, on {PROXY_SAMPLES} samples"
                return
        artefact.score = self.judge.score(artefact.model, "validation")
        artefact.refusal = accuracy_refusal(artefact.score, self.budget, self.task.metric)

    def _give_back(self, made: Sequence[Artefact]) -> list[Artefact]:
        """If every int8 artefact loses too much: the fewest worst operators of the best one back to float, by bisection."""
        int8 = [a for a in made if a.model and a.score and any(s.use == "quantize.static.v1" for s in a.steps)]
        if not int8 or any(not a.refusal or "same file" in a.refusal for a in int8):
            return []
        best = min(int8, key=lambda a: a.score.drop.value if a.score else 0.0)
        before = [step for step in best.rung.steps if step.use == "graph.fuse.v1"]
        quantize = [step for step in best.rung.steps if step.use == "quantize.static.v1"]
        floating, _ = apply(before, self.model, self.target, self.task, self.cache)
        quantized, _ = apply([*before, *quantize], self.model, self.target, self.task, self.cache)
        self._say("passes", f"ranking the operators of {best.rung.name}")
        worst = exclude.ranked(floating, quantized, self.task)
        return self._bisect(best.rung, worst, made)

    def _bisect(self, rung: Rung, worst: list[str], made: Sequence[Artefact]) -> list[Artefact]:
        tried: list[Artefact] = []
        low, high = 0, len(worst)  # with `low` given back it is too little, with `high` all are float
        while high - low > 1:
            middle = (low + high) // 2 if low else max(1, min(high // 2, 4))
            artefact = self._make(with_exclusions(rung, worst[:middle]), [*made, *tried])
            tried.append(artefact)
            self._say("passes", f"{artefact.rung.name}: {artefact.refusal or self._score_words(artefact)}")
            low, high = (middle, high) if artefact.refusal else (low, middle)
        return tried

    # Timing -----------------------------------------------------------------------------------------------------

    def _time(self, base: Artefact, fit: list[Artefact]) -> None:
        """Everything sprints; what is not clearly slower races again for longer, alone and in batches."""
        bases = self._variants([base])
        laps = self.clock.race(bases, self._variants(fit), "single_stream", SPRINT, self._ticker("race", "first timing"))
        rivals = sorted(laps[len(bases) :], key=lambda lap: -lap.speedup.value)
        going = [lap for lap in rivals if lap.speedup.high >= SLOW or self.allow_slower][:FINALISTS]
        chosen = {(lap.variant.model, lap.variant.threads) for lap in going}
        finalists = [(v, m) for v, m in self._variants(fit) if (v.model, v.threads) in chosen]
        final = self.clock.race(bases, finalists, "single_stream", FINAL, self._ticker("final", "final timing"))
        offline = self.clock.race(bases, finalists, "offline", SPRINT, self._ticker("final", "timing batches"))
        raced = {(lap.variant.model, lap.variant.threads) for lap in final}
        self._laps = [*final, *(lap for lap in laps if (lap.variant.model, lap.variant.threads) not in raced)]
        self._offline = {(lap.variant.model, lap.variant.threads): lap for lap in offline}
        self._finalists = raced

    def _variants(self, artefacts: Sequence[Artefact]) -> list[tuple[Variant, Model]]:
        return [
            (Variant(model=artefact.model.digest, threads=count), artefact.model)
            for artefact in artefacts
            if artefact.model
            for count in self.threads
        ]

    # Listing and choosing ---------------------------------------------------------------------------------------

    def _list(self, base: Artefact, made: Sequence[Artefact]) -> None:
        """Every artefact and thread count becomes a numbered candidate with its figures and verdict."""
        laps = [lap for lap in self._laps if base.model and lap.variant.model == base.model.digest]
        for lap in sorted(laps, key=lambda lap: lap.measurement.p50_ms):
            self._add(base, lap)
        for artefact in made:
            own = [lap for lap in self._laps if artefact.model and lap.variant.model == artefact.model.digest]
            for lap in [] if artefact.refusal else own:
                self._add(artefact, lap)
            if artefact.refusal or not own:
                self._add(artefact, None)

    def _add(self, artefact: Artefact, lap: Lap | None) -> None:
        key = (lap.variant.model, lap.variant.threads) if lap else ("", 0)
        offline = self._offline.get(key)
        is_base = artefact.rung.name == "baseline"
        figures = Figures(
            accuracy=artefact.score.accuracy.value if artefact.score else None,
            accuracy_drop=artefact.score.drop.value if artefact.score else None,
            latency_ms=lap.measurement.p90_ms if lap else None,
            throughput=offline.measurement.throughput if offline else None,
            size_mb=artefact.model.size_bytes / 1e6 if artefact.model else None,
            peak_memory_mb=self._memory(lap, artefact) if lap and (is_base or key in self._finalists) else None,
        )
        candidate = Candidate(
            name=artefact.rung.name,
            number=len(self.candidates),
            steps=artefact.steps or artefact.rung.steps,
            engine=self.engine,
            threads=lap.variant.threads if lap else self.threads[0],
            model=artefact.model.digest if artefact.model else "",
            nodes=graph.node_count(artefact.model) if artefact.model else None,
            figures=figures,
            accuracy=artefact.score.accuracy if artefact.score else None,
            drop=artefact.score.drop if artefact.score else None,
            speedup=lap.speedup if lap else None,
            offline_speedup=offline.speedup if offline else None,
            measurements={
                **({"single_stream": lap.measurement} if lap else {}),
                **({"offline": offline.measurement} if offline else {}),
            },
            status="baseline" if is_base else "failed" if artefact.failed else "rejected",
            verdict="the model as given" if is_base else artefact.refusal,
        )
        if not is_base and lap and not artefact.refusal:
            candidate = self._judged(candidate, key in self._finalists)
        self.candidates.append(candidate)
        self._say("candidate", f"{candidate.name}, {candidate.threads} threads: {candidate.verdict}", candidate=candidate)

    def _memory(self, lap: Lap, artefact: Artefact) -> float | None:
        return self.clock.memory(lap.variant, artefact.model)[0] if artefact.model else None

    def _judged(self, candidate: Candidate, finalist: bool) -> Candidate:
        """Verdict of a timed candidate."""
        speedup = candidate.speedup
        broken = violations(candidate.figures, self.budget)
        if speedup is None:
            return candidate
        if not harmless(speedup) and not self.allow_slower:
            word = speed_words(speedup) if speedup.high < 1 else f"may be slower ({speedup.low:.2f}x..{speedup.high:.2f}x)"
            return msgspec.structs.replace(candidate, verdict=f"rejected: {word} on this machine")
        if not finalist:
            return msgspec.structs.replace(candidate, verdict=f"rejected: {speedup.value:.2f}x, others are faster")
        if broken:
            return msgspec.structs.replace(candidate, verdict=f"over budget: {'; '.join(broken)}")
        return msgspec.structs.replace(candidate, status="accepted", verdict=f"accepted: {speed_words(speedup)}")

    def _pick(self, artefacts: dict[str, Artefact]) -> tuple[Artefact, Candidate]:
        """The best candidate that keeps the budget, or else the best that does no harm; re-checked from a saved file."""
        base = self.candidates[0]
        left = [c for c in self.candidates if c.status == "accepted"]
        base_fits = not violations(base.figures, self.budget)
        if not left and not base_fits:
            left = [c for c in self.candidates if c.verdict.startswith("over budget")]
        while left:
            fewest = min(len(violations(c.figures, self.budget)) for c in left)
            best = choose([c for c in left if len(violations(c.figures, self.budget)) == fewest])
            refusal = self._recheck(artefacts[best.model], best)
            if not refusal:
                won = msgspec.structs.replace(best, status="winner", verdict=f"winner: {speed_words(best.speedup)}" if best.speedup else "winner")
                self.candidates[best.number] = won
                return artefacts[best.model], won
            self.candidates[best.number] = msgspec.structs.replace(best, status="rejected", verdict=refusal)
            left = [c for c in left if c.number != best.number]
        return artefacts[base.model], base

    def _recheck(self, artefact: Artefact, candidate: Candidate) -> str:
        """Open the artefact from its file, score and time it once more; why it must go, or empty."""
        if artefact.model is None or artefact.score is None:
            return "rejected: there is no file"
        self._say("final", f"re-checking {candidate.name} from its file")
        reopened = Model.open(artefact.model.path)
        fresh = self.judge.score(reopened, "validation", PROXY_SAMPLES, again=True)
        before = self.judge.score(artefact.model, "validation", PROXY_SAMPLES)
        if fresh.accuracy.value != before.accuracy.value:
            return f"rejected: scored {before.accuracy.value:.4f}, and {fresh.accuracy.value:.4f} when opened again"
        base = self.candidates[0]
        rule = msgspec.structs.replace(FINAL, warmup=FINAL.warmup + 1)  # another key in the cache: a second measurement
        laps = self.clock.race(
            [(Variant(model=base.model, threads=base.threads), self.model)],
            [(Variant(model=candidate.model, threads=candidate.threads), reopened)],
            "single_stream",
            rule,
            self._ticker("final", "timing the winner again"),
        )
        if not harmless(laps[1].speedup) and not self.allow_slower:
            return f"rejected: {laps[1].speedup.value:.2f}x when timed again (lower bound {laps[1].speedup.low:.2f}x)"
        return ""

    # Concluding -------------------------------------------------------------------------------------------------

    def _conclude(
        self, base: Artefact, won: Artefact, candidate: Candidate, command: str, seconds: float
    ) -> tuple[Model, Recipe, Summary]:
        model = won.model or self.model
        test = self._test(model)
        broken = list(violations(candidate.figures, self.budget))
        if test:
            seen = violations(Figures(accuracy=test.winner.value, accuracy_drop=test.drop.value), _accuracy_only(self.budget))
            broken += [f"on the test split, {problem}" for problem in seen]
            self._caution(test)
        if problem := unresolved(len(self.task.split("validation")), self.budget, self.task.metric):
            broken.append(problem)
        drop = test.drop if test else candidate.drop
        recipe = self._recipe(candidate, won)
        summary = Summary(
            model_name=self.model.manifest.name,
            task_name=self.task.name,
            metric=self.task.metric.name,
            sentence=sentence(self.candidates[0], candidate, drop, "test" if test else "validation", self.task.metric, broken),
            met=not broken,
            violations=tuple(broken),
            notes=tuple(self.notes),
            budget=str(self.budget),
            winner=candidate.number,
            candidates=tuple(self.candidates),
            test=test,
            samples={name: len(split) for name, split in self.task.splits.items()},
            machine=machine_name(self.target.cpu, self.target.cores),
            versions=recipe.versions,
            command=command,
            when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seconds=seconds,
        )
        self._say("done", summary.sentence)
        return model, recipe, summary

    def _test(self, winner: Model) -> TestScores | None:
        if "test" not in self.task.splits:
            self.notes.append("The task has no test split: the accuracy is that of the validation split the search looked at.")
            return None
        self._say("final", "scoring baseline and winner on the test split, once")
        base, score = self.judge.score(self.model, "test"), self.judge.score(winner, "test")
        return TestScores(baseline=base.accuracy, winner=score.accuracy, drop=score.drop, samples=score.samples)

    def _caution(self, test: TestScores) -> None:
        limit = self.budget.accuracy_drop
        if limit is not None and test.drop.value <= limit < test.drop.high:
            self.notes.append(
                f"The drop on the test split is within the budget, but {test.samples} samples cannot exclude "
                f"a drop of up to {points(test.drop.high, self.task.metric).lstrip('+')}."
            )

    def _recipe(self, candidate: Candidate, won: Artefact) -> Recipe:
        found: dict[str, str] = {"farthing": farthing.__version__}
        for step in won.steps:
            found |= versions(step.use)
        return Recipe(
            model=self.model.digest,
            task=self.task.digest,
            target=self.target,
            steps=won.steps,
            engine=self.engine,
            threads=candidate.threads,
            budget=self.budget,
            artefact=candidate.model,
            versions={**found, self.engine: self.version},
        )

    # Speaking ---------------------------------------------------------------------------------------------------

    def _say(self, stage: str, text: str, done: int = 0, total: int = 0, candidate: Candidate | None = None) -> None:
        self.listener(Progress(stage=stage, text=text, done=done, total=total, candidate=candidate))

    def _ticker(self, stage: str, text: str) -> Tick:
        return lambda done, total: self._say(stage, text, done, total)

    def _score_words(self, artefact: Artefact) -> str:
        if artefact.score is None:
            return ""
        sign = -1.0 if self.task.metric.higher_is_better else 1.0
        return f"{self.task.metric.name} {points(sign * artefact.score.drop.value, self.task.metric)}"
