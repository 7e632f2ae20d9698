"""Putting Farthing on a board and taking it off: over a real SSH server, with real wheels, into an empty directory."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from tests.remote.conftest import QUICK, Server, eventually, kill, processes

from farthing import bench
from farthing.bench import Rule
from farthing.bench.remote import Board, Boards, Remote, install, onboard, wheels
from farthing.bench.remote.wheels import Platform
from farthing.cli import main
from farthing.engines.base import open_engine
from farthing.errors import ConfigError, LinkError, PluginError, StorageError, TargetError
from farthing.files import file_digest
from farthing.options import EngineOptions
from farthing.recipe import Progress
from farthing.testing import fake_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pip") is None, reason="pip fetches what a board needs"
)
HERE = sys.version_info
X86 = Platform(python=(HERE.major, HERE.minor), abi=f"cp{HERE.major}{HERE.minor}", arch="x86_64", glibc=36)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What this machine needs, as wheels: the index is asked once."""
    place = tmp_path_factory.mktemp("wheels")
    found = os.confstr("CS_GNU_LIBC_VERSION") or ""
    platform = replace(X86, arch=os.uname().machine, glibc=int(found.rpartition(".")[2]))
    wheels.gather(platform, ["fake"], place)
    return place


@pytest.fixture
def installed(server: Server, fetched: Path, tmp_path: Path) -> Iterator[Board]:
    server.know(server.host_key)
    yield install.add(
        "fresh", server.address, directory=str(tmp_path / "home" / "farthing"), engines=["fake"], limits=QUICK
    )
    assert eventually(lambda: not processes(str(tmp_path / "home")))


