"""The engine ``oip`` against a server that does as it is told: protocol, patience, tokens, and what it must refuse."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import Array, spec
from rows.oip import affine, hosted
from rows.serving import LENGTH, Hosted, Server, Told, said

from farthing.bundle import Bundle
from farthing.device.serving.parts.shard import open_sharded
from farthing.engines.base import Engine, open_engine
from farthing.engines.oip import OipEngine, remote_model, token_of
from farthing.engines.remote.transport import address_of
from farthing.errors import (
    CircuitOpenError,
    ConfigError,
    EngineError,
    FeedError,
    ModelError,
    RemoteError,
    UnsupportedError,
)
from farthing.model import Manifest, Model
from farthing.options import EngineOptions
from farthing.testing import FakeClock, fake_model

X = np.ones((2, 4), np.float32)
ASKED_AT_OPENING = 2  # the model's metadata and the server's
DOWN = Told(503, b'{"error": "busy"}')


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


class Opened:
    """An engine whose time is ours: pauses move the clock."""

    def __init__(self, model: Model, **more: Any) -> None:
        self.clock = FakeClock(1000)
        self.pauses: list[float] = []
        self.engine = OipEngine(model, EngineOptions(), clock=self.clock, sleep=self._sleep, **more)

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.advance(seconds)

    def run(self) -> Array:
        return self.engine.run({"x": X})["y"]


@pytest.fixture
def opened(server: Server) -> Iterator[Callable[..., Opened]]:
    made: list[Opened] = []

    def make(**settings: Any) -> Opened:
        made.append(Opened(affine("batch", server, **settings)))
        server.seen.clear()
        return made[-1]

    yield make
    for one in made:
        one.engine.close()


Make = Callable[..., Opened]


def right(y: Array) -> bool:
    return y.shape == (2, 3) and np.isfinite(y).all()


# --- protocol


@pytest.mark.parametrize("binary", [True, False])
def test_raw_bytes_where_the_server_announces_them_else_json(binary: bool) -> None:
    with Server(binary=binary) as server, open_engine(affine("batch", server)) as engine:
        y = engine.run({"x": X})["y"]
        path, headers, body = server.seen[-1]
    assert path == "/v2/models/affine-batch/infer"
    assert (LENGTH in headers) is binary
    assert (X.tobytes() in body) is binary
    assert y.flags.writeable
    assert engine.version == "not asked yet", "closed"


def test_binary_is_set_by_hand_for_servers_that_announce_nothing() -> None:
    with Server(binary=False) as server, open_engine(affine("batch", server, binary=True)) as engine:
        assert right(engine.run({"x": X})["y"])
        assert LENGTH in server.seen[-1][1]


def test_json_has_no_words_for_nan() -> None:
    with Server(binary=False) as server, open_engine(affine("batch", server)) as engine:
        asked = len(server.seen)
        with pytest.raises(FeedError, match="input 'x' holds NaN or infinity, and this server takes JSON"):
            engine.run({"x": X * np.float32("nan")})
        assert len(server.seen) == asked
        assert engine.stats().failed == 0  # type: ignore[attr-defined]


def test_names_and_versions_are_quoted_and_the_prefix_goes_first(server: Server) -> None:
    model = hosted("m", [spec("x", "batch", 4)], [spec("y", "batch", 3)], lambda f: f["x"][:, :3], server)
    content = {"url": f"{server.url}/a/b/", "model": "../ä?/x", "version": "1#", "lazy": True}
    there = Model.create(model.manifest, {"remote.json": json.dumps(content).encode()})
    with open_engine(there) as engine, pytest.raises(RemoteError, match="HTTP 404"):
        engine.run({"x": X})
    assert server.seen[-1][0] == "/a/b/v2/models/..%2F%C3%A4%3F%2Fx/versions/1%23"


@pytest.mark.parametrize(
    ("answer", "said_"),
    [
        ({}, "required field `outputs`"),
        ({"outputs": []}, r"gave \[\], but not the output 'y'"),
        ({"outputs": [{"name": "z"}]}, "`datatype`"),
        ({"outputs": [{"name": "z", "datatype": "FP32", "shape": [0], "data": []}]}, "not the output 'y'"),
        ({"shape": [3, 3], "data": [1] * 9}, r"'y' as float32 \[3, 3\], not as float32 \[2, 3\]"),
        ({"shape": [2, 4], "data": [1] * 8}, r"float32 \[2, 4\], not"),
        ({"shape": [6], "data": [1] * 6}, r"float32 \[6\], not"),
        ({"datatype": "FP64", "data": [1] * 6}, r"'y' as float64 \[2, 3\], not as float32"),
        ({"datatype": "FP31", "data": [1] * 6}, "did you mean 'FP32'"),
        ({"data": [1] * 5}, "data has 5 elements"),
        ({"data": ["1"] * 6}, "got `str`"),
        ({"data": [None] * 6}, "got `null`"),
        ({"data": [1e39] * 6}, "overflow"),
        ({"shape": [-1, 3], "data": []}, ">= 0"),
        ({"shape": [1 << 39, 1 << 39], "data": []}, "0 elements"),
        ({"parameters": {"binary_data_size": 24}}, "24 bytes, but 0 are left"),
        ({"parameters": {"binary_data_size": -1}}, "whole number"),
        ({"parameters": {"shared_memory_region": "a"}}, "shared memory"),
        ("twice", "same name"),
        ([], "Expected `object`"),
        ("[" * 100_000, "not understood"),
        ("", "it is empty"),
    ],
)
def test_an_answer_that_is_not_the_model_s_is_refused(
    answer: Any, said_: str, server: Server, opened: Make
) -> None:
    one = opened(breaker={"failures": 1})
    y = {"name": "y", "datatype": "FP32", "shape": [2, 3]}
    if answer == "twice":
        answer = {"outputs": [{**y, "data": [1] * 6}] * 2}
    elif isinstance(answer, dict) and answer and "outputs" not in answer:
        answer = {"outputs": [{**y, **answer}]}
    server.told = [Told(200, answer.encode()) if isinstance(answer, str) else said(answer)]
    with pytest.raises(RemoteError, match=said_) as caught:
        one.run()
    assert not caught.value.again
    stats = one.engine.stats()
    assert (stats.failed, stats.breaker) == (1, "open"), "nonsense is a failure of the server"


@pytest.mark.parametrize("length", ["0", "-1", "999", "x", "9" * 5000])
def test_a_header_s_length_that_cannot_be(length: str, server: Server, opened: Make) -> None:
    one = opened()
    server.told = [Told(200, b"{}", {LENGTH: length})]
    with pytest.raises(RemoteError, match="the server's answer is not understood"):
        one.run()


@pytest.fixture(scope="module")
def answering() -> Iterator[tuple[Server, Engine, Told]]:
    """A server, an engine that asks it, and what it answers to X."""
    with Server() as running, open_engine(affine("batch", running, breaker={"failures": 0})) as engine:
        engine.run({"x": X})
        path, headers, body = running.seen[-1]
        yield running, engine, running.answer(path, body, headers)


@given(st.data())
def test_a_spoiled_answer_is_refused_or_fits(
    answering: tuple[Server, Engine, Told], data: st.DataObject
) -> None:
    server, engine, good = answering
    body = bytearray(good.body)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        if data.draw(st.booleans()):
            body[at] = data.draw(st.integers(0, 255))
        else:
            del body[at : at + data.draw(st.integers(1, len(body)))]
        if not body:
            break
    server.told = [Told(200, bytes(body), good.headers)]
    with suppress(RemoteError):  # any other error fails
        y = engine.run({"x": X})["y"]
        assert (y.shape, y.dtype) == ((2, 3), np.float32)


def test_a_server_may_name_its_tensors_in_another_order(server: Server) -> None:
    a, b = spec("a", "batch", 4), spec("b", "batch", 4)
    model = hosted("two", [a, b], [spec("y", "batch", 4)], lambda f: f["a"] - f["b"], server)
    server.models["two"] = server.models["two"]._replace(inputs=[b, a])
    with open_engine(model) as engine:
        np.testing.assert_array_equal(engine.run({"a": 3 * X, "b": X})["y"], 2 * X)


def test_what_a_server_gives_beyond_what_it_is_asked_is_left_out(server: Server, opened: Make) -> None:
    one = opened()
    server.told = [
        said(
            {
                "outputs": [
                    {"name": "debug", "datatype": "INT64", "shape": [1], "data": [1]},
                    {"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [1] * 6},
                ]
            }
        )
    ]
    assert list(one.engine.run({"x": X})) == ["y"]


def test_a_vector_that_comes_as_a_column_is_a_vector(server: Server) -> None:
    """MLServer's NumpyCodec writes it so, whatever the metadata says."""
    model = hosted("best", [spec("x", "batch", 4)], [spec("n", "batch")], lambda f: f["x"][:, :1], server)
    with open_engine(model) as engine:
        assert engine.run({"x": X})["n"].tolist() == [1, 1]
        server.told = [
            said({"outputs": [{"name": "n", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]})
        ]
        with pytest.raises(RemoteError, match=r"float32 \[1, 2\], not as float32 \[2\]"):
            engine.run({"x": X})


# --- patience


@pytest.mark.parametrize("status", [502, 503, 504])
def test_what_the_server_gave_back_is_sent_again(status: int, server: Server, opened: Make) -> None:
    one = opened()
    server.told = [Told(status), Told(status)]
    assert right(one.run())
    assert len(one.pauses) == 2
    assert 0.025 <= one.pauses[0] <= 0.05 <= one.pauses[1] <= 0.1
    stats = one.engine.stats()
    assert (stats.requests, stats.retries, stats.failed) == (ASKED_AT_OPENING + 1, 2, 0)


def test_after_the_last_attempt_the_server_s_words_are_the_error(server: Server, opened: Make) -> None:
    one = opened()
    server.told = [DOWN] * 3
    with pytest.raises(RemoteError, match="HTTP 503: busy") as caught:
        one.run()
    assert caught.value.again
    assert len(server.seen) == 3
    assert one.engine.stats().failed == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 429, 500, 501, 301])
