"""Clients that are slow, greedy, deaf or speak with an accent: what they get, and that others do not notice."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_server import Client, GatedEngine, X, gated, running, settings_for

from farthing.device.serving.server.settings import Limits, Settings
from farthing.model import Model
from farthing.testing import fake_model

pytest.importorskip("uvicorn")
pytest.importorskip("httptools")

BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X.ravel().tolist()}]}
).encode()


def request(path: str = "/v2/models/net/infer", *more: str, length: int = len(BODY)) -> bytes:
    """The head of an infer request."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: a",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def connected(client: Client) -> socket.socket:
    return socket.create_connection((client.host, client.port), timeout=20)


def answered(wire: socket.socket) -> tuple[int, bytes]:
    """Status and body of the next answer."""
    text = b""
    while b"\r\n\r\n" not in text:
        piece = wire.recv(65536)
        if not piece:
            raise ConnectionError(text)
        text += piece
    head, _, body = text.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += wire.recv(65536)
    return int(head.split()[1]), body


def test_a_body_that_comes_in_while_its_model_is_swapped(tmp_path: Path) -> None:
    fake_model(name="net").save(tmp_path / "net" / "1")
    with running(settings_for(tmp_path / "net", management=True)) as client:
        plain, versioned, unloaded = (connected(client) for _ in range(3))
        plain.sendall(request() + BODY[:10])
        versioned.sendall(request("/v2/models/net/versions/1/infer") + BODY[:10])
        assert client.infer()[1]["model_version"] == "1", "by now the others were routed"
        fake_model(name="net", seed=1).save(tmp_path / "net" / "2")
        assert client.manage("load", "net")[0] == 200
        for wire in (plain, versioned):
            wire.sendall(BODY[10:])
        status, body = answered(plain)
        assert (status, json.loads(body)["model_version"]) == (200, "2")
        status, body = answered(versioned)
        assert (status, b"no version '1'" in body) == (404, True)
        unloaded.sendall(request() + BODY[:10])
        assert client.infer()[0] == 200
        assert client.manage("unload", "net")[0] == 200
        unloaded.sendall(BODY[10:])
        assert answered(unloaded)[0] == 404
        for wire in (plain, versioned, unloaded):
            wire.close()


@pytest.mark.parametrize("kind", ["Application/Octet-Stream", "application/octet-stream; charset=binary"])
def test_content_types_have_no_case_and_may_have_parameters(model: Model, kind: str) -> None:
    with running(settings_for(model.path)) as client:
        found = client.ask("POST", "/v2/models/net/infer", X.tobytes(), {"Content-Type": kind})
        assert found[0] == 200, found


