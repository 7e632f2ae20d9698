"""The wire: the system's ssh against a real server, and what each way of failing is called."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.remote.conftest import Server, new_key, processes

from farthing.errors import ConfigError, LinkError, TargetError
from farthing.links.ssh import Address, Ssh, printable


@pytest.fixture
def ssh(server: Server) -> Iterator[Ssh]:
    server.know(server.host_key)
    with Ssh(server.address) as opened:
        yield opened


def test_arguments_arrive_as_they_are(ssh: Ssh) -> None:
    words = ["a b", "'", '"$HOME"', "$(touch /tmp/x)", "; exit 3", "\\", "*", "", "ümlaut", "-n", "a\nb"]
    reply = ssh.run(r'for word in "$@"; do printf "%s\0" "$word"; done', words)
    assert reply.code == 0
    assert reply.out.decode().split("\0")[:-1] == words


def test_content_code_and_complaints_come_back(ssh: Ssh) -> None:
    content = bytes(range(256)) * 40_000
    reply = ssh.run("cat; echo no >&2; exit 7", content=[content], limit=20 << 20)
    assert (reply.out == content, reply.code, reply.err) == (True, 7, "no")


def test_content_that_nobody_reads_is_no_failure(ssh: Ssh) -> None:
    assert ssh.run("exit 5", content=[b"x" * (4 << 20)]).code == 5


def test_too_much_and_too_late(ssh: Ssh) -> None:
    with pytest.raises(LinkError, match="more than 1000 bytes"):
        ssh.run("yes", limit=1000)
    with pytest.raises(LinkError, match="did not answer in time"):
        ssh.run("sleep 60", seconds=0.3)
    assert ssh.run("echo still there").out == b"still there\n"


def test_what_a_login_shell_says_is_left_out(server: Server, tmp_path: Path) -> None:
    noisy = Server(tmp_path / "noisy", settings=['ForceCommand echo welcome; sh -c "$SSH_ORIGINAL_COMMAND"'])
    noisy.start()
    try:
        with Ssh(noisy.address) as opened:
            assert opened.run("echo yes").out == b"yes\n"
    finally:
        noisy.stop()
    endless = Server(tmp_path / "endless", settings=["ForceCommand yes"])
    endless.start()
    try:
        with pytest.raises(TargetError, match="writes too much when one logs in"):
            Ssh(endless.address).open()
    finally:
        endless.stop()


def test_an_unknown_host_is_refused_and_said_how_to_know_it(server: Server) -> None:
    server.know(None)
    with pytest.raises(TargetError, match=r"its host key is not known here. Log in once by hand"):
        Ssh(server.address).open()
    assert (server.place / "known_hosts").read_text() == ""


def test_another_host_key_is_refused(server: Server, tmp_path: Path) -> None:
    server.know(new_key(tmp_path / "other"))
    with pytest.raises(TargetError, match=r"not the one known for it.*ssh-keygen -R 127.0.0.1") as caught:
        Ssh(server.address).open()
    assert not isinstance(caught.value, LinkError)


def test_a_refused_key(server: Server, tmp_path: Path) -> None:
    server.know(server.host_key)
    with pytest.raises(TargetError, match="it takes none of your keys"):
        Ssh(replace(server.address, identity=new_key(tmp_path / "mine"), config=anonymous(server))).open()


def anonymous(server: Server) -> Path:
    """The client's settings without the key that is let in."""
    lines = (server.place / "client").read_text().splitlines()
    path = server.place / "anonymous"
    path.write_text("\n".join(line for line in lines if not line.startswith("IdentityFile")) + "\n")
    return path


def test_nobody_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="cannot be reached"):
        Ssh(replace(server.address, port=1)).open()
    with pytest.raises(LinkError, match="no machine of that name"):
        Ssh(Address(host="no-such-host.invalid", config=server.address.config)).open()
    broken = tmp_path / "config"
    broken.write_text("Nonsense yes\n")
    with pytest.raises(TargetError, match="settings are not in order"):
        Ssh(replace(server.address, config=broken)).open()


def test_only_the_client_s_own_words_are_a_reason(ssh: Ssh) -> None:
    for words in ("Permission denied", "REMOTE HOST IDENTIFICATION HAS CHANGED"):
        channel = ssh.start(f"echo '{words}' >&2; exit 255")
        with pytest.raises(LinkError, match=f"connection broke.*{words}"):
            channel.read_into(memoryview(bytearray(1)), time.monotonic() + 10)
        channel.close()
        with pytest.raises(LinkError, match="connection broke"):
            ssh.run(f"echo '{words}' >&2; exit 255")


def test_a_cut_connection_is_noticed_and_made_anew(ssh: Ssh, server: Server) -> None:
    channel = ssh.start("cat")
    server.cut()
    with pytest.raises(LinkError, match="connection broke"):
        channel.read_into(memoryview(bytearray(1)), time.monotonic() + 10)
    channel.close()
    with ssh.open() as again:
        assert again.run("echo back").out == b"back\n"


def test_nothing_stays_behind(server: Server) -> None:
    server.know(server.host_key)
    opened = Ssh(server.address).open()
    assert opened._place is not None
    place = opened._place.path
    channel = opened.start("exec sleep 12.321")
    assert processes("sleep 12.321")
    channel.close()
    opened.close()
    assert not place.exists()
    assert not processes(str(server.address.config))


@pytest.mark.parametrize(
    "text",
    ["", "@", "-oProxyCommand=x", "a@-b", "-l@host", "a b", "host;id", "$(id)", "a@b@c", "host\n", "ho`id`st",
     "us er@h", "%h", "user@", "..", "host/../x", "h" * 300],
)  # fmt: skip
def test_strange_destinations_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"not \[USER@\]HOST"):
        Address.parse(text)


@pytest.mark.parametrize(
    "text", ["pi", "pi@raspberrypi.local", "me@10.0.0.7", "::1", "root@fe80::1:2", "my_pi"]
)
def test_usual_destinations_are_taken(text: str) -> None:
    assert str(Address.parse(text)) == text


def test_ports_and_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="port must be from 1 to 65535"):
        Address.parse("pi", port=0)
    with pytest.raises(ConfigError, match="there is no file"):
        Address.parse("pi", identity=tmp_path / "none")


@given(st.text())
def test_no_destination_ever_is_an_option(text: str) -> None:
    try:
        address = Address.parse(text)
    except ConfigError:
        return
    assert not address.host.startswith("-")
    assert not address.user.startswith("-")
    assert not set(f"{address.host}{address.user}") & set(" ;|&$`'\"\\<>(){}[]*?!#~\n\t%")


@given(st.text(), st.integers(20, 500))
def test_what_is_shown_is_one_printable_line(text: str, most: int) -> None:
    shown = printable(text, most)
    assert shown.isprintable()
    assert len(shown) <= most + 4


def test_without_a_client(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    from farthing.errors import NotInstalled

    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(NotInstalled, match="OpenSSH client"):
        Ssh(server.address)