def test_what_the_server_judged_is_not_sent_again(status: int, server: Server, opened: Make) -> None:
    one = opened()
    server.told = [said({"error": "no"}, status)]
    with pytest.raises(RemoteError, match=f"HTTP {status}: no") as caught:
        one.run()
    assert not caught.value.again
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"Retry-After": "2"}, 2.0),
        (
            {"Retry-After": "Sun, 06 Nov 1994 08:49:40 GMT", "Date": "Sun, 06 Nov 1994 08:49:37 GMT"},
            3.0,
        ),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_the_server_says_when_to_ask_again(
    status: int, headers: dict[str, str], pause: float, server: Server, opened: Make
) -> None:
    one = opened()
    server.told = [Told(status, b"", headers)]
    assert right(one.run())
    assert one.pauses == [pause]


@pytest.mark.parametrize("said_", ["", "soon", "-1", "1.5", "١", "9" * 400])
def test_a_time_that_makes_no_sense_is_none(said_: str, server: Server, opened: Make) -> None:
    one = opened()
    server.told = [Told(429, b"", {"Retry-After": said_.encode().decode("latin-1")})]
    with pytest.raises(RemoteError, match="HTTP 429") as caught:
        one.run()
    assert caught.value.retry_after is None
    assert one.pauses == []


