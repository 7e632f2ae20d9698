"""The Open Inference Protocol over gRPC, in the event loop of the HTTP face and over the same core.

Every call is taken as bytes, and read when its sender is let in: what is no message gets INVALID_ARGUMENT, and nothing
is read for who may not ask. grpcio carries it; it is imported when a server of it is made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from farthing.device.serving.server.access import Access
from farthing.device.serving.server.app import Log
from farthing.device.serving.server.core import Core
from farthing.device.serving.server.grpc.calls import CALLS, Called, Calls
from farthing.device.serving.server.grpc.messages import SERVICE, messages
from farthing.device.serving.server.grpc.readers import Readers
from farthing.device.serving.server.http import Refusal, refusal
from farthing.device.serving.server.settings import Limits, Settings, Tls
from farthing.device.serving.server.visits import Visits
from farthing.errors import ConfigError, FarthingError, ProtocolError, require

_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",
    422: "FAILED_PRECONDITION",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""The status of a refusal over HTTP -> that over gRPC."""
_PATIENCE = 1.0  # seconds that a message may take to come in while others wait for their turn
_SMALL = 1 << 14  # bytes of answers that are not counted
_AGE_SECONDS = 300  # after which a connection takes no more calls, and clients make a new one by themselves
_LAST_SECONDS = 600  # that its last calls may take: nothing else ends one whose client does not read
_LONGEST = 2000  # characters of an error: clients take some 8 KiB of headers and trailers together


