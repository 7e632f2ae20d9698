"""HTTP to one server: connections that are kept, one limit of time for all of an answer, and one of bytes."""

from __future__ import annotations

import http.client
import io
import ipaddress
import select
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from farthing.errors import ConfigError, RemoteError

MAX_IDLE = 32  # connections that are kept
_BUFFER = 1 << 16
_OVERHEAD = 1 << 20  # bytes of headers and of the framing of chunks
_LOST = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


class Address(NamedTuple):
    """Where a server listens.

    Attributes:
        tls: whether it is https.
        host, port: as in its URL.
        prefix: path before that of the protocol; empty, or ``/models`` and the like.
    """

    tls: bool
    host: str
    port: int
    prefix: str

    @property
    def local(self) -> bool:
        """Whether it is this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name
            return self.host == "localhost"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' * self.tls}://{host}:{self.port}{self.prefix}"


def address_of(url: str) -> Address:
    """The address in a URL.

    Raises:
        ConfigError: not http or https, without a host, or with a user, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url!r} is no URL: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "the URL of a server holds no user and no password: they would be kept with the model"
        )
    if (
        parts.scheme not in {"http", "https"}
        or not parts.hostname
        or not url.isascii()
        or not url.isprintable()
    ):
        raise ConfigError(f"{url!r} is not the URL of a server: give one like https://host:8000")
    if parts.query or parts.fragment or " " in url:
        raise ConfigError(f"{url!r}: the URL of a server has no spaces, and no part behind ? or #")
    tls = parts.scheme == "https"
    return Address(tls, parts.hostname, port or (443 if tls else 80), parts.path.rstrip("/"))


class Reply(NamedTuple):
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Limits(NamedTuple):
    """What a request may take.

    Attributes:
        deadline: the moment by the pool's clock at which all of it is over.
        connect: seconds for a new connection.
        answer: bytes of the answer's body.
    """

    deadline: float
    connect: float
    answer: int


class Pool:
    """Connections to one server, shared by threads: each request has one to itself, and leaves it for the next.

    Args:
        address: of the server.
        tls: how to check its certificate; None for plain HTTP.
        clock: seconds that do not go back.
    """

    def __init__(self, address: Address, tls: ssl.SSLContext | None, clock: Callable[[], float]) -> None:
        self.address = address
        self._tls, self._clock = tls, clock
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    def call(self, method: str, path: str, headers: Mapping[str, str], body: bytes, limits: Limits) -> Reply:
        """Send a request and read its answer, whatever its status.

        A kept connection that turns out to have been closed meanwhile is replaced, and the request sent again.

        Raises:
            RemoteError: no connection, no answer in time, an answer that is cut off, too large or no HTTP.
        """
        connection = self._kept()
        if connection is not None:
            with suppress(*_LOST):
                return self._asked(connection, method, path, headers, body, limits)
        return self._asked(self._connected(limits), method, path, headers, body, limits)

    def close(self) -> None:
        """Close the connections that nobody uses; the others when they are given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _kept(self) -> _Connection | None:
        """The connection used last that the server has not closed."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.quiet():
                return connection
            connection.close()

    def _connected(self, limits: Limits) -> _Connection:
        connection = _Connection(self.address, self._tls, self._clock)
        try:
            connection.open(min(limits.connect, max(limits.deadline - self._clock(), 1e-3)))
        except ssl.SSLCertVerificationError as error:
            connection.close()
            raise RemoteError(
                f"the certificate of {self.address} is not trusted: {error.verify_message}; "
                "describe the server again with the certificate that vouches for it (ca)"
            ) from error
        except ssl.SSLError as error:
            connection.close()
            raise RemoteError(f"{self.address} does not speak TLS as we do: {error.reason}") from error
        except (OSError, UnicodeError) as error:  # a host name may be impossible to encode
            connection.close()
            raise RemoteError(
                f"cannot connect to {self.address}: {_words(error)}; see whether the server runs and is reachable",
                again=True,
            ) from error
        return connection

    def _asked(
        self,
        connection: _Connection,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        limits: Limits,
    ) -> Reply:
        used, done = connection.used, False
        try:
            head = _head(method, self.address, path, headers, len(body))
            reply, done = connection.exchange(head, body, limits)
        except TimeoutError as error:
            raise late(self.address) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            if used and not connection.heard and isinstance(error, _LOST):
                raise
            raise RemoteError(f"{self.address} did not answer as HTTP wants it: {_words(error)}") from error
        finally:
            self._give_back(connection, done)
        return reply

    def _give_back(self, connection: _Connection, reusable: bool) -> None:
        with self._lock:
            keep = reusable and not self._closed and len(self._idle) < MAX_IDLE
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()


