"""The Open Inference Protocol, asked over HTTP: metadata and inference, tensors as raw bytes or as JSON.

https://github.com/kserve/open-inference-protocol; raw bytes where the server announces ``binary_tensor_data``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from farthing.engines.base import FileTensor, Tensors, batch_of
from farthing.engines.openinference import (
    DTYPES,
    MAX_TENSORS,
    SentTensor,
    Text,
    datatype_of,
    read_tensors,
    to_bytes,
)
from farthing.engines.remote.client import Client
from farthing.engines.remote.transport import Reply
from farthing.errors import FeedError, ProtocolError, RemoteError
from farthing.model import TensorSpec

BINARY = "binary_tensor_data"
_HEADER = "Inference-Header-Content-Length"


class Served(NamedTuple):
    """What a server says of a model.

    Attributes:
        server: its name and version.
        inputs, outputs: the tensors; empty if it does not say.
        binary: whether it takes and gives tensors as raw bytes.
    """

    server: str
    inputs: tuple[FileTensor, ...]
    outputs: tuple[FileTensor, ...]
    binary: bool = False


class Place(NamedTuple):
    """Which model of a server is asked: its name, its version (empty: the server's choice), and its signature."""

    model: str
    version: str
    signature: str

    def path(self, root: str) -> str:
        """Where it is below ``/v2/models`` or ``/v1/models``."""
        version = f"/versions/{quote(self.version, safe='')}" if self.version else ""
        return f"{root}/{quote(self.model, safe='')}{version}"


class _Server(msgspec.Struct):
    name: Text = ""
    version: Text = ""
    extensions: list[str] | None = None


class _Tensor(msgspec.Struct):
    name: Text
    datatype: Text
    shape: list[int]


_Tensors = Annotated[list[_Tensor], Meta(max_length=MAX_TENSORS)]


class _Model(msgspec.Struct):
    inputs: _Tensors | None = None
    outputs: _Tensors | None = None


class _Answer(msgspec.Struct):
    outputs: Annotated[list[SentTensor], Meta(max_length=MAX_TENSORS)]


class OpenInference:
    """One model of a server that speaks the protocol."""

    def __init__(self, client: Client, place: Place) -> None:
        self._client = client
        self._path = place.path("/v2/models")

    def served(self, deadline: float) -> Served:
        """What the server says of the model.

        Raises:
            RemoteError: it does not answer, or says something that is not understood.
        """
        model = self._client.ask("GET", self._path, lambda reply: understood(reply, _Model), deadline)
        server = self._client.ask("GET", "/v2", lambda reply: understood(reply, _Server), deadline)
        inputs, outputs = (
            tuple(self._described(one) for one in side or ()) for side in (model.inputs, model.outputs)
        )
        named = f"{server.name} {server.version}".strip()
        return Served(
            named or "a server without a name", inputs, outputs, BINARY in (server.extensions or ())
        )

    def infer(
        self,
        feeds: Tensors,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        binary: bool,
        deadline: float,
    ) -> dict[str, NDArray[Any]]:
        """The outputs for one feed, `checked`.

        Raises:
            FeedError: JSON has no words for a number.
            RemoteError: the server does not answer, or not as it should.
        """
        header, raw = _request({spec.name: feeds[spec.name] for spec in inputs}, outputs, binary)
        headers = {"Content-Type": "application/json"}
        if binary:
            headers = {"Content-Type": "application/octet-stream", _HEADER: str(len(header))}
        body = b"".join([header, *raw])
        batch = batch_fed(inputs, feeds)
        return self._client.ask(
            "POST",
            f"{self._path}/infer",
            lambda reply: checked(outputs, _answered(reply), batch),
            deadline,
            body,
            headers,
        )

    def _described(self, tensor: _Tensor) -> FileTensor:
        dtype = DTYPES.get(tensor.datatype)
        if dtype is None:
            raise RemoteError(
                f"{self._client.server}{self._path}: {tensor.name!r} is {tensor.datatype[:20]!r}, which we "
                f"cannot send; known are {', '.join(DTYPES)}"
            )
        return FileTensor(tensor.name, dtype, tuple(size if size >= 0 else None for size in tensor.shape))


def understood(reply: Reply, kind: type[Any]) -> Any:
    """The JSON of an answer.

    Raises:
        RemoteError: it is none, or says something else.
    """
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteError(
            f"the server's answer is not understood: {str(error) or 'nested too deeply'}"
        ) from error


def _request(feeds: Tensors, outputs: Sequence[TensorSpec], binary: bool) -> tuple[bytes, list[bytes]]:
    """The JSON of a request, and the raw tensors behind it."""
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, array in feeds.items():
        tensor: dict[str, Any] = {"name": name, "datatype": datatype_of(array), "shape": array.shape}
        if binary:
            raw.append(to_bytes(array))
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            tensor["data"] = _elements(name, array)
        tensors.append(tensor)
    parameters = {"parameters": {"binary_data": True}} if binary else {}
    asked = {"inputs": tensors, "outputs": [{"name": spec.name, **parameters} for spec in outputs]}
    return msgspec.json.encode(asked), raw


def _elements(name: str, array: NDArray[Any]) -> list[Any]:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise FeedError(
            f"input {name!r} holds NaN or infinity, and this server takes JSON, which has no words for them"
        )
    return array.ravel().tolist()


def _answered(reply: Reply) -> dict[str, NDArray[Any]]:
    length = reply.headers.get(_HEADER.lower())
    try:
        if not reply.body:
            raise ProtocolError("it is empty")
        offset = len(reply.body) if length is None else int(length)
        if not 0 < offset <= len(reply.body):
            raise ProtocolError(f"its header is said to have {length} bytes, but it has {len(reply.body)}")
        answer = understood(Reply(reply.status, {}, reply.body[:offset]), _Answer)
        return read_tensors(answer.outputs, reply.body, offset)
    except (ProtocolError, ValueError) as error:
        raise RemoteError(f"the server's answer is not understood: {error}") from error


def batch_fed(inputs: Sequence[TensorSpec], feeds: Tensors) -> int | None:
    """How many samples feeds hold; None if no input has a batch axis."""
    return batch_of(inputs, feeds) if any(spec.batch_axis is not None for spec in inputs) else None


def checked(
    outputs: Sequence[TensorSpec], answer: Mapping[str, NDArray[Any]], batch: int | None
) -> dict[str, NDArray[Any]]:
    """The outputs of an answer, held against what the model is said to give; arrays that are the caller's own.

    Args:
        outputs: what it should give; what it gives beyond that is left out.
        answer: tensor name -> array.
        batch: samples that were fed; None if the model has no batch axis.

    Raises:
        RemoteError: a tensor is missing, or has another type or shape.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for spec in outputs:
        array = answer.get(spec.name)
        if array is None:
            raise RemoteError(f"the server gave {sorted(answer)!r:.300}, but not the output {spec.name!r}")
        shape = list(spec.shape)
        if len(shape) == 1 and array.shape[1:] == (1,):
            array = array[:, 0]  # MLServer writes vectors as columns
        if batch is not None and spec.batch_axis is not None and spec.fixed_batch is None:
            shape[spec.batch_axis] = batch
        found = "str" if array.dtype.kind in "OU" else array.dtype.name
        fits = len(shape) == array.ndim and all(
            isinstance(size, str) or size == real for size, real in zip(shape, array.shape, strict=True)
        )
        if found != spec.dtype or not fits:
            raise RemoteError(
                f"the server gave {spec.name!r} as {found} {list(array.shape)}, not as {spec.dtype} {shape}"
            )
        arrays[spec.name] = array if array.flags.writeable else array.copy()
    return arrays
