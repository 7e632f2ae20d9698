"""One operator of a float graph in low precision, all others in float: as a whole model, or only what follows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from farthing.forge import graph

Arrays = Mapping[str, NDArray[Any]]
PASS_ON = {"Relu", "Clip"}  # an 8-bit range does their work


class Form(Protocol):
    """A precision, as it changes the operators of one graph.

    Attributes:
        stored: the numbers that changed operators read, by name.
    """

    @property
    def stored(self) -> Mapping[str, onnx.TensorProto]: ...

    def operators(self) -> list[str]:
        """Names of the operators that it changes, in the order of the graph."""
        ...

    def nodes(self, behind: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """What takes the place of an operator and those that depend on it: only the first one computes otherwise."""
        ...


class Source:
    """A float graph, from which single operators are taken.

    Args:
        proto: every node with a name of its own.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.nodes = {node.name: node for node in proto.graph.node}
        self.stored = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.outputs = {value.name: value for value in proto.graph.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for name in set(graph.reads(node)):
                self._readers.setdefault(name, []).append(node)

    def own(self, name: str) -> str:
        """The tensor that shows an operator's own error: what it makes, after a ReLU or clip that alone reads it."""
        tensor = self.nodes[name].output[0]
        readers = self._readers.get(tensor, [])
        if len(readers) == 1 and readers[0].op_type in PASS_ON and tensor not in self.outputs:
            return str(readers[0].output[0])
        return str(tensor)

    def behind(self, name: str) -> list[onnx.NodeProto]:
        """An operator and all that depend on it, in order."""
        found, reached = [self.nodes[name]], {*self.nodes[name].output}
        for node in self.proto.graph.node:
            if node.name != name and reached.intersection(graph.reads(node)):
                found.append(node)
                reached.update(node.output)
        return found

    def between(self, names: Iterable[str]) -> list[str]:
        """Inner tensors that the parts behind these operators read, or show their error on."""
        given = {value.name for value in self.proto.graph.input}
        read = {tensor for name in names for tensor in _needs(self.behind(name), self.stored)}
        return sorted((read | {self.own(name) for name in names}) - given - set(self.outputs))

    def alone(self, name: str, form: Form, known: Arrays) -> onnx.ModelProto:
        """What follows an operator, itself included, all in float but this operator.

        Its outputs are those of the model that the operator reaches, and the tensor that shows its own error.

        Args:
            known: values of the float graph's tensors; those that are needed become inputs of their shape.
        """
        nodes = form.nodes(self.behind(name))
        stored = {**form.stored, **self.stored}
        made = {tensor for node in nodes for tensor in node.output}
        reached = [value for tensor, value in self.outputs.items() if tensor in made]
        own = self.own(name)
        shown = [] if own in self.outputs else [_value(own, known[own])]
        inputs = [_value(tensor, known[tensor]) for tensor in _needs(nodes, stored)]
        return self._model(nodes, inputs, [*reached, *shown], stored)

    def whole(self, name: str, form: Form) -> onnx.ModelProto:
        """The model with one operator in another precision."""
        behind = self.behind(name)
        later = {node.name for node in behind}
        before = [node for node in self.proto.graph.node if node.name not in later]
        stored = {**form.stored, **self.stored}
        inputs = [value for value in self.proto.graph.input if value.name not in self.stored]
        return self._model([*before, *form.nodes(behind)], inputs, [*self.outputs.values()], stored)

    def _model(
        self,
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        stored: Mapping[str, onnx.TensorProto],
    ) -> onnx.ModelProto:
        used = {tensor for node in nodes for tensor in graph.reads(node)}
        kept = [tensor for name, tensor in stored.items() if name in used]
        made = helper.make_graph(nodes, self.proto.graph.name or "graph", inputs, outputs, kept)
        model = onnx.ModelProto(ir_version=self.proto.ir_version, graph=made)
        model.opset_import.extend(self.proto.opset_import)
        model.functions.extend(self.proto.functions)
        return model


def copied(node: onnx.NodeProto) -> onnx.NodeProto:
    """A copy of a node, to be changed."""
    fresh = onnx.NodeProto()
    fresh.CopyFrom(node)
    return fresh


def _needs(nodes: Sequence[onnx.NodeProto], stored: Mapping[str, onnx.TensorProto]) -> list[str]:
    """Names that nodes read and neither make nor find among the stored tensors."""
    made = {name for node in nodes for name in node.output}
    return sorted({name for node in nodes for name in graph.reads(node)} - made - set(stored))


def _value(name: str, array: NDArray[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def sqnr(signal: NDArray[Any], found: NDArray[Any]) -> float | None:
    """Signal-to-quantization-noise ratio, decibels: ten times the logarithm of mean square over mean square error.

    Between `LOWEST` and `HIGHEST`; None where what was found is NaN or infinite, and the signal is not.

    >>> sqnr(np.array([1.0, -1.0]), np.array([1.1, -1.1]))
    20.0
    """
    moved = np.isfinite(signal) | (signal != found)  # what is infinite in both is no noise
    wanted = signal[moved].astype(np.float64)
    noise = float(np.mean((wanted - found[moved]) ** 2)) if wanted.size else 0.0
    if not np.isfinite(noise):
        return None
    ratio = max(float(np.mean(wanted**2)) if wanted.size else 0.0, 1e-30) / max(noise, 1e-30)
    return round(min(max(10 * float(np.log10(ratio)), LOWEST), HIGHEST), 2)


LOWEST, HIGHEST = -100.0, 150.0
"""Decibels: further apart no float32 numbers are, as they have 24 bits (6.02 dB each)."""
