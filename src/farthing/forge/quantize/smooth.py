"""SmoothQuant: outliers of activations are moved into the weights, before both are quantized."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from farthing.errors import ConfigError, UnsupportedError
from farthing.forge import graph
from farthing.forge.quantize.columns import Layer, layer_of
from farthing.forge.quantize.gptq import rounding_feeds
from farthing.forge.quantize.static import PRODUCTS
from farthing.model import Model
from farthing.recipe import FLOATS, PassSection
from farthing.target import Target
from farthing.task import Task

Array = NDArray[Any]
LEAST = 1e-5


class Smooth(PassSection, frozen=True, kw_only=True):
    """Divide each input channel of a matrix product by a factor, and multiply its weights by it.

    In float nothing changes. In 8 bits a few channels a hundred times as large as the others, as transformers have
    them, no longer take the range of all (Xiao et al. 2022, https://arxiv.org/abs/2211.10438). The factors go into the
    layer normalisation before the products, where nothing else reads it, else into a multiplication of their own.

    Attributes:
        strength: from 0, nothing moves, to 1, all of it moves into the weights.
        samples: most calibration samples used.
    """

    forms: ClassVar[Mapping[str, str]] = {form: form for form in FLOATS}
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")

    strength: float = 0.8
    samples: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ConfigError(f"strength is above 0 and at most 1, not {self.strength}")
        if self.samples < 1:
            raise ConfigError(f"samples is a whole number from 1, not {self.samples}")

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError if there is no matrix product with weights of its own."""
        proto = graph.load(model.file)
        products = _products(proto)
        if not products:
            raise UnsupportedError(f"{model.manifest.name} has no matrix product with weights of its own")
        most = _largest(proto, list(products), rounding_feeds(model, task, self.samples))
        for name, layers in products.items():
            _smooth(proto, name, layers, most[name], self.strength)
        return Model.create(model.manifest, {"model.onnx": graph.save_bytes(proto)})


def _products(proto: ModelProto) -> dict[str, list[Layer]]:
    """The products whose weights nothing else reads, by the tensor that they multiply."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    readers = _readers(proto)
    found: dict[str, list[Layer]] = {}
    for node in proto.graph.node:
        layer = layer_of(node, stored) if node.op_type in PRODUCTS else None
        if layer and len(readers[node.input[1]]) == 1 and node.input[0] not in stored:
            found.setdefault(node.input[0], []).append(layer)
    return found


def _readers(proto: ModelProto) -> dict[str, list[NodeProto]]:
    found: dict[str, list[NodeProto]] = {value.name: [NodeProto()] for value in proto.graph.output}
    for node in proto.graph.node:
        for name in graph.reads(node):
            found.setdefault(name, []).append(node)
    return found


def _largest(proto: ModelProto, names: Sequence[str], feeds: Iterable[dict[str, Array]]) -> dict[str, Array]:
    """The largest magnitude of each channel of some tensors."""
    given = {value.name for value in proto.graph.input}
    session = graph.Session(proto, [name for name in names if name not in given])
    most: dict[str, Array] = {}
    for feed in feeds:
        seen = {**feed, **session.run(feed)}
        for name in names:
            own: Array = np.abs(seen[name].reshape(-1, seen[name].shape[-1])).max(0)
            most[name] = np.maximum(most[name], own) if name in most else own
    return most


def _smooth(proto: ModelProto, name: str, layers: Sequence[Layer], most: Array, strength: float) -> None:
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    weights = [numpy_helper.to_array(stored[layer.node.input[1]]) for layer in layers]
    largest = np.max(
        [np.abs(layer.matrix(part)[0]).max(0) for layer, part in zip(layers, weights, strict=True)], axis=0
    )
    factors = np.maximum(most, LEAST) ** strength / np.maximum(largest, LEAST) ** (1 - strength)
    factors = np.maximum(factors, LEAST).astype(np.float32)
    for layer, part in zip(layers, weights, strict=True):
        scaled = layer.stored(layer.matrix(part) * factors)
        _store(stored[layer.node.input[1]], scaled)
    if not _absorbed(proto, name, layers, factors, stored):
        _divide(proto, name, layers, factors)


def _absorbed(
    proto: ModelProto, name: str, layers: Sequence[Layer], factors: Array, stored: dict[str, TensorProto]
) -> bool:
    """Whether a layer normalisation took the factors: it makes the tensor, for these products alone."""
    maker = next((node for node in proto.graph.node if name in node.output), None)
    readers = _readers(proto)
    if maker is None or maker.op_type != "LayerNormalization" or len(readers[name]) != len(layers):
        return False
    own = [stored.get(part) for part in maker.input[1:]]
    if any(part is None or len(readers[part.name]) != 1 or part.dims != [len(factors)] for part in own):
        return False
    for part in own:
        if part is not None:
            _store(part, numpy_helper.to_array(part) / factors)
    return True


def _divide(proto: ModelProto, name: str, layers: Sequence[Layer], factors: Array) -> None:
    """Let the products read the tensor less its factors."""
    smooth = f"{name}/smooth"
    proto.graph.initializer.append(numpy_helper.from_array(1 / factors, f"{smooth}/factors"))
    node = helper.make_node("Mul", [name, f"{smooth}/factors"], [smooth], name=smooth)
    own = {layer.node.output[0] for layer in layers}
    first = next(place for place, other in enumerate(proto.graph.node) if own.intersection(other.output))
    for other in proto.graph.node:
        if own.intersection(other.output):
            other.input[0] = smooth
    proto.graph.node.insert(first, node)


def _store(tensor: TensorProto, array: Array) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), tensor.name))
