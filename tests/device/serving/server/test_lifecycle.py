"""From start to end, as a process: signals, systemd, tokens and TLS."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from running_server import GatedEngine, X, gated, running, settings_for

from farthing.device.serving.server.access import checked_token, read_token
from farthing.device.serving.server.notify import Manager, Notifier, Watchdog
from farthing.device.serving.server.settings import Limits, Settings, Tls
from farthing.device.update.store import Store
from farthing.errors import ConfigError, ModelError
from farthing.model import Model
from farthing.testing import fake_model

pytest.importorskip("uvicorn")


class Process:
    """``farthing serve`` as a process, ready."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None, wait: bool = True) -> None:
        command = [sys.executable, "-m", "farthing", "serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.lines: list[str] = []
        self.port = 0
        while wait and not self.port:
            line = self.line()
            if not line:
                raise AssertionError("".join(self.lines))
            if "ready: http" in line:
                self.port = int(line.split("://")[1].split()[0].rpartition(":")[2])

    def line(self) -> str:
        assert self.process.stderr is not None
        self.lines.append(self.process.stderr.readline())
        return self.lines[-1]

    def get(self, path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", path, headers=headers)
        status = connection.getresponse().status
        connection.close()
        return status

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=60)
        self.lines.append(rest)
        return self.process.returncode


@contextmanager
def process(*arguments: str, **options: Any) -> Iterator[Process]:
    one = Process(*arguments, **options)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(model: Model, number: int) -> None:
    with process(str(model.path)) as one:
        assert one.get("/v2/health/ready") == 200
        assert one.end(number) == 0
    assert "stopping: 0 requests" in "".join(one.lines)
    assert "Traceback" not in "".join(one.lines)


def test_sighup_picks_up_a_new_version(tmp_path: Path) -> None:
    fake_model().save(tmp_path / "net" / "1")
    with process(f"net={tmp_path / 'net'}") as one:
        assert one.get("/v2/models/net/versions/2") == 404
        fake_model(seed=1).save(tmp_path / "net" / "2")
        one.process.send_signal(signal.SIGHUP)
        while "loaded: net 2" not in one.line():
            continue
        assert one.get("/v2/models/net/versions/2") == 200
        assert one.end() == 0


def test_it_polls_and_a_bad_version_changes_nothing(tmp_path: Path) -> None:
    fake_model(name="net").save(tmp_path / "net" / "1")
    heard: list[tuple[str, str]] = []
    settings = settings_for(tmp_path / "net", poll_seconds=0.02)
    with running(settings, told=lambda *what: heard.append(what)) as client:
        (tmp_path / "net" / "2").mkdir()
        while not any(word == "failed" for word, _ in heard):
            time.sleep(0.01)
        assert client.infer()[1]["model_version"] == "1"
        shutil.rmtree(tmp_path / "net" / "2")
        fake_model(name="net").save(tmp_path / "net" / "3")
        while ("loaded", "net 3") not in heard:
            time.sleep(0.01)
        assert client.infer()[1]["model_version"] == "3"
        shutil.rmtree(tmp_path / "net")
        while not any("does not exist" in text for _, text in heard):
            time.sleep(0.01)
        assert client.infer()[0] == 200, "what is gone from the disk is still served"
        time.sleep(0.1)
        said = [text for word, text in heard if word == "failed" and "does not exist" in text]
        assert len(said) == 1, "and said once"


def test_a_store_is_served_as_it_moves(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for version in ("1", "2"):
        store.add(fake_model(name="net", version=version, seed=int(version)))
    store.activate("net", "1")
    with running(settings_for(tmp_path / "store", poll_seconds=0.02)) as client:
        for version, move in (
            ("2", lambda: store.activate("net", "2")),
            ("1", lambda: store.rollback("net")),
        ):
            assert client.infer()[1]["model_version"] != version
            move()
            while client.infer()[1]["model_version"] != version:
                time.sleep(0.01)


def test_requests_under_way_are_answered_when_it_stops(model: Model, gate: type[GatedEngine]) -> None:
    answers: list[int] = []
    with running(Settings(models=(gated(model.path),), port=0)) as client:
        loop_thread = threading.Thread(target=lambda: answers.append(client.infer()[0]))
        gate.gate.clear()
        loop_thread.start()
        assert gate.waiting.acquire(timeout=20)
        threading.Timer(0.3, gate.gate.set).start()
    loop_thread.join(20)
    assert answers == [200]


def test_a_model_that_hangs_does_not_keep_it_from_stopping(model: Model, gate: type[GatedEngine]) -> None:
    answers: list[tuple[int, Any]] = []
    settings = Settings(models=(gated(model.path),), port=0, drain_seconds=0.2)
    with running(settings) as client:
        asking = threading.Thread(target=lambda: answers.append(client.infer()))
        gate.gate.clear()
        asking.start()
        assert gate.waiting.acquire(timeout=20)
    asking.join(20)
    assert answers == [(503, {"error": "the server stops"})]


def test_asked_twice_it_stops_at_once(model: Model, gate: type[GatedEngine]) -> None:
    answers: list[tuple[int, Any]] = []
    settings = Settings(models=(gated(model.path),), port=0, drain_seconds=600, notice_seconds=600)
    with running(settings) as client:
        asking = threading.Thread(target=lambda: answers.append(client.infer()))
        gate.gate.clear()
        asking.start()
        assert gate.waiting.acquire(timeout=20)
        client.loop.call_soon_threadsafe(client.running.stop)
    asking.join(20)
    assert answers == [(503, {"error": "the server stops"})]


def test_it_stops_when_nobody_reads_what_it_says(model: Model) -> None:
    with process("--access-log", str(model.path)) as one:
        assert one.process.stderr is not None
        assert one.process.stdout is not None
        one.process.stderr.close()
        one.process.stdout.close()
        assert one.get("/v2/health/ready") == 200
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(60) == 0


def test_not_ready_while_it_still_takes_requests(model: Model) -> None:
    with process("--config", str(_config(model.path.parent, model.path, notice_seconds=1.5))) as one:
        assert one.get("/v2/health/ready") == 200
        one.process.send_signal(signal.SIGTERM)
        while "stopping" not in one.line():
            continue
        assert one.get("/v2/health/ready") == 503
        assert one.get("/v2/models/net") == 200
        one.process.communicate(timeout=60)
        assert one.process.returncode == 0


def _config(place: Path, model: Path, **more: Any) -> Path:
    path = place / "serve.json"
    path.write_text(json.dumps({"models": [{"path": str(model), "name": "net"}], **more}))
    return path


def test_systemd_hears_of_it(model: Model, tmp_path: Path) -> None:
    place = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place))
        manager.settimeout(30)
        env = {"NOTIFY_SOCKET": str(place), "WATCHDOG_USEC": "200000"}
        with process(str(model.path), env=env) as one:
            assert manager.recv(4096).startswith(b"READY=1\nSTATUS=serving 1 models at http")
            assert manager.recv(4096) == b"WATCHDOG=1"
            assert one.end() == 0
        heard = b""
        while heard != b"STOPPING=1":
            heard = manager.recv(4096)


