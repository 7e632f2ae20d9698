"""Weights in 8 bits in the file, widened when the model is loaded: a quarter of the size, and computed as before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from farthing.errors import ConfigError, UnsupportedError
from farthing.forge import graph
from farthing.forge.sensitivity.rounding import all_weights
from farthing.model import Model, Quantization, checked
from farthing.recipe import FLOATS, PassSection
from farthing.target import Target
from farthing.task import Task

MOST = 127


class WeightsOnly(PassSection, frozen=True, kw_only=True):
    """Store the weights of layers in 8 bits, a scale for each output; all that computes stays float.

    Runtimes widen them once, when they load the model: it is as fast as in float and takes as much memory, in any
    engine. For what no kernel computes in 8 bits, as ONNX Runtime has none for GRU, and for files that are to be small
    where int8 loses too much. Tables of embeddings are left to ``quantize.tables.v1``.

    Attributes:
        least: numbers that a tensor must have; smaller ones are not worth their scales.
        exclude: names of nodes whose weights stay float.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "numpy")
    forms: ClassVar[Mapping[str, str]] = dict.fromkeys(FLOATS, "stored")

    least: int = 256
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ConfigError(f"least is a whole number from 1, not {self.least}")

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError if no layer has weights of that size."""
        proto = graph.load(model.file)
        graph.name_nodes(proto)
        chosen = self._chosen(proto)
        if not chosen:
            raise UnsupportedError(
                f"{model.manifest.name} has no layer with {self.least} stored weights or more"
            )
        stored = [
            part
            for tensor in proto.graph.initializer
            for part in (_small(tensor, chosen[tensor.name]) if tensor.name in chosen else [tensor])
        ]
        nodes = [*(node for name in chosen for node in _widened(name)), *proto.graph.node]
        del proto.graph.initializer[:], proto.graph.node[:]
        proto.graph.initializer.extend(stored)
        proto.graph.node.extend(nodes)
        given = [value for value in proto.graph.input if value.name not in chosen]
        del proto.graph.input[:]
        proto.graph.input.extend(given)
        known = Quantization(
            scheme="weights", weights="int8", activations="float32", per_channel=True, excluded=self.exclude
        )
        manifest = checked(model.manifest, quantization=known)
        return Model.create(manifest, {"model.onnx": graph.save_bytes(proto)})

    def _chosen(self, proto: ModelProto) -> dict[str, tuple[int, ...]]:
        """The weights to store in 8 bits: name -> the axes along which each index has a scale of its own."""
        stored = {tensor.name: tensor for tensor in proto.graph.initializer}
        layers = [
            node for node in proto.graph.node if node.op_type != "Gather" and node.name not in self.exclude
        ]
        kept = {name for node in proto.graph.node if node.name in self.exclude for name in node.input}
        kept |= {value.name for value in proto.graph.output}
        found = all_weights(layers, stored).items()
        return {
            name: axes
            for name, axes in found
            if name not in kept and graph.elements(stored[name]) >= self.least
        }


def _small(tensor: TensorProto, axes: tuple[int, ...]) -> Iterator[TensorProto]:
    """Whole numbers of -127 to 127, and their scales."""
    weights = numpy_helper.to_array(tensor).astype(np.float64)
    others = tuple(axis for axis in range(weights.ndim) if axis not in axes)
    scales = np.abs(weights).max(others, keepdims=True) / MOST
    scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
    whole = np.clip(np.round(weights / scales), -MOST, MOST).astype(np.int8)
    yield numpy_helper.from_array(whole, f"{tensor.name}/8")
    yield numpy_helper.from_array(scales, f"{tensor.name}/scales")


def _widened(name: str) -> Iterator[NodeProto]:
    yield helper.make_node("Cast", [f"{name}/8"], [f"{name}/wide"], name=f"{name}/wide", to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [f"{name}/wide", f"{name}/scales"], [name], name=f"{name}/widened")
