"""Tensors as the Open Inference Protocol writes them: raw little-endian bytes, or JSON numbers.

Read by the server and by the engine that asks one.
"""

from __future__ import annotations

import math
import struct
import types
from collections.abc import Container, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from farthing.errors import ProtocolError, nearest

DTYPES: dict[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "str",
}
"""The protocol's name of an element type -> ours."""
DATATYPES = {name: datatype for datatype, name in DTYPES.items()}
"""Our name of an element type -> the protocol's; complex and bfloat16 have none here."""

MAX_TENSORS = 256
MAX_AXES = 16
Text = Annotated[str, Meta(max_length=1024)]


class SentTensor(msgspec.Struct):
    """A tensor in the JSON of a request or an answer: with its data, or with the size of that in the bytes behind."""

    name: Text
    datatype: Text
    shape: Annotated[list[Annotated[int, Meta(ge=0, lt=1 << 40)]], Meta(max_length=MAX_AXES)]
    parameters: dict[str, Any] | None = None  # servers put things of their own there
    data: msgspec.Raw = msgspec.Raw()


_NUMPY = {datatype: np.dtype(name) for datatype, name in DTYPES.items() if name != "str"}
_NAMES = {dtype: datatype for datatype, dtype in _NUMPY.items()}
_SIZES = {datatype: dtype.itemsize for datatype, dtype in _NUMPY.items()}
_LENGTH = struct.Struct("<I")


def read_tensors(sent: Sequence[SentTensor], body: bytes, offset: int) -> dict[str, NDArray[Any]]:
    """The tensors that a header describes, by name.

    Args:
        sent: what the header says of them, in its order.
        body: header and raw tensors.
        offset: where the header ends.

    Raises:
        ProtocolError: one does not fit what is said of it, bytes are left over, or a name comes twice.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for one in sent:
        size = _binary_size(one)
        if size is None:
            tensors[one.name] = _from_json(one)
            continue
        if size > len(body) - offset:
            raise ProtocolError(
                f"tensor {one.name!r} is said to have {size} bytes, but {len(body) - offset} are left in the body"
            )
        tensors[one.name] = from_bytes(one.name, one.datatype, one.shape, body, offset, size)
        offset += size
    if offset != len(body):
        raise ProtocolError(f"{len(body) - offset} bytes of the body belong to no tensor")
    if len(tensors) != len(sent):
        raise ProtocolError("two tensors have the same name")
    return tensors


def refuse_shared(name: str, parameters: Container[str]) -> None:
    """Refuse a tensor that is said to lie in shared memory.

    Raises:
        ProtocolError: it is.
    """
    if "shared_memory_region" in parameters:
        raise ProtocolError(f"tensor {name!r}: shared memory is not offered; send the tensor")


def _binary_size(tensor: SentTensor) -> int | None:
    parameters = tensor.parameters
    if parameters is None:
        return None
    refuse_shared(tensor.name, parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0 or tensor.data:
        what = "has data and a binary_data_size" if tensor.data else f"binary_data_size is {size!r}"
        raise ProtocolError(f"tensor {tensor.name!r}: {what}; give one, a whole number from 0")
    return size


def _from_json(tensor: SentTensor) -> NDArray[Any]:
    if not tensor.data:
        raise ProtocolError(f"tensor {tensor.name!r} has neither data nor a binary_data_size")
    return from_json(tensor.name, tensor.datatype, tensor.shape, tensor.data)


def from_bytes(
    name: str, datatype: str, shape: Sequence[int], body: bytes, offset: int, size: int
) -> NDArray[Any]:
    """The tensor in ``size`` bytes of ``body``; it shares their memory and cannot be written to.

    Args:
        name: what errors call it.
        datatype: of the protocol, as in ``FP32``.
        shape: its sizes, from 0.
        body: what holds it; at least ``offset + size`` bytes.
        offset: where it begins.
        size: how many bytes it has.

    Raises:
        ProtocolError: no such datatype, or the bytes do not fit the shape.
    """
    itemsize = _SIZES.get(datatype)
    if itemsize is None:
        return _texts(name, datatype, shape, body[offset : offset + size])
    count = math.prod(shape)
    if count * itemsize != size:
        raise ProtocolError(
            f"tensor {name!r}: {datatype} {list(shape)} has {count * itemsize} bytes, not {size}"
        )
    if not count:
        return np.empty(shape, _NUMPY[datatype])
    array: NDArray[Any] = np.ndarray(shape, _NUMPY[datatype], body, offset)
    if datatype == "BOOL" and array.view(np.uint8).max() > 1:
        raise ProtocolError(f"tensor {name!r}: a BOOL is a byte of 0 or 1")
    return array if array.flags.aligned else array.copy()


def _texts(name: str, datatype: str, shape: Sequence[int], data: bytes) -> NDArray[Any]:
    """Texts, each behind its length in 4 bytes."""
    if datatype != "BYTES":
        raise unknown_datatype(name, datatype)
    texts: list[str] = []
    at, count = 0, math.prod(shape)
    if count * _LENGTH.size > len(data):
        raise ProtocolError(f"tensor {name!r}: {len(data)} bytes cannot hold {count} texts and their lengths")
    while at < len(data):
        if len(data) - at < _LENGTH.size:
            raise ProtocolError(f"tensor {name!r}: the length of text {len(texts)} is cut off")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if length > len(data) - at:
            raise ProtocolError(
                f"tensor {name!r}: text {len(texts)} has {length} bytes, but {len(data) - at} are left"
            )
        texts.append(_decoded(name, len(texts), data[at : at + length]))
        at += length
    if len(texts) != count:
        raise ProtocolError(f"tensor {name!r}: shape {list(shape)} has {count} texts, not {len(texts)}")
    return _objects(texts, shape)


def _decoded(name: str, index: int, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"tensor {name!r}: text {index} is not UTF-8: {error.reason}") from error


def _objects(texts: Sequence[str], shape: Sequence[int]) -> NDArray[Any]:
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(shape)


def to_bytes(array: NDArray[Any]) -> bytes:
    """A tensor as the protocol writes it: row by row; texts behind their lengths."""
    if array.dtype.kind not in "OU":
        return array.tobytes()
    encoded = [str(text).encode() for text in array.ravel().tolist()]
    return b"".join(part for text in encoded for part in (_LENGTH.pack(len(text)), text))


def datatype_of(array: NDArray[Any]) -> str:
    """The protocol's name of an array's element type.

    Raises:
        ProtocolError: it has none.
    """
    datatype = _NAMES.get(array.dtype)
    if datatype is not None:
        return datatype
    if array.dtype.kind in "OU":
        return "BYTES"
    raise ProtocolError(f"the protocol has no tensors of {array.dtype}")


_ELEMENTS: dict[str, Any] = {
    "BOOL": bool,
    "UINT64": Annotated[int, Meta(ge=0)],  # its upper end is numpy's to check
    **{f"UINT{bits}": Annotated[int, Meta(ge=0, lt=1 << bits)] for bits in (8, 16, 32)},
    **{
        f"INT{bits}": Annotated[int, Meta(ge=-(1 << bits - 1), le=(1 << bits - 1) - 1)]
        for bits in (8, 16, 32, 64)
    },
    **{f"FP{bits}": float for bits in (16, 32, 64)},
    "BYTES": str,
}
_decoders: dict[tuple[str, int], msgspec.json.Decoder[Any]] = {}


def lists(datatype: str, depth: int) -> Any:
    """The type of lists of a datatype's elements, ``depth`` deep, as msgspec checks it."""
    kind = _ELEMENTS[datatype]
    for _ in range(depth):
        kind = types.GenericAlias(list, kind)
    return kind


