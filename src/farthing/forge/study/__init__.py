"""The study: what every method and every width does to one model on one task, measured side by side.

Methods are the rungs of a search and others. Each is judged and timed as a search does it, but none is left out: this
is a table, not a choice. Widths are 32, 16, 8 and 4 bits, of weights and activations, layer by layer.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from pathlib import Path

import farthing
from farthing.assets import default_cache
from farthing.bench import Tick
from farthing.bench.machine import Here, Machine
from farthing.errors import ConfigError, TaskError
from farthing.forge.apply import apply, read_by, versions
from farthing.forge.cache import Cache, key_of
from farthing.forge.evaluate import PROXY_SAMPLES, Judge
from farthing.forge.ladder import FUSE, STATIC, Rung, fitting, rounds
from farthing.forge.ladder.candidates import Listing
from farthing.forge.ladder.climb import Artefact, Climber
from farthing.forge.ladder.rounds import Rounds
from farthing.forge.runtime import Runtime, find_runtimes
from farthing.forge.sensitivity import check_model
from farthing.forge.sensitivity.losses import SAMPLES, calibration
from farthing.forge.study.front import front, placed
from farthing.forge.study.methods import of_recipe, post_training
from farthing.forge.study.result import Layer, Study, What, Width
from farthing.forge.study.widths import WHAT, WIDTHS, Ends, Widths, observed
from farthing.forge.timing import Clock, Variant
from farthing.forge.workshop import Workshop
from farthing.model import Model, as_model
from farthing.options import make_options
from farthing.recipe import Candidate, Listener, Progress, ignore
from farthing.target import Budget, Target
from farthing.task import Task, as_task

__all__ = ["Study", "of_recipe", "post_training", "study"]


def study(
    model: Model | Path | str,
    task: Task | Path | str,
    target: Target | str = "this",
    *,
    methods: Sequence[Rung] = (),
    engines: Sequence[str] = (),
    threads: Sequence[int] = (1,),
    widths: Sequence[int] = WIDTHS,
    samples: int = SAMPLES,
    subset: int = PROXY_SAMPLES,
    cache: Path | None = None,
    measure_again: bool = False,
    machine: Machine | None = None,
    listener: Listener = ignore,
    command: str = "",
) -> Study:
    """Measure what every method and every width does to a model.

    Args:
        model: a float ONNX model, or its path.
        task: data and metric, or what `farthing.find_task` finds them by.
        target: the device that methods are chosen for.
        methods: further ones beside `post_training`, as rungs; `of_recipe` makes them of recipes.
        engines: what may run the methods; every engine that is installed and fits the target if empty.
        threads: thread counts to time each method in.
        widths: bits, out of 2 to 8, 16 and 32.
        samples: calibration samples behind the errors of layers and widths.
        subset: validation samples behind the metric of widths; methods are scored on all.
        cache: directory for results of passes and measurements; ``~/.cache/farthing`` if None.
        measure_again: do not use cached timings.
        machine: where methods run and are timed; this machine if None.
        listener: called with `Progress` events.
        command: how the call can be repeated, for the page.

    Raises:
        UnsupportedError: no float ONNX model.
        ConfigError: a width that means nothing, or a method for an engine that takes no part.
        FarthingError: bad input (see `farthing.errors`).
    """
    start = time.perf_counter()
    given, task = as_model(model), as_task(task, cache)
    check_model(given, task)
    chosen = _checked(widths, samples, subset)
    target = Target.find(target) if isinstance(target, str) else target
    desk = _Desk(given, task, target, Cache(cache or default_cache()), machine or Here(), listener)
    candidates = desk.methods(methods, engines, threads, measure_again)
    layers, whole = desk.widths(chosen, samples, subset)
    return Study(
        model_name=given.manifest.name,
        model=given.digest,
        task_name=task.name,
        metric=task.metric.name,
        higher_is_better=task.metric.higher_is_better,
        methods=candidates,
        front=front(candidates),
        layers=layers,
        widths=whole,
        samples={name: len(split) for name, split in task.splits.items()},
        looked_at=samples,
        subset=min(subset, len(task.split("validation"))),
        target=target.name,
        notes=tuple(desk.notes),
        machine=desk.machine.description,
        versions={"farthing": farthing.__version__, **_versions(candidates)},
        command=command,
        when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - start,
    )


def _versions(candidates: Sequence[Candidate]) -> dict[str, str]:
    """Of the libraries and engines that took part."""
    steps = {step.use for candidate in candidates for step in candidate.steps}
    engines = {one.engine: one.engine_version for c in candidates for one in c.measurements.values()}
    return {name: text for use in sorted(steps) for name, text in versions(use).items()} | engines


def _checked(widths: Sequence[int], samples: int, subset: int) -> tuple[int, ...]:
    """The widths, the widest first."""
    unknown = [bits for bits in widths if bits not in {*range(2, 9), 16, 32}]
    if unknown or not widths:
        raise ConfigError(
            f"widths are 32, 16, or from 8 down to 2 bits, not {', '.join(map(str, unknown)) or 'none'}"
        )
    if samples < 1 or subset < 1:
        raise ConfigError(f"samples and subset are from 1, not {samples} and {subset}")
    return tuple(sorted({*widths}, reverse=True))


class _Desk:
    """Where one study is made.

    Attributes:
        notes: what else to know.
    """

    def __init__(
        self, model: Model, task: Task, target: Target, cache: Cache, machine: Machine, listener: Listener
    ) -> None:
        self._model, self._task, self._target = model, task, target
        self._cache, self.machine, self._listener = cache, machine, listener
        self.notes: list[str] = []

    def methods(
        self, others: Sequence[Rung], engines: Sequence[str], threads: Sequence[int], again: bool
    ) -> tuple[Candidate, ...]:
        """The model as given and what each method makes of it, scored and timed."""
        runtime, runtimes = find_runtimes(self._model, engines, self._target, self.machine)
        if strange := [rung for rung in others if rung.engine not in runtimes]:
            known = ", ".join(runtimes)
            raise ConfigError(f"{strange[0].name} is for engine {strange[0].engine}; the study has {known}")
        judge = Judge(self._task, self._model, runtime, self.machine, self._cache)
        clock = Clock(self._task, self.machine, self._cache, again)
        workshop = Workshop(listener=self._listener, machine=self.machine)
        climber = Climber(
            self._model, self._task, self._target, Budget(), self._cache, judge, clock, runtimes, workshop
        )
        rungs = [*post_training(self._model, [*runtimes], self._target), *others]
        rungs, unfit = fitting(rungs, self._target)
        made = climber.climb(rungs)
        made += climber.with_heads(made)
        base = self._base(runtime, judge, clock)
        counts = sorted({make_options(count).threads for count in threads})
        times = Rounds(clock, Budget(), counts, True, self._ticker).everything(
            base, [artefact for artefact in made if not artefact.refusal]
        )
        listing = Listing(Budget(), clock, True, True, rounds.FINAL)
        listing.fill(base, made, times, ignore)
        self.notes += [*([unfit] if unfit else []), *climber.notes, *listing.notes]
        found = placed(listing.candidates)
        for candidate in found:
            text = f"{candidate.name}, {candidate.engine}, {candidate.options}: {candidate.verdict}"
            self._listener(Progress(stage="candidate", text=text, candidate=candidate))
        return found

    def _base(self, runtime: Runtime, judge: Judge, clock: Clock) -> Artefact:
        clock.trial(Variant(model=self._model.digest, runtime=runtime), self._model)
        rung = Rung("baseline", runtime.engine, exact=True)
        return Artefact(rung, runtime, model=self._model, score=judge.score(self._model, "validation"))

    def widths(
        self, widths: Sequence[int], samples: int, subset: int
    ) -> tuple[tuple[Layer, ...], tuple[Width, ...]]:
        """Every layer and the whole model at each width."""
        fused, _ = apply([FUSE], self._model, self._target, self._task, self._cache)
        about = [fused.digest, read_by(STATIC, self._task), versions(STATIC)]
        known = self._cache.value(
            key_of("ranges", *about), dict[str, Ends], lambda: observed(fused, self._task)
        )
        looked = Widths(fused, known, calibration(fused, self._task, samples))
        text = "rounding layer by layer"
        layers = self._cache.value(
            key_of("layers", *about, widths, samples),
            list[Layer],
            lambda: looked.layers(widths, self._ticker("widths", text)),
        )
        here = Here()  # numbers are the same everywhere
        runtime = Runtime.of(self._model, "onnxruntime", here)
        judge = Judge(self._task, self._model, runtime, here, self._cache)
        tick, found = self._ticker("widths", "rounding the whole model"), []
        wanted: list[tuple[int, What]] = [
            (bits, what) for bits in widths for what in WHAT if bits < 32 or what == "both"
        ]
        for bits, what in wanted:
            found.append(self._width(looked, judge, bits, what, subset))
            tick(len(found), len(wanted))
        return tuple(layers), tuple(found)

    def _width(self, looked: Widths, judge: Judge, bits: int, what: What, subset: int) -> Width:
        """The whole model with its weights, its activations or both at a width."""
        made = looked.rounded(bits, what)
        error, ratio = looked.errors(made)
        try:
            score = judge.score(made, "validation", subset)
        except TaskError as refusal:
            self.notes.append(f"{what} in {bits} bits have no metric: {refusal}.")
            score = None
        return Width(
            bits=bits,
            rounded=what,
            bytes=looked.bytes(bits, what),
            output_mse=error,
            output_sqnr=ratio,
            accuracy=score.accuracy if score else None,
            drop=score.drop if score else None,
        )

    def _ticker(self, stage: str, text: str) -> Tick:
        return lambda done, total: self._listener(Progress(stage=stage, text=text, done=done, total=total))
