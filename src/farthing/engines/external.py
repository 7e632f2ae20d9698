"""Which other files an ONNX file takes its weights from, read off its bytes: devices have no onnx package.

An ONNX file is a protobuf message (https://protobuf.dev/programming-guides/encoding); a tensor in it may name
another file in its ``external_data``. Every message that can hold a tensor is walked. What protobuf reads one way
and another reader another way (a key given twice, numbers longer than they need be) counts in all its readings.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from farthing.errors import ModelError

_KEY = b"location"
PARTS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
"""Message -> number of a field -> message in it, for all that can lead to a tensor's external data (onnx.proto)."""
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_LONGEST = 5  # bytes of a tag or a length


def locations(path: Path) -> set[str]:
    """Names of the files that an ONNX file takes weights from, as they stand in it; bytes are not UTF-8: replaced.

    Raises:
        ModelError: the file is not sound protobuf. One without the word ``location`` has no external data and is
            not looked at further.
    """
    if not path.stat().st_size:
        return set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(_KEY) < 0:
            return set()
        try:
            return {name.decode(errors="replace") for name in _named(content)}
        except (IndexError, ValueError) as error:
            raise ModelError(f"{path} is damaged or no ONNX file: convert or copy it again") from error


def _named(content: mmap.mmap) -> Iterator[bytes]:
    todo = [("ModelProto", 0, len(content))]
    while todo:
        kind, start, end = todo.pop()
        found: dict[int, list[bytes]] = {1: [], 2: []}
        parts = PARTS.get(kind)
        for number, begin, stop in _fields(content, start, end):
            if parts is None:
                found.setdefault(number, []).append(content[begin:stop])
            elif number in parts:
                todo.append((parts[number], begin, stop))
        if _KEY in found[1]:
            yield from found[2] or [b""]


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field with a length; the others hold no message."""
    while at < end:
        tag, at = _varint(content, at, _LONGEST)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, at = _varint(content, at, 10)
        elif wire == _LENGTH:
            size, at = _varint(content, at, _LONGEST)
            if at + size <= end:
                yield number, at, at + size
            at += size
        elif wire in {_FIXED64, _FIXED32}:
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError("groups are not used in ONNX")
        if not number or at > end:
            raise ValueError("a field without a number, or longer than what holds it")


def _varint(content: mmap.mmap, at: int, most: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = 0
    for place in range(most):
        byte = content[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("a number is too long")
