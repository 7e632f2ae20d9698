"""A finished graph as the bytes of a ``.tflite`` file (https://github.com/google-ai-edge/LiteRT, schema version 3)."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.errors import UnsupportedError, require
from farthing.forge.tflite.builder import Operator, Tensor
from farthing.forge.tflite.net import Params

IDENTIFIER = b"TFL3"
SIGNATURE = "serving_default"
ALIGNMENT = 16  # the schema's force_align of buffers, which kernels may rely on
MAX_BYTES = (2 << 30) - (1 << 20)  # flatbuffer offsets have 31 bits
TYPES = {
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "int8": "INT8",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}


def write(
    tensors: Sequence[Tensor],
    operators: Sequence[Operator],
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
) -> bytes:
    """The file: weights inside the flatbuffer, equal ones once, names of one or two letters for inner tensors.

    Args:
        tensors, operators: the graph, operators in the order they run.
        inputs, outputs: name -> number of its tensor; the signature ``serving_default`` has the same names.

    Raises:
        NotInstalled: ai-edge-litert is not installed.
        UnsupportedError: more than the 2 GiB that one file can hold, or an element type that TFLite lacks.
    """
    schema = require("ai_edge_litert.schema_py_generated", "litert")
    total = sum(tensor.data.nbytes for tensor in tensors if tensor.data is not None)
    if total > MAX_BYTES:
        raise UnsupportedError(f"{total:,} bytes of weights are more than the 2 GiB one TFLite file can hold")
    used, numbers = _used(tensors, operators, inputs, outputs)
    model = schema.ModelT()
    model.version = 3
    model.operatorCodes, codes = _codes(schema, operators)
    model.buffers, places = _buffers(schema, used)
    graph = schema.SubGraphT()
    names = _names({tensor.name for tensor in used})
    graph.tensors = [_tensor(schema, tensor, places[i], next(names)) for i, tensor in enumerate(used)]
    graph.operators = [_operator(schema, operator, codes, numbers) for operator in operators]
    graph.inputs = [numbers[i] for i in inputs.values()]
    graph.outputs = [numbers[i] for i in outputs.values()]
    model.subgraphs = [graph]
    model.signatureDefs = [_signature(schema, inputs, outputs, numbers)]
    return _packed(model, total)


def _used(
    tensors: Sequence[Tensor],
    operators: Sequence[Operator],
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
) -> tuple[list[Tensor], dict[int, int]]:
    """The tensors that are read or made, and what their numbers become."""
    read = {i for operator in operators for i in (*operator.inputs, *operator.outputs)}
    kept = sorted((read | {*inputs.values(), *outputs.values()}) - {-1})
    return [tensors[i] for i in kept], {-1: -1} | {old: new for new, old in enumerate(kept)}


def _codes(schema: Any, operators: Sequence[Operator]) -> tuple[list[Any], dict[str, int]]:
    codes: dict[str, int] = {}
    versions: dict[str, int] = {}
    for operator in operators:
        codes.setdefault(operator.code, len(codes))
        versions[operator.code] = max(versions.get(operator.code, 1), operator.version)
    entries = []
    for code in codes:
        entry = schema.OperatorCodeT()
        entry.builtinCode = getattr(schema.BuiltinOperator, code)
        entry.deprecatedBuiltinCode = min(entry.builtinCode, 127)
        entry.version = versions[code]
        entries.append(entry)
    return entries, codes


def _buffers(schema: Any, tensors: Sequence[Tensor]) -> tuple[list[Any], list[int]]:
    """Buffers, the first empty as the format demands, and the number of each tensor's."""
    buffers, known, places = [schema.BufferT()], {b"": 0}, []
    for tensor in tensors:
        raw = b"" if tensor.data is None else np.ascontiguousarray(tensor.data).tobytes()
        if raw not in known:
            known[raw] = len(buffers)
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(raw, np.uint8)
            buffers.append(buffer)
        places.append(known[raw])
    return buffers, places


