"""The HTTP face, over real sockets: what clients get right, what they get wrong, and what that does to others."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from msgspec.structs import replace
from running_server import Client, GatedEngine, X, gated, running, settings_for

from farthing.bundle import Bundle
from farthing.device.serving.server.settings import Batching, Entry, Limits, QueuePolicy, Settings
from farthing.engines.base import open_engine
from farthing.errors import ModelError, UnsupportedError
from farthing.model import Model, TensorSpec
from farthing.testing import fake_model

pytest.importorskip("uvicorn")
pytest.importorskip("httptools")


def expected(model: Model, x: Any = X) -> Any:
    with open_engine(model) as engine:
        return engine.run({"x": x})["y"]


def test_it_answers_what_the_engine_computes(model: Model) -> None:
    with running(settings_for(model.path)) as client:
        status, answer = client.infer(id="seven")
        assert status == 200
        assert (answer["model_name"], answer["model_version"], answer["id"]) == ("net", "1", "seven")
        (output,) = answer["outputs"]
        found = np.array(output["data"], np.float32).reshape(output["shape"])
        np.testing.assert_array_equal(found, expected(model))
        raw = {"Content-Type": "application/octet-stream"}
        for headers in (raw, {**raw, "Inference-Header-Content-Length": "0"}):
            status, body, said = client.ask("POST", "/v2/models/net/versions/1/infer", X.tobytes(), headers)
            assert status == 200
            at = int(said["inference-header-content-length"])
            np.testing.assert_array_equal(np.frombuffer(body[at:], np.float32), expected(model)[0])


def test_what_it_says_of_itself(model: Model) -> None:
    with running(settings_for(model.path)) as client:
        assert client.get("/v2")[1]["name"] == "farthing"
        assert client.get("/v2/health/live") == (200, {"live": True})
        assert client.get("/v2/health/ready") == (200, {"ready": True})
        assert client.get("/v2/models/net/ready")[0] == 200
        status, said = client.get("/v2/models/net")
        assert status == 200
        assert said["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert said["parameters"]["digest"] == model.digest
        assert client.ask("HEAD", "/v2/models/net")[:2] == (200, b"")
        for _ in range(3):
            client.infer()
        assert client.infer(x=X[:, :2])[0] == 400
        (stats,) = client.get("/v2/models/net/versions/1/stats")[1]["model_stats"]
        assert stats == client.get("/v2/models/stats")[1]["model_stats"][0]
        assert stats["inference_stats"]["success"]["count"] == 3
        assert stats["inference_stats"]["fail"]["count"] == 1
        assert stats["inference_count"] == sum(
            one["batch_size"] * one["compute_infer"]["count"] for one in stats["batch_stats"]
        )
        status, text = client.get("/metrics")
        assert status == 200
        assert 'farthing_inference_requests_total{model="net",version="1",outcome="ok"} 3' in text.decode()
        assert "nv_inference_count" not in text.decode()
        assert client.get("/metrics", Accept="application/openmetrics-text")[1].endswith(b"# EOF\n")


def test_tritons_metrics_are_an_option(model: Model) -> None:
    with running(settings_for(model.path, triton_metrics=True)) as client:
        client.infer()
        assert b'nv_inference_count{model="net",version="1"} 1' in client.get("/metrics")[1]


JSON = {"Content-Type": "application/json"}
BAD = [
    ("GET", "/", 404, "begins at /v2"),
    ("GET", "/v2/models", 404, "no page"),
    ("GET", "/v2/models/nte", 404, "did you mean 'net'"),
    ("GET", "/v2/models/net/versions/9", 404, "no version '9'"),
    ("GET", "/v2/models/nte/stats", 404, "no model 'nte'"),
    ("POST", "/v2/models/nte/infer", 404, "no model 'nte'"),
    ("POST", "/v2/models/net/versions/2/infer", 404, "Known: 1"),
    ("GET", "/v2/models/net/infer", 405, "this page takes POST"),
    ("DELETE", "/v2/models/net/infer", 405, "this page takes POST"),
    ("POST", "/v2/health/live", 405, "GET, HEAD"),
    ("POST", "/v2/repository/models/net/load", 403, "management is off"),
    ("POST", "/v2/models/net/infer", 400, "no inference request"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("shared")
    limits = Limits(body_bytes=10_000, header_bytes=4096)
    with running(settings_for(fake_model(name="net").save(place / "net").path, limits=limits)) as client:
        yield client
        assert client.infer()[0] == 200, "whatever came before, it still answers"


@pytest.mark.parametrize(("method", "path", "status", "said"), BAD)
def test_wrong_requests_get_the_right_status(
    shared: Client, method: str, path: str, status: int, said: str
) -> None:
    found, body, headers = shared.ask(method, path, b"{}" if method == "POST" else None, JSON)
    assert found == status
    assert said in body["error"]
    assert ("allow" in headers) == (status == 405)


@pytest.mark.parametrize(
    ("x", "more", "said"),
    [
        (X.reshape(4), {}, "float32 [4], but the model takes float32 ['batch', 4]"),
        (X[:, :3], {}, "[1, 3]"),
        (np.zeros((0, 4)), {}, "[0, 4] holds nothing"),
        (np.zeros((9, 4)), {}, "9 samples"),
        (X, {"outputs": [{"name": "z"}]}, "no output 'z'"),
        (X, {"inputs": []}, "inputs missing: ['x']"),
        (X, {"parameters": {"timeout": "soon"}}, "whole number"),
    ],
)
def test_wrong_tensors_are_named(shared: Client, x: Any, more: dict[str, Any], said: str) -> None:
    status, body = shared.infer(x=x, **more)
    assert status == 400
    assert said in body["error"]


@pytest.mark.parametrize(
    ("headers", "status", "said"),
    [
        ({"Content-Type": "text/plain"}, 415, "Content-Type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "curl: -H"),
        ({**JSON, "Content-Encoding": "gzip"}, 415, "Content-Encoding"),
        ({**JSON, "Content-Encoding": "identity"}, 400, "no inference request"),
        ({"Content-Type": "application/json; charset=utf-8"}, 400, "no inference request"),
        ({"Inference-Header-Content-Length": "x"}, 400, "is a number"),
        ({"Inference-Header-Content-Length": "-1"}, 400, "is a number"),
        ({"Inference-Header-Content-Length": "9" * 20}, 400, "is a number"),
        ({"Inference-Header-Content-Length": "99"}, 400, "99 bytes"),
        ({"X-Long": "a" * 5000}, 431, "too large"),
    ],
)
def test_headers_are_minded(shared: Client, headers: dict[str, str], status: int, said: str) -> None:
    found, body, _ = shared.ask("POST", "/v2/models/net/infer", b"{}", headers)
    assert (found, said in body["error"]) == (status, True)


def test_large_bodies_are_refused_before_they_are_read(shared: Client) -> None:
    found, body, _ = shared.ask("POST", "/v2/models/net/infer", b" " * 200_000, JSON)
    assert (found, "more than 10000 bytes" in body["error"]) == (413, True)
    chunks = (b" " * 6000 for _ in range(4))
    found, body, _ = shared.ask("POST", "/v2/models/net/infer", chunks, JSON)  # type: ignore[arg-type]
    assert found == 413


def talk(client: Client, *data: bytes, pause: float = 0.0) -> bytes:
    """Send raw bytes, and all that comes until the server closes."""
    with socket.create_connection((client.host, client.port), timeout=20) as wire:
        for part in data:
            wire.sendall(part)
            time.sleep(pause)
        received = b""
        while piece := wire.recv(65536):
            received += piece
    return received


def test_what_is_no_http_is_turned_away(shared: Client) -> None:
    assert talk(shared, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert talk(shared, b"POST /v2 HTTP/1.1\r\nContent-Length: x\r\n\r\n").startswith(b"HTTP/1.1 400")
    head = b"GET /v2 HTTP/1.1\r\n"
    assert talk(shared, head + b"A: b\r\n" * 900).startswith(b"HTTP/1.1 431")
    smuggled = b"POST /v2 HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert talk(shared, smuggled).startswith(b"HTTP/1.1 400")


def test_requests_in_a_row_on_one_connection(shared: Client) -> None:
    one = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
    assert (
        talk(shared, one * 3 + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")).count(b"200 OK")
        == 4
    )


def test_a_client_that_asks_whether_to_send_its_body(shared: Client) -> None:
    body = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    ).encode()
    head = b"POST /v2/models/net/infer HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: close\r\n"
    with socket.create_connection((shared.host, shared.port), timeout=20) as wire:
        wire.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
        assert wire.recv(4096).startswith(b"HTTP/1.1 100")
        wire.sendall(body)
        assert wire.recv(4096).startswith(b"HTTP/1.1 200")
    assert talk(shared, head + b"Content-Length: 99999\r\n\r\n").startswith(b"HTTP/1.1 413")
    answer = talk(shared, b"HEAD /v2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


def test_nan_has_no_words_in_json(tmp_path: Path, gate: type[GatedEngine]) -> None:
    assert gate.gate.is_set()
    fake_model(name="net").save(tmp_path / "net")
    nan = np.full((1, 4), np.nan, np.float32).tobytes()
    raw = {"Content-Type": "application/octet-stream"}
    header = {
        "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}]
    }
    text = json.dumps(header).encode()
    with running(settings_for(tmp_path / "net")) as client:
        assert client.ask("POST", "/v2/models/net/infer", nan, raw)[0] == 200
        status, body, _ = client.ask(
            "POST", "/v2/models/net/infer", text + nan, {"Inference-Header-Content-Length": str(len(text))}
        )
        assert (status, "ask for it as binary_data" in body["error"]) == (400, True)
    entry = gated(tmp_path / "net", refuse_nan=True)
    with running(Settings(models=(entry,), port=0)) as client:
        status, body, _ = client.ask("POST", "/v2/models/net/infer", nan, raw)
        assert (status, "holds NaN" in body["error"]) == (400, True)


def test_a_slow_body_ends_in_408(model: Model) -> None:
    limits = Limits(body_seconds=0.3)
    with running(settings_for(model.path, limits=limits)) as client:
        head = b"POST /v2/models/net/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{"
        answer = talk(client, head)
        assert answer.startswith(b"HTTP/1.1 408")
        assert client.infer()[0] == 200


def test_slow_headers_are_cut_off(model: Model) -> None:
    limits = Limits(header_seconds=0.3)
    with running(settings_for(model.path, limits=limits)) as client:
        for begun in (b"", b"GET /v2 HTT", b"GET /v2 HTTP/1.1\r\nHost: a\r\n"):
            with socket.create_connection((client.host, client.port), timeout=20) as wire:
                wire.sendall(begun)
                with suppress(ConnectionResetError):
                    assert wire.recv(10) == b""
        assert client.infer()[0] == 200


def test_connections_are_limited(model: Model) -> None:
    with running(settings_for(model.path, limits=Limits(connections=2))) as client:
        wires = [socket.create_connection((client.host, client.port), timeout=20) for _ in range(2)]
        for wire in wires:
            wire.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"200 OK" in wire.recv(4096)
        assert talk(client).startswith(b"HTTP/1.1 503")
        for wire in wires:
            wire.close()
        while client.get("/v2/health/live")[0] != 200:
            time.sleep(0.01)


def test_overload_is_429_and_passes(model: Model, gate: type[GatedEngine]) -> None:
    settings = Settings(models=(gated(model.path),), port=0, limits=Limits(in_flight=2))
    with running(settings) as client, ThreadPoolExecutor(2) as pool:
        gate.gate.clear()
        held = [pool.submit(client.infer) for _ in range(2)]
        while client.running.core.under_way < 2:
            time.sleep(0.005)
        status, body, headers = client.ask(
            "POST", "/v2/models/net/infer", X.tobytes(), {"Content-Type": "application/octet-stream"}
        )
        assert (status, headers["retry-after"]) == (429, "1")
        assert "ask again later" in body["error"]
        assert client.get("/v2/health/live")[0] == 200
        gate.gate.set()
        assert [one.result()[0] for one in held] == [200, 200]
        assert client.infer()[0] == 200


def test_bodies_share_one_room(model: Model, gate: type[GatedEngine]) -> None:
    limits = Limits(buffered_bytes=300)
    with (
        running(Settings(models=(gated(model.path),), port=0, limits=limits)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        gate.gate.clear()
        held = pool.submit(client.infer, id="a" * 100)
        assert gate.waiting.acquire(timeout=20)
        assert client.infer(id="b" * 100)[0] == 429
        gate.gate.set()
        assert held.result()[0] == 200
        assert client.infer(id="b" * 100)[0] == 200


def test_a_deadline_is_504(model: Model, gate: type[GatedEngine]) -> None:
    with running(Settings(models=(gated(model.path),), port=0)) as client:
        gate.gate.clear()
        status, body = client.infer(parameters={"timeout": 50_000})
        assert (status, "within 50 ms" in body["error"]) == (504, True)
        gate.gate.set()
        assert client.infer(parameters={"timeout": 2**62, "priority": 3})[0] == 200
    policy = QueuePolicy(default_timeout_microseconds=50_000, max_queue_size=1)
    entry = gated(model.path, dynamic_batching=Batching(default_queue_policy=policy))
    with running(Settings(models=(entry,), port=0)) as client, ThreadPoolExecutor(1) as pool:
        gate.gate.clear()
        held = pool.submit(client.infer, parameters={"timeout": 10_000_000})
        while not client.running.core.under_way and not held.done():
            time.sleep(0.001)
        found = [client.infer()[0], held.result()[0]]
        assert found in ([429, 504], [504, 504]), "no request may take longer than the default"
        gate.gate.set()


def test_who_goes_away_is_not_computed_for(model: Model, gate: type[GatedEngine]) -> None:
    with running(Settings(models=(gated(model.path),), port=0)) as client, ThreadPoolExecutor(1) as pool:
        gate.gate.clear()
        held = pool.submit(client.infer)
        assert gate.waiting.acquire(timeout=20)
        head = b"POST /v2/models/net/infer HTTP/1.1\r\nHost: a\r\nContent-Type: application/octet-stream\r\n"
        wire = socket.create_connection((client.host, client.port), timeout=20)
        wire.sendall(head + b"Content-Length: 16\r\n\r\n" + X.tobytes())
        while client.running.core.under_way < 2:
            time.sleep(0.005)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.close()
        while client.running.core.under_way > 1:
            time.sleep(0.005)
        gate.gate.set()
        assert held.result()[0] == 200
        (stats,) = client.get("/v2/models/stats")[1]["model_stats"]
        assert stats["inference_count"] == 1
        assert re.search(rb'outcome="cancelled"} 1', client.get("/metrics")[1])


def test_management(tmp_path: Path) -> None:
    fake_model(name="net").save(tmp_path / "net" / "1")
    other = fake_model(name="other").save(tmp_path / "other")
    with running(settings_for(tmp_path, management=True)) as client:
        assert client.manage("unload", "other")[0] == 200
        assert client.infer("other")[0] == 404
        assert client.get("/v2/models/other/ready")[0] == 404
        index = client.ask("POST", "/v2/repository/index")[1]
        assert [(line["name"], line["state"]) for line in index] == [
            ("net", "READY"),
            ("other", "UNAVAILABLE"),
        ]
        ready = client.ask("POST", "/v2/repository/index", b'{"ready": true}')[1]
        assert [line["name"] for line in ready] == ["net"]
        assert client.get("/v2/repository/index")[1] == index
        assert client.manage("load", "other")[0] == 200
        assert client.infer("other")[0] == 200
        fake_model(name="net", seed=5).save(tmp_path / "net" / "2")
        assert client.manage("load", "net")[0] == 200
        assert client.infer()[1]["model_version"] == "2"
        assert client.get("/v2/models/net")[1]["versions"] == ["2"]
        other.file.write_bytes(b"{}")
        (other.path / "manifest.json").touch()
        status, body = client.manage("load", "other")
        assert (status, "SHA-256 differs" in body["error"]) == (422, True)
        assert client.infer("other")[0] == 200, "the old one goes on"
        assert client.get("/v2/health/ready")[0] == 200
        index = client.ask("POST", "/v2/repository/index")[1]
        assert any(line["state"] == "UNAVAILABLE" and "SHA-256" in line["reason"] for line in index)
        assert client.manage("load", "nothing")[0] == 404
        assert client.manage("unload", "nothing")[0] == 404
        for body_ in (b"{", b"[" * 9999, b'{"parameters": {"config": "{}"}}'):
            assert client.ask("POST", "/v2/repository/models/net/load", body_)[0] == 400
        assert client.ask("POST", "/v2/repository/models/net/unload", b'{"parameters": {"a": 1}}')[0] == 400
        page = client.ask("POST", "/v2/repository/models/net/unload", None, {"Origin": "http://evil"})
        assert (page[0], "web pages" in page[1]["error"]) == (403, True)


def test_tokens(model: Model) -> None:
    token, chief = "t" * 20, "m" * 20
    settings = settings_for(model.path, management=True)
    with running(settings, token=token, management_token=chief) as client:
        for path in ("/v2", "/v2/models/net", "/metrics", "/v2/models/stats", "/v2/repository/index"):
            status, body, headers = client.ask("GET", path)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert token not in body["error"]
            assert client.ask("GET", path, None, {"Authorization": f"Bearer {token}"})[0] == 200
            assert client.ask("GET", path, None, {"Authorization": f"bearer {chief}"})[0] == 200
            assert client.ask("GET", path, None, {"Authorization": f"Basic {token}"})[0] == 401
            assert client.ask("GET", path, None, {"Authorization": f"Bearer {token}x"})[0] == 401
        assert client.get("/v2/health/live")[0] == client.get("/v2/health/ready")[0] == 200
        assert client.infer()[0] == 401
        load = "/v2/repository/models/net/load"
        assert client.ask("POST", load)[0] == 401
        assert client.ask("POST", load, None, {"Authorization": f"Bearer {token}"})[0] == 403
        assert client.ask("POST", load, None, {"Authorization": f"Bearer {chief}"})[0] == 200


def test_a_model_is_swapped_under_load_without_a_failure(tmp_path: Path) -> None:
    seeds = [fake_model(name="net", version=str(seed), seed=seed) for seed in range(4)]
    answers = [expected(model)[0].tolist() for model in seeds]
    seeds[0].save(tmp_path / "net")
    stop = threading.Event()

    def ask(client: Client) -> list[tuple[str, bool]]:
        seen = []
        while not stop.is_set():
            status, answer = client.infer()
            assert status == 200, answer
            version = answer["model_version"]
            data = np.float32(answer["outputs"][0]["data"])
            seen.append((version, np.allclose(data, answers[int(version)])))
        return seen

    with running(settings_for(tmp_path / "net", management=True)) as client, ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, client) for _ in range(4)]
        for model in seeds[1:]:
            model.save(tmp_path / "net")
            assert client.manage("load", "net")[0] == 200
            assert client.infer()[1]["model_version"] == model.manifest.version
        stop.set()
        seen = [one for done in asking for one in done.result()]
        assert len(client.running.core.repository.served()) == 1
    assert all(right for _, right in seen), "an answer is that of the version it names"
    assert {version for version, _ in seen} >= {"0", "3"}


def test_a_version_that_breaks_its_promise_changes_nothing(tmp_path: Path) -> None:
    fake_model(name="net").save(tmp_path / "net" / "1")
    wider = TensorSpec(name="y", dtype="float32", shape=("batch", 7), batch_axis=0)
    with running(settings_for(tmp_path / "net", management=True)) as client:
        model = fake_model(name="net")
        manifest = replace(model.manifest, outputs=(wider,), files={})
        Model.create(manifest, {"model.json": model.file}, tmp_path / "net" / "2")
        status, body = client.manage("load", "net")
        assert status == 422
        assert "do not fit the manifest" in body["error"]
        (tmp_path / "net" / "2" / "model.json").unlink()
        assert "lacks the file" in client.manage("load", "net")[1]["error"]
        assert client.infer()[1]["model_version"] == "1"


def test_a_model_whose_answers_are_not_as_promised_is_refused(model: Model) -> None:
    entry = Entry(path=model.path, engine="lying")
    with (
        pytest.raises(
            ModelError, match=r"promises 'y' float32 \['batch', 3\], but what comes is float32 \[1, 2\]"
        ),
        running(Settings(models=(entry,), port=0)),
    ):
        pass


@pytest.mark.parametrize("role", ["parts", "exits"])
def test_statistics_of_a_model_in_parts(
    chain: Bundle, tmp_path: Path, role: Literal["parts", "exits"]
) -> None:
    scores = ["a", "b", "y"] if role == "exits" else ["y"]
    Bundle.create("net", role, chain.models, tmp_path / "net", outputs=scores)
    rows = np.ones((3, 4), np.float32)
    with running(settings_for(tmp_path / "net")) as client:
        for x in (rows, rows, rows[:1]):
            assert client.infer(x=x)[0] == 200
        (said,) = client.get("/v2/models/net/stats")[1]["model_stats"]
        metrics = client.get("/metrics")[1].decode()
    assert (said["inference_count"], said["execution_count"]) == (7, 3)
    assert {one["batch_size"]: one["compute_infer"]["count"] for one in said["batch_stats"]} == {1: 1, 3: 2}
    spent = said["inference_stats"]
    assert spent["queue"]["count"] == spent["compute_infer"]["count"] == 3
    assert 0 < spent["compute_infer"]["ns"] < spent["success"]["ns"]
    assert re.search(r"^farthing_inference_batch_size_sum\{.*\} 7", metrics, re.M)


def test_bundles_of_parts_and_of_variants(tmp_path: Path) -> None:
    first, second = fake_model(), fake_model(seed=3)
    Bundle.create("both", "variants", {"large": first, "small": second}, tmp_path / "both")
    with running(settings_for(tmp_path / "both")) as client:
        np.testing.assert_allclose(
            client.infer("both")[1]["outputs"][0]["data"], expected(first)[0], rtol=1e-6
        )
    Bundle.create("split", "head_tail", {"head": first, "tail": second}, tmp_path / "split")
    with (
        pytest.raises(UnsupportedError, match="bundle of head_tail"),
        running(settings_for(tmp_path / "split")),
    ):
        pass
