"""The methods of a study: what a search tries and what it does not, and what others have put into recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from farthing.config import read
from farthing.errors import ConfigError, ModelError
from farthing.forge import graph
from farthing.forge.ladder import (
    BLOCKS,
    COMPACT,
    EQUALIZE,
    FUSE,
    GPTQ,
    INT8,
    OPENVINO,
    Rung,
    int8,
    ladder,
    stored,
    target_format,
)
from farthing.forge.quantize.blockwise import Blockwise
from farthing.model import Model
from farthing.recipe import Recipe, Step
from farthing.target import Target

MINMAX = "int8 minmax"
_EQUALIZED = Step(use=EQUALIZE)
_COMPENSATED = Step(use=GPTQ, options={"calibrator": "minmax"})
UNTRIED: Mapping[str, tuple[Step, ...]] = {
    "int8 mse": (int8("mse"),),
    "int8 entropy": (int8("entropy"),),
    "int8 minmax, equalized": (_EQUALIZED, int8("minmax")),
    "int8 minmax, equalized, biases corrected": (_EQUALIZED, int8("minmax", correct_biases=True)),
    "int8 minmax, rounding compensated": (_COMPENSATED,),
    "int8 minmax, equalized, rounding compensated": (_EQUALIZED, _COMPENSATED),
    "int4 weights": (Step(use=GPTQ, options={"bits": 4}),),
}
"""Static int8 in ways that a search leaves out, or tries last: the steps that take the place of its own."""
UNTRIED_BLOCKS: Mapping[str, Mapping[str, object]] = {
    "int8 blocks": {"bits": 8, "block": 128},
    "int4 blocks": {"bits": 4, "block": 32, "symmetric": False},
}
"""Weights of matrix products in blocks, which a search tries on transformers alone."""


def post_training(model: Model, engines: Sequence[str], target: Target) -> list[Rung]:
    """Every method that needs no training: the rungs of a search for each engine, and what it leaves out.

    Raises:
        UnsupportedError: no float ONNX model, or an engine that nothing can be made for.
    """
    tried = ladder(model, engines, target)
    others = [other for rung in tried for other in _others(rung)] + _of_weights(model, engines)
    known = {(rung.engine, rung.name) for rung in tried}
    return [*tried, *(other for other in others if (other.engine, other.name) not in known)]


def _others(rung: Rung) -> list[Rung]:
    place = next((i for i, step in enumerate(rung.steps) if step == int8("minmax")), None)
    if place is None:
        return []
    before, after = rung.steps[:place], rung.steps[place + 1 :]
    return [
        replace(rung, name=rung.name.replace(MINMAX, name, 1), steps=(*before, *steps, *after))
        for name, steps in UNTRIED.items()
    ]


def _of_weights(model: Model, engines: Sequence[str]) -> list[Rung]:
    """Weights alone in few bits; in blocks if there are matrix products, for engines that run ONNX files."""
    products = next(Blockwise().layers(graph.load(model.file)), None)
    rungs = []
    for engine in engines:
        last = {"onnx": COMPACT, "openvino": Step(use=OPENVINO)}.get(target_format(engine))
        rungs += [stored(engine, last)] if last else []
        if products and last == COMPACT:
            rungs += [
                Rung(name, engine, (FUSE, Step(use=BLOCKS, options=dict(options)), COMPACT), dtypes=INT8)
                for name, options in UNTRIED_BLOCKS.items()
            ]
    return rungs


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
