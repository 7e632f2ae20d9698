"""Downloads: cut anywhere they go on, and what is not what was announced is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing import files
from farthing.device.update.store import Store
from farthing.errors import ModelError, StorageError
from farthing.testing import fake_model


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    place = tmp_path_factory.mktemp("zip") / "net.zip"
    fake_model(features=300, outputs=20, name="net").pack(place)
    return place.read_bytes()


def partials(store: Store) -> list[str]:
    return os.listdir(store.root / ".partial")


@given(st.lists(st.integers(0, 20_000), max_size=8))
def test_cut_anywhere_it_goes_on_and_no_byte_comes_twice(
    tmp_path_factory: pytest.TempPathFactory, archive: bytes, cuts: list[int]
) -> None:
    store, sent = Store(tmp_path_factory.mktemp("cut") / "store"), 0
    for cut in [*cuts, len(archive)]:
        with store.download(files.digest(archive), len(archive)) as coming:
            assert coming.offset == sent
            piece = archive[coming.offset :][:cut]
            coming.write(piece)
            sent += len(piece)
            if coming.offset == len(archive):
                break
            with pytest.raises(StorageError, match=f"{sent:,} of {len(archive):,} bytes are there"):
                coming.finish()
    assert sent == len(archive)
    with store.download(files.digest(archive), len(archive)) as coming:
        assert coming.finish().name == "net"
    assert (partials(store), store.verify()) == ([], ())
    store.activate("net", "1")


def test_other_bytes_than_announced_are_thrown_away(tmp_path: Path, archive: bytes) -> None:
    store, wrong = Store(tmp_path / "store"), bytearray(archive)
    wrong[100] ^= 1
    with store.download(files.digest(archive), len(archive)) as coming:
        coming.write(wrong)
        with pytest.raises(ModelError, match=r"announced was .*: begin anew"):
            coming.finish()
    assert (store.list(), partials(store)) == ((), [])
    with store.download(files.digest(archive), len(archive)) as coming:
        assert coming.offset == 0
        coming.write(archive[:-1])
        with pytest.raises(ModelError, match="more than the announced"):
            coming.write(archive[-1:] * 2)
    assert partials(store) == []


def test_a_sound_download_of_something_else_is_refused(tmp_path: Path) -> None:
    store, data = Store(tmp_path / "store"), b"PK\x05\x06" + bytes(18)
    with store.download(files.digest(data), len(data)) as coming:
        coming.write(data)
        with pytest.raises(ModelError, match="not of a model"):
            coming.finish()
    assert store.list() == ()


@pytest.mark.parametrize(
    ("sha256", "size"), [("../../x", 5), ("0" * 63, 5), ("0" * 64, 0), ("A" * 64, 5), ("0" * 64, -1)]
)
def test_what_cannot_be_announced_is_refused(tmp_path: Path, sha256: str, size: int) -> None:
    with (
        pytest.raises(StorageError, match="a download has a SHA-256"),
        Store(tmp_path / "store").download(sha256, size),
    ):
        pass


def test_two_cannot_download_one_thing_at_once(tmp_path: Path, archive: bytes) -> None:
    store = Store(tmp_path / "store")
    with (
        store.download(files.digest(archive), len(archive)),
        pytest.raises(StorageError, match="in use by another process"),
        store.download(files.digest(archive), len(archive)),
    ):
        pass


def test_room_is_kept_for_all_of_a_download_from_its_beginning(tmp_path: Path, archive: bytes) -> None:
    store = Store(tmp_path / "store", limit_bytes=200_000)
    with store.download("0" * 64, 150_000) as coming:
        coming.write(b"x")
        assert store.used() >= 150_000
        with pytest.raises(StorageError, match="raise the limit"), store.download("1" * 64, 100_000):
            pass
        with pytest.raises(StorageError, match="raise the limit"):
            store.add(fake_model(features=2000))
    store.add(fake_model(features=2000))  # one that nobody goes on with makes way
    assert partials(store) == []


def test_gc_removes_downloads_that_nobody_writes(tmp_path: Path, archive: bytes) -> None:
    store = Store(tmp_path / "store")
    with store.download("0" * 64, 5000) as coming:
        coming.write(b"x" * 1000)
        assert store.gc() == 0
    assert store.gc() == 8192
    assert partials(store) == []


def test_a_killed_download_goes_on(tmp_path: Path, archive: bytes) -> None:
    code = """
        import os, sys
        from pathlib import Path
        from farthing import files
        from farthing.device.update.store import Store
        data = Path(sys.argv[2]).read_bytes()
        with Store(Path(sys.argv[1])).download(files.digest(data), len(data)) as coming:
            coming.write(data[:7000])
            coming._file.flush()
            os.kill(os.getpid(), 9)
    """
    (tmp_path / "net.zip").write_bytes(archive)
    program = [
        sys.executable,
        "-c",
        textwrap.dedent(code),
        str(tmp_path / "store"),
        str(tmp_path / "net.zip"),
    ]
    assert subprocess.run(program, check=False).returncode == -9
    store = Store(tmp_path / "store")
    with store.download(files.digest(archive), len(archive)) as coming:
        assert coming.offset == 7000
        coming.write(archive[7000:])
        assert coming.finish().version == "1"