def test_no_sign_of_life_while_inference_hangs(model: Model, gate: type[GatedEngine], tmp_path: Path) -> None:
    place = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(place))
        listening.settimeout(0.5)
        manager = Manager(str(place), 0.2)
        with running(Settings(models=(gated(model.path),), port=0), manager=manager) as client:
            gate.gate.clear()
            asking = threading.Thread(target=client.infer)
            asking.start()
            assert gate.waiting.acquire(timeout=20)
            with suppress(TimeoutError):  # in the end; before it come those sent before it hung
                while listening.recv(4096):
                    continue
            gate.gate.set()
            asking.join(20)
            assert listening.recv(4096) == b"WATCHDOG=1"


def test_requests_that_give_up_are_no_sign_of_life(model: Model, gate: type[GatedEngine]) -> None:
    with running(Settings(models=(gated(model.path),), port=0)) as client:
        core = client.running.core
        assert client.infer()[0] == 200
        gate.gate.clear()
        asking = threading.Thread(target=client.infer)
        asking.start()
        assert gate.waiting.acquire(timeout=20)
        before = core.executions, core.done
        assert client.infer(parameters={"timeout": 20_000})[0] == 504
        assert client.infer(x=X[:, :2])[0] == 400
        assert (core.executions, core.done) == (before[0], before[1] + 2)
        gate.gate.set()
        asking.join(20)
        assert core.executions == before[0] + 1


