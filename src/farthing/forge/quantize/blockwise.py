"""Weights of matrix products in blocks of 8 or 4 bits, each block with a scale of its own; all else in float."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from farthing.errors import ConfigError, UnsupportedError
from farthing.forge import graph
from farthing.forge.quantize.blocks import Blocks, pairs
from farthing.forge.quantize.columns import Layer, layer_of
from farthing.forge.quantize.compensate import MOST_INPUTS, observed
from farthing.forge.quantize.gptq import rounding_feeds
from farthing.forge.quantize.rounding import nearest_plane, shifted
from farthing.forge.quantize.static import PRODUCTS, VNNI
from farthing.forge.quantize.walk import walk
from farthing.model import Model, Quantization, checked
from farthing.recipe import FLOATS, PassSection
from farthing.target import Target
from farthing.task import Task

Array = NDArray[Any]
DOMAIN = "com.microsoft"


class Blockwise(PassSection, frozen=True, kw_only=True):
    """Store the weights of matrix products in blocks of 8 or 4 bits (ONNX Runtime's operator ``MatMulNBits``).

    Activations stay float where they are stored; no ranges are calibrated, and outliers do no harm. That makes files
    small and answers near to float. Whether it is fast depends on the machine and on the number of rows: measure it.

    Attributes:
        bits: of a weight.
        block: weights that share a scale: neighbouring inputs of one output.
        symmetric: no zero point is stored for a block.
        accuracy_level: how ONNX Runtime multiplies: 1 in float32, 4 in int8, the activations rounded as they come, a
            scale for each block; 0 is its own choice. None is 4, but 1 for 8 bits on x86 without VNNI, where sums of
            their products may overflow.
        compensate: round by what it does to the outputs on calibration data (`farthing.forge.quantize.gptq`), not
            each weight to the nearest. None does so for 4 bits.
        samples: most calibration samples for that; places: most rows of a product that it looks at.
        exclude: names of nodes that stay float.
    """

    forms: ClassVar[Mapping[str, str]] = dict.fromkeys(FLOATS, "blocks")
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "numpy")

    bits: Literal[8, 4] = 8
    block: Literal[16, 32, 64, 128, 256] = 32
    symmetric: bool = True
    accuracy_level: Literal[0, 1, 2, 3, 4] | None = None
    compensate: bool | None = None
    samples: int = 128
    places: int = 16384
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.samples < 1 or self.places < 1:
            raise ConfigError("samples and places are whole numbers from 1")

    def resolved(self, target: Target) -> Blockwise:
        """The same pass with every option fixed for a target."""
        overflows = target.arch == "x86_64" and not target.vnni and self.bits == 8
        level, own = self.accuracy_level, self.compensate
        return msgspec.structs.replace(
            self,
            accuracy_level=(1 if overflows else 4) if level is None else level,
            compensate=self.bits == 4 if own is None else own,
        )

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError if there is no matrix product with stored weights."""
        fixed = self.resolved(target)
        source = graph.load(model.file)
        graph.name_nodes(source)
        found = list(fixed.layers(source))
        if not found:
            raise UnsupportedError(
                f"{model.manifest.name} has no matrix product with weights to store in blocks; "
                "quantize.gptq.v1 stores those of convolutions in 4 bits"
            )
        feeds = rounding_feeds(model, task, self.samples) if fixed.compensate else []
        made = _rewritten(source, _rounded(source, found, feeds, fixed), fixed)
        unsafe = target.arch == "x86_64" and self.bits == 8 and fixed.accuracy_level == 4
        manifest = checked(
            model.manifest,
            quantization=Quantization(
                scheme="blocks",
                weights=f"int{self.bits}",
                activations="int8" if fixed.accuracy_level == 4 else "float32",
                calibrator=f"blocks of {self.block}",
                excluded=self.exclude,
            ),
            requires=tuple(dict.fromkeys([*model.manifest.requires, *((VNNI,) if unsafe else ())])),
        )
        return Model.create(manifest, {"model.onnx": graph.save_bytes(made)})

    def layers(self, source: ModelProto) -> Iterator[Layer]:
        """The products whose weights are to be stored in blocks."""
        stored = {tensor.name: tensor for tensor in source.graph.initializer}
        for node in source.graph.node:
            layer = (
                layer_of(node, stored) if node.op_type in PRODUCTS and node.name not in self.exclude else None
            )
            if layer:
                yield layer


def _rounded(
    source: ModelProto, layers: Sequence[Layer], feeds: Sequence[dict[str, Array]], options: Blockwise
) -> dict[str, tuple[Layer, Blocks]]:
    """The weights of all layers in blocks, by the name of their tensor; with feeds, layer after layer."""
    current = ModelProto()
    current.CopyFrom(source)
    stored = {tensor.name: tensor for tensor in current.graph.initializer}
    names = [layer.node.input[0] for layer in layers]
    exact, coarse = walk(source, feeds, names), walk(current, feeds, names)
    made: dict[str, tuple[Layer, Blocks]] = {}
    for number, layer in enumerate(layers):
        seen = (next(exact), next(coarse)) if feeds else None
        name = layer.node.input[1]
        if name in made:
            continue
        tensor = stored[name]
        weights = layer.matrix(numpy_helper.to_array(tensor).astype(np.float64))
        if seen and layer.inputs_each <= MOST_INPUTS:
            halves = observed(layer, *seen, -(-options.places // len(feeds)), number)
            gram, _ = (halves[0] + halves[-1] if len(halves) > 1 else halves[0]).products(False)
            target = shifted(weights, halves, False) if len(halves) > 1 else weights
            blocks = Blocks(weights[0], options.bits, options.block, options.symmetric, np.diagonal(gram[0]))
            whole = nearest_plane(target, gram, blocks.grid)
        else:
            blocks = Blocks(weights[0], options.bits, options.block, options.symmetric)
            whole = blocks.grid.nearest(weights)
        blocks.fill(whole[0])
        real = layer.stored(blocks.grid.real(whole)).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(real, name))
        made[name] = (layer, blocks)
    return made


def _rewritten(source: ModelProto, made: dict[str, tuple[Layer, Blocks]], options: Blockwise) -> ModelProto:
    """The graph with its products computed from blocks."""
    proto = ModelProto()
    proto.CopyFrom(source)
    names = {layer.node.name for layer in options.layers(source)}
    nodes: list[NodeProto] = []
    for node in source.graph.node:
        if node.name in names and made[node.input[1]][0].across == _across(node):
            nodes += _products(node, made[node.input[1]][1], options)
        else:
            nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    read = {name for node in graph.nodes(proto.graph) for name in node.input}
    new = [
        tensor
        for name, (_, blocks) in made.items()
        for tensor in _tensors(blocks, name)
        if tensor.name in read
    ]
    kept = [tensor for tensor in source.graph.initializer if tensor.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([*kept, *new])
    proto.graph.ClearField("value_info")
    if all(entry.domain != DOMAIN for entry in proto.opset_import):
        proto.opset_import.add(domain=DOMAIN, version=1)
    return proto


def _tensors(blocks: Blocks, name: str) -> Iterator[TensorProto]:
    """As ``MatMulNBits`` reads them."""
    numbers, zeros = blocks.numbers, blocks.zero.astype(np.uint8)
    if blocks.bits == 4:
        numbers, zeros = pairs(numbers), pairs(np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2))))
    yield numpy_helper.from_array(np.ascontiguousarray(numbers), f"{name}/blocks")
    yield numpy_helper.from_array(blocks.scale.astype(np.float32).ravel(), f"{name}/scales")
    if not blocks.symmetric:
        yield numpy_helper.from_array(zeros.ravel(), f"{name}/zeros")


def _across(node: NodeProto) -> bool:
    return not graph.attribute(node, "transB", 0)


def _products(node: NodeProto, blocks: Blocks, options: Blockwise) -> Iterator[NodeProto]:
    """What computes a product, and adds what a Gemm adds."""
    weights, result = node.input[1], node.output[0]
    given = [node.input[0], f"{weights}/blocks", f"{weights}/scales"]
    given += [] if options.symmetric else [f"{weights}/zeros"]
    bias = node.input[2] if len(node.input) > 2 else ""
    yield helper.make_node(
        "MatMulNBits",
        given,
        [f"{result}/product" if bias else result],
        name=node.name,
        domain=DOMAIN,
        K=blocks.inputs,
        N=len(blocks.scale),
        bits=options.bits,
        block_size=options.block,
        accuracy_level=options.accuracy_level,
    )
    if bias:
        yield helper.make_node("Add", [f"{result}/product", bias], [result], name=f"{node.name}/bias")
