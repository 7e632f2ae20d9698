"""Steps to models: build passes by name, run them through the cache, replay recipes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import farthing
from farthing import files, plugins
from farthing.config import Section, convert, plain
from farthing.errors import ConfigError, ModelError
from farthing.forge import graph
from farthing.forge.cache import Cache, key_of
from farthing.model import Model, checked
from farthing.recipe import Pass, Recipe, Step
from farthing.target import Target
from farthing.task import Task


def build(step: Step, target: Target) -> tuple[Pass, Step]:
    """The pass that a step names, and the step with its options resolved for a target.

    Raises:
        PluginError: no pass of that name.
        ConfigError: options that the pass does not have.
    """
    part = plugins.get("pass", step.use)
    if isinstance(part, type) and issubclass(part, Section):
        made: Any = convert(step.options, part, step.use)
        made = made.resolved(target) if hasattr(made, "resolved") else made
        return made, Step(use=step.use, options=plain(made))
    if step.options:
        try:
            inspect.signature(part).bind(None, None, None, **step.options)
        except TypeError as error:
            raise ConfigError(f"{step.use}: {error}") from error
        return (lambda model, target, task: part(model, target, task, **step.options)), step
    return part, step


def apply(steps: Sequence[Step], model: Model, target: Target, task: Task, cache: Cache) -> tuple[Model, tuple[Step, ...]]:
    """Run steps one after another, each through the cache.

    Returns:
        The resulting model, and the steps with their options resolved.

    Raises:
        FarthingError: what a pass raised; nothing half-made is kept.
    """
    done: list[Step] = []
    for step in steps:
        made, step = build(step, target)
        key = key_of(model.digest, step, target, _read_by(made, task), versions(step.use), _code_of(step.use))
        model = cache.model(key, lambda made=made, model=model, step=step: _run(made, model, target, task, step))  # type: ignore[misc]
        done.append(step)
    return model, tuple(done)


def _run(made: Pass, model: Model, target: Target, task: Task, step: Step) -> Model:
    result = made(model, target, task)
    if not isinstance(result, Model):
        raise ModelError(f"{step.use} gives a {type(result).__name__}: a step of a search must give a Model")
    if result.manifest.format == "onnx":
        graph.load(result.file)  # a pass that writes a broken graph fails here, and nothing broken is cached
    lineage = (*model.manifest.lineage, str(step))
    content = {name: result.path / name for name in result.manifest.files}
    return Model.create(checked(result.manifest, lineage=lineage), content)


def _read_by(made: Pass, task: Task) -> list[str]:
    """Digests of the splits a pass looks at."""
    reads = getattr(made, "reads", ("calibration",))
    return [task.splits[name].digest for name in reads if name in task.splits]


def versions(use: str) -> dict[str, str]:
    """Versions of Farthing and of the libraries that decide a pass's result."""
    found = {"farthing": farthing.__version__}
    for name in getattr(plugins.get("pass", use), "libraries", ()):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _code_of(use: str) -> str:
    """SHA-256 of the module a pass is written in: changed code is not answered from the cache."""
    try:
        return files.digest(inspect.getsource(inspect.getmodule(plugins.get("pass", use)) or inspect).encode())
    except (OSError, TypeError):
        return "unknown"


def replay(recipe: Recipe, model: Model, task: Task, cache: Cache) -> Model:
    """Make a recipe's artefact again, measuring nothing.

    Raises:
        ModelError: another input model, or a result that differs from the recorded artefact.
        ConfigError: another task's data.
    """
    if recipe.model != model.digest:
        raise ModelError(f"the recipe is for model {recipe.model[:12]}, not {model.digest[:12]}: give the model it was made from")
    if recipe.task != task.digest:
        raise ConfigError(f"the recipe was made with other data ({recipe.task[:12]}) than task {task.name} has ({task.digest[:12]})")
    made, _ = apply(recipe.steps, model, recipe.target, task, cache)
    if recipe.artefact and made.digest != recipe.artefact:
        now = {name: found for step in recipe.steps for name, found in versions(step.use).items()}
        differing = {name: (was, now.get(name)) for name, was in recipe.versions.items() if now.get(name) != was}
        raise ModelError(
            f"the replay gives {made.digest[:12]}, the recipe recorded {recipe.artefact[:12]}; "
            f"versions that differ: {differing or 'none'}"
        )
    return made
