"""The gRPC face as a server: who is let in, what is refused and how, deadlines, clients that go away, and its end."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_server import Client, GatedEngine, X, gated, running, settings_for

from farthing.device.serving.server.settings import Limits, Settings, Tls
from farthing.engines.base import open_engine
from farthing.errors import ConfigError, NotInstalled
from farthing.model import Model
from farthing.testing import fake_model

pytest.importorskip("uvicorn")


def test_without_grpcio_a_server_of_http_runs_and_one_of_grpc_says_what_is_missing(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc", "grpc.aio"):
        monkeypatch.setitem(sys.modules, name, None)  # what Python takes for "not there"
    with running(settings_for(model.path)) as client:
        assert client.infer()[0] == 200
        assert client.running.grpc is None
    from farthing.device.serving.server.lifecycle import Server

    with pytest.raises(NotInstalled, match=r"farthing\[grpc\]"):
        Server(grpc_settings(model.path))


def grpc_settings(*paths: Path, **more: Any) -> Settings:
    return settings_for(*paths, grpc_port=0, **more)


class Asking:
    """Bytes in, bytes out."""

    def __init__(self, client: Client, channel: Any = None, **options: Any) -> None:
        import grpc

        self.channel = channel or grpc.insecure_channel(client.running.grpc.address, **options)

    def raw(self, call: str, body: bytes, **options: Any) -> bytes:
        from farthing.device.serving.server.grpc.messages import SERVICE

        answer: bytes = self.channel.unary_unary(f"/{SERVICE}/{call}")(body, **{"timeout": 30, **options})
        return answer

    def ask(self, call: str, options: dict[str, Any] | None = None, **fields: Any) -> Any:
        from farthing.device.serving.server.grpc.messages import messages

        asked = messages()[f"{call}Request"](**fields).SerializeToString()
        return messages()[f"{call}Response"].FromString(self.raw(call, asked, **(options or {})))

    def infer(self, options: dict[str, Any] | None = None, **more: Any) -> Any:
        return self.ask("ModelInfer", options, **{**INFER, **more})


INFER: dict[str, Any] = {
    "model_name": "net",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}],
    "raw_input_contents": [X.tobytes()],
}


def refused(call: Callable[[], object]) -> tuple[str, str]:
    import grpc

    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code().name, error.details()


@contextmanager
def asking(settings: Settings, channel: dict[str, Any] | None = None, **options: Any) -> Iterator[Asking]:
    with running(settings, **options) as client:
        one = Asking(client, **(channel or {}))
        try:
            yield one
        finally:
            one.channel.close()


@pytest.fixture
def grpc() -> Any:
    pytest.importorskip("google.protobuf")
    return pytest.importorskip("grpc")


def test_both_faces_answer_alike_and_count_together(grpc: Any, model: Model) -> None:
    with open_engine(model) as engine:
        expected = engine.run({"x": X})["y"]
    with running(grpc_settings(model.path)) as client:
        one = Asking(client)
        answer = one.infer(id="seven")
        assert (answer.model_name, answer.model_version, answer.id) == ("net", "1", "seven")
        assert (answer.outputs[0].name, answer.outputs[0].datatype, answer.outputs[0].shape) == (
            "y",
            "FP32",
            [1, 3],
        )
        np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[0], "<f4"), expected[0])
        assert client.infer()[0] == 200
        assert one.ask("ModelStatistics", name="net").model_stats[0].inference_count == 2
        assert client.get("/v2/models/stats")[1]["model_stats"][0]["inference_count"] == 2
        assert client.running.core.done == 2
        one.channel.close()


@pytest.mark.parametrize("body", [b"\xff\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x01\xff", b"\0" * 50])
def test_what_is_no_message_is_refused_and_harms_nobody(grpc: Any, model: Model, body: bytes) -> None:
    with asking(grpc_settings(model.path)) as one:
        code, text = refused(lambda: one.raw("ModelInfer", body))
        assert (code, text[:27]) == ("INVALID_ARGUMENT", "this is no ModelInferReques")
        assert one.infer().outputs


def test_what_clients_may_take_is_limited(grpc: Any, model: Model) -> None:
    mistakes: list[tuple[str, str]] = []
    limits = Limits(body_bytes=2000, buffered_bytes=1500, header_bytes=2048)
    with asking(grpc_settings(model.path, limits=limits), told=lambda *what: mistakes.append(what)) as one:
        assert refused(lambda: one.raw("ModelInfer", b"\0" * 2001))[0] == "RESOURCE_EXHAUSTED"
        code, text = refused(lambda: one.raw("ModelInfer", b"\0" * 1600))
        assert (code, text[:14]) == ("RESOURCE_EXHAUSTED", "too many bytes")
        large = [("x-large", "x" * 9000)]
        assert refused(lambda: one.infer({"metadata": large}))[0] == "RESOURCE_EXHAUSTED"
        for _ in range(200):  # what was held is given back
            one.infer()
    assert not [what for what in mistakes if what[0] == "mistake"]


def test_nothing_is_unpacked(grpc: Any, model: Model) -> None:
    with asking(grpc_settings(model.path)) as one:
        zeros = {**INFER, "id": "z" * 1000}
        code, _ = refused(lambda: one.infer({"compression": grpc.Compression.Gzip}, **zeros))
        assert code == "UNIMPLEMENTED"


def test_statuses(grpc: Any, model: Model) -> None:
    wrong = [{"name": "x", "datatype": "FP32", "shape": [1, 5]}]
    with asking(grpc_settings(model.path)) as one:
        assert refused(lambda: one.infer(model_name="nte")) == (
            "NOT_FOUND",
            "no model 'nte' is served; did you mean 'net'? Known: net",
        )
        assert refused(lambda: one.infer(model_version="7"))[0] == "NOT_FOUND"
        assert (
            refused(lambda: one.infer(inputs=wrong, raw_input_contents=[bytes(20)]))[0] == "INVALID_ARGUMENT"
        )
        assert refused(lambda: one.infer(inputs=wrong))[0] == "INVALID_ARGUMENT"
        assert refused(lambda: one.ask("RepositoryModelLoad", model_name="net"))[0] == "PERMISSION_DENIED"
        assert refused(lambda: one.raw("ModelStreamInfer", b""))[0] == "UNIMPLEMENTED"


def test_a_model_that_cannot_be_loaded_is_told_and_the_old_one_goes_on(grpc: Any, model: Model) -> None:
    with asking(grpc_settings(model.path, management=True)) as one:
        shutil.copy(model.path / "manifest.json", model.path / "other")
        (model.path / "manifest.json").write_text("{")
        code, text = refused(lambda: one.ask("RepositoryModelLoad", model_name="net"))
        assert code == "FAILED_PRECONDITION"
        assert "manifest.json" in text
        assert one.infer().outputs


def test_versions_are_swapped_under_load_without_losing_a_call(grpc: Any, tmp_path: Path) -> None:
    fake_model(name="net").save(tmp_path / "net" / "1")
    enough = threading.Event()

    def call(one: Asking) -> list[str]:
        seen = []
        while not enough.is_set():
            seen.append(one.infer().model_version)
        return seen

    with asking(grpc_settings(tmp_path / "net", management=True)) as one, ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(call, one) for _ in range(4)]
        try:
            for version in ("2", "3", "4"):
                fake_model(name="net", seed=int(version)).save(tmp_path / "net" / version)
                one.ask("RepositoryModelLoad", model_name="net")
                assert one.infer().model_version == version
        finally:
            enough.set()
        for caller in callers:
            seen = caller.result(30)
            assert seen == sorted(seen)


def test_tokens(grpc: Any, model: Model) -> None:
    token, chief = "t" * 20, "m" * 20
    settings = grpc_settings(model.path, management=True)
    with asking(settings, token=token, management_token=chief) as one:

        def bearing(text: str) -> dict[str, Any]:
            return {"metadata": [("authorization", text)]}

        assert one.ask("ServerLive").live
        assert one.ask("ServerReady").ready
        for call in ("ServerMetadata", "ModelReady", "ModelMetadata", "ModelStatistics", "RepositoryIndex"):
            code, text = refused(lambda call=call: one.ask(call))  # type: ignore[misc]
            assert code == "UNAUTHENTICATED"
            assert token not in text
            assert one.ask(
                call, bearing(f"Bearer {token}"), **({"name": "net"} if call == "ModelMetadata" else {})
            )
        assert refused(one.infer)[0] == "UNAUTHENTICATED"
        assert refused(lambda: one.infer(bearing(f"Bearer {token}x")))[0] == "UNAUTHENTICATED"
        assert one.infer(bearing(f"Bearer {token}")).outputs
        load = {"model_name": "net"}
        assert refused(lambda: one.ask("RepositoryModelLoad", **load))[0] == "UNAUTHENTICATED"
        code, _ = refused(lambda: one.ask("RepositoryModelLoad", bearing(f"Bearer {token}"), **load))
        assert code == "PERMISSION_DENIED"
        one.ask("RepositoryModelLoad", bearing(f"Bearer {chief}"), **load)


def test_tls(grpc: Any, model: Model, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=gate -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        [*command.split(), "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    tls = Tls(certificate=certificate, key=key)
    trust = certificate.read_bytes()
    with running(grpc_settings(model.path, tls=tls)) as client:
        plain = Asking(client)
        assert refused(plain.infer)[0] == "UNAVAILABLE"
        plain.channel.close()
        with grpc.secure_channel(client.running.grpc.address, grpc.ssl_channel_credentials(trust)) as channel:
            assert Asking(client, channel).infer().outputs
    tls = Tls(certificate=certificate, key=key, client_ca=certificate)
    with running(grpc_settings(model.path, tls=tls)) as client:
        with grpc.secure_channel(client.running.grpc.address, grpc.ssl_channel_credentials(trust)) as channel:
            assert refused(Asking(client, channel).infer)[0] == "UNAVAILABLE"
        known = grpc.ssl_channel_credentials(trust, key.read_bytes(), trust)
        with grpc.secure_channel(client.running.grpc.address, known) as channel:
            assert Asking(client, channel).infer().outputs


@contextmanager
def held(gate: type[GatedEngine], model: Model, **more: Any) -> Iterator[Client]:
    """A server whose model does not answer before the gate is opened."""
    settings = Settings(models=(gated(model.path),), port=0, grpc_port=0, **more)
    with running(settings) as client:
        gate.gate.clear()
        try:
            yield client
        finally:
            gate.gate.set()


def test_a_deadline_of_the_call_or_of_the_request(grpc: Any, gate: type[GatedEngine], model: Model) -> None:
    from farthing.device.serving.server.grpc.messages import messages

    with held(gate, model) as client:
        one = Asking(client)
        assert refused(lambda: one.infer({"timeout": 0.05}))[0] == "DEADLINE_EXCEEDED"
        short = messages()["InferParameter"](int64_param=20_000)
        code, text = refused(lambda: one.infer(parameters={"timeout": short}))
        assert (code, text) == ("DEADLINE_EXCEEDED", "net did not answer within 20 ms")
        gate.gate.set()
        assert one.infer().outputs
        one.channel.close()


def test_a_client_that_goes_away_takes_its_request_along(
    grpc: Any, gate: type[GatedEngine], model: Model
) -> None:
    from farthing.device.serving.server.grpc.messages import SERVICE, messages

    body = messages()["ModelInferRequest"](**INFER).SerializeToString()
    with held(gate, model) as client:
        one = Asking(client)
        call = one.channel.unary_unary(f"/{SERVICE}/ModelInfer").future(body)
        assert gate.waiting.acquire(timeout=20)
        call.cancel()
        wait_until(lambda: client.running.core.done == 1)
        assert client.running.core.under_way == 0
        one.channel.close()


def test_too_many_at_once(grpc: Any, gate: type[GatedEngine], model: Model) -> None:
    with held(gate, model, limits=Limits(in_flight=1)) as client, ThreadPoolExecutor(1) as pool:
        one, other = Asking(client), Asking(client, options=[("grpc.use_local_subchannel_pool", 1)])
        first = pool.submit(one.infer)
        assert gate.waiting.acquire(timeout=20)
        code, text = refused(other.infer)
        assert (code, text) == ("RESOURCE_EXHAUSTED", "net: too many requests are under way: ask again later")
        gate.gate.set()
        assert first.result(20).outputs
        one.channel.close()
        other.channel.close()


def test_a_message_that_does_not_come(grpc: Any, model: Model) -> None:
    from farthing.device.serving.server.grpc.messages import SERVICE

    never = threading.Event()

    def dribble() -> Iterator[bytes]:
        never.wait(30)
        yield from ()

    with asking(grpc_settings(model.path, limits=Limits(body_seconds=0.05))) as one:
        send = one.channel.stream_unary(f"/{SERVICE}/ModelInfer")
        assert refused(lambda: send(dribble())) == ("DEADLINE_EXCEEDED", "the message did not come in time")
        never.set()
        assert refused(lambda: send(iter(())))[0] == "INVALID_ARGUMENT"
        assert one.infer().outputs


def test_messages_that_come_in_at_once_are_limited_but_health_is_told(grpc: Any, model: Model) -> None:
    from farthing.device.serving.server.grpc.messages import SERVICE

    never, limits = threading.Event(), Limits(body_bytes=2000, buffered_bytes=2000, body_seconds=600)

    def dribble() -> Iterator[bytes]:
        never.wait(30)
        yield from ()

    with running(grpc_settings(model.path, limits=limits)) as client, ThreadPoolExecutor(1) as pool:
        one = Asking(client)
        slow = pool.submit(refused, lambda: one.channel.stream_unary(f"/{SERVICE}/ModelInfer")(dribble()))
        wait_until(lambda: client.running.grpc._readers.full)
        assert one.ask("ServerReady").ready
        assert one.infer().outputs  # when the slow one was sent away
        assert slow.result(20) == ("DEADLINE_EXCEEDED", "the message did not come in time, and others waited")
        never.set()
        one.channel.close()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def deaf_call(port: int, path: str, message: bytes) -> socket.socket:
    """A call of a client that leaves no room for the answer."""
    headers = {
        ":method": "POST", ":scheme": "http", ":path": path, ":authority": "a",
        "content-type": "application/grpc", "te": "trailers",
    }  # fmt: skip
    packed = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    wire = socket.create_connection(("127.0.0.1", port), timeout=20)
    wire.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, struct.pack(">HI", 4, 0)))
    wire.sendall(frame(1, 4, 1, packed) + frame(0, 1, 1, b"\0" + struct.pack(">I", len(message)) + message))
    return wire


def test_answers_that_nobody_takes_are_limited(grpc: Any, tmp_path: Path) -> None:
    from farthing.device.serving.server.grpc.messages import SERVICE, messages

    wide = fake_model(4, 50_000, name="net").save(tmp_path / "wide")
    with running(grpc_settings(wide.path, limits=Limits(buffered_bytes=150_000, body_bytes=1000))) as client:
        one, server = Asking(client), client.running.grpc
        request = messages()["ModelInferRequest"](model_name="net", raw_input_contents=[X.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=X.shape)
        port = int(server.address.rpartition(":")[2])
        wire = deaf_call(port, f"/{SERVICE}/ModelInfer", request.SerializeToString())
        wait_until(lambda: server._unread > 200_000)
        assert refused(one.infer)[0] == "RESOURCE_EXHAUSTED"
        assert one.ask("ServerReady").ready
        assert client.infer()[0] == 200
        wire.close()
        wait_until(lambda: server._unread == 0)
        assert one.infer().outputs
        wait_until(lambda: server._unread == 0)
        one.channel.close()


def test_requests_under_way_are_answered_before_it_ends(
    grpc: Any, gate: type[GatedEngine], model: Model
) -> None:
    with held(gate, model) as client, ThreadPoolExecutor(2) as pool:
        one = Asking(client)
        over_grpc = pool.submit(one.infer)
        assert gate.waiting.acquire(timeout=20)
        over_http = pool.submit(client.infer)
        wait_until(lambda: client.running.core.under_way == 2)
        client.loop.call_soon_threadsafe(client.running.stop)
        wait_until(lambda: refuses(client))
        gate.gate.set()
        assert over_grpc.result(20).outputs
        assert over_http.result(20)[0] == 200
        one.channel.close()


def refuses(client: Client) -> bool:
    import grpc

    one = Asking(client, options=[("grpc.use_local_subchannel_pool", 1)])
    try:
        one.ask("ServerLive", {"timeout": 5})
    except grpc.RpcError as error:
        return bool(error.code() is grpc.StatusCode.UNAVAILABLE)
    finally:
        one.channel.close()
    return False


@pytest.mark.parametrize("twice", [True, False])
def test_it_does_not_wait_for_ever(grpc: Any, gate: type[GatedEngine], model: Model, twice: bool) -> None:
    with held(gate, model, drain_seconds=3600 if twice else 0.05) as client, ThreadPoolExecutor(1) as pool:
        one = Asking(client)
        stuck = pool.submit(refused, one.infer)
        assert gate.waiting.acquire(timeout=20)
        for _ in range(1 + twice):
            client.loop.call_soon_threadsafe(client.running.stop)
        assert stuck.result(30)[0] in {"UNAVAILABLE", "UNAVAILABLE" if twice else "CANCELLED"}
        one.channel.close()


def test_it_lives_before_it_is_ready_and_after(grpc: Any, gate: type[GatedEngine], model: Model) -> None:
    from farthing.device.serving.server.lifecycle import Server

    settings = Settings(models=(gated(model.path),), port=0, grpc_port=0, notice_seconds=1)

    async def told(server: Server) -> tuple[bool, bool, bool]:
        """Live, ready, model ready."""

        def ask() -> tuple[bool, bool, bool]:
            assert server.grpc is not None
            with grpc.insecure_channel(server.grpc.address) as channel:
                one = Asking(Client(server, loop), channel)
                model_ready = one.ask("ModelReady", name="net").ready
                return one.ask("ServerLive").live, one.ask("ServerReady").ready, model_ready

        return await loop.run_in_executor(None, ask)

    async def live() -> list[tuple[bool, bool, bool]]:
        nonlocal loop
        loop = asyncio.get_running_loop()
        server = Server(settings)
        serving = asyncio.ensure_future(server.serve())
        await loop.run_in_executor(None, gate.waiting.acquire)  # its model is being tried
        seen = [await told(server)]
        gate.gate.set()
        while not server.core.started:
            await asyncio.sleep(0.01)
        seen.append(await told(server))
        server.stop()
        seen.append(await told(server))
        await serving
        return seen

    loop: Any = None
    gate.gate.clear()
    assert asyncio.run(live()) == [(True, False, False), (True, True, True), (True, False, True)]


def test_what_it_tells_and_which_port_is_taken(grpc: Any, model: Model, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    told: list[tuple[str, str]] = []
    with running(grpc_settings(model.path), log=lines.append, told=lambda *what: told.append(what)) as client:
        one = Asking(client)
        one.infer()
        refused(lambda: one.infer(model_name="nte"))
        one.channel.close()
        address = client.running.grpc.address
        assert f"gRPC at {address}" in dict(told)["ready"]
        taken = settings_for(model.path, grpc_port=int(address.rpartition(":")[2]))
        with pytest.raises(ConfigError, match="choose another --grpc-port"), running(taken):
            pass
    assert [(line["path"].rpartition("/")[2], line["status"]) for line in lines] == [
        ("ModelInfer", "OK"),
        ("ModelInfer", "NOT_FOUND"),
    ]


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
