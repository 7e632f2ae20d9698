"""TFLite files: what is in the flatbuffer, and which operators a delegate of LiteRT takes over."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from farthing.anatomy import Placed
from farthing.engines import tflite
from farthing.engines.litert import BUILTIN, REFERENCE, XNNPACK, LiteRtEngine, runtime
from farthing.errors import ModelError, require
from farthing.forge.inspect.facts import (
    WEIGHTS,
    Inspection,
    Reader,
    Stored,
    Subject,
    layers,
    share_of_zeros,
    weights,
    zeros_in,
)
from farthing.model import TensorSpec

TYPES = {
    "FLOAT32": "float32",
    "FLOAT16": "float16",
    "BFLOAT16": "bfloat16",
    "FLOAT64": "float64",
    "INT4": "int4",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT16": "int16",
    "UINT16": "uint16",
    "INT32": "int32",
    "UINT32": "uint32",
    "INT64": "int64",
    "UINT64": "uint64",
    "BOOL": "bool",
    "STRING": "str",
    "COMPLEX64": "complex64",
    "COMPLEX128": "complex128",
}
_DAMAGE = (struct.error, ValueError, TypeError, LookupError, AttributeError, OverflowError)
_RESOLVERS = {
    "": "BUILTIN",
    XNNPACK: "BUILTIN",
    BUILTIN: "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    REFERENCE: "BUILTIN_REF",
}
_UNCOUNTED = ("LSTM", "RNN", "SVDF", "CUSTOM", "STABLEHLO", "WHILE", "IF", "CALL")


def look(subject: Subject) -> Inspection:
    """See `farthing.forge.inspect.inspect`."""
    schema = require("ai_edge_litert.schema_py_generated", "litert")
    tflite.read(subject.path.read_bytes(), subject.path)  # refuses what is damaged
    try:
        return _look(schema, subject)
    except _DAMAGE as error:
        raise ModelError(
            f"{subject.path} is not TFLite, or is damaged ({error}): copy or export it again"
        ) from error


def _look(schema: Any, subject: Subject) -> Inspection:
    data = subject.path.read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    net = _Net(schema, model)
    manifest = subject.manifest
    main = model.subgraphs[0]
    inputs = manifest.inputs if manifest else tuple(net.spec(main, i) for i in main.inputs)
    outputs = manifest.outputs if manifest else tuple(net.spec(main, i) for i in main.outputs)
    kinds = Counter(net.kind(op) for graph in model.subgraphs for op in graph.operators)
    stored = net.stored()
    found = Inspection(
        name=subject.name,
        format="tflite",
        size_bytes=subject.size_bytes,
        inputs=inputs,
        outputs=outputs,
        operators=dict(kinds.most_common()),
        nodes=sum(kinds.values()),
        parameters=sum(part.numbers for part in stored.values()),
        weights=weights(stored.values()),
        layers=layers(net.readers(), stored),
        zeros=share_of_zeros(stored.values()),
    )
    work, reason = net.macs()
    notes = [f"multiply-accumulates not counted: {reason}"] if work is None else []
    fixed = [s.shape[s.batch_axis] for s in inputs if s.batch_axis is not None]
    samples = max([size for size in fixed if isinstance(size, int)], default=1)
    found = msgspec.structs.replace(found, macs=None if work is None else work // max(samples, 1))
    if not subject.run:
        return msgspec.structs.replace(found, notes=tuple(notes))
    runtime, placement, trouble = _placed(subject, net)
    notes += [trouble or "times of single nodes are not known: LiteRT's Python interface does not tell them"]
    return msgspec.structs.replace(found, runtime=runtime, placement=placement, notes=tuple(notes))


class _Net:
    """A flatbuffer as its parts: kinds, tensors, stored numbers."""

    def __init__(self, schema: Any, model: Any) -> None:
        self._model = model
        self._builtin = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        self._types = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
        self.main = model.subgraphs[0]

    def kind(self, operator: Any) -> str:
        """The operator's name; of a custom one, its own."""
        code = self._model.operatorCodes[operator.opcodeIndex]
        name = str(self._builtin.get(max(code.builtinCode, code.deprecatedBuiltinCode), "unknown"))
        custom = code.customCode
        return f"CUSTOM {custom.decode(errors='replace')}" if name == "CUSTOM" and custom else name

    def dtype(self, tensor: Any) -> str:
        name = self._types.get(tensor.type, "unknown")
        return TYPES.get(name) or str(name).lower()

    def shape(self, tensor: Any) -> tuple[int, ...]:
        return tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()

    def name(self, graph: Any, index: int) -> str:
        """A tensor's name, made unlike that of any other by its number."""
        number = next(i for i, other in enumerate(self._model.subgraphs) if other is graph)
        return f"{number}:{index}"

    def spec(self, graph: Any, index: int) -> TensorSpec:
        tensor = graph.tensors[index]
        sign = tensor.shapeSignature
        signature = self.shape(tensor) if sign is None else [int(size) for size in sign]
        shape = tuple(f"free_{i}" if size < 0 else size for i, size in enumerate(signature))
        return TensorSpec(name=(tensor.name or b"").decode(), dtype=self.dtype(tensor), shape=shape)

    def stored(self) -> dict[str, Stored]:
        """Tensors with numbers of their own; one buffer that several share counts once."""
        found: dict[str, Stored] = {}
        seen: set[int] = set()
        for graph in self._model.subgraphs:
            for index, tensor in enumerate(graph.tensors):
                buffer = self._model.buffers[tensor.buffer] if tensor.buffer else None
                size = (
                    0 if buffer is None else (buffer.size or (0 if buffer.data is None else len(buffer.data)))
                )
                if size and tensor.buffer not in seen:
                    seen.add(tensor.buffer)
                    name = self.name(graph, index)
                    shape, dtype = self.shape(tensor), self.dtype(tensor)
                    found[name] = Stored(
                        math.prod(shape), dtype, int(size), self._zeros(buffer, dtype, shape)
                    )
        return found

    @staticmethod
    def _zeros(buffer: Any, dtype: str, shape: tuple[int, ...]) -> int | None:
        """How many numbers of a weight are zero; None for what is none, or lies outside the buffer."""
        if buffer.data is None or dtype not in WEIGHTS:
            return None
        numbers = np.frombuffer(bytes(buffer.data), np.uint8)
        whole = numbers.size == math.prod(shape) * np.dtype(dtype).itemsize
        return zeros_in(numbers.view(dtype).reshape(shape)) if whole else None

    def readers(self) -> list[Reader]:
        """Operators, named after what they make."""
        return [
            Reader(
                self.label(graph, op),
                self.kind(op),
                [self.name(graph, i) for i in _given(op.inputs)],
                [self.name(graph, i) for i in _given(op.outputs)],
            )
            for graph in self._model.subgraphs
            for op in graph.operators
        ]

    def label(self, graph: Any, operator: Any) -> str:
        """What people call an operator: the name of its first output."""
        made = _given(operator.outputs)
        name = (graph.tensors[made[0]].name or b"").decode(errors="replace") if made else ""
        return name or f"operator {list(graph.operators).index(operator)}"

    def precision(self, operator: Any) -> str:
        """The type of what an operator makes, and of its weights where that is another."""
        made = [self.dtype(self.main.tensors[i]) for i in _given(operator.outputs)[:1]]
        read = [self.main.tensors[i] for i in _given(operator.inputs)[1:2]]
        held = {self.dtype(tensor) for tensor in read if self._holds(tensor)} - {*made, "int32", "int64"}
        return " with ".join([*made, *(f"{dtype} weights" for dtype in held)])

    def _holds(self, tensor: Any) -> bool:
        """Whether a tensor has numbers of its own in the file."""
        buffer = self._model.buffers[tensor.buffer] if tensor.buffer else None
        return buffer is not None and bool(buffer.size or (buffer.data is not None and len(buffer.data)))

    def macs(self) -> tuple[int | None, str]:
        """Multiply-accumulates of one run at the shapes in the file, or why they cannot be counted."""
        total = 0
        for op in self.main.operators:
            kind = self.kind(op)
            if any(word in kind for word in _UNCOUNTED):
                return None, f"the operator {kind} is not counted"
            if kind in _MACS:
                shapes = [self.shape(self.main.tensors[i]) if i >= 0 else () for i in op.inputs]
                total += _MACS[kind](shapes, self.shape(self.main.tensors[op.outputs[0]]), op)
        return total, ""


