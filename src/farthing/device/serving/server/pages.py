"""All routes but the infer one: health, metadata, statistics, metrics, and the loading and unloading of models."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

import farthing
from farthing.device.serving.server.access import Access
from farthing.device.serving.server.core import Core
from farthing.device.serving.server.http import Head, Refusal, Scope, Send, reply, reply_json
from farthing.device.serving.server.metrics import metrics
from farthing.device.serving.server.protocol import EXTENSIONS, Parameters, tensor_metadata
from farthing.device.serving.server.served import Served
from farthing.device.serving.server.visits import Visit, Visits
from farthing.device.watch.exposition import OPENMETRICS, PROMETHEUS, openmetrics, prometheus
from farthing.errors import FarthingError, ProtocolError, UnknownModelError


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
            _Route(get, ("v2", "models", "stats"), self._all_statistics, "token"),
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

    def _find(self, call: _Call) -> Served:
        return self._core.repository.find(call.model, call.version)

    async def _server(self, call: _Call) -> None:
        said = {"name": "farthing", "version": farthing.__version__, "extensions": EXTENSIONS}
        await reply_json(call.send, said)

    async def _live(self, call: _Call) -> None:
        await reply_json(call.send, {"live": True})

    async def _ready(self, call: _Call) -> None:
        ready = self._core.ready
        await reply_json(call.send, {"ready": ready}, 200 if ready else 503)

    async def _model_ready(self, call: _Call) -> None:
        served = self._find(call)
        await reply_json(call.send, {"name": served.name, "ready": True})

    async def _metadata(self, call: _Call) -> None:
        served = self._find(call)
        versions = [one.version for one in self._core.repository.served() if one.name == served.name]
        said = {
            "name": served.name,
            "versions": versions,
            "platform": served.facts.platform,
            "inputs": tensor_metadata(served.inputs),
            "outputs": tensor_metadata(served.outputs),
            "parameters": {"version": served.version, "digest": served.facts.digest},
        }
        await reply_json(call.send, said)

    async def _statistics(self, call: _Call) -> None:
        self._find(call)
        chosen = [
            one
            for one in self._core.repository.served()
            if one.name == call.model and call.version in {"", one.version}
        ]
        await self._tell_statistics(call, chosen)

    async def _all_statistics(self, call: _Call) -> None:
        await self._tell_statistics(call, self._core.repository.served())

    async def _tell_statistics(self, call: _Call, chosen: list[Served]) -> None:
        said = [one.tally.statistics(one.name, one.version) for one in chosen]
        await reply_json(call.send, {"model_stats": said})

    async def _infer(self, call: _Call) -> None:
        """Of a model that is not served: those that are have routes of their own."""
        self._find(call)
        raise UnknownModelError(f"{call.model!r} has just been loaded: ask again")

    async def _index(self, call: _Call) -> None:
        asked = await self._asked(call)
        lines = [line._asdict() for line in self._core.repository.index()]
        await reply_json(call.send, [line for line in lines if line["state"] == "READY" or not asked.ready])

    async def _load(self, call: _Call) -> None:
        asked = await self._asked(call)
        if asked.parameters:
            raise ProtocolError(
                f"parameters {sorted(asked.parameters)} are not taken: what is loaded is what lies on the disk"
            )
        await self._managed(call, self._core.repository.load(call.model))

    async def _unload(self, call: _Call) -> None:
        asked = await self._asked(call)
        others = set(asked.parameters or ()) - {"unload_dependents"}
        if others:
            raise ProtocolError(f"parameters {sorted(others)} are not taken")
        await self._managed(call, self._core.repository.unload(call.model))

    async def _managed(self, call: _Call, work: Awaitable[None]) -> None:
        """Let it come to its end even if the client goes away."""
        try:
            await asyncio.shield(work)
        except UnknownModelError:
            raise
        except FarthingError as error:
            raise Refusal(422, str(error)) from error
        await reply(call.send, 200, b"", b"application/json")

    async def _asked(self, call: _Call) -> _Asked:
        body = await self._visits.body(call.visit, call.head.length)
        try:
            return msgspec.json.decode(body, type=_Asked) if body.strip() else _Asked()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"the request is no repository request: {error}") from error

    async def _metrics(self, call: _Call) -> None:
        told = metrics(self._core, self._visits.held, self._triton_metrics)
        if b"application/openmetrics-text" in call.head.accept:
            await reply(call.send, 200, openmetrics(told).encode(), OPENMETRICS.encode())
        else:
            await reply(call.send, 200, prometheus(told).encode(), PROMETHEUS.encode())


def _fits(pattern: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    return len(pattern) == len(parts) and all(
        part == wanted or (wanted[0] == "{" and part != "")
        for wanted, part in zip(pattern, parts, strict=True)
    )
