"""What a search adds to its result about the models themselves: sizes by layer, placement by node, portability."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

import farthing
from farthing.anatomy import Anatomy, Matrix
from farthing.bench.machine import Here, Machine
from farthing.errors import FarthingError
from farthing.forge.cache import Cache, key_of
from farthing.forge.inspect import inspect
from farthing.forge.matrix import matrix
from farthing.forge.runtime import Runtime
from farthing.model import Model
from farthing.recipe import Candidate
from farthing.task import Task


def anatomies(
    chosen: Sequence[tuple[Candidate, Model]], machine: Machine, cache: Cache
) -> tuple[Anatomy, ...]:
    """The inside of candidates, each once; what cannot be found out is a note."""
    found: dict[int, Anatomy] = {}
    for candidate, model in chosen:
        if candidate.number not in found:
            found[candidate.number] = _kept(candidate, model, machine, cache)
    return tuple(found.values())


def _kept(candidate: Candidate, model: Model, machine: Machine, cache: Cache) -> Anatomy:
    here = isinstance(machine, Here)
    how = [model.digest, candidate.engine, candidate.options, machine.target, here, farthing.__version__]
    made = cache.value(key_of("anatomy", *how), Anatomy, lambda: _looked(candidate, model, here))
    return replace(made, candidate=candidate.number)


def _looked(candidate: Candidate, model: Model, here: bool) -> Anatomy:
    bare = Anatomy(candidate=candidate.number, format=model.manifest.format, bytes=model.size_bytes)
    try:
        found = inspect(model, run=here, engine=candidate.engine, options=candidate.options)
    except FarthingError as error:
        return replace(bare, notes=(f"it could not be looked into: {error}",))
    elsewhere = () if here else ("placement unavailable: it ran on another machine",)
    notes = tuple(note for note in found.notes if here or not note.startswith("not run"))
    return replace(
        bare,
        zipped_bytes=found.zipped_bytes,
        zeros=found.zeros,
        layers=found.layers,
        engine=found.runtime if here else "",
        placement=found.placement,
        notes=(*elsewhere, *notes),
    )


def portability(
    model: Model, runtimes: Sequence[Runtime], task: Task, machine: Machine, cache: Cache
) -> Matrix | None:
    """Whether the engines of a search compute the same; None for one engine alone, or on another machine."""
    if len(runtimes) < 2 or not isinstance(machine, Here):
        return None
    engines = [runtime.engine for runtime in runtimes]
    key = key_of("matrix", model.digest, list(runtimes), task.digest, machine.target, farthing.__version__)
    try:
        return cache.value(key, Matrix, lambda: matrix([model], engines, task))
    except FarthingError:
        return None  # it explains a result, and is no reason to lose one