Shapes = Sequence[tuple[int, ...]]


def _given(indices: Any) -> list[int]:
    return [] if indices is None else [int(i) for i in indices if i >= 0]


def _depthwise(shapes: Shapes, out: tuple[int, ...], _: Any) -> int:
    return math.prod(out) * math.prod(shapes[1][1:3])


def _convolution(shapes: Shapes, out: tuple[int, ...], _: Any) -> int:
    return math.prod(out) * math.prod(shapes[1][1:])


def _transposed(shapes: Shapes, _: tuple[int, ...], __: Any) -> int:
    outputs, height, width, _inputs = shapes[1]
    return math.prod(shapes[2]) * outputs * height * width


def _product(shapes: Shapes, out: tuple[int, ...], operator: Any) -> int:
    across = bool(getattr(operator.builtinOptions, "adjX", False))
    return math.prod(out) * shapes[0][-2 if across else -1]


def _connected(shapes: Shapes, out: tuple[int, ...], _: Any) -> int:
    return math.prod(out) * shapes[1][-1]


_MACS: dict[str, Callable[[Shapes, tuple[int, ...], Any], int]] = {
    "CONV_2D": _convolution,
    "CONV_3D": lambda shapes, out, _: math.prod(out) * math.prod(shapes[1][:4]),
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _connected,
    "BATCH_MATMUL": _product,
}


