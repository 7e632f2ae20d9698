"""The methods of a study: what a search tries and what it does not, and what others have put into recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from farthing.config import read
from farthing.errors import ConfigError, ModelError
from farthing.forge.ladder import Rung, int8, ladder
from farthing.model import Model
from farthing.recipe import Recipe, Step
from farthing.target import Target

EQUALIZE = Step(use="quantize.equalize.v1")
MINMAX = "int8 minmax"
UNTRIED: Mapping[str, tuple[Step, ...]] = {
    "int8 mse": (int8("mse"),),
    "int8 entropy": (int8("entropy"),),
    "int8 minmax, equalized": (EQUALIZE, int8("minmax")),
    "int8 minmax, equalized, biases corrected": (EQUALIZE, int8("minmax", correct_biases=True)),
}
"""Static int8 in ways that a search leaves out: the steps that take the place of its own."""


def post_training(model: Model, engines: Sequence[str], target: Target) -> list[Rung]:
    """Every method that needs no training: the rungs of a search for each engine, and what it leaves out.

    Raises:
        UnsupportedError: no float ONNX model, or an engine that nothing can be made for.
    """
    return [other for rung in ladder(model, engines, target) for other in (rung, *_others(rung))]


def _others(rung: Rung) -> list[Rung]:
    place = next((i for i, step in enumerate(rung.steps) if step == int8("minmax")), None)
    if place is None:
        return []
    before, after = rung.steps[:place], rung.steps[place + 1 :]
    return [
        replace(rung, name=rung.name.replace(MINMAX, name, 1), steps=(*before, *steps, *after))
        for name, steps in UNTRIED.items()
    ]


def of_recipe(path: Path, model: Model) -> Rung:
    """The method of a recipe, called by its file: any passes in any order, training ones too.

    Raises:
        ConfigError: not a recipe.
        ModelError: it is for another model.
    """
    recipe = read(path, Recipe)
    if recipe.model != model.digest:
        raise ModelError(
            f"{path} is for model {recipe.model[:12]}, not {model.digest[:12]}: "
            "give the model it was made from, or leave the recipe out"
        )
    if not recipe.engine:
        raise ConfigError(f"{path} names no engine: say in it what is to run its result")
    name = path.stem if path.stem != "recipe" else path.resolve().parent.name
    return Rung(name, recipe.engine, recipe.steps, recipe.options.precision, dtypes=())
