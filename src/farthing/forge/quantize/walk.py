"""A graph run piece by piece over the same data, so that weights further on may still change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from farthing.errors import UnsupportedError
from farthing.forge import graph

Array = NDArray[Any]


def walk(
    proto: onnx.ModelProto, feeds: Sequence[Mapping[str, Array]], names: Sequence[str]
) -> Iterator[list[Array]]:
    """The values of some tensors, one after another: for each a list with one array a batch.

    Each node is run once, when something that is asked for needs it, and only what is needed later is kept. Stored
    tensors are read when the nodes that use them are run: until then, between two steps, they may be changed.

    Args:
        proto: the model; its order is that in which its nodes can run.
        feeds: its inputs, one batch after another.
        names: the tensors that are asked for.

    Raises:
        UnsupportedError: a tensor is none of the graph, or what is passed on to it is no tensor.
        ModelError, EngineError: ONNX Runtime refuses a piece, or fails in it.
    """
    left = list(proto.graph.node)
    known = [dict(feed) for feed in feeds]
    for place, name in enumerate(names):
        piece, left = _split(left, name, set(known[0]))
        later = {*(read for node in left for read in graph.reads(node)), *names[place:]}
        if piece:
            _run(proto, piece, known, later)
        if name not in known[0]:
            raise UnsupportedError(f"{name!r} cannot be computed from the model's inputs")
        yield [values[name] for values in known]


def _split(
    nodes: list[onnx.NodeProto], name: str, known: set[str]
) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """The nodes that a tensor needs, and the others, both in order."""
    needed, piece, left = {name} - known, [], []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(read for read in graph.reads(node) if read not in known)
            piece.append(node)
        else:
            left.append(node)
    return piece[::-1], left[::-1]


def _run(
    proto: onnx.ModelProto, piece: list[onnx.NodeProto], known: list[dict[str, Array]], later: set[str]
) -> None:
    """Run nodes on every batch; what is not needed later is dropped."""
    session = graph.Session(_part(proto, piece, known[0], later))
    given = [value.name for value in session.session.get_inputs()]
    for values in known:
        found = session.run({name: values[name] for name in given})
        values.update(found)
        for gone in [name for name in values if name not in later]:
            del values[gone]


def _part(
    proto: onnx.ModelProto, piece: list[onnx.NodeProto], known: Mapping[str, Array], later: set[str]
) -> onnx.ModelProto:
    read = {name for node in piece for name in graph.reads(node)}
    made = {name for node in piece for name in node.output}
    stored = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    given = sorted(read - made - {tensor.name for tensor in stored})
    if lost := [name for name in given if name not in known]:
        raise UnsupportedError(f"{lost[0]!r} is no tensor that can be passed on")
    inputs = [_value(name, known[name]) for name in given]
    outputs = [onnx.ValueInfoProto(name=name) for name in sorted(made & later)]
    part = onnx.ModelProto(ir_version=proto.ir_version)
    part.opset_import.extend(proto.opset_import)
    part.functions.extend(proto.functions)
    part.graph.CopyFrom(helper.make_graph(piece, "piece", inputs, outputs, stored))
    return part


def _value(name: str, array: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
