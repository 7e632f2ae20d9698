"""What uvicorn's protocol lacks: limits on connections, on headers, and on clients that dribble or do not read."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

from farthing.device.serving.server.http import ANSWER, PIECE
from farthing.device.serving.server.settings import Limits
from farthing.device.serving.server.visits import Visits
from farthing.errors import require

_CHUNK = 16  # bytes that a chunk of a body may cost beside what it holds
_LARGE = b"431 Request Header Fields Too Large", b"the headers are too large"
_Base: Any = object  # `gate` puts it before uvicorn's HttpToolsProtocol


def _answer(cycle: Any, headers: bytes, body: bytes) -> bool:
    """Answer a request with 200, in one write; False if its client may not read that much, and has to be awaited.

    What uvicorn does in two steps and with checks of every header, at a third of the cost: `cycle` is its
    RequestResponseCycle.
    """
    if cycle.flow.write_paused or cycle.response_started or len(body) > PIECE:
        return False
    cycle.response_started = cycle.response_complete = True
    if cycle.disconnected or cycle.transport.is_closing():
        return True
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
        behind: since when an answer waits for the client to read; inf if none does.
    """

    limits: ClassVar[Limits]
    visits: ClassVar[Visits]

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.since, self.heading, self.behind = time.monotonic(), True, math.inf
        self._size, self._large, self._unread = 0, False, 0
        self._next: tuple[Any, Any] | None = None
        self._running: Any = None
        self._data = self._again = b""
        if len(self.connections) > self.limits.connections:
            self._turn_away(b"503 Service Unavailable", b"too many connections", b"retry-after: 1\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwait()
        self._next = None
        if self._running is not None:  # uvicorn tells the last request only: others may be in line before it
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.behind = time.monotonic()
        self._unread = self.transport.get_write_buffer_size()
        self.visits.unread += self._unread

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwait()
        if self._next is not None:
            (cycle, app), self._next = self._next, None
            self._start_asgi_task(cycle, app)

    def _unwait(self) -> None:
        """No answer waits any more."""
        self.visits.unread -= self._unread
        self.behind, self._unread = math.inf, 0

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """A request is answered when its client has taken the answer before."""
        if self.flow.write_paused:
            self._next = cycle, app
        else:
            self._running = cycle
            super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        if self.since == math.inf:
            self.since = time.monotonic()
        self._size += len(data)
        self._data = data
        super().data_received(data)
        self._data = b""
        if self._again:
            again, self._again = self._again, b""
            super().data_received(again)
        if self._size > self.limits.header_bytes:
            self._turn_away(*_LARGE)

    def on_headers_complete(self) -> None:
        size, self._size = self._size, 0
        if size > self.limits.header_bytes and self._head_bytes() > self.limits.header_bytes:
            self._large = True
            raise ValueError("headers too large")  # ends the parsing; `send_400_response` is next
        if self.parser.should_upgrade():
            return  # `_unsupported_upgrade_warning` is next
        self.heading = False
        super().on_headers_complete()
        self.scope["extensions"] = {ANSWER: partial(_answer, self.cycle)}

    def on_body(self, body: bytes) -> None:
        self._size = max(0, self._size - len(body) - _CHUNK)  # what is around it is limited as headers are
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.heading:
            self.since, self.heading, self._size = math.inf, True, 0
            super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Go on as if no other protocol had been offered, as RFC 9110, 7.8 allows: Java's clients offer HTTP/2.

        The parser has stopped behind the headers. It gets them anew, without the offer, and what came behind them.
        """
        stopped = sys.exception()
        if stopped is None or not self._data:
            return self.send_400_response("")
        kept = [b"%s: %s\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
        version = self.parser.get_http_version().encode()
        head = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)
        self._again = head + b"".join(kept) + b"\r\n" + self._data[stopped.args[0] :]
        return None

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


def gate(limits: Limits, visits: Visits) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn's ``http`` setting.

    Raises:
        NotInstalled: uvicorn or httptools is missing.
    """
    require("httptools", "serve")
    base = require("uvicorn.protocols.http.httptools_impl", "serve").HttpToolsProtocol
    return type("Gate", (Gate, base), {"limits": limits, "visits": visits})


def close_dribblers(
    connections: Iterable[Any], limits: Limits, now: float, reading: float, leaving: float
) -> None:
    """Close connections whose request takes too long to come in: its headers, or its body after it was refused; or
    whose client takes too long to read an answer.

    The body of a request that is being answered is watched by the application, which can say so.

    Args:
        connections: all there are.
        limits: of clients.
        now: seconds by the monotonic clock.
        reading: seconds that a client may take to read an answer.
        leaving: seconds that a connection may take to be closed when nothing is to be read: over TLS, its client has
            to agree, and one that does nothing with the connection does not.
    """
    for connection in list(connections):
        transport = connection.transport
        if connection.behind == math.inf and transport.is_closing():
            connection.behind = now
        coming = limits.header_seconds if connection.heading else 2 * limits.body_seconds
        going = leaving if transport.is_closing() and not transport.get_write_buffer_size() else reading
        if now - connection.since > coming or now - connection.behind > going:
            transport.abort()
