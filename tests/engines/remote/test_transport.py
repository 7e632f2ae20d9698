"""Connections to a server that does not behave: everything is a RemoteError, in time, and the next request works."""

from __future__ import annotations

import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.engines.remote.transport import Limits, Pool, address_of
from farthing.errors import ConfigError, RemoteError

Act = Callable[[socket.socket], None]
FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Scripted:
    """A server that does to the n-th connection what the n-th act says; the last one again and again."""

    def __init__(self, *acts: Act) -> None:
        self.acts = acts
        self.accepted = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            act = self.acts[min(self.accepted, len(self.acts) - 1)]
            self.accepted += 1
            threading.Thread(target=self._play, args=(act, connection), daemon=True).start()

    def _play(self, act: Act, connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client went away
            act(connection)

    def close(self) -> None:
        self._listener.close()


def heard(connection: socket.socket) -> bytes:
    """A request without a body, or nothing if the client left."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(4096)
        if not part:
            break
        data += part
    return data


def saying(*parts: bytes, times: int = 1) -> Act:
    """Answers so many requests with these bytes, and hangs up."""

    def act(connection: socket.socket) -> None:
        for _ in range(times):
            heard(connection)
            for part in parts:
                connection.sendall(part)

    return act


def forever(start: bytes, part: bytes, pause: float = 0.0) -> Act:
    def act(connection: socket.socket) -> None:
        heard(connection)
        connection.sendall(start)
        while True:
            connection.sendall(part)
            time.sleep(pause)

    return act


def silent(connection: socket.socket) -> None:
    heard(connection)
    connection.recv(1)  # until the client leaves


@pytest.fixture
def scripted() -> Iterator[Callable[..., tuple[Scripted, Pool]]]:
    made: list[tuple[Scripted, Pool]] = []

    def make(*acts: Act) -> tuple[Scripted, Pool]:
        server = Scripted(*acts)
        made.append((server, Pool(address_of(server.url), None, time.monotonic)))
        return made[-1]

    yield make
    for server, pool in made:
        pool.close()
        server.close()


Make = Callable[..., tuple[Scripted, Pool]]


def ask(pool: Pool, seconds: float = 5.0, most: int = 1000) -> bytes:
    limits = Limits(time.monotonic() + seconds, 1.0, most)
    return pool.call("GET", "/", {}, b"", limits).body


BAD = {
    "hangs up": saying(),
    "no HTTP": saying(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "no text": saying(b"\x1b[2J\x00\xff" * 50 + b"\r\n\r\n"),
    "half a status line": saying(b"HTTP/1."),
    "half of the body": saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
    "half of a chunk": saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"),
    "no last chunk": saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"),
    "a chunk of nonsense": saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n"),
    "a long status line": saying(b"HTTP/1.1 200 " + b"x" * 70_000),
    "a thousand headers": saying(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000 + b"\r\n"),
    "more than allowed, announced": saying(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n"),
    "more than allowed, in chunks": saying(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"100\r\n" + b"x" * 256 + b"\r\n", times=1
    ),
    "a body without end": forever(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
    "a chunk of size -1 without end": forever(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", b"x" * 65536
    ),
    "chunks without end": forever(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"ff\r\n" + b"x" * 255 + b"\r\n"
    ),
    "headers without end": forever(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n" * 1000),
    "continues without end": forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
}


@pytest.mark.parametrize("what", BAD)
def test_an_answer_that_is_none_is_a_remote_error_and_the_next_one_counts(what: str, scripted: Make) -> None:
    server, pool = scripted(BAD[what], saying(FINE, times=5))
    with pytest.raises(RemoteError) as caught:
        ask(pool)
    assert not caught.value.again, "the server had it"
    assert server.url in str(caught.value)
    assert str(caught.value).isprintable()
    assert ask(pool) == b"ok"
    assert server.accepted == 2, "a spoilt connection is not used again"


SLOW = {
    "never answers": silent,
    "drips headers": forever(b"HTTP/1.1 200 OK\r\na: ", b"x", 0.02),
    "drips a body": forever(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", b"x", 0.02),
    "drips chunks": forever(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.02),
}


@pytest.mark.parametrize("what", SLOW)
def test_the_time_is_for_all_of_an_answer_not_for_each_packet(what: str, scripted: Make) -> None:
    """It would go on for 18 s or for ever, a packet each 20 ms."""
    _, pool = scripted(SLOW[what])
    with pytest.raises(RemoteError, match="did not answer in time"):
        ask(pool, 0.3)


def test_an_answer_of_the_size_allowed_is_read(scripted: Make) -> None:
    body = bytes(range(250)) * 4
    announced = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + body
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + (
        b"1f4\r\n" + body[:500] + b"\r\n1f4\r\n" + body[500:] + b"\r\n0\r\n\r\n"
    )
    to_the_end = b"HTTP/1.1 200 OK\r\n\r\n" + body
    for answer in (announced, chunked, to_the_end):
        _, pool = scripted(saying(answer))
        assert ask(pool) == body


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_an_error(data: bytes) -> None:
    server = Scripted(saying(data), saying(b"HTTP/1.1 200 " + data))
    pool = Pool(address_of(server.url), None, time.monotonic)
    try:
        for _ in range(2):
            with suppress(RemoteError):
                ask(pool, 2.0)
    finally:
        pool.close()
        server.close()


# --- connections


def test_connections_are_kept(scripted: Make) -> None:
    server, pool = scripted(saying(FINE, times=100))
    for _ in range(100):
        assert ask(pool) == b"ok"
    assert server.accepted == 1


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(scripted: Make) -> None:
    server, pool = scripted(saying(FINE), saying(FINE), saying(FINE))
    for count in range(1, 4):
        assert ask(pool) == b"ok"
        assert server.accepted == count


def test_a_connection_that_is_closed_upon_the_request_is_replaced_once(scripted: Make) -> None:
    """The server hangs up when the second request arrives: nobody could see it before."""

    def once(connection: socket.socket) -> None:
        heard(connection)
        connection.sendall(FINE)
        heard(connection)

    server, pool = scripted(once, once, saying())
    assert ask(pool) == b"ok"
    assert ask(pool) == b"ok"
    assert server.accepted == 2
    with pytest.raises(RemoteError, match="did not answer as HTTP wants it"):
        ask(pool)
    assert server.accepted == 3, "a fresh connection that fails is an answer"


def test_bytes_nobody_asked_for_are_no_answer_to_the_next_request(scripted: Make) -> None:
    sent = threading.Event()

    def eager(connection: socket.socket) -> None:
        heard(connection)
        connection.sendall(FINE)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        sent.set()
        connection.recv(1)

    server, pool = scripted(eager, saying(FINE))
    assert ask(pool) == b"ok"
    assert sent.wait(10)
    assert ask(pool) == b"ok"
    assert server.accepted == 2


def test_an_answer_that_closes_the_connection_is_read_all_the_same(scripted: Make) -> None:
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    server, pool = scripted(saying(closing))
    assert [ask(pool), ask(pool)] == [b"ok", b"ok"]
    assert server.accepted == 2


@pytest.mark.parametrize("reset", [False, True])
def test_a_server_that_refuses_a_body_before_it_has_read_it_is_understood(
    reset: bool, scripted: Make
) -> None:
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large"

    def refuse(connection: socket.socket) -> None:
        heard(connection)
        connection.sendall(refusal)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    server, pool = scripted(refuse, refuse, saying(FINE))
    limits = Limits(time.monotonic() + 30, 1.0, 1000)
    for _ in range(2):
        reply = pool.call("POST", "/", {}, bytes(64 << 20), limits)
        assert (reply.status, reply.body) == (413, b"too large")
    assert ask(pool) == b"ok"
    assert server.accepted == 3, "its connection is not used again"


def test_each_of_many_threads_has_a_connection_to_itself(scripted: Make) -> None:
    all_here = threading.Barrier(8)

    def together(connection: socket.socket) -> None:
        while heard(connection):
            all_here.wait(10)
            connection.sendall(FINE)

    server, pool = scripted(together)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            assert list(threads.map(lambda _: ask(pool), range(8))) == [b"ok"] * 8
    assert server.accepted == 8


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(RemoteError, match=r"cannot connect to http://127\.0\.0\.1:.*see whether") as caught:
        ask(Pool(address_of(f"http://127.0.0.1:{port}"), None, time.monotonic))
    assert caught.value.again
    with pytest.raises(RemoteError, match=r"cannot connect to http://no\.such\.host\.invalid"):
        ask(Pool(address_of("http://no.such.host.invalid"), None, time.monotonic))


def test_a_closed_pool_keeps_nothing(scripted: Make) -> None:
    server, pool = scripted(saying(FINE, times=2))
    assert ask(pool) == b"ok"
    pool.close()
    pool.close()
    assert ask(pool) == b"ok"
    assert ask(pool) == b"ok"
    assert server.accepted == 3


# --- addresses


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://host", (False, "host", 80, "")),
        ("https://host/", (True, "host", 443, "")),
        ("https://host:8443/a/b/", (True, "host", 8443, "/a/b")),
        ("http://[::1]:8000", (False, "::1", 8000, "")),
    ],
)
def test_addresses(url: str, found: tuple[bool, str, int, str]) -> None:
    assert address_of(url) == found
    assert address_of(str(address_of(url))) == found


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "not the URL of a server"),
        ("host:8000", "not the URL of a server"),
        ("file:///etc/passwd", "not the URL of a server"),
        ("http://", "not the URL of a server"),
        ("http://höst", "not the URL of a server"),
        ("http://host:99999", "is no URL"),
        ("http://[::1", "is no URL"),
        ("http://host/a?b", r"no part behind \? or #"),
        ("http://host/a b", "no spaces"),
        ("http://host/\r\nX: y", "not the URL of a server"),
        ("http://me:secret@host", "no user and no password"),
    ],
)
def test_what_is_no_address(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        address_of(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("[::1]", True)]
    + [
        (host, False)
        for host in ("127.0.0.1.example", "localhost.example", "10.0.0.1", "[::2]", "[::ffff:7f01]")
    ],
)
def test_this_machine_is_told_from_others_by_its_address(host: str, local: bool) -> None:
    assert address_of(f"http://{host}:8000").local is local


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl here to make a certificate")
    place = tmp_path_factory.mktemp("tls")
    paths = place / "cert.pem", place / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    named = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run([openssl, *words.split(), *named], check=True, capture_output=True)
    return paths


@pytest.fixture
def secure(certificate: tuple[Path, Path]) -> Iterator[tuple[Scripted, int]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def act(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            saying(FINE, times=10)(wrapped)

    server = Scripted(act)
    yield server, int(server.url.rpartition(":")[2])
    server.close()


def test_a_certificate_that_is_vouched_for(
    certificate: tuple[Path, Path], secure: tuple[Scripted, int]
) -> None:
    server, port = secure
    context = ssl.create_default_context(cafile=certificate[0])
    pool = Pool(address_of(f"https://127.0.0.1:{port}"), context, time.monotonic)
    for _ in range(5):
        assert ask(pool) == b"ok"
    pool.close()
    assert server.accepted == 1


def test_a_certificate_that_is_not_or_is_somebody_else_s(
    certificate: tuple[Path, Path], secure: tuple[Scripted, int]
) -> None:
    _, port = secure
    strange = Pool(address_of(f"https://127.0.0.1:{port}"), ssl.create_default_context(), time.monotonic)
    with pytest.raises(RemoteError, match=r"certificate of https://127\.0\.0\.1:.* is not trusted") as caught:
        ask(strange)
    assert not caught.value.again
    vouched = ssl.create_default_context(cafile=certificate[0])
    with pytest.raises(RemoteError, match="is not trusted"):
        ask(Pool(address_of(f"https://localhost:{port}"), vouched, time.monotonic))


def test_tls_to_a_server_without(scripted: Make) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    server, _ = scripted(refuse)
    url = server.url.replace("http:", "https:")
    with pytest.raises(RemoteError, match="does not speak TLS as we do"):
        ask(Pool(address_of(url), ssl.create_default_context(), time.monotonic))