def test_who_is_to_wait_longer_than_there_is_time_fails_at_once_and_is_told(
    server: Server, opened: Make
) -> None:
    one = opened(timeout_ms=5000)
    server.told = [Told(503, b"", {"Retry-After": "60"})]
    with pytest.raises(RemoteError) as caught:
        one.run()
    assert caught.value.retry_after == 60
    assert one.pauses == []


def test_retries_have_a_budget(server: Server, opened: Make) -> None:
    one = opened(retry={"share": 0.1, "burst": 2, "attempts": 2}, breaker={"failures": 0})
    server.told = [DOWN] * 1000
    for _ in range(100):
        with pytest.raises(RemoteError):
            one.run()
    assert 110 <= len(server.seen) <= 113, "a hundred, two of the burst, and one in ten"
    assert one.engine.stats().retries == len(server.seen) - 100


def test_nobody_listening_is_tried_again(server: Server, opened: Make) -> None:
    one = opened(retry={"attempts": 4}, lazy=True)
    server.stop()
    with pytest.raises(RemoteError, match="cannot connect"):
        one.run()
    assert len(one.pauses) == 3


def test_an_open_breaker_fails_at_once_until_a_probe_succeeds(server: Server, opened: Make) -> None:
    one = opened(breaker={"failures": 3, "open_ms": 10_000}, retry={"attempts": 1})
    server.told = [Told(500)] * 3
    for _ in range(3):
        with pytest.raises(RemoteError, match="HTTP 500"):
            one.run()
    with pytest.raises(CircuitOpenError, match="3 requests in a row failed") as caught:
        one.run()
    assert (caught.value.until, caught.value.retry_after) == (1010, 10)
    assert len(server.seen) == 3, "nothing was sent"
    one.clock.advance(10)
    server.told = [Told(500)]
    with pytest.raises(RemoteError, match="HTTP 500"):
        one.run()
    with pytest.raises(CircuitOpenError):
        one.run()
    one.clock.advance(10)
    assert right(one.run())
    assert right(one.run())
    stats = one.engine.stats()
    assert (stats.failed, stats.refused, stats.breaker) == (6, 2, "closed")


