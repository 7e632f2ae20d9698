"""The precisions that operators are tried in: by name, on a single operator, and on a whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from farthing.config import Section, plain
from farthing.forge import graph
from farthing.forge.apply import apply, read_by, versions
from farthing.forge.cache import Cache
from farthing.forge.ladder import FLOAT16, STATIC
from farthing.forge.quantize.float16 import Float16
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.sensitivity.alone import Form, Source
from farthing.forge.sensitivity.forms import Halved, RoundedWeights, Twins
from farthing.forge.sensitivity.rounding import round_weights
from farthing.model import Model
from farthing.recipe import Step
from farthing.target import Target
from farthing.task import Task


class Weights(Section, frozen=True, kw_only=True):
    """Weights rounded to so many bits, a scale for each output channel; nothing else changes."""

    bits: int


Precision = StaticInt8 | Float16 | Weights
PRECISIONS: Mapping[str, Precision] = {
    "int8": StaticInt8(),
    "int8 per tensor": StaticInt8(per_channel=False),
    "int8 weights": Weights(bits=8),
    "int4 weights": Weights(bits=4),
    "float16": Float16(),
}


class Place(NamedTuple):
    """Where passes are applied: for which target, with which data, through which cache."""

    target: Target
    task: Task
    cache: Cache

    def made(self, model: Model, step: Step) -> Model:
        """What one step makes of a model."""
        return apply([step], model, self.target, self.task, self.cache)[0]


def source_of(model: Model) -> Source:
    """A float model's graph, every node with a name of its own."""
    proto = graph.load(model.file)
    graph.name_nodes(proto)
    return Source(proto)


def form_of(source: Source, model: Model, precision: Precision, place: Place) -> Form:
    """A precision as it changes single operators of a model."""
    if isinstance(precision, StaticInt8):
        quantized = whole(model, precision, place)
        return Twins(source, graph.load(quantized.file), precision.exclude)
    return RoundedWeights(source, precision.bits) if isinstance(precision, Weights) else Halved(source)


def whole(model: Model, precision: Precision, place: Place) -> Model:
    """A float model with every operator in a precision; rounded weights are stored as float32."""
    if isinstance(precision, StaticInt8):
        return place.made(model, Step(use=STATIC, options=plain(precision)))
    if isinstance(precision, Float16):
        return place.made(model, Step(use=FLOAT16, options=plain(precision)))
    source = source_of(model)
    round_weights(source.nodes.values(), source.stored, precision.bits)
    return Model.create(model.manifest, {"model.onnx": graph.save_bytes(source.proto)})


def about(precision: Precision, place: Place) -> list[object]:
    """All that decides what a precision makes of a model, for the key of a result."""
    fixed = precision.resolved(place.target) if isinstance(precision, StaticInt8) else precision
    use = FLOAT16 if isinstance(precision, Float16) else STATIC
    return [type(precision).__name__, fixed, place.target, read_by(STATIC, place.task), versions(use)]