def _placed(subject: Subject, net: _Net) -> tuple[str, tuple[Placed, ...], str]:
    """The runtime, its nodes with what runs each, and why they are not known if so."""
    lite = runtime()
    name = f"litert {LiteRtEngine.installed()}"
    if any(provider not in _RESOLVERS for provider in subject.options.providers):
        return name, (), "placement unavailable with a delegate of one's own"
    asked = next(iter(subject.options.providers), "")
    try:
        interpreter = lite.Interpreter(
            model_path=str(subject.path),
            num_threads=1,
            experimental_op_resolver_type=lite.OpResolverType[_RESOLVERS[asked]],
        )
        interpreter.allocate_tensors()
        details = interpreter._get_ops_details()
    except (RuntimeError, ValueError) as error:
        return name, (), f"not run: LiteRT refuses it: {str(error).strip().splitlines()[0]}"
    except AttributeError:
        return name, (), "placement unavailable: this LiteRT does not tell its operators"
    return name, _partition(net, details), ""


def _partition(net: _Net, details: Sequence[Any]) -> tuple[Placed, ...]:
    """The operators of the file in order; those that a delegate stands for are its own.

    LiteRT appends a node for each delegate that lists what it reads and makes: it runs whatever lies between.
    """
    ours = [op for op in details if op["op_name"] != "DELEGATE"]
    made_by = {int(i): n for n, op in enumerate(ours) for i in op["outputs"]}
    delegated: set[int] = set()
    for node in (op for op in details if op["op_name"] == "DELEGATE"):
        given = {int(i) for i in node["inputs"]}
        left = [int(i) for i in node["outputs"]]
        while left:
            number = made_by.get(left.pop())
            if number is not None and number not in delegated:
                delegated.add(number)
                left += [int(i) for i in ours[number]["inputs"] if int(i) not in given]
    tensors = net.main.tensors
    return tuple(
        Placed(
            node=net.label(net.main, op),
            operator=net.kind(op),
            provider="delegate (XNNPACK)" if number in delegated else "built-in kernel",
            shape=net.shape(tensors[op.outputs[0]]) if _given(op.outputs) else (),
            precision=net.precision(op),
        )
        for number, op in enumerate(net.main.operators)
    )
