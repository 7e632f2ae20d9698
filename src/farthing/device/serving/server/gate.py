"""What uvicorn's protocol lacks: limits on connections, on headers, and on clients that dribble."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

from farthing.device.serving.server.http import ANSWER
from farthing.device.serving.server.settings import Limits
from farthing.errors import require

_LARGE = b"431 Request Header Fields Too Large", b"the headers are too large"
_Base: Any = object  # `gate` puts it before uvicorn's HttpToolsProtocol


def _answer(cycle: Any, headers: bytes, body: bytes) -> bool:
    """Answer a request with 200, in one write; False if its client does not read, and it has to be awaited.

    What uvicorn does in two steps and with checks of every header, at a third of the cost: `cycle` is its
    RequestResponseCycle.
    """
    if cycle.flow.write_paused or cycle.response_started:
        return False
    if cycle.disconnected:
        return True
    cycle.response_started = cycle.response_complete = True
    dated = b"".join([b"%s: %s\r\n" % pair for pair in cycle.default_headers])
    end = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
    cycle.transport.writelines((b"HTTP/1.1 200 OK\r\n" + dated + headers + end, body))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True


class Gate(_Base):  # type: ignore[misc]
    """One connection.

    Attributes:
        since: when the request that is being received began, or the connection; inf between requests.
        heading: whether headers come next, or are coming.
    """

    limits: ClassVar[Limits]

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.since, self.heading = time.monotonic(), True
        self._size, self._large = 0, False
        if len(self.connections) > self.limits.connections:
            self._turn_away(b"503 Service Unavailable", b"too many connections", b"retry-after: 1\r\n")

    def data_received(self, data: bytes) -> None:
        if self.heading:
            self._size += len(data)
            if self.since == math.inf:
                self.since = time.monotonic()
        super().data_received(data)
        if self.heading and self._size > self.limits.header_bytes:
            self._turn_away(*_LARGE)

    def on_headers_complete(self) -> None:
        size, self._size, self.heading = self._size, 0, False
        if size > self.limits.header_bytes and self._head_bytes() > self.limits.header_bytes:
            self._large = True
            raise ValueError("headers too large")  # ends the parsing; `send_400_response` is next
        super().on_headers_complete()
        self.scope["extensions"] = {ANSWER: partial(_answer, self.cycle)}

    def on_message_complete(self) -> None:
        self.since, self.heading = math.inf, True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._turn_away(*(_LARGE if self._large else (b"400 Bad Request", b"this is no HTTP request")))

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _turn_away(self, status: bytes, text: bytes, more: bytes = b"") -> None:
        if self.transport.is_closing():
            return
        body = b'{"error":"%s"}' % text
        head = b"content-type: application/json\r\ncontent-length: %d\r\n%sconnection: close" % (
            len(body),
            more,
        )
        self.transport.write(b"HTTP/1.1 %s\r\n%s\r\n\r\n%s" % (status, head, body))
        self.transport.close()


def gate(limits: Limits) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn's ``http`` setting.

    Raises:
        NotInstalled: uvicorn or httptools is missing.
    """
    require("httptools", "serve")
    base = require("uvicorn.protocols.http.httptools_impl", "serve").HttpToolsProtocol
    return type("Gate", (Gate, base), {"limits": limits})


def close_dribblers(connections: Iterable[Any], limits: Limits, now: float) -> None:
    """Close connections whose request takes too long to come in: its headers, or its body after it was refused.

    The body of a request that is being answered is watched by the application, which can say so.
    """
    for connection in list(connections):
        limit = limits.header_seconds if connection.heading else 2 * limits.body_seconds
        if now - connection.since > limit:
            connection.transport.abort()
