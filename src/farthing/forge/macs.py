"""Multiply-accumulates of one inference, from the shapes that tensors have when the model runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping

import onnx
from onnx import helper

from farthing.errors import FarthingError
from farthing.forge import graph

Shape = tuple[int, ...]

# Where the weights (or the second factor) stand among the inputs.
_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
_TRANSPOSED = {"ConvTranspose": 1}
_PRODUCTS = {
    "MatMul": (0, 1),
    "FusedMatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "QLinearMatMul": (0, 3),
    "Gemm": (0, 1),
    "FusedGemm": (0, 1),
    "QGemm": (0, 3),
}
_RECURRENT = {"RNN": 1, "GRU": 3, "LSTM": 4}
_UNKNOWN = frozenset(
    "Attention DeformConv DynamicQuantizeLSTM Einsum GroupQueryAttention MultiHeadAttention QAttention "
    "PackedAttention PackedMultiHeadAttention DFT".split()
)
COUNTED = frozenset({*_CONVOLUTIONS, *_TRANSPOSED, *_PRODUCTS, *_RECURRENT, "MatMulNBits"})


def count(model: onnx.ModelProto, feeds: Mapping[str, graph.Array]) -> tuple[int | None, str]:
    """Multiply-accumulates of one run on ``feeds``, or None and the reason why not; see `by_node`."""
    found, why = by_node(model, feeds)
    return (None if found is None else sum(found.values())), why


def by_node(model: onnx.ModelProto, feeds: Mapping[str, graph.Array]) -> tuple[dict[int, int] | None, str]:
    """Multiply-accumulates of each node that has any, by its place in the graph; or None and the reason why not.

    Convolutions, matrix products and recurrent layers count, in floating point or quantized; additions of a
    bias, activations, normalisation and pooling do not, as is usual.
    """
    everywhere = Counter(node.op_type for node in graph.nodes(model.graph))
    places = {place: node for place, node in enumerate(model.graph.node) if node.op_type in COUNTED}
    wanted = [*places.values()]
    for kind in everywhere:
        if kind in _UNKNOWN:
            return None, f"the operator {kind} is not counted"
        if kind in COUNTED and everywhere[kind] > sum(node.op_type == kind for node in wanted):
            return None, f"a {kind} lies inside a condition or loop: how often it runs depends on the data"
    for function in model.functions:
        if any(node.op_type in COUNTED | _UNKNOWN for node in function.node):
            return None, f"the model's own function {function.name} is not looked into"
    try:
        shapes = _shapes(model, wanted, feeds)
    except FarthingError as error:
        return None, f"shapes are not known: {error}"
    return {place: _of(node, shapes) for place, node in places.items()}, ""


def _shapes(
    model: onnx.ModelProto, wanted: list[onnx.NodeProto], feeds: Mapping[str, graph.Array]
) -> dict[str, Shape]:
    """Shapes of all tensors that the wanted nodes read or write: seen in one run."""
    shapes = {name: array.shape for name, array in feeds.items()}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    made = {name for node in model.graph.node for name in node.output}
    given = {value.name for value in model.graph.output}
    touched = {name for node in wanted for name in (*node.input, node.output[0])}
    extra = sorted((touched & made) - given)
    shapes |= {name: value.shape for name, value in graph.run(model, feeds, extra, optimise=False).items()}
    return shapes


def _of(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    kind = node.op_type
    if kind in _CONVOLUTIONS:
        weights = shapes[node.input[_CONVOLUTIONS[kind]]]  # (outputs, inputs of a group, kernel ...)
        return math.prod(shapes[node.output[0]]) * math.prod(weights[1:])
    if kind in _TRANSPOSED:
        return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])
    rule: Callable[[onnx.NodeProto, Mapping[str, Shape]], int] = (
        _recurrent if kind in _RECURRENT else _product
    )
    return rule(node, shapes)


def _product(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "MatMulNBits":
        return math.prod(shapes[node.output[0]]) * int(attributes["K"])
    left = shapes[node.input[_PRODUCTS[node.op_type][0]]]
    depth = left[-2:][0] if attributes.get("transA") else left[-1]
    return math.prod(shapes[node.output[0]]) * depth


def _recurrent(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Every step multiplies input and state by all gates, in each direction; X is (steps, batch, features)."""
    steps, batch, features = shapes[node.input[0]]
    directions, _, hidden = shapes[node.input[2]]
    gates = _RECURRENT[node.op_type]
    return steps * batch * directions * gates * hidden * (features + hidden)