def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    key = datatype, depth
    if key not in _decoders:
        _decoders[key] = msgspec.json.Decoder(lists(datatype, depth))
    return _decoders[key]


def from_json(name: str, datatype: str, shape: Sequence[int], raw: bytes | msgspec.Raw) -> NDArray[Any]:
    """The tensor in JSON: one flat list in row order, or lists nested as the shape is.

    Raises:
        ProtocolError: no such datatype, elements of another type or out of range, or another number of them.
    """
    if datatype not in _ELEMENTS:
        raise unknown_datatype(name, datatype)
    nested = len(shape) > 1 and bytes(memoryview(raw)[:64]).translate(None, b" \t\r\n").startswith(b"[[")
    try:
        data = _decoder(datatype, len(shape) if nested else 1).decode(raw)
        with np.errstate(over="raise"):  # 1e300 is no FP32
            array = np.array(data, _NUMPY.get(datatype, np.dtype(object)))
    except (msgspec.MsgspecError, ValueError, OverflowError, FloatingPointError, RecursionError) as error:
        raise ProtocolError(f"tensor {name!r}: data is not {datatype} {list(shape)}: {error}") from error
    if array.size != math.prod(shape) or (nested and array.shape != tuple(shape)):
        found = list(array.shape) if nested else f"{array.size} elements"
        raise ProtocolError(f"tensor {name!r}: data has {found}, but its shape is {list(shape)}")
    return array.reshape(shape)


def to_json(name: str, array: NDArray[Any]) -> list[Any]:
    """A tensor as the flat list of its elements in row order.

    Raises:
        ProtocolError: NaN or infinity, which JSON has no words for.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ProtocolError(
            f"output {name!r} holds NaN or infinity, which JSON cannot say: ask for it as binary_data"
        )
    return array.ravel().tolist()


def unknown_datatype(name: str, datatype: str) -> ProtocolError:
    """The error of a datatype that is none."""
    return ProtocolError(f"tensor {name!r}: no datatype is called {datatype!r}; {nearest(datatype, DTYPES)}")
