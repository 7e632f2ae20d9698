"""Which operators a quantized model suffers from, worst first: the order in which they are given back to float."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from farthing.bench import Tick
from farthing.errors import PluginError, UnsupportedError
from farthing.forge import graph
from farthing.forge.apply import guarded
from farthing.forge.quantize.calibrate import chunk, model_feeds
from farthing.forge.quantize.static import StaticInt8, quantizable
from farthing.model import Model
from farthing.recipe import Step
from farthing.target import Target
from farthing.task import Task

Arrays = Mapping[str, NDArray[Any]]
STEP = Step(use="quantize.static.v1")
SAMPLES = 16
PASS_ON = {"Relu", "Clip"}  # an 8-bit range does their work


def ranked(
    model: Model, quantize: StaticInt8, target: Target, task: Task, tick: Tick | None = None
) -> list[str]:
    """Names of the operators that int8 would quantize, the most harmful first.

    Harm is the noise-to-signal ratio at the model's outputs if that operator alone, its inputs and its output,
    is quantized, over a few calibration samples. Operators that only pass on what is quantized are left out.
    The model is quantized once and run once in float; for each operator only what follows it is run again.

    Args:
        model: the float model.
        quantize: how it is quantized.
        tick: called with (done, total) operators.

    Raises:
        FarthingError: a model could not be made or run.
    """
    whole = guarded(quantize, model, target, task, STEP)
    if not isinstance(whole, Model):
        raise PluginError(f"{STEP.use} gives a {type(whole).__name__}, not a Model")
    source = graph.load(model.file)
    graph.name_nodes(source)
    twins = Twins(source, graph.load(whole.file))
    names = [name for name in twins.quantized() if name not in quantize.exclude]
    count = min(SAMPLES, len(task.split("calibration")))
    feeds = model_feeds(model, task, np.arange(chunk(model, task, count)) % count)
    between = twins.between(names)
    known = {**feeds, **graph.run(source, feeds, between)}
    if lost := set(between) - set(known):
        raise UnsupportedError(
            f"{model.manifest.name} passes on what is no tensor ({', '.join(sorted(lost))})"
        )
    harm: dict[str, float] = {}
    for number, name in enumerate(names):
        harm[name] = _harm(twins.alone(name, known), known)
        if tick:
            tick(number + 1, len(names))
    return sorted(harm, key=lambda name: -harm[name])


def _harm(alone: onnx.ModelProto, known: Arrays) -> float:
    return _noise(known, graph.run(alone, {value.name: known[value.name] for value in alone.graph.input}))


def _noise(expected: Arrays, found: Arrays) -> float:
    """Mean squared difference over mean squared signal, of the output where it is largest."""
    ratios = [0.0]
    for name, array in found.items():
        signal = expected[name].astype(np.float64)
        power = float(np.mean(signal**2))
        ratios.append(float(np.mean((signal - array) ** 2)) / max(power, 1e-30))
    return max(ratio if np.isfinite(ratio) else np.inf for ratio in ratios)


class Twins:
    """A float graph and what static quantization made of it, from which single operators are taken over.

    Args:
        source: the float model, every node with a name of its own.
        quantized: the same with Q/DQ pairs; some ReLUs may be gone, absorbed in the range of what they follow.
    """

    def __init__(self, source: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
        self._source = source
        self._nodes = {node.name: node for node in source.graph.node}
        self._outputs = {value.name: value for value in source.graph.output}
        self._stored = {tensor.name: tensor for tensor in source.graph.initializer}
        self._stored8 = {tensor.name: tensor for tensor in quantized.graph.initializer}
        self._twins = {node.name: node for node in quantized.graph.node}
        self._maker = {name: node for node in quantized.graph.node for name in node.output}
        self._reader = {
            node.input[0]: node for node in quantized.graph.node if _is(node, "Quantize", "Dequantize")
        }

    def quantized(self) -> list[str]:
        """Names of the operators that compute in 8 bits, in the order of the graph."""
        types = set(quantizable()) - PASS_ON
        return [name for name, node in self._nodes.items() if node.op_type in types and self._computes(name)]

    def _computes(self, name: str) -> bool:
        """Whether a node reads 8 bits and does not only pass them on: then its result shares their scale."""
        twin = self._twins.get(name)
        if twin is None:
            return False
        makers = [self._maker[tensor] for tensor in twin.input if tensor in self._maker]
        scales = {node.input[1] for node in makers if _is(node, "Dequantize")}
        after = {self._reader[tensor].input[1] for tensor in twin.output if tensor in self._reader}
        return bool(scales) and not scales & after

    def between(self, names: list[str]) -> list[str]:
        """Inner tensors of the float graph that the parts behind these operators need."""
        given = {value.name for value in self._source.graph.input}
        needed = {tensor for name in names for tensor in _needs(self._behind(name), self._stored)}
        return sorted(needed - given - set(self._outputs))

    def alone(self, name: str, known: Arrays) -> onnx.ModelProto:
        """What follows an operator, itself included, all in float but this operator.

        Args:
            known: values of the float graph's tensors; those that are needed become inputs of their shape.
        """
        behind = [_copy(node) for node in self._behind(name)]
        nodes = [*self._quantize_inputs(behind[0]), *self._quantize_outputs(behind)]
        stored = {**self._stored8, **self._stored}
        made = {tensor for node in nodes for tensor in node.output}
        used = {tensor for node in nodes for tensor in _uses(node)}
        part = helper.make_graph(
            nodes,
            "alone",
            [_value(tensor, known[tensor]) for tensor in _needs(nodes, stored)],
            [value for tensor, value in self._outputs.items() if tensor in made],
            [tensor for key, tensor in stored.items() if key in used],
        )
        model = onnx.ModelProto(ir_version=self._source.ir_version, graph=part)
        model.opset_import.extend(self._source.opset_import)
        model.functions.extend(self._source.functions)
        return model

    def _behind(self, name: str) -> list[onnx.NodeProto]:
        """An operator of the float graph and all that depend on it, in order."""
        found, reached = [self._nodes[name]], {*self._nodes[name].output}
        for node in self._source.graph.node:
            if node.name != name and reached.intersection(_uses(node)):
                found.append(node)
                reached.update(node.output)
        return found

    def _quantize_inputs(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The nodes that give a copied operator its inputs in 8 bits; it is changed to read from them."""
        for place, tensor in enumerate(self._twins[node.name].input):
            maker = self._maker.get(tensor)
            if maker is None or not _is(maker, "Dequantize"):
                continue
            back = _copy(maker)
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


def _is(node: onnx.NodeProto, *kinds: str) -> bool:
    return node.op_type in {f"{kind}Linear" for kind in kinds}


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    fresh = onnx.NodeProto()
    fresh.CopyFrom(node)
    return fresh


def _rewired(node: onnx.NodeProto, source: str, result: str) -> onnx.NodeProto:
    fresh = _copy(node)
    fresh.input[0], fresh.output[0], fresh.name = source, result, f"{result}/{node.op_type}"
    return fresh


def _uses(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, those that graphs inside it take from outside included."""
    inner = [*(item.g for item in node.attribute), *(part for item in node.attribute for part in item.graphs)]
    return {
        name for part in (node, *(n for g in inner for n in graph.nodes(g))) for name in part.input if name
    }


def _needs(nodes: list[onnx.NodeProto], stored: Mapping[str, onnx.TensorProto]) -> list[str]:
    """Names that nodes read and neither make nor find among the stored tensors."""
    own = {
        name for node in nodes for part in graph.nodes(onnx.GraphProto(node=[node])) for name in part.output
    }
    return sorted({name for node in nodes for name in _uses(node)} - own - set(stored))


def _value(name: str, array: NDArray[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