def test_signs_of_life() -> None:
    dog = Watchdog()
    assert dog.alive(executions=0, under_way=0)
    assert not dog.alive(executions=0, under_way=1)
    assert dog.alive(executions=1, under_way=3)
    assert not dog.alive(executions=1, under_way=3)
    assert dog.alive(executions=1, under_way=0)


def test_a_service_manager_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    place = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(place))
        for _ in range(10_000):  # far more than a socket's queue takes
            Notifier(str(place)).send("WATCHDOG=1")


def test_what_the_environment_says_of_systemd() -> None:
    assert Manager.of("", "", "", 7) == Manager("", 0.0)
    assert Manager.of("/run/x", "2000000", "7", 7) == Manager("/run/x", 2.0)
    assert Manager.of("/run/x", "2000000", "8", 7).watchdog == 0.0
    assert Manager.of("/run/x", "soon", "", 7).watchdog == 0.0
    Notifier("/nowhere/to/be/found").send("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0farthing-test-notify")
        Notifier("@farthing-test-notify").send("A=1", "B=2")
        assert listening.recv(100) == b"A=1\nB=2"


def test_tokens_come_from_private_files(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("  s3cret-s3cret-s3cret\n")
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(secret)
    secret.chmod(0o600)
    assert read_token(secret) == "s3cret-s3cret-s3cret"
    with pytest.raises(ConfigError, match="cannot read the token"):
        read_token(tmp_path / "gone")
    for bad in ("short", "has a space in the middle", "x" * 20 + "\x07"):
        with pytest.raises(ConfigError, match="at least 16 printable") as caught:
            checked_token(bad, "FARTHING_TOKEN")
        assert bad not in str(caught.value)


def test_a_token_from_the_environment(model: Model) -> None:
    token = "from-the-environment"
    with process("--access-log", str(model.path), env={"FARTHING_TOKEN": token}) as one:
        assert one.get("/v2/models/net") == 401
        assert one.get("/v2/models/net", Authorization=f"Bearer {token}") == 200
        assert one.end() == 0
    said = "".join(one.lines)
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("GET", "/v2/models/net", 401),
        ("GET", "/v2/models/net", 200),
    ]
    assert token not in said


