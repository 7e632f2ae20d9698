"""Steps to models: build passes by name, run them through the cache."""

from __future__ import annotations

import dataclasses
import errno
import functools
import inspect
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

import farthing
from farthing import files, plugins
from farthing.config import Section, convert, plain
from farthing.errors import (
    ConfigError,
    FarthingError,
    ModelError,
    PluginError,
    StorageError,
    TaskError,
    nearest,
)
from farthing.forge import graph
from farthing.forge.cache import Cache, code_of, key_of, metric_code
from farthing.forge.order import check_order
from farthing.forge.training.passes import TrainingPass
from farthing.forge.workshop import Workshop
from farthing.model import Model, checked
from farthing.recipe import Pass, Step
from farthing.target import Target
from farthing.task import Task, loss_function

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
ROOM = 4  # quantization keeps a copy, the same with shapes, the same with more outputs, and its result


def build(step: Step, target: Target) -> tuple[Pass, Step]:
    """The pass that a step names, and the step with its options resolved for a target.

    Raises:
        PluginError: no pass of that name.
        ConfigError: options that the pass does not have (the nearest right one is named), or of the wrong type.
    """
    part = plugins.get("pass", step.use)
    if isinstance(part, type) and issubclass(part, Section):
        made: Any = convert(step.options, part, step.use)
        made = made.resolved(target) if hasattr(made, "resolved") else made
        return made, Step(use=step.use, options=stored(made))
    if not isinstance(part, type):
        _check_options(part, step)
        return (lambda model, target, task: part(model, target, task, **step.options)), step
    raise PluginError(f"{step.use}: a pass is a function, or a class made from farthing.recipe.PassSection")


def stored(made: Section) -> dict[str, Any]:
    """A pass's options as a recipe file gives them back: lists, not tuples."""
    options: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(plain(made)))
    return options


def _check_options(part: Any, step: Step) -> None:
    signature = inspect.signature(part)
    try:
        signature.bind(None, None, None, **step.options)
    except TypeError as error:
        known = list(signature.parameters)[3:]
        unknown = [name for name in step.options if name not in known]
        hint = f"; {nearest(unknown[0], known)}" if unknown else ""
        raise ConfigError(f"{step.use}: {error}{hint}") from error


def apply(
    steps: Sequence[Step],
    model: Model,
    target: Target,
    task: Task,
    cache: Cache,
    workshop: Workshop | None = None,
) -> tuple[Model, tuple[Step, ...]]:
    """Run steps one after another, each through the cache.

    Args:
        workshop: whose listener and machine the passes get, if they ask for a workshop; the rest is found here.

    Returns:
        The resulting model, and the steps with their options resolved and planned.

    Raises:
        PluginError: no pass of that name, or it raised an error of its own.
        ConfigError: options that a pass does not have, or an order that makes no sense; found before anything runs.
        TaskError: a step trains, and the task has nothing to train on; likewise.
        FarthingError: what a pass raised; nothing half-made is kept.
    """
    done = []
    for made, step in applied(steps, model, target, task, cache, workshop):
        model = made
        done.append(step)
    return model, tuple(done)


def applied(
    steps: Sequence[Step],
    model: Model,
    target: Target,
    task: Task,
    cache: Cache,
    workshop: Workshop | None = None,
) -> Iterator[tuple[Model, Step]]:
    """The model after each step, and the step with its options resolved and planned: `apply`, one step at a time.

    The whole chain is checked before its first step runs.
    """
    check(steps, model, target, task, cache)
    place = dataclasses.replace(workshop or Workshop(), cache=cache, state=None, given=model)
    for step in steps:
        model, step = _apply_one(step, model, target, task, place)
        yield model, step


def check(steps: Sequence[Step], model: Model, target: Target, task: Task, cache: Cache) -> None:
    """Refuse a chain that cannot run.

    Raises:
        PluginError: no pass of a name.
        ConfigError: options that a pass does not have, or an order that makes no sense.
        TaskError: a step trains, and the task has nothing to train on.
    """
    for number, step in enumerate(steps, 1):
        build(step, target)
        if _trains(step) and "train" not in task.splits:
            raise TaskError(
                f"step {number}, {step.use}, trains, and task {task.name} has no train split: give it one"
            )
    check_order(steps, model, cache)


def _trains(step: Step) -> bool:
    part = plugins.get("pass", step.use)
    return isinstance(part, type) and issubclass(part, TrainingPass)


def _apply_one(
    step: Step, model: Model, target: Target, task: Task, workshop: Workshop
) -> tuple[Model, Step]:
    made, step = build(step, target)
    code, seen = code_of(plugins.get("pass", step.use)), read_by(step.use, task)
    known = code is not None and None not in seen and workshop.cache is not None
    about: tuple[object, ...] = (target, seen, versions(step.use), code) if known else ()
    if about and workshop.given is not None and hasattr(made, "within"):
        about = (*about, workshop.given.digest)
    made, step = _planned(made, step, model, target, task, workshop, about)

    def run(state: Path | None = None) -> Model:
        return _run(_within(made, dataclasses.replace(workshop, state=state)), model, target, task, step)

    if not about or workshop.cache is None:
        return run(), step
    key = key_of(model.digest, step, *about)
    keep = workshop.cache.resumed if hasattr(made, "within") else workshop.cache.model
    return keep(key, run), step


