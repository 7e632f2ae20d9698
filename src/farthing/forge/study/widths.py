"""A model's numbers at 32, 16, 8 and 4 bits: layer by layer, and the model as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from farthing.bench import Tick
from farthing.forge import graph
from farthing.forge.quantize.calibrate import extremes, ranges
from farthing.forge.quantize.static import StaticInt8, quantizable
from farthing.forge.sensitivity.alone import PASS_ON, Arrays, Source, sqnr
from farthing.forge.sensitivity.forms import MOVES, rounding_to_half
from farthing.forge.sensitivity.precisions import source_of
from farthing.forge.sensitivity.rounding import (
    all_weights,
    round_weights,
    rounded_activations,
    rounded_weights,
    scales_of,
    steps,
    weights_of,
)
from farthing.forge.study.result import Layer, Rounded, What
from farthing.model import Model
from farthing.task import Task

Array = NDArray[Any]
WIDTHS = (32, 16, 8, 4)
Ends = tuple[float, float]
"""The smallest and the largest value of a tensor, 0 among them."""
WHAT: tuple[What, ...] = ("weights", "activations", "both")


def observed(model: Model, task: Task) -> dict[str, Ends]:
    """The ranges of the tensors of a model, on the calibration samples that static int8 looks at.

    Raises:
        FarthingError: the model does not run on them.
    """
    static = StaticInt8()
    found = ranges(model, task, static.calibrator, static.percentile, static.samples)
    return {name: (min(0.0, low), max(0.0, high)) for name, (low, high) in extremes(found).items()}


class Widths:
    """A fused float model, its weights, and the ranges of its activations on calibration data.

    Args:
        model: fused.
        known: ranges, as `observed` gives them.
        feeds: inputs on which errors are measured.
    """

    def __init__(self, model: Model, known: Mapping[str, Ends], feeds: Arrays) -> None:
        self._model, self._ranges, self._feeds = model, known, feeds
        self._source = source_of(model)

    def layers(self, widths: Sequence[int], tick: Tick) -> list[Layer]:
        """Every layer with weights, its weights and its results at each width."""
        names = [name for name, node in self._source.nodes.items() if weights_of(node, self._source.stored)]
        own = {name: self._source.own(name) for name in names}
        outputs = {value.name for value in self._source.proto.graph.output}
        inner = sorted({*own.values()} - outputs)
        known = graph.run(self._source.proto, self._feeds, inner)
        found = []
        for name in names:
            found.append(self._layer(name, own[name], known[own[name]], widths))
            tick(len(found), len(names))
        return found

    def _layer(self, name: str, tensor: str, results: Array, widths: Sequence[int]) -> Layer:
        node = self._source.nodes[name]
        places = weights_of(node, self._source.stored)
        weights = [(self._array(place.tensor), place.axes) for place in places]
        stored = [self._source.stored[item] for item in node.input if item in self._source.stored]
        numbers = sum(map(graph.elements, stored))
        rest = 4 * (numbers - sum(array.size for array, _ in weights))
        found = []
        for bits in widths:
            rounded = [rounded_weights(array, axes, bits) for array, axes in weights]
            before, after = (np.concatenate([np.ravel(part) for part in parts]) for parts in
                             ([array for array, _ in weights], rounded))  # fmt: skip
            then = rounded_activations(results, *self._ranges.get(tensor, (0.0, 0.0)), bits)
            found.append(
                Rounded(
                    bits=bits,
                    bytes=rest + sum(weight_bytes(array, axes, bits) for array, axes in weights),
                    weights_mse=mse(before, after),
                    weights_sqnr=sqnr(before, after),
                    results_mse=mse(results, then),
                    results_sqnr=sqnr(results, then),
                )
            )
        return Layer(name=name, kind=node.op_type, parameters=numbers, widths=tuple(found))

    def _array(self, name: str) -> Array:
        return numpy_helper.to_array(self._source.stored[name])

    def errors(self, rounded: Model) -> tuple[float | None, float | None]:
        """Mean squared error and SQNR of a rounded model's outputs, of the output that suffers most."""
        expected = graph.run(self._source.proto, self._feeds)
        found = graph.run(rounded.file.read_bytes(), self._feeds)
        pairs = [(mse(expected[name], found[name]), sqnr(expected[name], found[name])) for name in found]
        return min(pairs, key=lambda pair: -math.inf if pair[1] is None else pair[1])

    def bytes(self, bits: int, what: What) -> int:
        """Bytes of all stored numbers, the weights at a width if they are rounded."""
        total = sum(graph.tensor_bytes(t, graph.elements(t)) for t in self._source.stored.values())
        if what == "activations":
            return total
        weights = all_weights(self._source.nodes.values(), self._source.stored)
        arrays = [(self._array(name), axes) for name, axes in weights.items()]
        return total + sum(weight_bytes(array, axes, bits) - array.nbytes for array, axes in arrays)

    def rounded(self, bits: int, what: What) -> Model:
        """The model with its weights or activations rounded, stored and computed as float32."""
        source = source_of(self._model)
        if what != "activations":
            round_weights(source.nodes.values(), source.stored, bits)
        if what != "weights" and bits < 32:
            round_activations(source, self._ranges, bits)
        return Model.create(self._model.manifest, {"model.onnx": graph.save_bytes(source.proto)})