def tree(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def test_from_nothing_to_a_measurement_and_back(installed: Board) -> None:
    place = Path(installed.directory)
    model = fake_model(features=4)
    with Remote(installed, None, QUICK) as remote:
        feed = {"x": np.ones((2, 4), np.float32)}
        with remote.load(model, "", EngineOptions())[0] as there, open_engine(model) as here:
            assert there.run(feed)["y"].tobytes() == here.run(feed)["y"].tobytes()
        rule = Rule(warmup=2, min_count=10, min_seconds=0.0)
        found = bench.bench(model, rule=rule, machine=remote)
        assert found.peak_memory_mb
        with pytest.raises(TargetError, match="in use by"):
            install.remove(installed, QUICK)
    before = (place / "venv").readlink()
    seen = install.look(installed, QUICK)
    assert (len(seen.stamp), set(seen.engines)) == (64, {"fake"})
    again = install.add("fresh", installed.address, directory=str(place), engines=["fake"], limits=QUICK)
    assert again == installed
    assert (place / "venv").readlink() != before
    assert len(list((place / "venvs").iterdir())) == 1
    assert (place / "models" / model.digest).is_dir()
    (place / "mine.txt").write_text("a user's")
    assert install.remove(installed, QUICK) is True
    assert tree(place) == ["mine.txt"]
    (place / "mine.txt").unlink()
    with pytest.raises(StorageError, match="not ours to remove"):
        install.remove(installed, QUICK)
    place.rmdir()
    assert install.remove(installed, QUICK) is False


def test_what_is_sent_is_told_as_it_goes(server: Server, fetched: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    server.know(server.host_key)
    install.add(
        "x",
        server.address,
        directory=str(tmp_path / "x" / "y"),
        engines=["fake"],
        limits=QUICK,
        listener=told.append,
    )
    sent = [event for event in told if event.stage == "send"]
    assert [event.done for event in sent] == sorted({event.done for event in sent})
    assert sent[0].done == 0
    assert sent[0].total - sent[-1].done <= install.PIECE_BYTES
    assert told[-1].stage == "install"


def test_other_people_s_directories_are_left_alone(server: Server, fetched: Path, tmp_path: Path) -> None:
    server.know(server.host_key)
    place = tmp_path / "photos" / "summer"
    place.mkdir(parents=True)
    (place / "photo.jpg").write_bytes(b"x")
    with pytest.raises(StorageError, match="holds other files"):
        install.add("x", server.address, directory=str(place), engines=["fake"], limits=QUICK)
    assert tree(place) == ["photo.jpg"]


def ordered(
    server: Server, place: Path, files: list[Path], content: bytes | None = None, **order: Any
) -> Any:
    """Give our script an order of our own making."""
    board = Board(name="x", address=server.address, directory=str(place))
    whole = {
        "files": {path.name: file_digest(path) for path in files},
        "engines": ["fake"],
        "stamp": "",
        **order,
    }
    with install.Ssh(server.address) as ssh, install._tar(files) as tar:
        stream = install._pieces(tar) if content is None else [content]
        return install._order(ssh, sys.executable, board, {"action": "install", **whole}, QUICK, 120, stream)


def test_a_truncated_or_changed_upload_leaves_nothing(server: Server, fetched: Path, tmp_path: Path) -> None:
    server.know(server.host_key)
    files, place = sorted(fetched.glob("*.whl")), tmp_path / "home" / "farthing"
    with install._tar(files) as tar:
        whole = tar.read()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (whole[:middle], b"", b"x" * 100_000, changed):
        with pytest.raises((LinkError, TargetError), match=r"arrive whole|not announced"):
            ordered(server, place, files, content)
        assert not place.exists()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar_out:
        member = tarfile.TarInfo("../../escaped")
        member.size = 1
        tar_out.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(TargetError, match="was sent, but not announced"):
        ordered(server, place, files, out.getvalue())
    assert not place.exists()


def foreign(wheel: Path, place: Path) -> Path:
    """The same wheel, for a machine of another kind."""
    made = place / f"{'-'.join(wheel.stem.split('-')[:4])}-manylinux_2_17_s390x.whl"
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(made, "w") as target:
        for item in source.infolist():
            target.writestr(item, source.read(item))
    return made


def test_another_architecture_s_wheel_is_named(server: Server, fetched: Path, tmp_path: Path) -> None:
    server.know(server.host_key)
    files = sorted(fetched.glob("*.whl"))
    numpy = next(path for path in files if path.name.startswith("numpy-"))
    files = [foreign(numpy, tmp_path) if path == numpy else path for path in files]
    place = tmp_path / "home" / "farthing"
    with pytest.raises(TargetError, match=r"numpy-.*s390x\.whl is for another machine than this"):
        ordered(server, place, files)
    assert not place.exists()


def test_whoever_leaves_while_it_installs_leaves_nothing(
    server: Server, fetched: Path, tmp_path: Path
) -> None:
    server.know(server.host_key)
    home = tmp_path / "home"
    home.mkdir()
    place = home / "a b" / "it's;here" / "farthing"
    files = sorted(fetched.glob("*.whl"))
    board = Board(name="x", address=server.address, directory=str(place))
    order = {"files": {path.name: file_digest(path) for path in files}, "engines": ["fake"], "stamp": ""}
    ssh = install.Ssh(server.address).open()

    def leave() -> None:
        assert eventually(lambda: list(place.glob("venvs/py-*/lib/python3*/site-packages/numpy")))
        server.cut()

    thread = threading.Thread(target=leave)
    thread.start()
    with install._tar(files) as tar, pytest.raises(LinkError):
        install._order(
            ssh, sys.executable, board, {"action": "install", **order}, QUICK, 120, install._pieces(tar)
        )
    thread.join()
    ssh.close()
    assert eventually(lambda: not processes(str(place)))
    assert eventually(lambda: tree(home) == [])


def test_directories_that_were_made_for_it_go_with_it(server: Server, fetched: Path, tmp_path: Path) -> None:
    server.know(server.host_key)
    home, files = tmp_path / "home", sorted(fetched.glob("*.whl"))
    home.mkdir()
    place = home / 'a "b"' / "$(it's);here" / "farthing"
    ordered(server, place, files)
    board = Board(name="x", address=server.address, directory=str(place))
    with Remote(board, None, QUICK) as remote:
        assert remote.version("fake") == "1"
    ordered(server, place, files)  # again: what was noted the first time stays noted
    assert install.remove(board, QUICK) is False
    assert tree(home) == []


def test_a_package_without_a_wheel_is_named(tmp_path: Path) -> None:
    platform = replace(X86, arch="sparc64")
    with pytest.raises(
        TargetError, match=r"no wheel of (numpy|msgspec)\S* for sparc64, glibc 2.36, Python 3"
    ):
        wheels.gather(platform, ["fake"], tmp_path)


def test_a_missing_engine_is_named_before_anything_is_done(server: Server, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="no engine is called 'onnxruntimes'; did you mean 'onnxruntime'"):
        install.add("x", server.address, engines=["onnxruntimes"])
    with pytest.raises(ConfigError, match="cannot be the name of a target"):
        install.add("this", server.address)
    with pytest.raises(ConfigError, match="absolute path"):
        install.add("x", server.address, directory="../x")


@pytest.mark.slow
def test_an_interrupted_installation_leaves_what_was_before(installed: Board, server: Server) -> None:
    place = Path(installed.directory)
    before, link = tree(place), (place / "venv").readlink()

    def cut() -> None:
        if eventually(
            lambda: len(list((place / "venvs").glob("py-*/lib/python3*/site-packages/numpy"))) > 1, 60
        ):
            for pid in processes(str(place)):
                kill(pid)

    thread = threading.Thread(target=cut)
    thread.start()
    with pytest.raises((LinkError, TargetError)):
        install.add("fresh", installed.address, directory=str(place), engines=["fake"], limits=QUICK)
    thread.join()
    assert (place / "venv").readlink() == link
    assert eventually(lambda: not processes(str(place)))
    with Remote(installed, None, QUICK) as remote:  # the next one sweeps what was left
        assert remote.version("fake") == "1"
    assert [path for path in tree(place) if path != "tmp"] == [path for path in before if path != "tmp"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_there_is_said_and_left_clean(server: Server, fetched: Path, small_disk: Path) -> None:
    server.know(server.host_key)
    place = small_disk / "here" / "farthing"
    for filler in (0, 25 << 20):  # full while pip unpacks; full while wheels arrive
        (small_disk / "filler").write_bytes(b"x" * filler)
        with pytest.raises(StorageError, match=r"on the board: the disk is full: free some space there"):
            ordered(server, place, sorted(fetched.glob("*.whl")))
        assert tree(small_disk) == ["filler"]


def test_it_is_taken_off_a_disk_without_a_byte_left(server: Server, small_disk: Path) -> None:
    server.know(server.host_key)
    place = small_disk / "here" / "farthing"
    onboard.claim(place)
    (place / "models").mkdir()
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    board = Board(name="x", address=server.address, directory=str(place))
    with install.Ssh(server.address) as ssh:
        assert install._order(ssh, sys.executable, board, {"action": "remove"}, QUICK, 60) == {"left": False}
    assert tree(small_disk) == ["filler"]


PYTHONS = {
    "old": {"python": [3, 9, 2]},
    "other": {"implementation": "pypy"},
    "no venv": {"venv": False},
    "musl": {"libc": ""},
    "lies": {"home": 3},
    "evil": {"arch": "x;rm -rf"},
}
REFUSALS = {
    "old": "no Python 3.11 or newer (found: 3.9.2)",
    "other": "no Python 3.11",
    "no venv": "python3-venv",
    "musl": "the engines' wheels need glibc",
    "lies": "in words we do not know",
    "evil": "none we know",
}


@pytest.mark.parametrize("kind", PYTHONS)
def test_boards_that_will_not_do(
    server: Server, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.know(server.host_key)
    good = {"python": [3, 11, 2], "executable": "/usr/bin/python3", "implementation": "cpython", "arch": "aarch64",
            "wide": True, "libc": "glibc 2.36", "home": "/home/pi", "free_threaded": False, "venv": True}  # fmt: skip
    said = json.dumps(good | PYTHONS[kind])
    monkeypatch.setattr(install, "_FIND", f"echo motd; echo '{said}'")
    with pytest.raises(TargetError) as caught:
        install.add("x", server.address, directory=str(tmp_path / "a" / "b"))
    assert REFUSALS[kind] in str(caught.value)


def test_what_fits_a_board() -> None:
    pi = install.Found(
        python=(3, 13, 1), executable="/usr/bin/python3", implementation="cpython", arch="aarch64", wide=True,
        libc="glibc 2.19", home="/home/pi", free_threaded=False, venv=True,
    )  # fmt: skip
    assert pi.platform().tags == [
        "manylinux_2_19_aarch64", "manylinux_2_18_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64",
        "linux_aarch64",
    ]  # fmt: skip
    assert (pi.platform().abi, replace(pi, free_threaded=True).platform().abi) == ("cp313", "cp313t")
    assert replace(pi, wide=False).platform().arch == "armv7l"
    assert "manylinux1_x86_64" in X86.tags
    assert "manylinux_2_37_x86_64" not in X86.tags


def test_our_own_wheel_is_one_that_pip_takes(tmp_path: Path) -> None:
    made = wheels.own_wheel(tmp_path)
    assert made.read_bytes() == wheels.own_wheel(tmp_path).read_bytes()
    target = tmp_path / "target"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--target",
        target,
        made,
    ]
    subprocess.run(command, check=True, capture_output=True)
    code = "import farthing.bench.remote.wheels as w; print(w.stamp())"
    again = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(target)!r}); {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert again.stdout.strip() == wheels.stamp()


def test_the_lease_of_a_board_that_was_removed_is_none(tmp_path: Path) -> None:
    (tmp_path / "lease").touch()
    with onboard.lease(tmp_path, "first", 0):
        thread = threading.Timer(0.3, (tmp_path / "lease").unlink)
        thread.start()
        with pytest.raises(onboard.Refusal, match="in use by first"), onboard.lease(tmp_path, "second", 0.1):
            pass
        thread.join()
    assert not onboard.held(tmp_path)
    assert onboard.holder(tmp_path) == ("", "")


def test_the_whole_by_the_command_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.know(server.host_key)
    monkeypatch.setenv("FARTHING_CONFIG", str(tmp_path / "config"))
    place = tmp_path / "home" / "farthing"
    how = [
        "--port",
        str(server.port),
        "--ssh-config",
        str(server.place / "client"),
        "--directory",
        str(place),
    ]
    assert main(["target", "list"]) == 0
    assert "no targets yet" in capsys.readouterr().out
    assert main(["target", "add", "127.0.0.1", "--name", "shed", "--engine", "fake", *how]) == 0
    shown = capsys.readouterr()
    stages = [line.partition(":")[0] for line in shown.err.splitlines()]
    assert list(dict.fromkeys(stages)) == ["connect", "fetch", "send", "install"]
    assert "fake 1" in shown.out
    assert Boards(tmp_path / "config" / "targets").names() == ["shed"]
    assert main(["target", "add", "127.0.0.1", "--name", "shed", *how]) == 2
    assert "is a target already" in capsys.readouterr().err
    assert main(["target", "list"]) == 0
    assert capsys.readouterr().out.startswith("shed  127.0.0.1")
    assert main(["target", "show", "shed", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engines"] == {"fake": "1"}
    (tmp_path / "config" / "targets" / "torn.yaml").write_text("name: [")
    assert main(["target", "list"]) == 2
    shown = capsys.readouterr()
    assert shown.out.startswith("shed  127.0.0.1")
    assert "torn.yaml is not valid YAML" in shown.err
    assert main(["target", "remove", "torn"]) == 2
    assert "farthing target remove torn --keep-remote" in capsys.readouterr().err
    assert main(["target", "remove", "torn", "--keep-remote"]) == 0
    assert Boards(tmp_path / "config" / "targets").names() == ["shed"]
    assert main(["doctor", "--target", "shed"]) == 0
    assert "shed answers" in capsys.readouterr().out
    note = json.loads((place / "farthing-board.json").read_text())
    (place / "farthing-board.json").write_text(json.dumps(note | {"stamp": "0" * 64}))
    main(["doctor", "--target", "shed", "--quiet"])
    assert "farthing target update shed" in capsys.readouterr().out
    server.know(None)
    assert main(["doctor", "--target", "shed", "--quiet"]) == 1
    shown = capsys.readouterr()
    assert "its host key is not known here" in " ".join(shown.out.split())
    assert "farthing target update" not in shown.out
    server.know(server.host_key)
    model = fake_model(features=4).save(tmp_path / "model")
    quick = ["--seconds", "0.1", "--no-memory"]
    assert main(["bench", str(model.path), "--on", "shed", *quick]) == 0
    shown = capsys.readouterr()
    assert "(shed)" in shown.out
    assert "temperature" in shown.out
    assert main(["bench", str(model.path), "--on", "sched", *quick]) == 2
    assert "no target is called 'sched'; did you mean 'shed'?" in capsys.readouterr().err
    assert main(["target", "update", "shed"]) == 0
    assert main(["target", "remove", "shed"]) == 0
    assert not place.exists()
    assert main(["target", "show", "shed"]) == 2
    begin = time.monotonic()
    assert main(["target", "add", "pi@127.0.0.1", "--port", "1", "--engine", "fake"]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    assert time.monotonic() - begin < 60
    assert Boards(tmp_path / "config" / "targets").names() == []
