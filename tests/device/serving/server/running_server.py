"""A real server, on a port of its own, in a thread; and models whose answers can be held up."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from farthing.device.serving.server.settings import Entry, InstanceGroup, Limits, Settings
from farthing.engines.fake import FakeEngine

X = np.arange(4, dtype=np.float32).reshape(1, 4)


class GatedEngine(FakeEngine):
    """Computes as the fake one does, as long as the gate is open."""

    name: ClassVar[str] = "gated"
    gate: ClassVar[threading.Event] = threading.Event()
    waiting: ClassVar[threading.Semaphore] = threading.Semaphore(0)

    def run(self, feeds: Any) -> dict[str, Any]:
        if not self.gate.is_set():
            self.waiting.release()
            self.gate.wait(30)
        return super().run(feeds)


class LyingEngine(FakeEngine):
    """Answers with fewer columns than its manifest says."""

    name: ClassVar[str] = "lying"

    def run(self, feeds: Any) -> dict[str, Any]:
        return {name: array[:, :-1] for name, array in super().run(feeds).items()}


class Client:
    """Asks a server, one connection at a time."""

    def __init__(self, running: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.running, self.loop = running, loop
        self.visits = running._visits
        self.host, self.port = "127.0.0.1", int(running.url.rpartition(":")[2])

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            raw = answer.read()
            is_json = answer.headers.get_content_type() == "application/json" and raw
            found = (
                json.loads(raw)
                if is_json and "inference-header-content-length" not in answer.headers
                else raw
            )
            return answer.status, found, {name.lower(): value for name, value in answer.headers.items()}
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        return self.ask("GET", path, None, headers)[:2]

    def infer(self, name: str = "net", x: Any = X, path: str = "", **more: Any) -> tuple[int, Any]:
        request = {
            "inputs": [{"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}],
            **more,
        }
        where = path or f"/v2/models/{name}/infer"
        return self.ask("POST", where, json.dumps(request).encode(), {"Content-Type": "application/json"})[:2]

    def manage(self, what: str, name: str) -> tuple[int, Any]:
        return self.ask("POST", f"/v2/repository/models/{name}/{what}")[:2]


@contextmanager
def running(settings: Settings, **options: Any) -> Iterator[Client]:
    """A server in a thread, ready; stopped in the end, which must not fail."""
    from farthing.device.serving.server.lifecycle import Server

    server = Server(settings, **options)
    started, loops, errors = threading.Event(), [], []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        serving = asyncio.ensure_future(server.serve())
        while not (server.core.started or serving.done()):
            await asyncio.sleep(0.005)
        started.set()
        await serving

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001 - it is raised in the test's own thread
            errors.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        assert started.wait(60)
        if errors:
            raise errors[0]
        yield Client(server, loops[0])
    finally:
        if thread.is_alive() and loops:
            loops[0].call_soon_threadsafe(server.stop)
        thread.join(30)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def settings_for(*paths: Path, limits: Limits | None = None, **more: Any) -> Settings:
    return Settings(
        models=tuple(Entry(path=path) for path in paths), port=0, limits=limits or Limits(), **more
    )


def gated(path: Path, **more: Any) -> Entry:
    return Entry(path=path, engine="gated", instance_group=(InstanceGroup(count=1),), **more)
