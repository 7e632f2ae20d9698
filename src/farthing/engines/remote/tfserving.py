"""TensorFlow Serving's REST interface: metadata and predict, in rows or by named inputs.

https://www.tensorflow.org/tfx/serving/api_rest. KServe's first protocol is the same in rows.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.engines.base import FileTensor, Tensors
from farthing.engines.openinference import DATATYPES, Text, lists
from farthing.engines.remote.client import Client
from farthing.engines.remote.inference import Place, Served, batch_fed, checked, understood
from farthing.engines.remote.transport import Reply
from farthing.errors import RemoteError, nearest
from farthing.model import TensorSpec

DTYPES = {
    "DT_BOOL": "bool",
    "DT_STRING": "str",
    "DT_HALF": "float16",
    "DT_FLOAT": "float32",
    "DT_DOUBLE": "float64",
    **{f"DT_{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}
"""TensorFlow's name of an element type -> ours."""


class _Axis(msgspec.Struct):
    size: str | int = "-1"


class _Shape(msgspec.Struct):
    dim: list[_Axis] = []
    unknown_rank: bool = False


class _Tensor(msgspec.Struct):
    dtype: Text
    tensor_shape: _Shape = msgspec.field(default_factory=_Shape)


class _Signature(msgspec.Struct):
    inputs: dict[str, _Tensor] = {}
    outputs: dict[str, _Tensor] = {}


class _Signatures(msgspec.Struct):
    signature_def: dict[str, _Signature]


class _Definition(msgspec.Struct):
    signature_def: _Signatures


class _Metadata(msgspec.Struct):
    metadata: _Definition


class TensorFlowServing:
    """One model of a server that speaks as TensorFlow Serving does."""

    def __init__(self, client: Client, place: Place) -> None:
        self._client = client
        self._path = place.path("/v1/models")
        self._signature = place.signature

    def served(self, deadline: float) -> Served:
        """What the server says of the model's signature, tensors by name.

        Raises:
            RemoteError: it does not answer, has no such signature, or says something that is not understood.
        """
        metadata = self._client.ask(
            "GET", f"{self._path}/metadata", lambda reply: understood(reply, _Metadata), deadline
        )
        known = metadata.metadata.signature_def.signature_def
        signature = known.get(self._signature)
        if signature is None:
            raise RemoteError(
                f"{self._client.server}{self._path} has no signature {self._signature!r}; "
                f"{nearest(self._signature, known)}"
            )
        inputs, outputs = (
            tuple(_described(name, tensor) for name, tensor in sorted(side.items()))
            for side in (signature.inputs, signature.outputs)
        )
        return Served("TensorFlow Serving", inputs, outputs)

    def infer(
        self,
        feeds: Tensors,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        binary: bool,
        deadline: float,
    ) -> dict[str, NDArray[Any]]:
        """The outputs for one feed: in rows if all tensors have their samples along the first axis, else by name.

        Raises:
            RemoteError: the server does not answer, or not as it should.
        """
        in_rows = bool(inputs) and all(spec.batch_axis == 0 for spec in (*inputs, *outputs))
        data = {spec.name: feeds[spec.name].tolist() for spec in inputs}
        asked: dict[str, Any] = {"signature_name": self._signature} if self._signature != DEFAULT else {}
        asked |= {"instances": _rows(data)} if in_rows else {"inputs": data}
        finite = all(np.isfinite(feeds[s.name]).all() for s in inputs if "float" in s.dtype)
        body = msgspec.json.encode(asked) if finite else json.dumps(asked).encode()
        key, batch = "predictions" if in_rows else "outputs", batch_fed(inputs, feeds)
        return self._client.ask(
            "POST",
            f"{self._path}:predict",
            lambda reply: checked(outputs, _answered(reply, key, outputs), batch),
            deadline,
            body,
            {"Content-Type": "application/json"},
        )


DEFAULT = "serving_default"
"""The signature that is taken where none is named."""


def _described(name: str, tensor: _Tensor) -> FileTensor:
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise RemoteError(f"the tensor {name!r} is {tensor.dtype[:20]!r}, which cannot be sent")
    if tensor.tensor_shape.unknown_rank:
        return FileTensor(name, dtype, None)
    try:
        sizes = [int(axis.size) for axis in tensor.tensor_shape.dim]
    except ValueError as error:
        raise RemoteError(f"the shape of {name!r} is not understood: {error}") from error
    return FileTensor(name, dtype, tuple(size if size >= 0 else None for size in sizes))


def _rows(data: Mapping[str, list[Any]]) -> list[Any]:
    """One item for each sample: its value, or where there are several inputs an object of them."""
    if len(data) == 1:
        return next(iter(data.values()))
    return [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]


def _answered(reply: Reply, key: str, outputs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    try:
        found = json.loads(reply.body)[key]  # NaN and Infinity are words of this protocol
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RemoteError(f"the server's answer has no {key!r}, or is no JSON: {error!r:.200}") from error
    if key == "predictions":
        found = _columns(found, outputs)
    elif not isinstance(found, dict):  # of a single output
        found = {outputs[0].name: found} if len(outputs) == 1 else {}
    return {spec.name: _array(spec, found[spec.name]) for spec in outputs if spec.name in found}


def _columns(rows: Any, outputs: Sequence[TensorSpec]) -> dict[str, list[Any]]:
    """Rows of values, or of objects, as columns."""
    if not isinstance(rows, list):
        raise RemoteError("the server's predictions are no list")
    if not rows or not all(isinstance(row, dict) and "b64" not in row for row in rows):
        return {outputs[0].name: rows} if len(outputs) == 1 else {}
    return {spec.name: [row[spec.name] for row in rows if spec.name in row] for spec in outputs}


def _array(spec: TensorSpec, nested: Any) -> NDArray[Any]:
    """Nested lists as an array; types and number ranges are held against the output's."""
    try:
        if spec.dtype == "str":
            nested = _texts(nested)
        data = msgspec.convert(nested, lists(DATATYPES[spec.dtype], len(spec.shape)))
        with np.errstate(over="raise"):
            return np.array(data, object if spec.dtype == "str" else spec.dtype)
    except (msgspec.MsgspecError, ValueError, OverflowError, FloatingPointError, RecursionError) as error:
        raise RemoteError(
            f"the server gave an output {spec.name!r} that is not {spec.dtype} {list(spec.shape)}: {error}"
        ) from error


def _texts(nested: Any) -> Any:
    """Texts that came as base 64 as what they are."""
    if isinstance(nested, list):
        return [_texts(one) for one in nested]
    if isinstance(nested, dict) and isinstance(nested.get("b64"), str):
        try:
            return base64.b64decode(nested["b64"], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ValueError(f"no text in base 64: {error}") from error
    return nested
