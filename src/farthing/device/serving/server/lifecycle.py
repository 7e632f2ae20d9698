"""A server's life: listen, load, answer, and stop without failing anyone. uvicorn carries it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from farthing.device.serving.server.access import Access
from farthing.device.serving.server.app import App, Log
from farthing.device.serving.server.core import Core
from farthing.device.serving.server.gate import close_dribblers, gate
from farthing.device.serving.server.grpc import GrpcServer
from farthing.device.serving.server.notify import Manager, Notifier, Watchdog
from farthing.device.serving.server.repository import Event, Repository
from farthing.device.serving.server.settings import Settings, Tls
from farthing.device.serving.service import guarded
from farthing.errors import ConfigError, require

Told = Callable[[str, str], None]
"""Takes what happens: a word for it, and the text."""
_BACKLOG = 1024
_LOOK_SECONDS = 1.0
_CROWDED_SECONDS = 5.0  # in which clients must have taken their answers while there is no room for others
_LEAVING_SECONDS = 1.0  # in which clients must have agreed that a connection is closed when the server stops
_GLANCE_SECONDS = 0.1
_CLOSING_SECONDS = 1.0  # for models to be closed, when nobody waits for their answers any more


class Server:
    """A server, from start to end.

    Args:
        settings: how it runs.
        token, management_token: what clients must know; empty asks for none.
        told: told what happens.
        log: takes the access log.
        manager: what systemd wants.

    Attributes:
        core: what answers.
        url: where it listens; the port is right as soon as it was made.
        grpc: its gRPC face, if it has one; that listens as soon as models are loaded.

    Raises:
        NotInstalled: uvicorn, uvloop or httptools is missing: ``pip install 'farthing[serve]'``; or what
            ``grpc_port`` needs: ``pip install 'farthing[grpc]'``.
        ConfigError: no models, management open to a network, TLS files that cannot be used, or a taken address.
    """

    def __init__(
        self,
        settings: Settings,
        token: str = "",
        management_token: str = "",
        told: Told = lambda word, text: None,
        log: Log | None = None,
        manager: Manager | None = None,
    ) -> None:
        _refuse_open_management(settings, bool(token or management_token))
        self.settings, self._told = settings, partial(guarded, told)
        manager = manager or Manager()
        self._notifier, self._watchdog, self._pulse = Notifier(manager.address), Watchdog(), manager.watchdog
        self.core = Core(Repository(settings.models, self._happened), settings.limits.in_flight)
        access = Access(token, settings.management, management_token)
        self._guarded = bool(token or (settings.tls and settings.tls.client_ca))
        app = App(self.core, settings.limits, access, log, self._mistaken, settings.triton_metrics)
        self._visits, self._uvicorn = app.visits, _uvicorn(settings, app)
        self.grpc: GrpcServer | None = None
        if settings.grpc_port is not None:
            self.grpc = GrpcServer(settings, self.core, access, app.visits, log, self._mistaken)
        self._socket = _listening(settings)
        self.url = _url(settings, self._socket)
        self._stop, self._at_once = asyncio.Event(), asyncio.Event()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, in this thread.

        Raises:
            FarthingError: a model cannot be served.
        """
        require("uvloop", "serve").run(self.serve())

    def stop(self) -> None:
        """No longer ready; requests under way are answered, then `serve` returns. Asked again, it stops at once."""
        if self.core.draining:
            self._at_once.set()
            self._uvicorn.force_exit = True
            for task in list(self._uvicorn.server_state.tasks):
                task.cancel()
            if self.grpc is not None:
                self.grpc.abort()
        self.core.draining = True
        self._stop.set()
        self._told("stopping", f"{self.core.under_way} requests are under way")
        self._notifier.send("STOPPING=1")

    async def serve(self) -> None:
        """Serve until `stop`, SIGTERM or SIGINT. See `run` for errors."""
        carrier = asyncio.ensure_future(
            self._uvicorn._serve([self._socket])
        )  # `serve` would take the signals
        guarding = asyncio.ensure_future(_every(_LOOK_SECONDS, self._guard))
        chores: list[asyncio.Future[None]] = []
        try:
            with self._signals():
                if self.grpc is not None:
                    await self.grpc.start()
                await self._load()
                chores = [asyncio.ensure_future(chore) for chore in self._chores()]
                stopping = asyncio.ensure_future(self._stop.wait())
                await asyncio.wait([carrier, stopping], return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if not carrier.done():
                    await self._notice()
                for chore in chores:
                    chore.cancel()
                await self._drain(carrier)
        finally:
            self._uvicorn.should_exit = True
            if self.grpc is not None:
                await self.grpc.stop(0)
            await asyncio.wait([carrier])
            guarding.cancel()
            await self.core.repository.close(_CLOSING_SECONDS)

    async def _notice(self) -> None:
        """Take requests for a while longer, so that those who send them hear that it will stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._at_once.wait(), self.settings.notice_seconds)

    async def _drain(self, carrier: asyncio.Future[None]) -> None:
        """Take nothing more; requests under way are answered, whichever way they came."""
        self._uvicorn.should_exit = True
        if self.grpc is None:
            await self._emptied(carrier)
        else:
            await asyncio.gather(self._emptied(carrier), self.grpc.stop(self.settings.drain_seconds))

    async def _emptied(self, carrier: asyncio.Future[None]) -> None:
        """Wait for the end of uvicorn, but not, as it would, for clients that never finish a handshake of TLS."""
        state = self._uvicorn.server_state
        while not carrier.done():
            await asyncio.wait([carrier], timeout=_GLANCE_SECONDS)
            listening = any(server.is_serving() for server in self._uvicorn.servers)
            if not (listening or state.connections or state.tasks):
                carrier.cancel()

    async def _load(self) -> None:
        """Load the models, while the server already says that it lives."""
        loading = asyncio.ensure_future(self.core.repository.start(self.settings.keep_going))
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait([loading, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if self._stop.is_set():
            loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loading
            return
        await loading
        self.core.started = True
        count = len(self.core.repository.served())
        also = f", gRPC at {self.grpc.address}" if self.grpc is not None else ""
        if not (self.settings.local or self._guarded):
            self._told(
                "open",
                f"everyone who reaches {self.settings.host} may ask: --token-file lets in whom you want",
            )
        self._told("ready", f"{self.url} serves {count} model{'s' * (count != 1)}{also}")
        self._notifier.send("READY=1", f"STATUS=serving {count} models at {self.url}")

    def _chores(self) -> Iterator[Awaitable[None]]:
        """What has to be done from time to time."""
        if self._pulse:
            yield _every(self._pulse / 4, self._live)
        if self.settings.poll_seconds:
            yield _every(self.settings.poll_seconds, self.core.repository.refresh)

    def _guard(self) -> None:
        """Send clients away that take too long, sooner where others wait for it."""
        limits, longest = self.settings.limits, self.settings.limits.answer_seconds
        reading = min(_CROWDED_SECONDS, longest) if self._visits.crowded else longest
        leaving = min(_LEAVING_SECONDS, longest) if self._uvicorn.should_exit else longest
        connections = self._uvicorn.server_state.connections
        close_dribblers(connections, limits, time.monotonic(), reading, leaving)

    def _live(self) -> None:
        if self._watchdog.alive(self.core.executions, self.core.under_way):
            self._notifier.send("WATCHDOG=1")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop it, SIGHUP has it look at the disk; only a main thread gets signals."""
        loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        refreshing: set[asyncio.Future[None]] = set()

        def refresh() -> None:
            task = asyncio.ensure_future(self.core.repository.refresh())
            refreshing.add(task)
            task.add_done_callback(refreshing.discard)

        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: refresh}
        before = {number: signal.getsignal(number) for number in handlers}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number, old in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, old)

    def _happened(self, event: Event) -> None:
        what = f"{event.name} {event.version}".strip()
        self._told(event.kind, f"{what}: {event.reason}" if event.reason else what)

    def _mistaken(self, error: BaseException) -> None:
        self._told("mistake", "".join(traceback.format_exception(error)).rstrip())