def test_a_breaker_that_opens_between_retries_does_not_hide_what_is_wrong(
    server: Server, opened: Make
) -> None:
    one = opened(breaker={"failures": 2})
    server.told = [DOWN] * 2
    with pytest.raises(RemoteError, match="HTTP 503: busy"):
        one.run()
    assert len(server.seen) == 2
    stats = one.engine.stats()
    assert (stats.failed, stats.refused, stats.breaker) == (1, 0, "open")


def test_a_server_that_refuses_us_is_not_a_server_that_fails(server: Server, opened: Make) -> None:
    one = opened(breaker={"failures": 2})
    server.told = [said({"error": "no"}, 400)] * 10
    for _ in range(10):
        with pytest.raises(RemoteError, match="HTTP 400"):
            one.run()
    assert one.engine.stats().breaker == "closed"


def test_a_slow_server_is_late_not_retried(server: Server, opened: Make) -> None:
    there = server.models

    def slow(feeds: Any) -> Any:
        time.sleep(1)
        return {"y": feeds["x"][:, :3]}

    model = affine("batch", server, timeout_ms=150)
    with open_engine(model) as engine:
        there["affine-batch"] = Hosted(model.manifest.inputs, model.manifest.outputs, slow)
        server.seen.clear()
        with pytest.raises(RemoteError, match="did not answer in time") as caught:
            engine.run({"x": X})
    assert not caught.value.again
    assert len(server.seen) == 1


def test_who_waits_for_another_s_first_question_waits_no_longer_than_told(server: Server) -> None:
    model = affine("batch", server, lazy=True, timeout_ms=400)
    taken = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        content = {**json.loads(model.file.read_bytes()), "url": url}
        there = Model.create(model.manifest, {"remote.json": json.dumps(content).encode()})
        with open_engine(there) as engine, ThreadPoolExecutor(8) as callers:

            def ask() -> float:
                taken.wait(30)
                began = time.monotonic()
                with pytest.raises(RemoteError, match="did not answer in time"):
                    engine.run({"x": X})
                return time.monotonic() - began

            waits = [callers.submit(ask) for _ in range(8)]
            taken.set()
            times = sorted(wait.result(60) for wait in waits)
    assert times[-1] < 4 * times[0], "not one after the other"


# --- opening


def test_an_absent_server_is_an_error_when_opened_unless_lazy(server: Server) -> None:
    model = affine("batch", server)
    server.stop()
    for settings, opens in (({"retry": {"attempts": 1}}, False), ({"lazy": True}, True)):
        content = {"url": server.url, "model": "affine-batch", **settings}
        there = Model.create(model.manifest, {"remote.json": json.dumps(content).encode()})
        if not opens:
            with pytest.raises(RemoteError, match="cannot connect"):
                open_engine(there)
            continue
        with open_engine(there) as engine:
            assert engine.version == "not asked yet"
            with pytest.raises(RemoteError, match="cannot connect"):
                engine.run({"x": X})


def test_a_lazy_engine_holds_the_manifest_against_the_server_when_it_first_runs(server: Server) -> None:
    model = affine("batch", server, lazy=True)
    server.models["affine-batch"] = server.models["affine-batch"]._replace(inputs=[spec("x", "batch", 5)])
    with open_engine(model) as engine:
        for _ in range(2):
            with pytest.raises(ModelError, match="the manifest declares 'x'"):
                engine.run({"x": X})
        server.models["affine-batch"] = server.models["affine-batch"]._replace(inputs=model.manifest.inputs)
        assert right(engine.run({"x": X})["y"])
        assert engine.version == "test 0"


