"""Replay: a recipe's artefact made again, to the same digest; trained ones elsewhere to the same accuracy."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import fields

from farthing import bench, plugins
from farthing.config import convert, parse
from farthing.errors import ConfigError, ModelError, PluginError, TaskError, nearest
from farthing.forge.apply import apply, reads, versions_of
from farthing.forge.cache import Cache
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.recipe import Listener, Recipe, ignore
from farthing.task import Task


def read_recipe(path: Path) -> Recipe:
    """A recipe from a YAML, JSON or TOML file, complete as a search writes it.

    Raises:
        ConfigError: the file cannot be read, or holds something else: steps alone are for `farthing apply`.
    """
    try:
        data = parse(path.read_bytes(), path.suffix, str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    needed = [field.name for field in fields(Recipe) if field.required]
    missing = [name for name in needed if not isinstance(data, dict) or name not in data]
    if missing:
        raise ConfigError(
            f"{path} is no whole recipe, it lacks {', '.join(missing)}: there is nothing to hold a replay against; "
            f"`farthing apply --steps {path}` runs steps alone, and writes a whole one"
        )
    return convert(data, Recipe, str(path))


def replay(recipe: Recipe, model: Model, task: Task, cache: Cache, *, listener: Listener = ignore) -> Model:
    """Make a recipe's artefact again, measuring nothing but accuracy, and that only if the digest is another.

    Passes give the same digest with the same versions. Training does so on the same kind of processor only: elsewhere
    sums are rounded otherwise. A recipe that trains is then held to its accuracy on the validation split, which must
    lie in the interval that was recorded.

    Args:
        recipe: of the artefact.
        model: what it was made from.
        task: with the very data.
        cache: of the results of passes.
        listener: hears of passes that take long.

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
    check_inputs(recipe.model, recipe.task, model, task)
    made, _ = apply(recipe.steps, model, recipe.target, task, cache, Workshop(listener=listener))
    if recipe.artefact and made.digest != recipe.artefact:
        _check_accuracy(recipe, model, made, task)
    return made


def check_inputs(wanted: str, data: str, model: Model, task: Task) -> None:
    """Refuse what a recipe was not made for.

    Args:
        wanted: digest of its model; empty if it names none.
        data: digest of its task's data; likewise.

    Raises:
        ModelError: another model.
        TaskError: other data.
    """
    if wanted and wanted != model.digest:
        raise ModelError(
            f"the recipe is for model {wanted[:12]}, not {model.digest[:12]}: give the model it was made from"
        )
    if data and data != task.digest:
        raise TaskError(
            f"the recipe was made with other data ({data[:12]}) than task {task.name} "
            f"has ({task.digest[:12]}): give the task it was made with"
        )


def _check_accuracy(recipe: Recipe, model: Model, made: Model, task: Task) -> None:
    """Refuse another artefact than the recorded one, unless it was trained and is as accurate."""
    now = versions_of(recipe.steps)
    differing = {name: (was, now[name]) for name, was in recipe.versions.items() if now.get(name, was) != was}
    words = (
        f"the replay gives {made.digest[:12]}, the recipe recorded {recipe.artefact[:12]}; "
        f"versions that differ: {differing or 'none'}"
    )
    recorded = recipe.accuracy
    if recorded is None or not any("train" in reads(step.use) for step in recipe.steps):
        raise ModelError(words)
    found, _ = bench.evaluate(
        made, task, "validation", engine=recipe.engine, options=recipe.options, reference=model
    )
    if not recorded.low <= found.value <= recorded.high:
        raise ModelError(
            f"{words}; and its {task.metric.name} on the validation split is {found.value:.4f}, which is outside what "
            f"was recorded ({recorded.low:.4f}..{recorded.high:.4f})"
        )
