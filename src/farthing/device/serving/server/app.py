"""The Open Inference Protocol over HTTP, as a plain ASGI application: no framework, one dictionary of infer routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any

from farthing.device.serving.server.access import Access
from farthing.device.serving.server.core import Core
from farthing.device.serving.server.http import (
    ANSWER,
    Gone,
    Head,
    Receive,
    Refusal,
    Scope,
    Send,
    refusal,
    refuse,
    reply,
)
from farthing.device.serving.server.operations import remarks
from farthing.device.serving.server.pages import Pages
from farthing.device.serving.server.protocol import Inference, decode, encode, raw_inference
from farthing.device.serving.server.repository.served import Served
from farthing.device.serving.server.settings import Limits
from farthing.device.serving.server.visits import Visit, Visits
from farthing.errors import FarthingError, ProtocolError

Log = Callable[[dict[str, Any]], None]
"""Takes one line of the access log."""

_JSON, _BINARY = b"application/json", b"application/octet-stream"
_LENGTH = b"inference-header-content-length"
_CLOSE = ((b"connection", b"close"),)
_SLOW = Refusal(408, "the body did not come in time", _CLOSE)
_STOPS = Refusal(503, "the server stops", ((b"retry-after", b"1"), *_CLOSE))


class App:
    """The ASGI application.

    Args:
        core: what answers.
        limits: what clients may take.
        access: who may do what.
        log: takes the access log; None keeps none.
        report: told of errors that nobody foresaw; their clients get 500.
        triton_metrics: offer Triton's names of metrics beside ours.

    Attributes:
        visits: requests under way, and what is held of their bodies.
    """

    def __init__(
        self,
        core: Core,
        limits: Limits | None = None,
        access: Access | None = None,
        log: Log | None = None,
        report: Callable[[BaseException], None] = lambda error: None,
        triton_metrics: bool = False,
    ) -> None:
        self._core, self._access = core, access or Access()
        self._log, self._report = log, report
        self.visits = Visits(limits or Limits())
        self._pages = Pages(core, self._access, self.visits, triton_metrics)
        self._generation = -1
        self._routes: dict[str, Served] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if self._log is not None:
            send = _logged(self._log, scope, send)
        visit = self.visits.enter(receive)
        try:
            await self._answer(visit, scope, send)
        except Gone:
            pass
        except Refusal as refused:
            await refuse(send, refused)
        except FarthingError as error:
            await refuse(send, refusal(error))
        except asyncio.CancelledError:
            if visit.task is not None:
                visit.task.uncancel()
            if visit.ended != "gone":
                with suppress(RuntimeError):  # an answer had begun
                    await refuse(send, _SLOW if visit.ended else _STOPS)
        except Exception as error:  # noqa: BLE001 - its client is told, and others are not harmed
            self._report(error)
            await refuse(send, Refusal(500, "an error of the server's own: its log says more"))
        finally:
            self.visits.leave(visit)

    async def _answer(self, visit: Visit, scope: Scope, send: Send) -> None:
        if self._generation != self._core.repository.generation:
            self._renew_routes()
        served = self._routes.get(scope["path"])
        if served is None or scope["method"] != "POST":
            await self._pages.answer(visit, scope, send)
        else:
            await self._infer(served, visit, scope, send)

    def _renew_routes(self) -> None:
        repository = self._core.repository
        self._generation = repository.generation
        self._routes = {}
        for served in repository.served():  # the default version comes last
            self._routes[f"/v2/models/{served.name}/infer"] = served
            self._routes[f"/v2/models/{served.name}/versions/{served.version}/infer"] = served

    def _successor(self, served: Served, path: str) -> Served:
        """What answers on a path whose version was retired while the body of a request came in.

        Raises:
            UnknownModelError: nothing does: the model was unloaded, or that version was asked for.
        """
        self._renew_routes()
        return self._routes.get(path) or self._core.repository.find(served.name, served.version)

    async def _infer(self, served: Served, visit: Visit, scope: Scope, send: Send) -> None:
        head = Head(scope["headers"])
        if not self._access.open:
            self._access.check(head.authorization)
        if head.encoding or head.kind not in {_BINARY, _JSON, b""}:
            _check_kind(head)
        body = await self.visits.body(visit, head.length)
        if served.retired:
            served = self._successor(served, scope["path"])
        tally = served.tally
        began = time.perf_counter_ns()
        asked = _understood(body, head, served)
        tally.decode.add(time.perf_counter_ns() - began)
        answer = await self._core.infer(served, asked)
        began = time.perf_counter_ns()
        written, length = encode(served.name, served.version, asked, answer.outputs, remarks(answer))
        tally.encode.add(time.perf_counter_ns() - began)
        at_once = None if self._log else scope.get("extensions", {}).get(ANSWER)
        if at_once is None or not at_once(_headers(length, len(written)), written):
            kind, more = (_JSON, ()) if length is None else (_BINARY, ((_LENGTH, b"%d" % length),))
            with self.visits.answering(len(written)):
                await reply(send, 200, written, kind, more)


def _headers(header: int | None, size: int) -> bytes:
    if header is None:
        return b"content-type: application/json\r\ncontent-length: %d\r\n" % size
    return (
        b"content-type: application/octet-stream\r\ncontent-length: %d\r\n"
        b"inference-header-content-length: %d\r\n" % (size, header)
    )


def _check_kind(head: Head) -> None:
    if head.encoding not in {b"", b"identity"}:
        raise Refusal(415, "bodies are not unpacked here: send the request without Content-Encoding")
    kind = _kind(head)
    if kind not in {_BINARY, _JSON}:
        raise Refusal(
            415,
            f"a request is application/json or application/octet-stream, not {kind.decode('latin-1')!r}: "
            "say so in Content-Type (curl: -H 'Content-Type: application/json')",
        )


def _kind(head: Head) -> bytes:
    """The content type without its parameters."""
    return head.kind if head.kind in {_BINARY, _JSON} else head.kind.partition(b";")[0].strip().lower()


def _understood(body: bytes, head: Head, served: Served) -> Inference:
    if head.header is None:
        return raw_inference(body, served.inputs) if _kind(head) == _BINARY else decode(body)
    if not head.header.isdigit() or len(head.header) > 12:
        raise ProtocolError(
            f"Inference-Header-Content-Length is a number, not {head.header.decode('latin-1')!r}"
        )
    length = int(head.header)
    return decode(body, length) if length else raw_inference(body, served.inputs)


def _logged(log: Log, scope: Scope, send: Send) -> Send:
    """A ``send`` that writes a line when the answer is through."""
    began, status, size = time.perf_counter(), 0, 0

    async def sending(message: MutableMapping[str, Any]) -> None:
        nonlocal status, size
        await send(message)
        size += len(message.get("body", b""))
        if message["type"] == "http.response.start":
            status = message["status"]
        elif not message.get("more_body"):
            client = scope.get("client")
            log(
                {
                    "time": round(time.time(), 3),
                    "client": client[0] if client else "",
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "bytes": size,
                    "ms": round((time.perf_counter() - began) * 1000, 3),
                }
            )

    return sending
