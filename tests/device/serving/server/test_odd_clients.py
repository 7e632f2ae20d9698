"""Clients that are slow, greedy, deaf or speak with an accent: what they get, and that others do not notice."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from running_server import Client, X, running, settings_for

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
