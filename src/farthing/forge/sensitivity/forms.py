"""Precisions, as they change single operators: static int8 as deployed, rounded weights, half precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import helper, numpy_helper

from farthing.forge import graph
from farthing.forge.quantize.static import quantizable
from farthing.forge.sensitivity.alone import PASS_ON, Source, copied
from farthing.forge.sensitivity.rounding import rounded_weights, weights_of

HALF, SINGLE = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
MOVES = frozenset(
    "Reshape Transpose Flatten Squeeze Unsqueeze Identity Slice Split Concat Gather GatherElements GatherND Pad Expand "
    "Tile MaxPool Cast Constant ConstantOfShape Dropout Where ScatterND ScatterElements Shape Size".split()
)
"""What only moves numbers: they were rounded where they were made."""


class Twins:
    """Static int8: a float graph and what quantization made of it, whose Q/DQ pairs single operators take over.

    Args:
        source: the float graph.
        quantized: the same with Q/DQ pairs; some ReLUs may be gone, absorbed in the range of what they follow.
        exclude: names of operators that were left in float.
    """

    def __init__(self, source: Source, quantized: onnx.ModelProto, exclude: Sequence[str] = ()) -> None:
        self._source = source
        self._outputs = {value.name for value in source.proto.graph.output}
        self._twins = {node.name: node for node in quantized.graph.node if node.name not in exclude}
        self._maker = {name: node for node in quantized.graph.node for name in node.output}
        self._reader = {
            node.input[0]: node for node in quantized.graph.node if _is(node, "Quantize", "Dequantize")
        }
        self.stored: Mapping[str, onnx.TensorProto] = {t.name: t for t in quantized.graph.initializer}

    def operators(self) -> list[str]:
        """Names of the operators that compute in 8 bits, in the order of the graph."""
        types = set(quantizable()) - PASS_ON
        nodes = self._source.nodes
        return [name for name, node in nodes.items() if node.op_type in types and self._computes(name)]

    def _computes(self, name: str) -> bool:
        """Whether a node reads 8 bits and does not only pass them on: then its result shares their scale."""
        twin = self._twins.get(name)
        if twin is None:
            return False
        makers = [self._maker[tensor] for tensor in twin.input if tensor in self._maker]
        scales = {node.input[1] for node in makers if _is(node, "Dequantize")}
        after = {self._reader[tensor].input[1] for tensor in twin.output if tensor in self._reader}
        return bool(scales) and not scales & after

    def nodes(self, behind: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """See `farthing.forge.sensitivity.alone.Form`."""
        own = [copied(node) for node in behind]
        return [*self._quantize_inputs(own[0]), *self._quantize_outputs(own)]

    def _quantize_inputs(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The nodes that give a copied operator its inputs in 8 bits; it is changed to read from them."""
        for place, tensor in enumerate(self._twins[node.name].input):
            maker = self._maker.get(tensor)
            if maker is None or not _is(maker, "Dequantize"):
                continue
            back = copied(maker)
            if quantizer := self._maker.get(maker.input[0]):
                yield _rewired(quantizer, node.input[place], f"{tensor}/alone8")
                back.input[0] = f"{tensor}/alone8"
            back.output[0] = node.input[place] = f"{tensor}/alone"
            yield back

    def _quantize_outputs(self, behind: list[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        """The copied nodes, the first one's results in 8 bits and back: after the ReLU, where its twin absorbed it."""
        pairs = {}
        for tensor in self._twins[behind[0].name].output:
            if quantizer := self._reader.get(tensor):
                back = self._reader[quantizer.output[0]]
                name = back.output[0] if back.output[0] in self._outputs else tensor
                pairs[name] = (quantizer, back)
        for node in behind:
            own = [name for name in node.output if name in pairs]
            for name in own:
                node.output[list(node.output).index(name)] = f"{name}/float"
            yield node
            for name in own:
                yield _rewired(pairs[name][0], f"{name}/float", f"{name}/8")
                yield _rewired(pairs[name][1], f"{name}/8", name)


class RoundedWeights:
    """Weights in few bits, a scale for each output channel; activations as they are."""

    def __init__(self, source: Source, bits: int) -> None:
        self._weights = {
            name: found for name, node in source.nodes.items() if (found := weights_of(node, source.stored))
        }
        self._bits = bits
        self.stored: Mapping[str, onnx.TensorProto] = {
            _fresh(place.tensor): numpy_helper.from_array(
                rounded_weights(numpy_helper.to_array(source.stored[place.tensor]), place.axes, bits),
                _fresh(place.tensor),
            )
            for places in self._weights.values()
            for place in places
        }

    def operators(self) -> list[str]:
        """Names of the operators with weights, in the order of the graph."""
        return list(self._weights)

    def nodes(self, behind: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """See `farthing.forge.sensitivity.alone.Form`."""
        first = copied(behind[0])
        for place in self._weights[first.name]:
            first.input[place.place] = _fresh(place.tensor)
        return [first, *behind[1:]]


class Halved:
    """Half precision: inputs, weights and results of an operator rounded to float16, its sums in float32.

    So ONNX Runtime computes on processors without float16 arithmetic. Elsewhere sums may be rounded, too.
    """

    def __init__(self, source: Source) -> None:
        self._single = _single(source)
        self._operators = [
            name
            for name, node in source.nodes.items()
            if node.op_type not in MOVES | PASS_ON and node.output and node.output[0] in self._single
        ]
        self.stored: Mapping[str, onnx.TensorProto] = {}

    def operators(self) -> list[str]:
        """Names of the operators that compute floating-point numbers, in the order of the graph."""
        return self._operators

    def nodes(self, behind: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """See `farthing.forge.sensitivity.alone.Form`."""
        first, nodes = copied(behind[0]), []
        for place, tensor in enumerate(first.input):
            if tensor in self._single:
                first.input[place] = f"{first.name}/{place}/alone"
                nodes += rounding_to_half(tensor, first.input[place])
        results = [name for name in first.output if name in self._single]
        for name in results:
            first.output[list(first.output).index(name)] = f"{name}/float"
        after = [node for name in results for node in rounding_to_half(f"{name}/float", name)]
        return [*nodes, first, *after, *behind[1:]]


def rounding_to_half(tensor: str, result: str) -> list[onnx.NodeProto]:
    """Nodes that round a tensor to float16."""
    return [
        helper.make_node("Cast", [tensor], [f"{result}/16"], name=f"{result}/16", to=HALF),
        helper.make_node("Cast", [f"{result}/16"], [result], name=f"{result}/32", to=SINGLE),
    ]


def _single(source: Source) -> set[str]:
    """Names of the float32 tensors of a graph."""
    inferred = graph.inferred(source.proto).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    found = {value.name for value in values if value.type.tensor_type.elem_type == SINGLE}
    return found | {name for name, tensor in source.stored.items() if tensor.data_type == SINGLE}


def _fresh(tensor: str) -> str:
    return f"{tensor}/alone"


def _is(node: onnx.NodeProto, *kinds: str) -> bool:
    return node.op_type in {f"{kind}Linear" for kind in kinds}


def _rewired(node: onnx.NodeProto, source: str, result: str) -> onnx.NodeProto:
    fresh = copied(node)
    fresh.input[0], fresh.output[0], fresh.name = source, result, f"{result}/{node.op_type}"
    return fresh