class _Timed(io.RawIOBase):
    """What comes from a socket, up to a moment and a number of bytes: for all of an answer, not for each packet."""

    def __init__(self, connection: _Connection, raw: Any) -> None:
        self._connection, self._raw = connection, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        connection = self._connection
        if connection.allowance <= 0:
            raise http.client.HTTPException("the answer has no end")
        connection.wait()
        count: int = self._raw.readinto(buffer)
        connection.allowance -= count
        connection.heard = connection.heard or count > 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Connection:
    """One connection. Its user has it alone."""

    def __init__(self, address: Address, tls: ssl.SSLContext | None, clock: Callable[[], float]) -> None:
        self._address, self._tls, self._clock = address, tls, clock
        self._socket: socket.socket | None = None
        self._deadline = 0.0
        self.allowance = 0
        self.used = self.heard = False

    def open(self, timeout: float) -> None:
        self._socket = socket.create_connection((self._address.host, self._address.port), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            self._socket = self._tls.wrap_socket(self._socket, server_hostname=self._address.host)

    def quiet(self) -> bool:
        """Whether nothing came while nobody asked: neither an end nor bytes that belong to no answer."""
        poll = select.poll()
        poll.register(self._open(), select.POLLIN | select.POLLHUP | select.POLLERR)
        return not poll.poll(0)

    def wait(self) -> None:
        """Before the socket is used: let it wait for what is left of the time."""
        left = self._deadline - self._clock()
        if left <= 0:
            raise TimeoutError("the time is up")
        self._open().settimeout(left)

    def makefile(self, mode: str, buffering: int = -1) -> io.BufferedReader:
        """What `http.client.HTTPResponse` reads from."""
        return io.BufferedReader(_Timed(self, self._open().makefile("rb", buffering=0)), _BUFFER)

    def exchange(self, head: bytes, body: bytes, limits: Limits) -> tuple[Reply, bool]:
        """The answer, and whether the connection may be used again."""
        self._deadline, self.allowance = limits.deadline, 2 * limits.answer + _OVERHEAD
        self.used, self.heard = True, False
        lost = self._sent([head + body] if len(body) < _BUFFER else [head, body])
        try:
            reply, whole = self._read(limits)
        except (OSError, http.client.HTTPException) as error:
            raise lost or error from None
        return reply, whole and lost is None

    def _sent(self, parts: Sequence[bytes]) -> OSError | None:
        """Send a request; the error of a server that stopped listening, and perhaps says why."""
        try:
            for part in parts:
                self.wait()
                self._open().sendall(part)  # its time-out is for all of it
        except _LOST as error:
            return error
        return None

    def _read(self, limits: Limits) -> tuple[Reply, bool]:
        with http.client.HTTPResponse(self) as response:  # type: ignore[arg-type]  # it calls makefile only
            response.begin()
            length = response.length
            if length is not None and length > limits.answer:
                raise http.client.HTTPException(f"{length} bytes are more than max_answer_mb allows")
            data = response.read(limits.answer + 1)
            if len(data) > limits.answer:
                raise http.client.HTTPException("the answer is larger than max_answer_mb allows")
            if length is not None and len(data) < length:
                raise http.client.HTTPException(f"it ends after {len(data)} of {length} bytes")
            whole = response.isclosed() and not response.will_close
            reply = Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, data)
        return reply, whole

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _open(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionResetError("it was never made")
        return self._socket


def _head(method: str, address: Address, path: str, headers: Mapping[str, str], length: int) -> bytes:
    host = f"[{address.host}]" if ":" in address.host else address.host
    lines = [
        f"{method} {address.prefix}{path} HTTP/1.1",
        f"Host: {host}:{address.port}",
        "Accept-Encoding: identity",
        *(f"{name}: {value}" for name, value in headers.items()),
        *([f"Content-Length: {length}"] if method == "POST" else []),
    ]
    return "\r\n".join([*lines, "\r\n"]).encode("ascii")


def late(address: Address) -> RemoteError:
    """The error of a server that took too long."""
    return RemoteError(f"{address} did not answer in time: give it more (timeout_ms), or a smaller model")


def printable(text: str, most: int) -> str:
    """What somebody else said, in one line that may be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:most]


def _words(error: Exception) -> str:
    return printable(str(getattr(error, "strerror", None) or error), 200) or type(error).__name__