def test_state_and_types_no_server_takes_are_refused(server: Server) -> None:
    state = [spec("x", "batch", 4), spec("s", "batch", 4, role="state")]
    kept = [spec("y", "batch", 4), spec("t", "batch", 4, role="state")]
    with pytest.raises(EngineError, match="a server keeps no streams"):
        open_engine(hosted("s", state, kept, lambda f: f["x"], server))
    odd = [spec("x", "batch", 4, dtype="bfloat16")]
    content = json.dumps({"url": server.url, "model": "m"}).encode()
    manifest = Manifest(name="m", format="oip", inputs=tuple(odd), outputs=tuple(kept[:1]))
    with pytest.raises(UnsupportedError, match="'x' is bfloat16"):
        open_engine(Model.create(manifest, {"remote.json": content}))


def test_sessions_share_connections_and_the_last_one_closes_them(server: Server, opened: Make) -> None:
    one = opened()
    other = one.engine.session()
    before = server.connections
    one.engine.close()
    assert right(other.run({"x": X})["y"])
    assert server.connections == before
    other.close()
    with pytest.raises(EngineError, match="closed"):
        other.stats()


# --- tokens


def test_a_token_goes_with_every_request_and_is_not_kept(server: Server) -> None:
    model = affine("batch", server)
    with OipEngine(model, EngineOptions(), token="s3cret") as engine:
        engine.run({"x": X})
    assert {headers.get("Authorization") for _, headers, _ in server.seen} == {"Bearer s3cret"}
    made = remote_model(f"{server.url}/v2/models/affine-batch", token="s3cret")
    assert not any(b"s3cret" in path.read_bytes() for path in made.path.iterdir())


