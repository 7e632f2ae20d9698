"""What the gRPC face answers, call by call: a request's message in, the answer's bytes out. No sockets, no grpcio."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from farthing.device.serving.server import operations
from farthing.device.serving.server.core import Core
from farthing.device.serving.server.grpc.tensors import answered, plain, understood
from farthing.errors import ProtocolError, UnknownModelError

_SHORTEST = 1e-6  # seconds: a timeout of 0 would be none


class Calls:
    """The calls of a server.

    Args:
        core: what answers.
        messages: the classes of messages, by name.
    """

    def __init__(self, core: Core, messages: Mapping[str, Any]) -> None:
        self._core, self._messages = core, messages

    async def live(self, request: Any, remaining: float | None) -> bytes:
        """``ServerLive``: it answers, so it lives."""
        return self._written("ServerLiveResponse", live=True)

    async def ready(self, request: Any, remaining: float | None) -> bytes:
        """``ServerReady``: whether requests should be sent here."""
        return self._written("ServerReadyResponse", ready=self._core.ready)

    async def model_ready(self, request: Any, remaining: float | None) -> bytes:
        """``ModelReady``: whether a model, or one version of it, is served."""
        try:
            self._core.repository.find(request.name, request.version)
        except UnknownModelError:
            return self._written("ModelReadyResponse", ready=False)
        return self._written("ModelReadyResponse", ready=True)

    async def server_metadata(self, request: Any, remaining: float | None) -> bytes:
        """``ServerMetadata``."""
        return self._written("ServerMetadataResponse", **operations.server_metadata())

    async def model_metadata(self, request: Any, remaining: float | None) -> bytes:
        """``ModelMetadata``."""
        said = operations.model_metadata(self._core.repository, request.name, request.version)
        return self._written("ModelMetadataResponse", **said)

    async def statistics(self, request: Any, remaining: float | None) -> bytes:
        """``ModelStatistics``: of one model, or of all."""
        said = operations.statistics(self._core.repository, request.name, request.version)
        kind = self._messages["ModelStatistics"]
        stats = [_known(kind, one) for one in said]
        return self._written("ModelStatisticsResponse", model_stats=stats)

    async def index(self, request: Any, remaining: float | None) -> bytes:
        """``RepositoryIndex``."""
        _refuse_repository(request)
        models = operations.index(self._core.repository, request.ready)
        return self._written("RepositoryIndexResponse", models=models)

    async def load(self, request: Any, remaining: float | None) -> bytes:
        """``RepositoryModelLoad``."""
        _refuse_repository(request)
        await operations.load(self._core.repository, request.model_name, plain(request.parameters))
        return b""

    async def unload(self, request: Any, remaining: float | None) -> bytes:
        """``RepositoryModelUnload``."""
        _refuse_repository(request)
        await operations.unload(self._core.repository, request.model_name, plain(request.parameters))
        return b""

    async def infer(self, request: Any, remaining: float | None) -> bytes:
        """``ModelInfer``: the call's own deadline counts as a timeout, if it is the shorter one."""
        served = self._core.repository.find(request.model_name, request.model_version)
        tally = served.tally
        began = time.perf_counter_ns()
        asked = understood(request)
        tally.decode.add(time.perf_counter_ns() - began)
        if remaining is not None:
            remaining = max(remaining, _SHORTEST)
            asked = msgspec.structs.replace(asked, timeout=min(asked.timeout or remaining, remaining))
        answer = await self._core.infer(served, asked)
        began = time.perf_counter_ns()
        said = operations.remarks(answer)
        written = answered(self._messages, served.name, served.version, asked, answer.outputs, said)
        tally.encode.add(time.perf_counter_ns() - began)
        return written

    def _written(self, kind: str, **said: Any) -> bytes:
        message = self._messages[kind]
        written: bytes = message(**_known(message, said)).SerializeToString()
        return written


def _known(kind: Any, said: Mapping[str, Any]) -> Any:
    """What a message has fields for, as plain data."""
    fields = kind.DESCRIPTOR.fields_by_name
    return msgspec.to_builtins({name: value for name, value in said.items() if name in fields})


def _refuse_repository(request: Any) -> None:
    if request.repository_name:
        raise ProtocolError("repositories have no names here: leave out repository_name")


class Called(NamedTuple):
    """How a call is answered.

    Attributes:
        answer: to the message, with the seconds that remain of the call's deadline: None if it has none.
        asks: for a token, for that of management, or for nothing.
    """

    answer: Callable[[Calls, Any, float | None], Awaitable[bytes]]
    asks: Literal["", "token", "management"] = "token"


CALLS = {
    "ServerLive": Called(Calls.live, ""),
    "ServerReady": Called(Calls.ready, ""),
    "ModelReady": Called(Calls.model_ready),
    "ServerMetadata": Called(Calls.server_metadata),
    "ModelMetadata": Called(Calls.model_metadata),
    "ModelInfer": Called(Calls.infer),
    "ModelStatistics": Called(Calls.statistics),
    "RepositoryIndex": Called(Calls.index),
    "RepositoryModelLoad": Called(Calls.load, "management"),
    "RepositoryModelUnload": Called(Calls.unload, "management"),
}
"""The calls by their names in the protocol."""
