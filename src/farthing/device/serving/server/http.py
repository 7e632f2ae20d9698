"""What a request over HTTP is made of, and what is said when it is refused."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import msgspec

from farthing.errors import (
    CircuitOpenError,
    ClosedError,
    DeadlineError,
    EngineError,
    FarthingError,
    FeedError,
    OverloadError,
    ProtocolError,
    RemoteError,
    UnknownModelError,
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ANSWER = "farthing.answer"
"""Extension of our own, where the server has it: ``answer(headers, body)`` sends a 200 whole, or returns False."""
PIECE = 1 << 18
"""Bytes of an answer that are handed over at once where a client may be slow."""
Headers = Iterable[tuple[bytes, bytes]]

_STATUS: tuple[tuple[type[FarthingError], int], ...] = (
    (FeedError, 400),
    (ProtocolError, 400),
    (UnknownModelError, 404),
    (OverloadError, 429),
    (DeadlineError, 504),
    (ClosedError, 503),
    (CircuitOpenError, 503),
    (RemoteError, 502),
    (EngineError, 500),
    (FarthingError, 500),
)


class Head:
    """The headers of a request that we look at: empty, or None, where they are not there.

    Attributes:
        accept, authorization: ``Accept``, ``Authorization``.
        kind, encoding: ``Content-Type``, ``Content-Encoding``.
        length: ``Content-Length``.
        header: ``Inference-Header-Content-Length``.
        origin: ``Origin``.
    """

    __slots__ = ("accept", "authorization", "encoding", "header", "kind", "length", "origin")

    def __init__(self, headers: Headers) -> None:
        self.accept = self.authorization = self.kind = self.encoding = b""
        self.length: bytes | None = None
        self.header: bytes | None = None
        self.origin: bytes | None = None
        for name, value in headers:
            place = _PLACES.get(name)
            if place is not None:
                setattr(self, place, value)


_PLACES = {
    b"accept": "accept",
    b"authorization": "authorization",
    b"content-type": "kind",
    b"content-encoding": "encoding",
    b"content-length": "length",
    b"inference-header-content-length": "header",
    b"origin": "origin",
}


class Refusal(Exception):
    """An answer other than 200. It ends the handling of a request, and never leaves the server.

    Args:
        status: of HTTP.
        text: what is wrong and what to do.
        headers: further ones.
    """

    def __init__(self, status: int, text: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, headers


class Gone(Exception):
    """The client went away: there is nobody to answer."""


def refusal(error: FarthingError) -> Refusal:
    """The refusal that an error of ours amounts to."""
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    again: tuple[tuple[bytes, bytes], ...] = ()
    if status in {429, 503}:
        seconds = error.retry_after if isinstance(error, OverloadError) else None
        again = ((b"retry-after", b"%d" % max(1, math.ceil(seconds or 1))),)
    return Refusal(status, str(error), again)


async def reply(send: Send, status: int, body: bytes, kind: bytes, headers: Headers = ()) -> None:
    """Send an answer, as fast as its client takes it."""
    said = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": said})
    for at in range(0, max(len(body), 1), PIECE):
        piece, more = body[at : at + PIECE], at + PIECE < len(body)
        await send({"type": "http.response.body", "body": piece, "more_body": more})
        if more:
            await asyncio.sleep(0)  # others go on, and a client that went away is noticed


async def reply_json(send: Send, data: object, status: int = 200, headers: Headers = ()) -> None:
    """Send plain data, or a structure, as JSON."""
    await reply(send, status, msgspec.json.encode(data), b"application/json", headers)


async def refuse(send: Send, refused: Refusal) -> None:
    """Send a refusal, as the protocol wants it: ``{"error": "..."}``."""
    await reply_json(send, {"error": refused.text}, refused.status, refused.headers)
