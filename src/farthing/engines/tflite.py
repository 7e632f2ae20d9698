"""What a ``.tflite`` file says of itself, read before a runtime sees it.

The file is a flatbuffer (schema version 3, https://github.com/google-ai-edge/LiteRT). LiteRT checks its offsets, and
most of what they lead to; it follows null pointers where a model has no graph, and it reads tensors that a signature
names without asking whether they exist. Here every number that stands for another part of the file is checked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from farthing.errors import ModelError, require

IDENTIFIER = b"TFL3"
MOST_PARTS = 1_000_000  # tables, as flatbuffers' own verifier allows
_SCALES = 4096  # as many as are kept of one tensor
_DTYPES = {"float16": "float16", "float32": "float32", "float64": "float64", "string": "str"}
_LEFT_OUT = -1
_OPTIONAL = {  # number of the first input that may be left out, elsewhere none
    "FULLY_CONNECTED": 2,
    "CONV_2D": 2,
    "DEPTHWISE_CONV_2D": 2,
    "CONV_3D": 2,
    "TRANSPOSE_CONV": 3,
    "CONV_3D_TRANSPOSE": 3,
    "SVDF": 4,
    "RNN": 1,
    "LSTM": 1,
    "UNIDIRECTIONAL_SEQUENCE_RNN": 1,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": 1,
    "BIDIRECTIONAL_SEQUENCE_RNN": 1,
    "BIDIRECTIONAL_SEQUENCE_LSTM": 1,
}
_SILENT = frozenset(
    {"ASSIGN_VARIABLE", "CALL_ONCE", "HASHTABLE_IMPORT", "CALL", "IF", "WHILE", "STABLEHLO_CASE"}
)
_VARIABLES = frozenset({"ASSIGN_VARIABLE", "READ_VARIABLE", "VAR_HANDLE"})
_DAMAGE = (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError, KeyError)


class FileTensor(NamedTuple):
    """An input or output of the main graph.

    Attributes:
        number: of the tensor in the graph.
        names: that of the signature first, if there is one, then that in the graph.
        dtype: numpy name of its element type, or TensorFlow's in lower case where numpy has none.
        shape: sizes, None where the file leaves them open.
        scales, zero_points: of its quantization, ``real = scale * (number - zero_point)``; empty if it has none.
        axis: along which there are several scales.
    """

    number: int
    names: tuple[str, ...]
    dtype: str
    shape: tuple[int | None, ...]
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int


class Content(NamedTuple):
    """What a file holds: the tensors of its main graph, its operators, and whether it keeps variables between calls."""

    inputs: tuple[FileTensor, ...]
    outputs: tuple[FileTensor, ...]
    operators: frozenset[str]
    variables: bool


class _Code(NamedTuple):
    """The name of an operator, as ``CONV_2D``; a foreign one (custom, or newer than we know) goes by its own."""

    name: str
    foreign: bool


def read(data: bytes, path: Path) -> Content:
    """Read and check the structure of a file.

    Args:
        data: all of it.
        path: where it is, for messages.

    Raises:
        ModelError: no TFLite file, damaged, or it refers to parts that are not there.
        NotInstalled: ai-edge-litert is not installed.
    """
    schema = require("ai_edge_litert.schema_py_generated", "litert")
    if data[4:8] != IDENTIFIER:
        raise ModelError(f"{path} is no TFLite file, or is damaged: convert or copy it again")
    try:
        return _File(schema, data, path).content()
    except _DAMAGE as error:
        raise ModelError(f"{path} is damaged or not sound ({error}): convert or copy it again") from error


class _File:
    """Walks one file; what is out of range raises, and `read` says so."""

    def __init__(self, schema: ModuleType, data: bytes, path: Path) -> None:
        self._schema: Any = schema
        self._model: Any = schema.Model.GetRootAs(data, 0)
        self._path = path
        self._parts = 0

    def content(self) -> Content:
        graphs = [self._model.Subgraphs(i) for i in self._counted(self._model.SubgraphsLength())]
        if not graphs:
            raise ValueError("it holds no graph")
        codes = [
            self._code(self._model.OperatorCodes(i)) for i in self._counted(self._model.OperatorCodesLength())
        ]
        used: set[str] = set()
        kept = False
        for graph in graphs:
            used |= {codes[number].name for number in self._operators(graph, codes)}
            kept |= any(graph.Tensors(i).IsVariable() for i in self._counted(graph.TensorsLength()))
        named = self._signature(graphs[0])
        sides = (graphs[0].InputsAsNumpy, graphs[0].OutputsAsNumpy)
        inputs, outputs = (
            tuple(self._tensor(graphs[0], number, names.get(number, "")) for number in _numbers(side))
            for side, names in zip(sides, named, strict=True)
        )
        return Content(inputs, outputs, frozenset(used), kept or "VAR_HANDLE" in used)

    def _counted(self, count: int) -> range:
        """Indices of a vector; a small file may claim the same part millions of times."""
        self._parts += count
        if self._parts > MOST_PARTS:
            raise ModelError(f"{self._path} claims more than {MOST_PARTS:,} parts: refused")
        return range(count)

    def _code(self, code: Any) -> _Code:
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        known = self._names("BuiltinOperator")
        if known.get(number) == "CUSTOM":
            return _Code((code.CustomCode() or b"").decode(errors="replace"), True)
        return _Code(known.get(number, f"number {number}"), number not in known)

    def _names(self, enumeration: str) -> dict[int, str]:
        values = vars(getattr(self._schema, enumeration))
        return {value: name for name, value in values.items() if isinstance(value, int)}

    def _operators(self, graph: Any, codes: Sequence[_Code]) -> Iterator[int]:
        """Numbers of the operators' codes; the tensors they name are checked."""
        tensors = graph.TensorsLength()
        for side in (graph.InputsAsNumpy, graph.OutputsAsNumpy):
            _within(_numbers(side), tensors, "tensor")
        for i in self._counted(graph.OperatorsLength()):
            operator = graph.Operators(i)
            _within([operator.OpcodeIndex()], len(codes), "operator code")
            code = codes[operator.OpcodeIndex()]
            read, written = _numbers(operator.InputsAsNumpy), _numbers(operator.OutputsAsNumpy)
            _within([number for number in read if number != _LEFT_OUT], tensors, "tensor")
            _within(written, tensors, "tensor")
            if not code.foreign:
                _check_operator(code.name, read, written)
            if code.name in _VARIABLES:
                kind = graph.Tensors((read or written)[0]).Type()
                if kind != self._schema.TensorType.RESOURCE:
                    raise ValueError(f"its {code.name} has no variable")
            yield operator.OpcodeIndex()

    def _signature(self, graph: Any) -> tuple[dict[int, str], dict[int, str]]:
        """Number of the tensor -> name, of the inputs and outputs of the main graph's first signature."""
        found: tuple[dict[int, str], dict[int, str]] = ({}, {})
        for i in self._counted(self._model.SignatureDefsLength()):
            signature = self._model.SignatureDefs(i)
            _within([signature.SubgraphIndex()], self._model.SubgraphsLength(), "graph")
            of = self._model.Subgraphs(signature.SubgraphIndex())
            for mine, count, entry in (
                (found[0], signature.InputsLength(), signature.Inputs),
                (found[1], signature.OutputsLength(), signature.Outputs),
            ):
                for j in self._counted(count):
                    number, name = entry(j).TensorIndex(), entry(j).Name()
                    _within([number], of.TensorsLength(), "tensor")
                    if of._tab.Pos == graph._tab.Pos:
                        mine.setdefault(number, (name or b"").decode())
        return found

    def _tensor(self, graph: Any, number: int, name: str) -> FileTensor:
        tensor = graph.Tensors(number)
        sizes = _numbers(tensor.ShapeAsNumpy)
        open_sizes = _numbers(tensor.ShapeSignatureAsNumpy)
        if len(open_sizes) == len(sizes):
            sizes = open_sizes
        names = [one for one in (name, (tensor.Name() or b"").decode()) if one]
        kind = self._names("TensorType").get(tensor.Type(), f"type {tensor.Type()}").lower()
        scales, zeros, axis = _quantization(tensor.Quantization())
        return FileTensor(
            number,
            tuple(names) or (str(number),),
            _DTYPES.get(kind, kind),
            tuple(size if size >= 0 else None for size in sizes),
            scales,
            zeros,
            axis,
        )


def _check_operator(name: str, read: Sequence[int], written: Sequence[int]) -> None:
    """Refuse what LiteRT's kernels take for granted: they follow the pointers of tensors that are left out."""
    if _LEFT_OUT in read[: _OPTIONAL.get(name, len(read))]:
        raise ValueError(f"an input of its {name} is left out")
    if not written and name not in _SILENT:
        raise ValueError(f"its {name} has no output")


def _quantization(given: Any) -> tuple[tuple[float, ...], tuple[int, ...], int]:
    if given is None or not given.ScaleLength():
        return (), (), 0
    scales, zeros = given.ScaleAsNumpy()[:_SCALES].tolist(), _numbers(given.ZeroPointAsNumpy)[:_SCALES]
    return tuple(scales), tuple(zeros), given.QuantizedDimension()


def _numbers(vector: Any) -> list[int]:
    """Content of a vector of whole numbers; empty if the file has none (the reader gives 0 then)."""
    values = vector()
    return [] if isinstance(values, int) else [int(value) for value in values]


def _within(numbers: list[int], count: int, what: str) -> None:
    for number in numbers:
        if not 0 <= number < count:
            raise IndexError(f"it names {what} {number}, and has {count}")
