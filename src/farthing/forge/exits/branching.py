"""Exits as nodes of an ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from farthing.forge import graph
from farthing.forge.exits.training import ExitTraining
from farthing.forge.training.losses import understood
from farthing.model import Model, checked

KERNEL, STRIDE = 3, 2


def branched(options: ExitTraining, model: Model, fed: Mapping[str, graph.Array]) -> Model:
    """The model with untrained exits behind the places of the options: more outputs, nothing else changes.

    The weights are drawn with the seed of the schedule: those of convolutions as in He et al. 2015
    (https://arxiv.org/abs/1502.01852), those of dense layers evenly within 1 / sqrt(inputs).

    Args:
        options: with their places.
        model: a classifier in ONNX.
        fed: some samples, run to see the sizes of tensors.
    """
    proto = graph.load(model.file)
    graph.name_nodes(proto)
    last = next(value for value in proto.graph.output if value.name == model.manifest.outputs[0].name)
    builder = _Builder(proto, options, understood(model).decode == "probabilities")
    seen = graph.run(proto, fed, options.places, optimise=False)
    outputs = []
    for place in options.places:
        value = onnx.ValueInfoProto()
        value.CopyFrom(last)
        value.name = builder.exit(place, seen[place].shape, seen[last.name].shape[1])
        proto.graph.output.append(value)
        outputs.append(replace(model.manifest.outputs[0], name=value.name))
    graph.check(proto, f"{model.manifest.name} with exits")
    manifest = checked(model.manifest, outputs=(*model.manifest.outputs, *outputs))
    return Model.create(manifest, {"model.onnx": graph.save_bytes(proto)})


class _Builder:
    """Writes exits into a graph, in place."""

    def __init__(self, proto: onnx.ModelProto, options: ExitTraining, probabilities: bool) -> None:
        self._graph, self._options, self._probabilities = proto.graph, options, probabilities
        self._random = np.random.default_rng(options.schedule.seed)
        self._names = _free(proto.graph)

    def exit(self, place: str, shape: tuple[int, ...], classes: int) -> str:
        """Add an exit behind a tensor; returns the name of its scores."""
        name = next(self._names)
        axes, width, made = len(shape) - 2, shape[1], place
        if axes and self._options.head == "conv":
            made, width = self._convolved(f"{name}/conv", made, axes, width), self._options.width
        if axes:
            pooled = self._node("GlobalAveragePool", f"{name}/pool", [made])
            made = self._node("Flatten", f"{name}/flatten", [pooled], axis=1)
        return self._dense(name, made, width, classes)

    def _convolved(self, name: str, made: str, axes: int, inputs: int) -> str:
        shape = (self._options.width, inputs, *[KERNEL] * axes)
        weights = self._random.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
        stored = [self._stored(f"{name}/weight", weights), self._stored(f"{name}/bias", np.zeros(shape[0]))]
        sides: dict[str, Any] = {
            "kernel_shape": [KERNEL] * axes,
            "pads": [KERNEL // 2] * 2 * axes,
            "strides": [STRIDE] * axes,
        }
        return self._node("Relu", f"{name}/relu", [self._node("Conv", name, [made, *stored], **sides)])

    def _dense(self, name: str, made: str, inputs: int, classes: int) -> str:
        edge = 1 / math.sqrt(inputs)
        weights = self._random.uniform(-edge, edge, (classes, inputs))
        stored = [
            self._stored(f"{name}/dense/weight", weights),
            self._stored(f"{name}/dense/bias", np.zeros(classes)),
        ]
        if not self._probabilities:
            return self._node("Gemm", f"{name}/dense", [made, *stored], name, transB=1)
        logits = self._node("Gemm", f"{name}/dense", [made, *stored], transB=1)
        return self._node("Softmax", f"{name}/softmax", [logits], name, axis=1)

    def _stored(self, name: str, values: NDArray[np.float64]) -> str:
        self._graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def _node(self, kind: str, name: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        made = output or f"{name}/output"
        self._graph.node.append(helper.make_node(kind, inputs, [made], name, **attributes))
        return made


def _free(proto: onnx.GraphProto) -> Iterator[str]:
    """Names for exits that are not taken: ``exit1`` and so on."""
    taken = {name for node in proto.node for name in (node.name, *node.input, *node.output)}
    taken = {name.partition("/")[0] for name in taken} | {value.name for value in proto.input}
    prefix = "exit"
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"
    number = 0
    while True:
        number += 1
        yield f"{prefix}{number}"
