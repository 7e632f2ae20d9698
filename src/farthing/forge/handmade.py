"""Steps that somebody wrote by hand, applied to a model: no search, the same cache, and figures before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from farthing import plugins
from farthing.bench import Rule
from farthing.bench.machine import Here, Machine
from farthing.config import Section, convert, parse
from farthing.errors import ConfigError
from farthing.forge.apply import applied, check, versions_of
from farthing.forge.cache import Cache
from farthing.forge.evaluate import Judge, Score
from farthing.forge.replay import check_inputs
from farthing.forge.runtime import Runtime
from farthing.forge.timing import Clock, Lap, Variant
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.recipe import Listener, Progress, Recipe, Step, ignore
from farthing.target import Budget, Target
from farthing.task import Task

EXAMPLE = "a list of steps, as in `- use: graph.fuse.v1`"
RULE = Rule(warmup=5, min_count=100, min_seconds=1.5, max_seconds=30.0)


class Steps(Section, frozen=True, kw_only=True):
    """A recipe in which only the steps must be there.

    Attributes:
        steps: passes in order; options that are left out are filled in.
        engine, options: what is to run the result, and how; by default the first engine that opens it.
        model, task: digests; where they are given, others are refused.
        target: the device that options are chosen for, if no other is named.
        budget, artefact, accuracy, versions: what a search wrote; not looked at.
    """

    steps: tuple[Step, ...]
    engine: str = ""
    options: EngineOptions = EngineOptions()
    model: str = ""
    task: str = ""
    target: Target | None = None
    budget: Any = None
    artefact: str = ""
    accuracy: Any = None
    versions: dict[str, str] = {}


def read_steps(path: Path) -> Steps:
    """Steps from a YAML, JSON or TOML file: a list of them, or a recipe, complete or not.

    Raises:
        ConfigError: the file cannot be read or holds something else.
    """
    try:
        data = parse(path.read_bytes(), path.suffix, str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    if not isinstance(data, list | dict):
        raise ConfigError(f"{path} holds no steps: write {EXAMPLE}")
    found = convert({"steps": data} if isinstance(data, list) else data, Steps, str(path))
    if not found.steps:
        raise ConfigError(f"{path} has no steps: write {EXAMPLE}")
    return found


class Applied(NamedTuple):
    """What came of it.

    Attributes:
        model: the result.
        recipe: how to make it again, every option filled in.
        sizes: bytes of the model as given, and after each step.
        before, after: the metric on the validation split, each from its file in the engine that runs it.
        laps: both timed there, interleaved, one sample at a time, the model as given first; None where the steps are
            for another device than the one they run on.
    """

    model: Model
    recipe: Recipe
    sizes: tuple[int, ...]
    before: Score
    after: Score
    laps: tuple[Lap, Lap] | None


def apply_steps(
    wanted: Steps,
    model: Model,
    task: Task,
    cache: Cache,
    *,
    target: Target | None = None,
    machine: Machine | None = None,
    listener: Listener = ignore,
) -> Applied:
    """Run steps through the cache; score the model before and after on the validation split, and time it.

    Interrupted or killed, the same call goes on where it was: in the middle of a training from its last epoch.

    Args:
        wanted: the steps, as `read_steps` reads them.
        target: what options are chosen for; that of the steps if None, or else the machine.
        machine: where models are run and timed; this one if None.
        listener: hears of each step, and of each epoch of those that train.

    Raises:
        ModelError, TaskError: the steps are for another model or task, or nothing to train on is there.
        ConfigError, PluginError: a step that does not exist, options it does not have, an order that makes no sense.
            These are found before anything runs.
        FarthingError: what a pass, or the engine that runs its result, raised.
    """
    check_inputs(wanted.model, wanted.task, model, task)
    if wanted.engine:
        plugins.get("engine", wanted.engine)
    place = machine or Here()
    chosen = target or wanted.target or place.target
    check(wanted.steps, model, chosen, task, cache)
    first = Runtime.of(model, "", place)
    judge = Judge(task, model, first, place, cache)
    before = judge.score(model, "validation")
    made, steps, sizes = model, [], [model.size_bytes]
    for made, step in _told(
        wanted.steps, model, chosen, task, cache, Workshop(listener=listener, machine=place)
    ):
        steps.append(step)
        sizes.append(made.size_bytes)
    runtime = replace(Runtime.of(made, wanted.engine, place), options=wanted.options)
    listener(Progress(stage="accuracy", text=f"scoring the result in {runtime.engine}"))
    after = judge.score(made, "validation", runtime=runtime)
    laps = None
    if chosen.is_machine(place.target):
        base = first.threads(wanted.options.threads)
        laps = _raced((model, base), (made, runtime), Clock(task, place, cache), listener)
    recipe = Recipe(
        model=model.digest,
        task=task.digest,
        target=chosen,
        steps=tuple(steps),
        engine=runtime.engine,
        options=wanted.options,
        budget=Budget(),
        artefact=made.digest,
        accuracy=after.accuracy,
        versions={**versions_of(steps), runtime.engine: runtime.version},
    )
    return Applied(made, recipe, tuple(sizes), before, after, laps)


def _raced(
    given: tuple[Model, Runtime], made: tuple[Model, Runtime], clock: Clock, listener: Listener
) -> tuple[Lap, Lap]:
    """Both models timed, interleaved, one sample at a time."""
    text = "timing the result beside the model as given"
    before, after = (
        (Variant(model=model.digest, runtime=runtime), model) for model, runtime in (given, made)
    )

    def tick(done: int, total: int) -> None:
        listener(Progress(stage="race", text=text, done=done, total=total))

    tick(0, 0)
    first, last = clock.race([before], [after], "single_stream", RULE, tick)
    return first, last


def _told(
    steps: Sequence[Step], model: Model, target: Target, task: Task, cache: Cache, workshop: Workshop
) -> Iterator[tuple[Model, Step]]:
    """As `applied`, with a word before each step."""
    made = applied(steps, model, target, task, cache, workshop)
    for number, step in enumerate(steps, 1):
        text = f"step {number} of {len(steps)}: {step.use}"
        workshop.listener(Progress(stage="passes", text=text, done=number - 1, total=len(steps)))
        yield next(made)
