"""Anything may come in over a socket: the answer is never a 5xx, and others do not notice."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running_server import Client, X, running, settings_for

from farthing.device.serving.server.settings import Limits
from farthing.testing import fake_model

pytest.importorskip("uvicorn")
FEW = settings(max_examples=150)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    place = tmp_path_factory.mktemp("fuzz")
    limits = Limits(body_bytes=50_000, header_seconds=1.0, body_seconds=0.5, idle_seconds=0.2)
    mistakes: list[str] = []

    def told(word: str, text: str) -> None:
        if word == "mistake":
            mistakes.append(text)

    fake_model(name="net").save(place / "net")
    with running(settings_for(place / "net", limits=limits, management=True), told=told) as one:
        yield one
        assert one.infer()[0] == 200
    assert mistakes == []


PATHS = st.sampled_from(
    [
        "/v2",
        "/v2/health/ready",
        "/v2/models/net",
        "/v2/models/net/infer",
        "/v2/models/net/versions/1/infer",
        "/v2/models/net/ready",
        "/v2/models/stats",
        "/v2/repository/index",
        "/v2/repository/models/net/load",
        "/metrics",
    ]
) | st.lists(
    st.sampled_from(["v2", "models", "net", "infer", "..", "%2e", "%00", "", "versions", "%C3%BC", "{model}"])
).map(lambda parts: "/" + "/".join(parts))
VALUES = st.sampled_from(
    ["0", "5", "-1", "", "abc", "application/json", "application/octet-stream", "gzip", "é"]
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "Content-Type",
            "Inference-Header-Content-Length",
            "Authorization",
            "Content-Encoding",
            "Accept",
            "X-A",
        ]
    ),
    VALUES,
    max_size=4,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "y"]) | st.text(max_size=3),
        "shape": st.lists(st.integers(-1, 9), max_size=3),
        "datatype": st.sampled_from(["FP32", "INT8", "BYTES", "BOOL", "FP16", "?"]),
    },
    optional={"data": st.lists(st.floats(width=32) | JSON, max_size=12), "parameters": JSON},
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=2) | JSON},
    optional={"outputs": JSON, "parameters": JSON, "id": JSON},
)


def fine(status: int) -> None:
    assert status < 500 or status == 503, status


@FEW
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]),
    PATHS,
    HEADERS,
    st.binary(max_size=300) | REQUEST.map(lambda data: json.dumps(data).encode()),
)
def test_random_requests(
    client: Client, method: str, path: str, headers: dict[str, str], body: bytes
) -> None:
    connection = http.client.HTTPConnection(client.host, client.port, timeout=20)
    try:
        encoded = {name: value.encode() for name, value in headers.items()}
        connection.request(method, path, body, encoded)  # type: ignore[arg-type]
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    fine(answer.status)
    if answer.status >= 400 and method != "HEAD":
        assert json.loads(text)["error"]


@FEW
@given(REQUEST)
def test_random_inference_requests(client: Client, request: Any) -> None:
    status, answer, _ = client.ask("POST", "/v2/models/net/infer", json.dumps(request).encode())
    fine(status)
    assert (status == 200) == ("outputs" in answer)


@FEW
@given(st.data())
def test_a_binary_request_spoiled_anywhere(client: Client, data: st.DataObject) -> None:
    header = json.dumps(
        {
            "inputs": [
                {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
            ]
        }
    ).encode()
    body = bytearray(header + X.tobytes())
    at = data.draw(st.integers(0, len(body) - 1))
    body[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=5))
    headers = {"Inference-Header-Content-Length": str(len(header))}
    status, _, _ = client.ask("POST", "/v2/models/net/infer", bytes(body), headers)
    fine(status)


@settings(max_examples=60)
@given(st.data())
def test_bytes_that_may_be_no_http(client: Client, data: st.DataObject) -> None:
    good = (
        b"POST /v2/models/net/infer HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    )
    sent = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(sent)))
        sent[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    with socket.create_connection((client.host, client.port), timeout=20) as wire:
        try:
            wire.sendall(bytes(sent))
            if data.draw(st.booleans()):
                wire.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := wire.recv(65536):
                answer += piece
        except ConnectionError:
            answer = b""
    if answer:
        fine(int(answer.split(b" ", 2)[1]))
    status, said = client.infer()
    assert status == 200
    assert np.isfinite(said["outputs"][0]["data"]).all()