def _planned(
    made: Pass,
    step: Step,
    model: Model,
    target: Target,
    task: Task,
    workshop: Workshop,
    about: tuple[object, ...],
) -> tuple[Pass, Step]:
    """The pass with what it has to look for or to measure filled in, from the cache if it was done before."""
    plan: Any = getattr(made, "planned", None)
    if plan is None:
        return made, step

    def look(state: Path | None = None) -> dict[str, Any]:
        place = dataclasses.replace(workshop, state=state)
        found: Any = guarded(lambda *given: plan(*given, place), model, target, task, step)
        return stored(found)

    if about and workshop.cache is not None:
        key = key_of("plan", model.digest, step, *about, workshop.machine.target)
        options = workshop.cache.shared(key, dict[str, Any], look)
    else:
        options = look()
    return convert(options, type(made), step.use), Step(use=step.use, options=options)


def _within(made: Pass, workshop: Workshop) -> Callable[[Model, Target, Task], object]:
    """The pass with progress and resume, if it can do with them."""
    within: Any = getattr(made, "within", None)
    return made if within is None else within(workshop)


def _run(
    made: Callable[[Model, Target, Task], object], model: Model, target: Target, task: Task, step: Step
) -> Model:
    result = guarded(made, model, target, task, step)
    if not isinstance(result, Model):
        raise ModelError(f"{step.use} gives a {type(result).__name__}: a step of a search must give a Model")
    if result.manifest.format == "onnx":
        graph.load(result.file)  # a pass that writes a broken graph fails here, and nothing broken is cached
    lineage = (*model.manifest.lineage, str(step))
    content = {name: result.path / name for name in result.manifest.files}
    with files.explained(Path(tempfile.gettempdir())):
        return Model.create(checked(result.manifest, lineage=lineage), content)


def guarded(
    made: Callable[[Model, Target, Task], object], model: Model, target: Target, task: Task, step: Step
) -> object:
    """Run a pass on the splits it reads: what it raises is that candidate's failure, and its input must stay as it is.

    Raises:
        PluginError: it raised an error that is none of Farthing's.
        StorageError: it did so for want of room on a disk.
        ModelError: it changed its input.
        FarthingError: as it raised it.
    """
    try:
        result = made(model, target, task.only(reads(step.use)))
    except FarthingError:
        raise
    except Exception as error:  # passes are other people's code, and so are the tools inside ours
        _check_room(step, model, error)
        raise PluginError(f"{step.use} failed with {type(error).__name__}: {error}") from error
    try:
        model.verify()
    except ModelError as error:
        raise ModelError(
            f"{step.use} changed the model it was given, which a pass must not do: {error}"
        ) from error
    return result


def _check_room(step: Step, model: Model, error: Exception) -> None:
    """Raise a StorageError if a pass failed for want of room on a disk: that is no verdict on a candidate."""
    refused = _refusal(error) or _lack_of_room(ROOM * model.size_bytes)
    if refused:
        place = refused.filename2 or refused.filename or tempfile.gettempdir()
        raise StorageError(
            f"{step.use} cannot write to {place}: {refused.strerror}: free some space there, or choose another "
            "directory (the environment variable TMPDIR moves the temporary one)"
        ) from error


def _refusal(error: BaseException | None) -> OSError | None:
    """The refusal of a disk that an error is, or comes from."""
    while error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return error
        error = error.__cause__ or error.__context__
    return None


def _lack_of_room(size: int) -> OSError | None:
    """What the system says if the temporary directory cannot take so many more bytes.

    Tools written in C++ cut their files short without a word, and stumble over them later.
    """
    try:
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        return _refusal(error)
    return None


def reads(use: str) -> tuple[str, ...]:
    """Names of the splits a pass looks at."""
    found = getattr(plugins.get("pass", use), "reads", ("calibration",))
    return (found,) if isinstance(found, str) else tuple(found)


def read_by(use: str, task: Task) -> list[object]:
    """What a pass sees of a task, for the key of its result: how data is fed, the splits it reads, and the rest.

    Ours look at no metric unless they say so (``scores``) or train. A user's may: None among the parts says that its
    code, or that of the task's own loss, cannot be known.
    """
    splits = [f"{name} {task.splits[name].digest}" for name in reads(use) if name in task.splits]
    trains = "train" in reads(use)
    scores = trains or getattr(plugins.get("pass", use), "scores", False)
    if use in plugins.BUILTIN["pass"] and not scores:
        return [task.form, list(task.labels), splits] if splits else []
    about = [task.name, task.form, task.licence, list(task.labels)]
    own = loss_function(task) if trains else None
    loss = [] if own is None else [code_of(own)]
    return [*about, task.metric.name, metric_code(task.metric), splits, *loss]


def versions(use: str) -> dict[str, str]:
    """Versions of Farthing and of the libraries that decide a pass's result."""
    found = {"farthing": farthing.__version__}
    for name in getattr(plugins.get("pass", use), "libraries", ()):
        found[name] = _installed(name)
    return found


@functools.cache
def _installed(name: str) -> str:
    """The version of a package; looking it up reads and parses a file."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def versions_of(steps: Sequence[Step]) -> dict[str, str]:
    """The same for all steps together; Farthing's own even if there are none."""
    return {"farthing": farthing.__version__} | {
        name: found for step in steps for name, found in versions(step.use).items()
    }