def _tensor(schema: Any, tensor: Tensor, buffer: int, name: str) -> Any:
    made = schema.TensorT()
    made.name = tensor.name or name
    made.shape = [size.first for size in tensor.shape]
    if any(size.free for size in tensor.shape):
        made.shapeSignature = [size.signature for size in tensor.shape]
    if tensor.dtype not in TYPES:
        raise UnsupportedError(
            f"tensor {tensor.name!r} of {tensor.dtype} cannot be written as TFLite: use one of {', '.join(TYPES)}"
        )
    made.type = getattr(schema.TensorType, TYPES[tensor.dtype])
    made.buffer = buffer
    made.quantization = _quantization(schema, tensor.params)
    return made


def _quantization(schema: Any, params: Params | None) -> Any:
    if params is None:
        return None
    made = schema.QuantizationParametersT()
    made.scale = np.asarray(params.scale, np.float32)
    made.zeroPoint = np.asarray(params.zero, np.int64)
    made.quantizedDimension = 0 if params.single else params.axis
    return made


def _operator(schema: Any, operator: Operator, codes: Mapping[str, int], numbers: Mapping[int, int]) -> Any:
    made = schema.OperatorT()
    made.opcodeIndex = codes[operator.code]
    made.inputs = [numbers[i] for i in operator.inputs]
    made.outputs = [numbers[i] for i in operator.outputs]
    if operator.options:
        made.builtinOptionsType = getattr(schema.BuiltinOptions, operator.options)
        made.builtinOptions = getattr(schema, f"{operator.options}T")()
        for name, value in operator.fields.items():
            setattr(made.builtinOptions, name, _field(schema, name, value))
    return made


def _field(schema: Any, name: str, value: Any) -> Any:
    """Enumerations by their names in the schema."""
    if not isinstance(value, str):
        return value
    if name == "padding":
        return getattr(schema.Padding, value)
    if name == "fusedActivationFunction":
        return getattr(schema.ActivationFunctionType, value)
    return getattr(schema.TensorType if name.endswith("Type") else schema.MirrorPadMode, value)


def _signature(
    schema: Any, inputs: Mapping[str, int], outputs: Mapping[str, int], numbers: Mapping[int, int]
) -> Any:
    made = schema.SignatureDefT()
    made.signatureKey = SIGNATURE
    made.subgraphIndex = 0
    made.inputs, made.outputs = [], []
    for group, given in ((made.inputs, inputs), (made.outputs, outputs)):
        for name, number in given.items():
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, numbers[number]
            group.append(entry)
    return made


def _names(taken: set[str]) -> Iterator[str]:
    letters = string.ascii_letters
    for length in itertools.count(1):
        for name in map("".join, itertools.product(letters, repeat=length)):
            if name not in taken:
                yield name


def _packed(model: Any, size: int) -> bytes:
    flatbuffers = require("flatbuffers", "litert")
    builder = _aligned(flatbuffers)(size + 65536)
    try:
        builder.Finish(model.Pack(builder), IDENTIFIER)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnsupportedError(
            f"a number of the graph does not fit the 32 bits TFLite has for it: {error}"
        ) from error
    return bytes(builder.Output())


def _aligned(flatbuffers: ModuleType) -> Any:
    """A flatbuffers builder that puts buffers at multiples of 16 bytes; the generated code forgets to."""

    class Aligned(flatbuffers.Builder):  # type: ignore[misc, name-defined]
        def CreateNumpyVector(self, x: NDArray[Any]) -> Any:  # noqa: N802
            if x.dtype != np.uint8:
                return super().CreateNumpyVector(x)
            self.StartVector(1, x.size, ALIGNMENT)
            start = int(self.Head()) - x.size
            self.Bytes[start : start + x.size] = x.tobytes()
            self.head = start
            self.vectorNumElems = x.size
            return self.EndVector()

    return Aligned
