"""The Open Inference Protocol, REST v2, with its binary tensor extension: bytes to tensors, tensors to bytes.

Pure: no sockets, no models. A body is JSON; or, where the header ``Inference-Header-Content-Length`` gives its length,
a JSON header with raw tensors behind it, in the order of the inputs whose parameters have a ``binary_data_size``.
https://github.com/kserve/open-inference-protocol and Triton's ``extension_binary_data.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType
from numpy.typing import NDArray

from farthing.engines.openinference import (
    DATATYPES,
    MAX_TENSORS,
    SentTensor,
    Text,
    datatype_of,
    from_bytes,
    read_tensors,
    to_bytes,
    to_json,
)
from farthing.errors import ProtocolError, nearest
from farthing.model import TensorSpec

EXTENSIONS = (
    "binary_tensor_data",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "statistics",
)
"""What `/v2` announces."""

Parameters = dict[str, str | int | float | bool]


class Wanted(msgspec.Struct):
    """An output that a client asks for: ``binary_data`` among its parameters says how it is to be written."""

    name: Text
    parameters: Parameters | None = None


class _Header(msgspec.Struct):
    inputs: Annotated[list[SentTensor], Meta(max_length=MAX_TENSORS)]
    id: Text = ""
    parameters: Parameters | None = None
    outputs: Annotated[list[Wanted], Meta(max_length=MAX_TENSORS)] | None = None


class Inference(msgspec.Struct, frozen=True, eq=False):
    """What a client asks of a model.

    Attributes:
        feeds: tensor name -> array.
        id: the client's name for the request; it comes back.
        outputs: those wanted, in order; empty asks for all.
        binary: whether outputs are raw bytes unless they say otherwise.
        priority: 1 is first; 0 takes the model's default.
        timeout: seconds in which the answer is worth something; 0 sets no limit.
    """

    feeds: Mapping[str, NDArray[Any]]
    id: str = ""
    outputs: Sequence[Wanted] = ()
    binary: bool = False
    priority: int = 0
    timeout: float = 0.0


_read = msgspec.json.Decoder(_Header).decode


def decode(body: bytes, header: int | None = None) -> Inference:
    """What the body of an infer request asks.

    Args:
        body: all of it.
        header: bytes of its JSON header, as ``Inference-Header-Content-Length`` says; None: all of it is JSON.

    Raises:
        ProtocolError: it cannot be understood: the message says which part.
    """
    if header is None:
        offset, text = len(body), body
    elif 0 < header <= len(body):
        offset, text = header, body[:header]
    else:
        raise ProtocolError(f"the header is said to have {header} bytes, but the body has {len(body)}")
    try:
        asked = _read(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"the request is no inference request: {error}") from error
    except RecursionError:
        raise ProtocolError("the request is nested too deeply") from None
    feeds = read_tensors(asked.inputs, body, offset)
    return inference(feeds, asked.id, asked.parameters, asked.outputs or ())


_REFUSED = {
    "sequence_id": "sequences are not offered: a model with state is served by a stream of its own",
    "sequence_start": "sequences are not offered",
    "sequence_end": "sequences are not offered",
}


def inference(
    feeds: Mapping[str, NDArray[Any]],
    id: str,  # noqa: A002 - the protocol's name
    parameters: Parameters | None,
    outputs: Sequence[Wanted],
    binary: bool = False,
) -> Inference:
    """A request from its parts.

    Args:
        feeds: tensor name -> array.
        id: the client's name for it.
        parameters: of the request.
        outputs: those wanted; empty asks for all.
        binary: whether outputs are raw bytes unless a parameter says otherwise.

    Raises:
        ProtocolError: a parameter asks for what is not offered, or has a value that it cannot have.
    """
    for wanted in outputs:
        if wanted.parameters:
            _check_wanted(wanted.name, wanted.parameters)
    if not parameters:
        return Inference(feeds, id, outputs, binary)
    for name, reason in _REFUSED.items():
        if parameters.get(name):
            raise ProtocolError(f"parameter {name!r}: {reason}")
    return Inference(
        feeds,
        id,
        outputs,
        _flag(parameters, "binary_data_output", binary),
        _count(parameters, "priority"),
        _count(parameters, "timeout") / 1e6,
    )


def _check_wanted(name: str, parameters: Parameters) -> None:
    if parameters.get("classification"):
        raise ProtocolError(f"output {name!r}: classification is not offered; take the best of its numbers")
    if "shared_memory_region" in parameters:
        raise ProtocolError(f"output {name!r}: shared memory is not offered; take the tensor")
    _flag(parameters, "binary_data")


def _flag(parameters: Parameters, name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise ProtocolError(f"parameter {name!r} is true or false, not {value!r}")
    return value


def _count(parameters: Parameters, name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ProtocolError(f"parameter {name!r} is a whole number from 0, not {value!r}")
    return value


def raw_inference(body: bytes, inputs: Sequence[TensorSpec]) -> Inference:
    """What a body of nothing but one tensor asks (a header of length 0): outputs come raw as well.

    Args:
        body: the tensor.
        inputs: of the model; there must be one, and at most one of its axes may be free.

    Raises:
        ProtocolError: the model has several inputs, or a shape that the length does not tell.
    """
    if len(inputs) != 1:
        raise ProtocolError(
            f"a raw body feeds a model of one input; this one has {len(inputs)}: send a header"
        )
    spec = inputs[0]
    free = [axis for axis, size in enumerate(spec.shape) if isinstance(size, str)]
    if spec.dtype == "str":
        raise ProtocolError("a raw body holds numbers; send texts with a header")
    if len(free) > 1:
        raise ProtocolError(f"{spec.name!r} {list(spec.shape)} has several free axes: send a header")
    shape = list(spec.sized(1))
    if free:
        row = math.prod(shape) * np.dtype(spec.dtype).itemsize
        shape[free[0]] = len(body) // row if row else 0
    feed = from_bytes(spec.name, DATATYPES[spec.dtype], shape, body, 0, len(body))
    return Inference({spec.name: feed}, binary=True)


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: Sequence[int]
    parameters: dict[str, int] | UnsetType = UNSET
    data: list[Any] | UnsetType = UNSET


class _Response(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_Output]
    id: str = ""
    parameters: dict[str, str | float] | UnsetType = UNSET


_write = msgspec.json.Encoder().encode


def encode(
    name: str,
    version: str,
    asked: Inference,
    outputs: Mapping[str, NDArray[Any]],
    parameters: dict[str, str | float] | UnsetType = UNSET,
) -> tuple[bytes, int | None]:
    """The body of an answer, and how many bytes of it are its JSON header: None if it is JSON throughout.

    Args:
        name, version: of the model.
        asked: what was asked; it says which outputs go out, and how.
        outputs: tensor name -> array.
        parameters: what else there is to say.

    Raises:
        ProtocolError: an output is asked for that there is not, or JSON cannot say its numbers.
    """
    described: list[_Output] = []
    raw: list[bytes] = []
    for output, binary in chosen(asked, outputs):
        array = outputs[output]
        if binary:
            data = to_bytes(array)
            raw.append(data)
            described.append(
                _Output(output, datatype_of(array), array.shape, {"binary_data_size": len(data)})
            )
        else:
            described.append(_Output(output, datatype_of(array), array.shape, data=to_json(output, array)))
    header = _write(_Response(name, version, described, asked.id, parameters))
    return (b"".join([header, *raw]), len(header)) if raw else (header, None)


def chosen(asked: Inference, outputs: Mapping[str, NDArray[Any]]) -> list[tuple[str, bool]]:
    """Outputs that go out, and whether as bytes.

    Raises:
        ProtocolError: one is asked for that there is not.
    """
    if not asked.outputs:
        return [(name, asked.binary) for name in outputs]
    chosen = []
    for wanted in asked.outputs:
        if wanted.name not in outputs:
            raise ProtocolError(f"the model has no output {wanted.name!r}; {nearest(wanted.name, outputs)}")
        binary = (
            asked.binary
            if wanted.parameters is None
            else _flag(wanted.parameters, "binary_data", asked.binary)
        )
        chosen.append((wanted.name, binary))
    return chosen


class _TensorMetadata(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


def tensor_metadata(specs: Sequence[TensorSpec]) -> list[_TensorMetadata]:
    """Tensors as the protocol describes them: a free axis is -1."""
    return [
        _TensorMetadata(
            spec.name, DATATYPES[spec.dtype], [-1 if isinstance(size, str) else size for size in spec.shape]
        )
        for spec in specs
    ]
