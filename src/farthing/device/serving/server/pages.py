"""All routes but the infer one: health, metadata, statistics, metrics, and the loading and unloading of models."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from farthing.device.serving.server import operations
from farthing.device.serving.server.access import Access
from farthing.device.serving.server.core import Core
from farthing.device.serving.server.http import Head, Refusal, Scope, Send, reply, reply_json
from farthing.device.serving.server.metrics import metrics
from farthing.device.serving.server.protocol import Parameters
from farthing.device.serving.server.visits import Visit, Visits
from farthing.device.watch.exposition import OPENMETRICS, PROMETHEUS, openmetrics, prometheus
from farthing.errors import ProtocolError, UnknownModelError


class _Call(NamedTuple):
    """A request for a page."""

    visit: Visit
    head: Head
    model: str
    version: str
    send: Send


Page = Callable[[_Call], Awaitable[None]]


class _Route(NamedTuple):
    methods: tuple[str, ...]
    parts: tuple[str, ...]
    page: Page
    asks: str  # "": nothing, "token", "management"


class _Asked(msgspec.Struct):
    """Body of a repository request."""

    ready: bool = False
    parameters: Parameters | None = None


class Pages:
    """The pages of a server.

    Args:
        core: what they tell about.
        access: who may see and do what.
        visits: reads bodies.
        triton_metrics: offer Triton's names of metrics beside ours.
    """

    def __init__(self, core: Core, access: Access, visits: Visits, triton_metrics: bool) -> None:
        self._core, self._access, self._visits = core, access, visits
        self._triton_metrics = triton_metrics
        get, post, both = ("GET", "HEAD"), ("POST",), ("GET", "HEAD", "POST")
        self._routes = (
            _Route(get, ("v2",), self._server, "token"),
            _Route(get, ("v2", "health", "live"), self._live, ""),
            _Route(get, ("v2", "health", "ready"), self._ready, ""),
            _Route(get, ("v2", "models", "stats"), self._statistics, "token"),
            *self._of_model(get, (), self._metadata),
            *self._of_model(get, ("ready",), self._model_ready),
            *self._of_model(get, ("stats",), self._statistics),
            *self._of_model(post, ("infer",), self._infer),
            _Route(both, ("v2", "repository", "index"), self._index, "token"),
            _Route(post, ("v2", "repository", "models", "{model}", "load"), self._load, "management"),
            _Route(post, ("v2", "repository", "models", "{model}", "unload"), self._unload, "management"),
            _Route(get, ("metrics",), self._metrics, "token"),
        )

    @staticmethod
    def _of_model(methods: tuple[str, ...], tail: tuple[str, ...], page: Page) -> tuple[_Route, _Route]:
        model = ("v2", "models", "{model}")
        return (
            _Route(methods, (*model, *tail), page, "token"),
            _Route(methods, (*model, "versions", "{version}", *tail), page, "token"),
        )

    async def answer(self, visit: Visit, scope: Scope, send: Send) -> None:
        """Answer a request for a page.

        Raises:
            Refusal: no such page, not with this method, or not for this client.
            FarthingError: see `refusal`.
        """
        parts = tuple(scope["path"].rstrip("/").split("/")[1:])
        fitting = [route for route in self._routes if _fits(route.parts, parts)]
        if not fitting:
            raise Refusal(404, f"there is no page {scope['path']!r} here; the protocol begins at /v2")
        route = next((route for route in fitting if scope["method"] in route.methods), None)
        if route is None:
            allowed = ", ".join(sorted({method for route in fitting for method in route.methods}))
            raise Refusal(
                405, f"this page takes {allowed}, not {scope['method']}", ((b"allow", allowed.encode()),)
            )
        head = Head(scope["headers"])
        if route.asks == "management":
            self._access.check_management(head.authorization, head.origin)
        elif route.asks:
            self._access.check(head.authorization)
        named = dict(zip(route.parts, parts, strict=True))
        await route.page(_Call(visit, head, named.get("{model}", ""), named.get("{version}", ""), send))

    async def _server(self, call: _Call) -> None:
        await reply_json(call.send, operations.server_metadata())

    async def _live(self, call: _Call) -> None:
        await reply_json(call.send, {"live": True})

    async def _ready(self, call: _Call) -> None:
        ready = self._core.ready
        await reply_json(call.send, {"ready": ready}, 200 if ready else 503)

    async def _model_ready(self, call: _Call) -> None:
        served = self._core.repository.find(call.model, call.version)
        await reply_json(call.send, {"name": served.name, "ready": True})

    async def _metadata(self, call: _Call) -> None:
        said = operations.model_metadata(self._core.repository, call.model, call.version)
        await reply_json(call.send, said)

    async def _statistics(self, call: _Call) -> None:
        said = operations.statistics(self._core.repository, call.model, call.version)
        await reply_json(call.send, {"model_stats": said})

    async def _infer(self, call: _Call) -> None:
        """Of a model that is not served: those that are have routes of their own."""
        self._core.repository.find(call.model, call.version)
        raise UnknownModelError(f"{call.model!r} has just been loaded: ask again")

    async def _index(self, call: _Call) -> None:
        asked = await self._asked(call)
        await reply_json(call.send, operations.index(self._core.repository, asked.ready))

    async def _load(self, call: _Call) -> None:
        asked = await self._asked(call)
        await operations.load(self._core.repository, call.model, asked.parameters or ())
        await reply(call.send, 200, b"", b"application/json")

    async def _unload(self, call: _Call) -> None:
        asked = await self._asked(call)
        await operations.unload(self._core.repository, call.model, asked.parameters or ())
        await reply(call.send, 200, b"", b"application/json")

    async def _asked(self, call: _Call) -> _Asked:
        body = await self._visits.body(call.visit, call.head.length)
        try:
            return msgspec.json.decode(body, type=_Asked) if body.strip() else _Asked()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"the request is no repository request: {error}") from error

    async def _metrics(self, call: _Call) -> None:
        told = metrics(self._core, self._visits.held + self._visits.unread, self._triton_metrics)
        if b"application/openmetrics-text" in call.head.accept:
            await reply(call.send, 200, openmetrics(told).encode(), OPENMETRICS.encode())
        else:
            await reply(call.send, 200, prometheus(told).encode(), PROMETHEUS.encode())


def _fits(pattern: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    return len(pattern) == len(parts) and all(
        part == wanted or (wanted[0] == "{" and part != "")
        for wanted, part in zip(pattern, parts, strict=True)
    )
