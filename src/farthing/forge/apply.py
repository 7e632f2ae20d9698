"""Steps to models: build passes by name, run them through the cache, replay recipes."""

from __future__ import annotations

import errno
import inspect
import os
import tempfile
from collections.abc import Sequence
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
from farthing.model import Model, checked
from farthing.recipe import Pass, Recipe, Step
from farthing.target import Target
from farthing.task import Task

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
        stored = msgspec.json.decode(
            msgspec.json.encode(plain(made))
        )  # lists, as a recipe file gives them back
        return made, Step(use=step.use, options=stored)
    if not isinstance(part, type):
        _check_options(part, step)
        return (lambda model, target, task: part(model, target, task, **step.options)), step
    raise PluginError(f"{step.use}: a pass is a function, or a class made from farthing.recipe.PassSection")


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
    steps: Sequence[Step], model: Model, target: Target, task: Task, cache: Cache
) -> tuple[Model, tuple[Step, ...]]:
    """Run steps one after another, each through the cache.

    Returns:
        The resulting model, and the steps with their options resolved.

    Raises:
        PluginError: no pass of that name, or it raised an error of its own.
        FarthingError: what a pass raised; nothing half-made is kept.
    """
    done: list[Step] = []
    for step in steps:
        model, step = _apply_one(step, model, target, task, cache)
        done.append(step)
    return model, tuple(done)


def _apply_one(step: Step, model: Model, target: Target, task: Task, cache: Cache) -> tuple[Model, Step]:
    made, step = build(step, target)

    def run() -> Model:
        return _run(made, model, target, task, step)

    code, seen = code_of(plugins.get("pass", step.use)), read_by(step.use, task)
    if code is None or None in seen:
        return run(), step
    key = key_of(model.digest, step, target, seen, versions(step.use), code)
    return cache.model(key, run), step


def _run(made: Pass, model: Model, target: Target, task: Task, step: Step) -> Model:
    result = guarded(made, model, target, task, step)
    if not isinstance(result, Model):
        raise ModelError(f"{step.use} gives a {type(result).__name__}: a step of a search must give a Model")
    if result.manifest.format == "onnx":
        graph.load(result.file)  # a pass that writes a broken graph fails here, and nothing broken is cached
    lineage = (*model.manifest.lineage, str(step))
    content = {name: result.path / name for name in result.manifest.files}
    with files.explained(Path(tempfile.gettempdir())):
        return Model.create(checked(result.manifest, lineage=lineage), content)


def guarded(made: Pass, model: Model, target: Target, task: Task, step: Step) -> object:
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

    Ours look at no metric unless they say so (``scores``). A user's may: None among the parts says that its code cannot
    be known.
    """
    splits = [f"{name} {task.splits[name].digest}" for name in reads(use) if name in task.splits]
    if use in plugins.BUILTIN["pass"] and not getattr(plugins.get("pass", use), "scores", False):
        return [task.form, list(task.labels), splits] if splits else []
    about = [task.name, task.form, task.licence, list(task.labels)]
    return [*about, task.metric.name, metric_code(task.metric), splits]


def versions(use: str) -> dict[str, str]:
    """Versions of Farthing and of the libraries that decide a pass's result."""
    found = {"farthing": farthing.__version__}
    for name in getattr(plugins.get("pass", use), "libraries", ()):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def replay(recipe: Recipe, model: Model, task: Task, cache: Cache) -> Model:
    """Make a recipe's artefact again, measuring nothing.

    Raises:
        ModelError: another input model, or a result that differs from the recorded artefact.
        TaskError: another task's data.
        PluginError: an engine or a pass that is not known.
        FarthingError: what a pass raised.
    """
    if recipe.engine and recipe.engine not in plugins.names("engine"):
        raise PluginError(
            f"the recipe is for an engine called {recipe.engine!r}, which is not known; "
            f"{nearest(recipe.engine, plugins.names('engine'))}"
        )
    if recipe.model != model.digest:
        raise ModelError(
            f"the recipe is for model {recipe.model[:12]}, not {model.digest[:12]}: "
            "give the model it was made from"
        )
    if recipe.task != task.digest:
        raise TaskError(
            f"the recipe was made with other data ({recipe.task[:12]}) than task {task.name} "
            f"has ({task.digest[:12]}): give the task it was made with"
        )
    made, _ = apply(recipe.steps, model, recipe.target, task, cache)
    if recipe.artefact and made.digest != recipe.artefact:
        now = {name: found for step in recipe.steps for name, found in versions(step.use).items()}
        differing = {
            name: (was, now[name]) for name, was in recipe.versions.items() if now.get(name, was) != was
        }
        raise ModelError(
            f"the replay gives {made.digest[:12]}, the recipe recorded {recipe.artefact[:12]}; "
            f"versions that differ: {differing or 'none'}"
        )
    return made