def mse(wanted: Array, found: Array) -> float | None:
    """Mean squared error; None if a number is NaN or infinite."""
    error = float(np.mean((wanted.astype(np.float64) - found) ** 2)) if wanted.size else 0.0
    return error if math.isfinite(error) else None


def weight_bytes(array: Array, axes: Sequence[int], bits: int) -> int:
    """Bytes of weights packed at a width, with a float32 scale for each index along ``axes``."""
    return math.ceil(array.size * bits / 8) + (4 * scales_of(array, axes) if bits < 16 else 0)


def round_activations(source: Source, known: Mapping[str, Ends], bits: int) -> None:
    """Round what int8 would round, in place: inputs, and what operators compute, after a ReLU that follows."""
    types = set(quantizable()) - PASS_ON - (MOVES - {"Concat"})
    wanted = [source.own(name) for name, node in source.nodes.items() if node.op_type in types]
    inputs = [value.name for value in source.proto.graph.input if value.name not in source.stored]
    chosen = [name for name in dict.fromkeys([*inputs, *wanted]) if name in known]
    nodes: list[onnx.NodeProto] = []
    for name in (name for name in chosen if name in inputs):
        nodes += _rounding(source.proto, name, f"{name}/rounded", known[name], bits)
        for node in source.proto.graph.node:
            node.input[:] = [f"{name}/rounded" if read == name else read for read in node.input]
    for node in source.proto.graph.node:
        made = [name for name in node.output if name in chosen]
        node.output[:] = [f"{name}/wide" if name in made else name for name in node.output]
        nodes += [
            node,
            *(n for name in made for n in _rounding(source.proto, f"{name}/wide", name, known[name], bits)),
        ]
    fresh = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del source.proto.graph.node[:]
    source.proto.graph.node.extend(fresh)


def _rounding(
    proto: onnx.ModelProto, tensor: str, result: str, ends: Ends, bits: int
) -> Iterator[onnx.NodeProto]:
    """Nodes that do to a tensor what `rounded_activations` does to an array."""
    if bits == 16:
        yield from rounding_to_half(tensor, result)
        return
    step, least, most = steps(*ends, bits)
    if not step:
        yield helper.make_node("Identity", [tensor], [result], name=f"{result}/same")
        return
    constants = {"step": step, "least": least, "most": most}
    for name, value in constants.items():
        proto.graph.initializer.append(
            numpy_helper.from_array(np.array(value, np.float32), f"{result}/{name}")
        )
    for number, (kind, others) in enumerate(
        [("Div", ["step"]), ("Round", []), ("Clip", ["least", "most"]), ("Mul", ["step"])]
    ):
        before = tensor if number == 0 else f"{result}/{number}"
        after = result if number == 3 else f"{result}/{number + 1}"
        names = [before, *(f"{result}/{name}" for name in others)]
        yield helper.make_node(kind, names, [after], name=f"{result}/{kind}")