class GrpcServer:
    """The gRPC face of a server.

    Args:
        settings: how it runs; ``grpc_port`` is a number.
        core: what answers.
        access: who may do what.
        visits: counts the bytes that are held, for both faces.
        log: takes the access log; None keeps none.
        report: told of errors that nobody foresaw; their clients get INTERNAL.

    Attributes:
        address: where it listens, as in ``127.0.0.1:8001``; empty before it was started.

    Raises:
        NotInstalled: grpcio or protobuf is missing: ``pip install 'farthing[grpc]'``.
        ConfigError: the TLS files cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        core: Core,
        access: Access,
        visits: Visits,
        log: Log | None = None,
        report: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._grpc, self._messages = require("grpc.aio", "grpc"), messages()
        self._codes = require("grpc", "grpc").StatusCode
        self._settings, self._log, self._report = settings, log, report
        self._calls = Calls(core, self._messages)
        self._access, self._visits = access, visits
        self._credentials = _credentials(settings.tls) if settings.tls else None
        self._running: set[asyncio.Task[Any] | None] = set()
        self._aborted = False
        self._unread = 0  # bytes of answers that wait for their clients to take them
        limits = settings.limits
        room = max(1, limits.buffered_bytes // limits.body_bytes)
        self._readers = Readers(room, limits.body_seconds, _PATIENCE)
        self._server: Any = None
        self.address = ""

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the address is taken, or not one of this machine.
        """
        server = self._grpc.server(options=_options(self._settings.limits))
        grpc = require("grpc", "grpc")
        handlers = {
            name: grpc.stream_unary_rpc_method_handler(self._handler(name, called))
            for name, called in CALLS.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        wanted = f"{host}:{self._settings.grpc_port}"
        try:
            if self._credentials is None:
                port = server.add_insecure_port(wanted)
            else:
                port = server.add_secure_port(wanted, self._credentials)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {wanted}: {error}; choose another --grpc-port") from error
        await server.start()
        self._server, self.address = server, f"{host}:{port}"

    async def stop(self, grace: float) -> None:
        """Take no more calls; those under way have ``grace`` seconds."""
        if self._server is not None:
            await self._server.stop(grace)

    def abort(self) -> None:
        """End the calls that are under way, with UNAVAILABLE."""
        self._aborted = True
        for task in self._running:
            if task is not None:
                task.cancel()

    def _handler(self, name: str, called: Called) -> Callable[[Any, Any], Any]:
        async def handle(incoming: Any, context: Any) -> bytes:
            task = asyncio.current_task()
            self._running.add(task)
            try:
                return await self._handle(name, called, context)
            finally:
                self._running.discard(task)

        return handle

    async def _handle(self, name: str, called: Called, context: Any) -> bytes:
        began = asyncio.get_running_loop().time()
        status, text, answer = 200, "", b""
        try:
            answer = await self._answer(name, called, context)
        except Refusal as refused:
            status, text = refused.status, refused.text
        except FarthingError as error:
            status, text = refusal(error).status, str(error)
        except asyncio.CancelledError:
            if not self._aborted:
                raise
            status, text = 503, "the server stops"
        except Exception as error:  # noqa: BLE001 - its client is told, and others are not harmed
            self._report(error)
            status, text = 500, "an error of the server's own: its log says more"
        if self._log is not None:
            self._log(_line(name, context, _CODES.get(status, "OK"), len(answer), began))
        if status != 200:
            await context.abort(getattr(self._codes, _CODES.get(status, "UNKNOWN")), text[:_LONGEST])
        if len(answer) > _SMALL:
            self._unread += len(answer)
            context.add_done_callback(partial(self._taken, len(answer)))
        return answer

    def _taken(self, size: int, context: Any) -> None:
        self._unread -= size

    async def _answer(self, name: str, called: Called, context: Any) -> bytes:
        said = {key: value for key, value in context.invocation_metadata() or () if key == "authorization"}
        authorization = said.get("authorization", "").encode()
        if called.asks == "management":
            self._access.check_management(authorization, None)
        elif called.asks:
            self._access.check(authorization)
        else:  # health: nothing in the request matters, and nobody else holds it up
            return await called.answer(self._calls, None, None)
        body = await self._body(context)
        if self._unread > self._settings.limits.buffered_bytes:
            raise Refusal(429, "too many bytes of answers wait to be taken: ask again later")
        self._visits.take(len(body))
        try:
            request = self._understood(f"{name}Request", body)
            return await called.answer(self._calls, request, context.time_remaining())
        finally:
            self._visits.give(len(body))

    async def _body(self, context: Any) -> bytes:
        async with self._readers.turn():
            body: Any = await context.read()
        if not isinstance(body, bytes):
            raise ProtocolError("the call ended without a message")
        return body

    def _understood(self, kind: str, body: bytes) -> Any:
        try:
            return self._messages[kind].FromString(body)
        except require("google.protobuf.message", "grpc").DecodeError as error:
            raise ProtocolError(f"this is no {kind}: {error}") from error


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # a port that is taken is an error
        ("grpc.max_receive_message_length", limits.body_bytes),
        ("grpc.max_metadata_size", limits.header_bytes),
        ("grpc.absolute_max_metadata_size", limits.header_bytes),
        ("grpc.max_concurrent_streams", limits.in_flight),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.max_connection_idle_ms", int(limits.idle_seconds * 1000)),
        ("grpc.max_connection_age_ms", _AGE_SECONDS * 1000),
        ("grpc.max_connection_age_grace_ms", _LAST_SECONDS * 1000),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: nothing is unpacked here
    ]


def _credentials(tls: Tls) -> Any:
    try:
        pair = tls.key.read_bytes(), tls.certificate.read_bytes()
        authority = tls.client_ca.read_bytes() if tls.client_ca is not None else None
    except OSError as error:
        raise ConfigError(f"TLS cannot start with {tls.certificate} and {tls.key}: {error}") from error
    return require("grpc", "grpc").ssl_server_credentials([pair], authority, authority is not None)


def _line(name: str, context: Any, code: str, size: int, began: float) -> dict[str, Any]:
    return {
        "time": round(time.time(), 3),
        "client": context.peer(),
        "method": "gRPC",
        "path": f"/{SERVICE}/{name}",
        "status": code,
        "bytes": size,
        "ms": round((asyncio.get_running_loop().time() - began) * 1000, 3),
    }
