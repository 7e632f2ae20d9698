"""Cross-layer equalization: weights of neighbouring layers scaled so that the channels of each have like ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.model import Model
from farthing.recipe import FLOATS, PassSection
from farthing.target import Target
from farthing.task import Task

Array = NDArray[Any]
LAYERS = {"Conv", "Gemm"}
THROUGH = {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Flatten"}
ROUNDS = 20
ENOUGH = 1e-3  # a round that scales no channel by more than this share is the last
LIMIT = 1e4  # largest factor of a round


class Equalize(PassSection, frozen=True, kw_only=True):
    """Scale the output channels of a layer down and the input channels of the next one up by the same factors.

    Between two layers may lie what lets positive factors through: ReLU, leaky ReLU, pooling, flattening. The factors
    make the largest weights of a channel equal on both sides (Nagel et al. 2019, section 4.1,
    https://arxiv.org/abs/1906.04721); pairs are gone through until nothing moves. In float the model's outputs stay as
    they were, up to rounding. Layers that several others read, and weights that are shared, stay.

    Attributes:
        clips: go through ReLU6 too: its upper limit becomes one for each channel, an operator more (``Min``).
    """

    reads: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("onnx",)
    forms: ClassVar[Mapping[str, str]] = {form: form for form in FLOATS}

    clips: bool = False

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError if there are no two layers to equalize."""
        proto = graph.load(model.file)
        net = _Net(proto)
        pairs = list(net.pairs(self.clips))
        if not pairs:
            raise UnsupportedError(
                f"{model.manifest.name} has no two layers whose weights could be equalized"
            )
        for _ in range(ROUNDS):
            if max([_equalize(pair) for pair in pairs]) < ENOUGH:
                break
        net.store(pairs)
        return Model.create(model.manifest, {"model.onnx": graph.save_bytes(proto)})


@dataclass
class Weights:
    """Weights of a layer while they are scaled.

    Attributes:
        node: the layer.
        array: float64.
        bias: float64, or None.
        out: axis of the output channels.
    """

    node: onnx.NodeProto
    array: Array
    bias: Array | None
    out: int


@dataclass
class Pair:
    """Two layers, the clip between them if there is one, and the factor by which each channel was divided so far."""

    first: Weights
    second: Weights
    clip: onnx.NodeProto | None = None
    factors: Array = field(default_factory=lambda: np.ones(1))


def _equalize(pair: Pair) -> float:
    """One step on a pair; the largest share by which a channel was scaled."""
    before = _ranges(np.moveaxis(pair.first.array, pair.first.out, 0))
    channels = len(before)
    view = _inputs(pair.second, channels)
    after = _ranges(view)
    both = (before > 0) & (after > 0)
    factors = np.ones(channels)
    factors[both] = np.clip(np.sqrt(before[both] / after[both]), 1 / LIMIT, LIMIT)
    shape = [-1 if axis == pair.first.out else 1 for axis in range(pair.first.array.ndim)]
    pair.first.array /= factors.reshape(shape)
    if pair.first.bias is not None:
        pair.first.bias /= factors
    view *= factors[:, None]
    pair.second.array[...] = _back(view, pair.second)
    pair.factors = pair.factors * factors
    return float(np.max(np.abs(np.log(factors))))


def _ranges(rows: Array) -> Array:
    return np.asarray(np.abs(rows.reshape(len(rows), -1)).max(axis=1))


def _inputs(weights: Weights, channels: int) -> Array:
    """Weights as (input channel, everything else); a flattened channel has several neighbouring rows."""
    depthwise = weights.node.op_type == "Conv" and _group(weights.node) > 1
    axis = 0 if depthwise else 1 - weights.out
    return np.moveaxis(weights.array, axis, 0).reshape(channels, -1).copy()


def _back(view: Array, weights: Weights) -> Array:
    depthwise = weights.node.op_type == "Conv" and _group(weights.node) > 1
    axis = 0 if depthwise else 1 - weights.out
    shape = np.moveaxis(weights.array, axis, 0).shape
    return np.moveaxis(view.reshape(shape), 0, axis)


def _group(node: onnx.NodeProto) -> int:
    return int(next((a.i for a in node.attribute if a.name == "group"), 1))


class _Net:
    """A float graph: who reads what, and the weights of its layers."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self._stored = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._outputs = {value.name for value in proto.graph.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.nodes(proto.graph):
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._weights = {node.output[0]: found for node in proto.graph.node if (found := self._read(node))}

    def _read(self, node: onnx.NodeProto) -> Weights | None:
        if node.op_type not in LAYERS or not self._own(node.input[1]):
            return None
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else ""
        if bias and not (self._own(bias) and len(self._stored[bias].dims) == 1):
            return None
        array = numpy_helper.to_array(self._stored[node.input[1]])
        if array.dtype != np.float32:
            return None
        flat = numpy_helper.to_array(self._stored[bias]).astype(np.float64) if bias else None
        across = node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
        out = 1 if across else 0
        if flat is not None and len(flat) != array.shape[out]:
            return None
        return Weights(node, array.astype(np.float64), flat, out)

    def _own(self, name: str) -> bool:
        return name in self._stored and len(self._readers[name]) == 1 and name not in self._outputs

    def pairs(self, clips: bool) -> Iterator[Pair]:
        """Layers that follow one another with nothing between them that positive factors do not pass."""
        for first in self._weights.values():
            second, clip = self._follower(first, clips)
            if second is not None:
                yield Pair(first, second, clip)

    def _follower(self, first: Weights, clips: bool) -> tuple[Weights | None, onnx.NodeProto | None]:
        name, clip = first.node.output[0], None
        while name not in self._outputs and len(self._readers.get(name, [])) == 1:
            node = self._readers[name][0]
            if node.output[0] in self._weights and node.input[0] == name:
                second = self._weights[node.output[0]]
                return (second if _fit(first, second) else None), clip
            if node.op_type == "Clip" and clips and clip is None and self._is_relu(node):
                clip = node
            elif node.op_type not in THROUGH or (node.op_type == "Flatten" and _axis(node) != 1):
                break
            name = node.output[0]
        return None, None

    def _is_relu(self, node: onnx.NodeProto) -> bool:
        """Whether a Clip has the lower limit 0 and a constant upper one."""
        limits = [
            numpy_helper.to_array(self._stored[name]) for name in node.input[1:] if name in self._stored
        ]
        return len(limits) == 2 and float(limits[0]) == 0.0 and float(limits[1]) > 0

    def store(self, pairs: list[Pair]) -> None:
        """Write the scaled weights back, and the limits of clips."""
        for weights in {id(w): w for pair in pairs for w in (pair.first, pair.second)}.values():
            self._write(weights.node.input[1], weights.array)
            if weights.bias is not None:
                self._write(weights.node.input[2], weights.bias)
        for pair in pairs:
            if pair.clip is not None:
                self._limit(pair.clip, pair.factors, pair.first.array.ndim)
        used = {name for node in graph.nodes(self._proto.graph) for name in node.input} | self._outputs
        left = [tensor for tensor in self._proto.graph.initializer if tensor.name in used]
        del self._proto.graph.initializer[:]
        self._proto.graph.initializer.extend(left)

    def _write(self, name: str, array: Array) -> None:
        self._stored[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))

    def _limit(self, clip: onnx.NodeProto, factors: Array, rank: int) -> None:
        """Clip(x, 0, c) becomes Min(Relu(x), c / factors)."""
        highest = float(numpy_helper.to_array(self._stored[clip.input[2]]))
        limits = (highest / factors).reshape([-1 if axis == 1 else 1 for axis in range(rank)])
        name, result = f"{clip.output[0]}/limits", clip.output[0]
        self._proto.graph.initializer.append(numpy_helper.from_array(limits.astype(np.float32), name))
        place = next(i for i, node in enumerate(self._proto.graph.node) if node is clip or node == clip)
        relu = helper.make_node("Relu", [clip.input[0]], [f"{result}/relu"], name=f"{clip.name}/relu")
        low = helper.make_node("Min", [f"{result}/relu", name], [result], name=f"{clip.name}/min")
        self._proto.graph.node.pop(place)
        self._proto.graph.node.insert(place, low)
        self._proto.graph.node.insert(place, relu)


def _fit(first: Weights, second: Weights) -> bool:
    """Whether the channels of one are those of the other: a group a channel, or no groups."""
    channels = first.array.shape[first.out]
    group = _group(second.node) if second.node.op_type == "Conv" else 1
    if group > 1:
        return bool(group == channels and second.array.shape[1] == 1)
    inputs = second.array.shape[1 - second.out]
    return bool(inputs == channels if second.node.op_type == "Conv" else inputs % channels == 0)


def _axis(node: onnx.NodeProto) -> int:
    return int(next((a.i for a in node.attribute if a.name == "axis"), 1))
