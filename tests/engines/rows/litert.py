"""LiteRT's models: TFLite files, written with the object interface of its schema."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from farthing.model import Manifest, Model, TensorSpec
from rows import BIAS, DECAY, WEIGHTS, Array, Row, spec

TYPES = {"str": "STRING"}


def schema() -> Any:
    return pytest.importorskip("ai_edge_litert.schema_py_generated")


class Graph:
    """A TFLite file in the making; further subgraphs are made by ``Graph(of=first)``."""

    def __init__(self, of: Graph | None = None) -> None:
        self.s = schema()
        if of is None:
            self.model = self.s.ModelT()
            self.model.version, self.model.description = 3, "test"
            self.model.buffers, self.model.operatorCodes, self.model.subgraphs = [self.s.BufferT()], [], []
        else:
            self.model = of.model
        self.graph = self.s.SubGraphT()
        self.graph.name, self.graph.tensors, self.graph.operators = f"g{len(self.model.subgraphs)}", [], []
        self.graph.inputs, self.graph.outputs = [], []
        self.model.subgraphs.append(self.graph)

    def tensor(
        self, name: str, shape: Sequence[int | str], dtype: str = "float32", data: Array | None = None
    ) -> int:
        tensor = self.s.TensorT()
        tensor.name = name
        tensor.type = getattr(self.s.TensorType, TYPES.get(dtype, dtype.upper()))
        tensor.shape = [size if isinstance(size, int) else 1 for size in shape]
        if any(isinstance(size, str) for size in shape):
            tensor.shapeSignature = [size if isinstance(size, int) else -1 for size in shape]
        if data is not None:
            buffer = self.s.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def constant(self, data: Array) -> int:
        return self.tensor(f"c{len(self.graph.tensors)}", data.shape, data.dtype.name, data)

    def operator(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: str = "", **fields: Any
    ) -> None:
        """``options`` is the name of a table without its ``Options``; a name in lower case is a custom operator."""
        code, operator = self.s.OperatorCodeT(), self.s.OperatorT()
        number = getattr(self.s.BuiltinOperator, name, self.s.BuiltinOperator.CUSTOM)
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
        if number == self.s.BuiltinOperator.CUSTOM:
            code.customCode = name
        self.model.operatorCodes.append(code)
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if options:
            table = getattr(self.s, f"{options}OptionsT")()
            vars(table).update(fields)
            operator.builtinOptions = table
            operator.builtinOptionsType = getattr(self.s.BuiltinOptions, f"{options}Options")
        self.graph.operators.append(operator)

    def sign(self, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        """Give the graph a signature with these names of its tensors."""
        signature = self.s.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = (
            [self._entry(name, number) for name, number in side.items()] for side in (inputs, outputs)
        )
        self.model.signatureDefs = [signature]

    def _entry(self, name: str, number: int) -> Any:
        entry = self.s.TensorMapT()
        entry.name, entry.tensorIndex = name, number
        return entry

    def content(self) -> bytes:
        import flatbuffers

        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


Build = Callable[..., Any]
"""A graph, the numbers of its inputs and those of its outputs."""


def tflite_model(build: Build, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Model:
    graph = Graph()
    sides = [[graph.tensor(one.name, one.shape, one.dtype) for one in side] for side in (inputs, outputs)]
    graph.graph.inputs, graph.graph.outputs = sides
    build(graph, *sides[0], *sides[1])
    manifest = Manifest(name="m", format="tflite", inputs=tuple(inputs), outputs=tuple(outputs))
    return Model.create(manifest, {"m.tflite": graph.content()})


def linear(graph: Graph, x: int, y: int, weights: Array = WEIGHTS, bias: Array = BIAS) -> None:
    w, b = graph.constant(np.ascontiguousarray(weights.T)), graph.constant(bias)
    graph.operator("FULLY_CONNECTED", [x, w, b], [y], "FullyConnected", keepNumDims=True)


def affine(batch: int | str, build: Build = linear) -> Model:
    return tflite_model(build, [spec("x", batch, 4)], [spec("y", batch, 3)])


def large() -> Model:
    def build(graph: Graph, x: int, y: int) -> None:
        linear(graph, x, y, np.eye(512, dtype=np.float32), np.zeros(512, np.float32))

    return tflite_model(build, [spec("x", "batch", 512)], [spec("y", "batch", 512)])


def faded(graph: Graph, x: int, h: int, y: int, batch: int | str) -> None:
    """``y = DECAY * h + affine(x)``."""
    z, f = graph.tensor("z", (batch, 3)), graph.tensor("f", (batch, 3))
    linear(graph, x, z)
    graph.operator("MUL", [h, graph.constant(np.full(1, DECAY, np.float32))], [f], "Mul")
    graph.operator("ADD", [f, z], [y], "Add")


def stateful(batch: int | str = "batch") -> Model:
    def build(graph: Graph, x: int, h: int, y: int, after: int) -> None:
        faded(graph, x, h, y, batch)
        graph.operator("ADD", [y, graph.constant(np.zeros(1, np.float32))], [after], "Add")

    inputs = [spec("x", batch, 4), spec("h", batch, 3, role="state")]
    outputs = [spec("y", batch, 3), spec("h_next", batch, 3, role="state")]
    return tflite_model(build, inputs, outputs)


def variable(graph: Graph) -> int:
    """A handle of the variable ``h``."""
    handle = graph.tensor("handle", (), "resource")
    graph.operator("VAR_HANDLE", [], [handle], "VarHandle", container="", sharedName="h")
    return handle


def inner_state() -> Model:
    def build(graph: Graph, x: int, y: int) -> None:
        start = Graph(of=graph)
        start.operator("ASSIGN_VARIABLE", [variable(start), start.constant(np.zeros((1, 3), np.float32))], [])
        graph.operator("CALL_ONCE", [], [], "CallOnce", initSubgraphIndex=1)
        handle, last = variable(graph), graph.tensor("last", (1, 3))
        graph.operator("READ_VARIABLE", [handle], [last])
        faded(graph, x, last, y, 1)
        graph.operator("ASSIGN_VARIABLE", [handle, y], [])

    return affine(1, build)


def identity(dtype: str) -> Model:
    def build(graph: Graph, x: int, y: int) -> None:
        graph.operator("RESHAPE", [x, graph.constant(np.array([-1, 2], np.int32))], [y])

    return tflite_model(build, [spec("x", "n", 2, dtype=dtype)], [spec("y", "n", 2, dtype=dtype)])


def suppress(graph: Graph, boxes: int, scores: int, kept: int) -> None:
    selected, valid = graph.tensor("selected", (100,), "int32"), graph.tensor("valid", (), "int32")
    numbers = [np.array(100, np.int32), np.float32(0.5), np.float32(0.1)]
    limits = [graph.constant(np.asarray(number)) for number in numbers]
    graph.operator(
        "NON_MAX_SUPPRESSION_V4", [boxes, scores, *limits], [selected, valid], "NonMaxSuppressionV4"
    )
    size = graph.tensor("size", (1,), "int32")
    graph.operator("RESHAPE", [valid, graph.constant(np.array([1], np.int32))], [size])
    graph.operator("SLICE", [selected, graph.constant(np.array([0], np.int32)), size], [kept], "Slice")


def unknown(graph: Graph, x: int, y: int) -> None:
    graph.operator("telepathy", [x], [y])


def future(graph: Graph, x: int, y: int) -> None:
    linear(graph, x, y)
    graph.model.operatorCodes[0].version = 99


ROW = Row(
    engine="litert",
    package="ai_edge_litert",
    threads=(1, 2, 4),
    affine=affine,
    large=large,
    stateful=stateful,
    fixed_state=lambda: stateful(2),
    inner_state=inner_state,
    identity=identity,
    dtypes=tuple("bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()),
    free=lambda: tflite_model(linear, [spec("x", "batch", "time", 4)], [spec("y", "batch", "time", 3)]),
    two=lambda: tflite_model(
        lambda graph, a, b, y: graph.operator("SUB", [a, b], [y], "Sub"),
        [spec("a", "batch", 4), spec("b", "batch", 4)],
        [spec("y", "batch", 4)],
    ),
    parameter=lambda: tflite_model(
        lambda graph, x, gain, y: graph.operator("MUL", [x, gain], [y], "Mul"),
        [spec("x", "batch", 4), spec("gain", batch_axis=None, role="parameter")],
        [spec("y", "batch", 4)],
    ),
    suppress=lambda: tflite_model(
        suppress,
        [spec("boxes", "n", 4, batch_axis=None), spec("scores", "n", batch_axis=None)],
        [spec("kept", "k", dtype="int32", batch_axis=None)],
    ),
    unsupported=(lambda: affine(1, unknown), lambda: affine(1, future)),
)