def test_a_client_that_offers_http2_is_answered_in_http1(model: Model) -> None:
    offer = "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"
    with running(settings_for(model.path)) as client:
        plain = client.infer()[1]["outputs"]
        head = request("/v2/models/net/infer", *offer)
        with connected(client) as wire:
            for pieces in ((head + BODY,), (head, BODY)):
                for piece in pieces:
                    wire.sendall(piece)
                    time.sleep(0.02)
                status, body = answered(wire)
                assert (status, json.loads(body)["outputs"]) == (200, plain)
            chunked = request("/v2/models/net/infer", *offer, "Transfer-Encoding: chunked")
            chunked = b"\r\n".join(
                line for line in chunked.split(b"\r\n") if not line.startswith(b"Content-Length")
            )
            wire.sendall(chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
            assert answered(wire)[0] == 200
            wire.sendall((head + BODY) * 2)
            assert answered(wire)[0] == 400, "who offers has to wait for the answer"
        with connected(client) as wire:
            wire.sendall(b"CONNECT elsewhere:80 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert answered(wire)[0] == 400


@pytest.mark.parametrize("trailer", [b"X-A: " + b"b" * 4000, b"X-A: b\r\n" * 500])
def test_what_comes_behind_a_body_is_limited_as_headers_are(model: Model, trailer: bytes) -> None:
    head = b"POST /v2/models/net/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with running(settings_for(model.path, limits=Limits(header_bytes=1000))) as client:
        with connected(client) as wire:  # chunks of one byte cost more around them than they hold
            wire.sendall(head + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\nX-A: b\r\n\r\n")
            assert answered(wire)[0] == 200
        with connected(client) as wire:
            wire.sendall(head + b"2\r\n{}\r\n0\r\n")
            with suppress(ConnectionError):
                for _ in range(1000):
                    wire.sendall(trailer)
                assert answered(wire)[0] == 431
        assert client.infer()[0] == 200


def test_bodies_that_are_only_announced_are_in_nobodys_way(model: Model) -> None:
    limits = Limits(body_bytes=1000, buffered_bytes=2000)
    with running(settings_for(model.path, limits=limits)) as client:
        slow = [connected(client) for _ in range(5)]
        for wire in slow:
            wire.sendall(request(length=1000) + b"{")
        while client.running.core.repository.served()[0].users or len(client.visits._here) < 5:
            time.sleep(0.005)
        assert client.infer()[0] == 200
        for wire in slow[:3]:
            wire.sendall(b" " * 998)
        assert client.visits.held <= 2000
        for wire in slow:
            wire.close()


def test_who_asks_ahead_and_goes_away_takes_all_of_it(
    model: Model, gate: type[GatedEngine], caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []
    settings = Settings(models=(gated(model.path),), port=0)
    with running(settings, told=lambda word, text: heard.append(word)) as client:
        core = client.running.core
        gate.gate.clear()
        with connected(client) as wire:
            wire.sendall((request() + BODY) * 3)
            assert gate.waiting.acquire(timeout=20)
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        while core.under_way:
            time.sleep(0.005)
        gate.gate.set()
        assert client.infer()[0] == 200
        assert core.done == 2, "those behind the first were never begun"
        assert b'outcome="cancelled"} 1' in client.get("/metrics")[1]
    assert "mistake" not in heard
    assert not caplog.records


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose answers are larger than what the system buffers."""
    return fake_model(4, 400_000, name="wide").save(tmp_path_factory.mktemp("wide") / "wide")


def deaf(client: Client, requests: int, room: int = 4096) -> socket.socket:
    """A client that asks for large answers, and does not read more than its system does, into ``room`` bytes."""
    wire = socket.socket()
    wire.settimeout(20)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    wire.connect((client.host, client.port))
    x = np.ones((8, 4), np.float32).tobytes()
    head = request("/v2/models/wide/infer", length=len(x)).replace(b"json", b"octet-stream")
    wire.sendall((head + x) * requests)
    return wire


def gone(wire: socket.socket) -> bool:
    """Whether it is closed, once all that was sent is read."""
    with suppress(ConnectionError):
        while wire.recv(1 << 20):
            continue
    return True


def test_a_client_that_does_not_read_is_cut_off(wide: Model) -> None:
    with running(settings_for(wide.path, limits=Limits(answer_seconds=0.5))) as client:
        wire = deaf(client, 3)
        while not client.visits.unread:
            time.sleep(0.005)
        held, computed = client.visits.unread, client.running.core.done
        assert held > 1_000_000
        assert computed == 1, "its next request waits until the answer is taken"
        while client.visits.unread:
            time.sleep(0.05)
        assert gone(wire)
        assert not client.running._uvicorn.server_state.connections
        wire.close()


def test_a_slow_client_gets_a_large_answer_whole(wide: Model) -> None:
    lines: list[dict[str, Any]] = []
    settings = settings_for(wide.path, limits=Limits(answer_seconds=0.5))
    with running(settings, log=lines.append) as client, deaf(client, 1, 1 << 16) as wire:
        size, began = 0, time.monotonic()
        while not lines or size < lines[0]["bytes"]:
            got = len(wire.recv(1 << 16))
            assert got, "cut off"
            size += got
            time.sleep(0.01 if time.monotonic() - began < 2 else 0)
        assert lines[0]["bytes"] > 4 * 8 * 400_000


def test_answers_that_nobody_takes_count_as_held(wide: Model) -> None:
    with running(settings_for(wide.path, limits=Limits(buffered_bytes=1_000_000))) as client:
        wire = deaf(client, 1)
        while not client.visits.unread:
            time.sleep(0.005)
        x = np.ones((1, 4), np.float32)
        assert client.infer("wide", x)[0] == 429
        found = re.search(rb"farthing_server_buffered_bytes (\d+)", client.get("/metrics")[1])
        assert found is not None
        assert int(found[1]) > 1_000_000
        while client.visits.unread:  # others wait for room: it has some seconds only
            time.sleep(0.05)
        assert client.infer("wide", x)[0] == 200
        wire.close()