def _status(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/v2/health/ready")
    return connection.getresponse().status


def self_signed(place: Path) -> tuple[Path, Path]:
    """A key and its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = place / "key.pem", place / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


def test_tls(model: Model, tmp_path: Path) -> None:
    key, certificate = self_signed(tmp_path)
    settings = settings_for(model.path, tls=Tls(certificate=certificate, key=key))
    with running(settings) as client:
        assert client.running.url.startswith("https://")
        trust = ssl.create_default_context(cafile=str(certificate))
        connection = http.client.HTTPSConnection(client.host, client.port, timeout=20, context=trust)
        assert _status(connection) == 200
        connection.close()
        with pytest.raises((ConnectionError, http.client.BadStatusLine)):
            client.get("/v2")
    strict = settings_for(model.path, tls=Tls(certificate=certificate, key=key, client_ca=certificate))
    with running(strict) as client:
        connection = http.client.HTTPSConnection(client.host, client.port, timeout=20, context=trust)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            _status(connection)
        connection.close()
        trust.load_cert_chain(certificate, key)
        connection = http.client.HTTPSConnection(client.host, client.port, timeout=20, context=trust)
        assert _status(connection) == 200
        connection.close()


def test_connections_that_never_finish_do_not_hold_it_up(model: Model, tmp_path: Path) -> None:
    key, certificate = self_signed(tmp_path)
    settings = settings_for(model.path, tls=Tls(certificate=certificate, key=key), drain_seconds=600)
    with running(settings) as client:
        trust = ssl.create_default_context(cafile=str(certificate))
        idle = http.client.HTTPSConnection(client.host, client.port, timeout=20, context=trust)
        assert _status(idle) == 200
        silent = socket.create_connection((client.host, client.port), timeout=20)  # shakes no hand
    silent.close()
    idle.close()


def test_a_key_with_a_passphrase_is_refused(model: Model, tmp_path: Path) -> None:
    from farthing.device.serving.server.lifecycle import Server

    key, certificate = self_signed(tmp_path)
    locked = tmp_path / "locked.pem"
    command = ["openssl", "rsa", "-aes256", "-in", str(key), "-out", str(locked), "-passout", "pass:secret"]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(ConfigError, match="encrypted"):
        Server(settings_for(model.path, tls=Tls(certificate=certificate, key=locked)))


def test_it_says_when_everyone_may_ask(model: Model) -> None:
    heard: list[str] = []
    for host, token in (("0.0.0.0", ""), ("0.0.0.0", "t" * 20), ("127.0.0.1", "")):
        settings = settings_for(model.path, host=host)
        with running(settings, token=token, told=lambda word, text: heard.append(word)):
            pass
    assert heard.count("open") == 1


def test_what_cannot_start_says_why(model: Model, tmp_path: Path) -> None:
    from farthing.device.serving.server.lifecycle import Server

    with pytest.raises(ConfigError, match="nothing to serve"):
        Server(Settings(port=0))
    with pytest.raises(ConfigError, match="everyone could load and unload"):
        Server(settings_for(model.path, host="0.0.0.0", management=True))
    with pytest.raises(ConfigError, match="TLS cannot start"):
        Server(settings_for(model.path, tls=Tls(certificate=tmp_path / "no", key=tmp_path / "no")))
    with running(settings_for(model.path)) as client:
        taken = Settings(models=client.running.settings.models, port=client.port)
        with pytest.raises(ConfigError, match="choose another --port"):
            Server(taken)
    with pytest.raises(ModelError, match="does not exist"), running(settings_for(tmp_path / "gone")):
        pass
    fake_model(decay=0.5).save(tmp_path / "stateful")
    with pytest.raises(Exception, match="keeps a state"), running(settings_for(tmp_path / "stateful")):
        pass


def test_it_goes_on_without_what_cannot_be_served(tmp_path: Path) -> None:
    fake_model().save(tmp_path / "good")
    fake_model(decay=0.5).save(tmp_path / "bad")
    settings = settings_for(tmp_path, keep_going=True, limits=Limits())
    with running(settings) as client:
        assert client.infer("good")[0] == 200
        status, body = client.infer("bad")
        assert status == 404
        assert "keeps a state" in body["error"]
        assert client.get("/v2/health/ready")[0] == 503


def test_the_command_refuses_with_exit_code_2(tmp_path: Path, model: Model) -> None:
    (tmp_path / "token").write_text("a secret of sixteen letters\n")
    for arguments, said in (
        ([], "nothing to serve"),
        ([str(tmp_path / "gone")], "does not exist"),
        ([str(model.path), "--certificate", "a"], "both --certificate and --key"),
        ([str(model.path), "--management-token-file", str(tmp_path / "token")], "management is off"),
        ([str(model.path), "--port", "70000"], "port is from 0 to 65535"),
        ([str(model.path), "--delay-ms", "nan"], "--delay-ms is a number"),
        ([str(model.path), "--delay-ms", "inf"], "--delay-ms is a number"),
    ):
        with process(*arguments, wait=False) as one:
            _, text = one.process.communicate(timeout=60)
            assert (one.process.returncode, said in text) == (2, True), text
            assert "Traceback" not in text


def test_settings_are_shown_and_read_again(model: Model, tmp_path: Path) -> None:
    from farthing.cli import main

    place = tmp_path / "serve.yaml"
    place.write_text(f"models:\n- path: {model.path}\n  max_batch_size: 4\nlimits:\n  in_flight: 7\n")
    command = [
        sys.executable,
        "-m",
        "farthing",
        "serve",
        "--config",
        str(place),
        "--port",
        "9",
        "a=b",
        "--show-config",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "in_flight: 7" in shown
    assert "port: 9" in shown
    assert "name: a" in shown
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    found = subprocess.run(
        [*command[:5], str(again), "--show-config"], capture_output=True, text=True, check=True
    )
    assert found.stdout == shown
    place.write_text("limits: {in_flights: 3}")
    assert main(["serve", "--config", str(place)]) == 2