@pytest.mark.parametrize(
    ("entry", "sent"),
    [
        ("machine 127.0.0.1 login bearer password t0ken", "Bearer t0ken"),
        ("machine 127.0.0.1 login me password t0ken", None),
        ("machine elsewhere login bearer password t0ken", None),
        ("default login bearer password t0ken", None),
    ],
)
def test_the_user_s_netrc_has_the_token(
    entry: str, sent: str | None, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ".netrc"
    place.write_text(entry + "\n")
    place.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    open_engine(affine("batch", server)).close()
    assert server.seen[-1][1].get("Authorization") == sent


def test_the_netrc_s_token_does_not_go_over_plain_http_to_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine gpu.example login bearer password t0ken\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token_of(address_of("https://gpu.example:8000")) == "t0ken"
    assert token_of(address_of("http://gpu.example:8000")) == ""


def test_a_netrc_that_cannot_be_read_and_a_token_no_header_can_hold(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = affine("batch", server)
    with pytest.raises(ConfigError, match="without spaces or line breaks") as caught:
        OipEngine(model, EngineOptions(), token="s3cret\r\nX-Evil: 1")
    assert "s3cret" not in str(caught.value)
    (tmp_path / ".netrc").write_text("machine")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot read .*\.netrc"):
        open_engine(model)


def test_a_redirection_is_not_followed(server: Server, opened: Make) -> None:
    one = opened()
    server.told = [Told(307, b"", {"Location": "http://evil.example/v2"})]
    with pytest.raises(RemoteError, match=r"not followed.*http://evil\.example"):
        one.run()


def test_what_a_server_says_is_made_printable(server: Server, opened: Make) -> None:
    one = opened()
    server.told = [said({"error": "\x1b[31mred\n\nalert\x00 " + "x" * 10_000}, 400)]
    with pytest.raises(RemoteError) as caught:
        one.run()
    assert str(caught.value).isprintable()
    assert "[31mred alert xxx" in str(caught.value)
    assert len(str(caught.value)) < 500


# --- making such a model


def test_a_model_is_made_by_asking_the_server(server: Server, tmp_path: Path) -> None:
    affine("batch", server)
    made = remote_model(
        f"{server.url}/v2/models/affine-batch/",
        path=tmp_path / "there",
        timeout_ms=2000.0,
        breaker={"failures": 2},
    )
    again = Model.open(tmp_path / "there")
    assert again.manifest == made.manifest
    assert made.manifest.inputs == (spec("x", "batch", 4),)
    assert made.manifest.outputs == (spec("y", "batch", 3),)
    content = json.loads(made.file.read_bytes())
    assert (content["url"], content["model"], content["breaker"]["failures"]) == (
        server.url,
        "affine-batch",
        2,
    )
    with open_engine(again) as engine:
        assert right(engine.run({"x": X})["y"])


def test_a_server_that_does_not_say_what_a_model_takes(server: Server) -> None:
    tensors = [spec("x", "batch", 4)], [spec("y", "batch", 3)]
    hosted("m", *tensors, lambda feeds: feeds["x"][:, :3], server)
    server.models["m"] = server.models["m"]._replace(inputs=[], outputs=[])
    with pytest.raises(ModelError, match="does not say which tensors the model takes"):
        remote_model(f"{server.url}/v2/models/m")
    made = remote_model(f"{server.url}/v2/models/m", inputs=tensors[0], outputs=tensors[1])
    with open_engine(made) as engine:
        assert right(engine.run({"x": X})["y"])


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="no user and no password") as caught:
        remote_model("http://me:secret@127.0.0.1:1/v2/models/m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "settings", "said_"),
    [
        ("http://127.0.0.1:1", {}, "not the URL of a served model"),
        ("http://127.0.0.1:1/v3/models/m", {}, "not the URL of a served model"),
        ("http://127.0.0.1:1/v2/models/m/infer", {}, "not the URL of a served model"),
        ("ftp://127.0.0.1/v2/models/m", {}, "not the URL of a server"),
        ("http://127.0.0.1:1/v2/models/m", {"timeout": 3}, "did you mean 'timeout_ms'"),
        ("http://127.0.0.1:1/v2/models/m", {"timeout_ms": -3.0}, "timeout_ms is above 0"),
        (
            "https://127.0.0.1:1/v2/models/m",
            {"ca": Path("/no/such.pem")},
            "cannot read certificates from /no/such.pem",
        ),
    ],
)
def test_what_is_no_remote_model(url: str, settings: dict[str, Any], said_: str) -> None:
    with pytest.raises(ConfigError, match=said_):
        remote_model(url, **settings)


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        {"inputs": 3},
        {"inputs": [{"name": "x", "datatype": "BF16", "shape": [1]}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1.5]}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}] * 300},
    ],
)
def test_metadata_that_is_not_understood(metadata: Any, server: Server) -> None:
    server.told = [said(metadata)]
    with pytest.raises(RemoteError):
        remote_model(f"{server.url}/v2/models/m")


def test_metadata_with_two_tensors_of_one_name_is_no_model(server: Server) -> None:
    twice = [{"name": "x", "datatype": "FP32", "shape": [1]}] * 2
    server.told = [said({"inputs": twice, "outputs": twice[:1]})]
    with pytest.raises(ModelError, match="same name"):
        remote_model(f"{server.url}/v2/models/m")


# --- with others


@pytest.mark.parametrize("how", ["in order", "threads"])
def test_a_part_of_a_model_may_be_on_another_machine(how: Any, server: Server, tmp_path: Path) -> None:
    here = fake_model(4, 4, ends=("x", "middle"))
    there = hosted(
        "tail",
        [spec("middle", "batch", 4)],
        [spec("y", "batch", 4)],
        lambda feeds: feeds["middle"] * 2,
        server,
    )
    bundle = Bundle.create("cut", "parts", {"head": here, "tail": there}, tmp_path / "cut")
    with open_engine(here) as engine, open_sharded(bundle, how) as service:
        for seed in range(5):
            x = np.random.default_rng(seed).standard_normal((3, 4)).astype(np.float32)
            wanted = engine.run({"x": x})["middle"] * 2
            np.testing.assert_allclose(service.answer({"x": x}, 10).outputs["y"], wanted, rtol=1e-6)
        server.told = [Told(500)]
        with pytest.raises(RemoteError, match="HTTP 500"):
            service.answer({"x": X}, 10)
        assert service.answer({"x": X}, 10).outputs["y"].shape == (2, 4)