def _refuse_open_management(settings: Settings, secret: bool) -> None:
    if not settings.models:
        raise ConfigError("there is nothing to serve: name a model, or a repository of them")
    if settings.management and not settings.local and not secret:
        raise ConfigError(
            f"on {settings.host} everyone could load and unload models: set a token, or leave management off"
        )


async def _every(seconds: float, work: Callable[[], Awaitable[None] | None]) -> None:
    while True:
        await asyncio.sleep(seconds)
        doing = work()
        if doing is not None:
            await doing


def _uvicorn(settings: Settings, app: App) -> Any:
    """A server of uvicorn's, bare: no logging, no signals, no middleware."""
    uvicorn = require("uvicorn", "serve")
    config = uvicorn.Config(
        app,
        http=gate(settings.limits, app.visits),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.limits.idle_seconds,
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    config.load()
    config.ssl = _tls(settings.tls) if settings.tls else None
    return uvicorn.Server(config)


def _tls(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls.certificate, tls.key, partial(_refuse_passphrase, tls.key))
        if tls.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(tls.client_ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS cannot start with {tls.certificate} and {tls.key}: {error}") from error
    return context


def _refuse_passphrase(key: Path) -> str:
    raise ConfigError(
        f"{key} is encrypted, and nobody is there to type its passphrase: give a key without one"
    )


def _listening(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}; choose another --port, "
            "or a --host that is this machine's"
        ) from error


def _url(settings: Settings, listening: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http{'s' * (settings.tls is not None)}://{host}:{listening.getsockname()[1]}"
