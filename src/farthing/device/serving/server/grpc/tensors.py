"""What a gRPC request asks, and what answers it: messages to tensors, tensors to messages. Pure: no sockets, no models.

Tensors come raw (``raw_input_contents``), or as numbers in the field that fits their datatype; they go out raw, as
Triton's do.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from farthing.device.serving.server.protocol import Inference, Parameters, Wanted, chosen, inference
from farthing.engines.openinference import (
    DTYPES,
    MAX_TENSORS,
    SentTensor,
    datatype_of,
    from_bytes,
    refuse_shared,
    to_bytes,
    unknown_datatype,
)
from farthing.errors import ProtocolError

_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Datatype -> where its elements are, unless they come raw; FP16 has no such place."""
_LONGEST = 1024


def understood(message: Any) -> Inference:
    """What a ``ModelInferRequest`` asks.

    Raises:
        ProtocolError: it cannot be understood: the message says which part.
    """
    if max(len(message.inputs), len(message.outputs)) > MAX_TENSORS:
        raise ProtocolError(f"a request has at most {MAX_TENSORS} inputs and as many outputs")
    if len(message.id) > _LONGEST:
        raise ProtocolError(f"the id has more than {_LONGEST} characters")
    outputs = [Wanted(one.name, plain(one.parameters)) for one in message.outputs]
    return inference(_feeds(message), message.id, plain(message.parameters), outputs, binary=True)


def plain(parameters: Mapping[str, Any]) -> Parameters:
    """Parameters without the messages around them.

    Raises:
        ProtocolError: one has no value.
    """
    found = {}
    for name, parameter in parameters.items():
        field = parameter.WhichOneof("parameter_choice")
        if field is None:
            raise ProtocolError(f"parameter {name!r} has no value")
        found[name] = getattr(parameter, field)
    return found


def _feeds(message: Any) -> dict[str, NDArray[Any]]:
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise ProtocolError(
            f"raw_input_contents holds {len(raw)} tensors, but there are {len(message.inputs)} inputs: "
            "send all of them raw, in their order, or none"
        )
    feeds = {}
    for index, one in enumerate(message.inputs):
        tensor = _described(one)
        feeds[tensor.name] = _raw(tensor, one, raw[index]) if raw else _typed(tensor, one)
    if len(feeds) != len(message.inputs):
        raise ProtocolError("two tensors have the same name")
    return feeds


def _described(one: Any) -> SentTensor:
    """What is said of a tensor, within the limits that JSON has too."""
    said = {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}
    try:
        tensor = msgspec.convert(said, SentTensor)
    except msgspec.ValidationError as error:
        raise ProtocolError(
            f"the request is no inference request: input {one.name[:99]!r}: {error}"
        ) from error
    refuse_shared(tensor.name, one.parameters)
    if tensor.datatype not in DTYPES:
        raise unknown_datatype(tensor.name, tensor.datatype)
    return tensor


def _raw(tensor: SentTensor, one: Any, raw: bytes) -> NDArray[Any]:
    if one.HasField("contents") and one.contents.ListFields():
        raise ProtocolError(f"tensor {tensor.name!r} comes both raw and in contents: send one of them")
    return from_bytes(tensor.name, tensor.datatype, tensor.shape, raw, 0, len(raw))


def _typed(tensor: SentTensor, one: Any) -> NDArray[Any]:
    """A tensor from the elements in its ``contents``."""
    field = _FIELDS.get(tensor.datatype)
    if field is None:
        raise ProtocolError(f"tensor {tensor.name!r}: {tensor.datatype} comes in raw_input_contents only")
    others = [found.name for found, _ in one.contents.ListFields() if found.name != field]
    if others:
        raise ProtocolError(f"tensor {tensor.name!r}: {tensor.datatype} belongs in {field}, not {others[0]}")
    elements = getattr(one.contents, field)
    if len(elements) != math.prod(tensor.shape):
        raise ProtocolError(
            f"tensor {tensor.name!r}: {field} has {len(elements)} elements, but its shape is {list(tensor.shape)}"
        )
    data = _packed(elements) if tensor.datatype == "BYTES" else _narrowed(tensor, elements).tobytes()
    return from_bytes(tensor.name, tensor.datatype, tensor.shape, data, 0, len(data))


def _narrowed(tensor: SentTensor, elements: Sequence[Any]) -> NDArray[Any]:
    """Numbers in their own type; small integers travel in larger ones."""
    dtype = np.dtype(DTYPES[tensor.datatype])
    if dtype.kind not in "iu":
        return np.array(elements, dtype)
    wide = np.array(elements, np.dtype(f"{dtype.kind}8"))
    narrow = wide.astype(dtype)
    if not np.array_equal(wide, narrow):
        raise ProtocolError(f"tensor {tensor.name!r}: an element is out of the range of {tensor.datatype}")
    return narrow


def _packed(texts: Sequence[bytes]) -> bytes:
    return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))


def answered(
    messages: Mapping[str, Any],
    name: str,
    version: str,
    asked: Inference,
    outputs: Mapping[str, NDArray[Any]],
    parameters: Mapping[str, str | float] | UnsetType = UNSET,
) -> bytes:
    """The bytes of a ``ModelInferResponse``.

    Args:
        messages: the classes.
        name, version: of the model.
        asked: what was asked; it says which outputs go out.
        outputs: tensor name -> array.
        parameters: what else there is to say.

    Raises:
        ProtocolError: an output is asked for that there is not, or that the protocol has no type for.
    """
    answer = messages["ModelInferResponse"](model_name=name, model_version=version, id=asked.id)
    for output, _ in chosen(asked, outputs):
        array = outputs[output]
        answer.outputs.add(name=output, datatype=datatype_of(array), shape=array.shape)
        answer.raw_output_contents.append(to_bytes(array))
    for key, value in ({} if parameters is UNSET else parameters).items():
        if isinstance(value, str):
            answer.parameters[key].string_param = value
        else:
            answer.parameters[key].double_param = value
    written: bytes = answer.SerializeToString()
    return written
