"""Writes are whole or not at all: through kills at every step, full disks, read-only places and hostile archives."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import stat
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing import files
from farthing.errors import StorageError


def leftovers(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith(files.TEMPORARY))


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()
    }


# --- plain use


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_write_replaces_content(
    tmp_path_factory: pytest.TempPathFactory, first: bytes, second: bytes
) -> None:
    path = tmp_path_factory.mktemp("write") / "deep" / "er" / "file"
    for content in (first, second):
        files.write(path, content)
        assert path.read_bytes() == content
        assert files.file_digest(path) == files.digest(content)
        assert os.listdir(path.parent) == ["file"]


def test_text_is_utf8_and_files_are_readable_by_all(tmp_path: Path) -> None:
    files.write(tmp_path / "a", "Größe ≤ 1")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "Größe ≤ 1"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_a_long_name_is_no_obstacle_and_a_longer_one_is_explained(tmp_path: Path) -> None:
    files.write(tmp_path / ("n" * 255), b"x")
    with pytest.raises(StorageError, match="the name is too long"):
        files.write(tmp_path / ("n" * 256), b"x")


def fill_with(content: dict[str, bytes]) -> object:
    def fill(place: Path) -> None:
        for name, data in content.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)

    return fill


OLD = {"manifest.json": b"old", "gone/soon.bin": b"1" * 1000}
NEW = {"manifest.json": b"new", "model.bin": b"2" * 1000}


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_a_directory_is_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    path = tmp_path / "model"
    for content in (OLD, NEW, OLD):
        files.write_directory(path, fill_with(content))
        assert tree(path) == content
        assert os.listdir(tmp_path) == ["model"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_this_machine_can_exchange_directories(tmp_path: Path) -> None:
    """Else the tests of kills below would try the fallback only."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert files._exchange(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_a_failing_fill_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    path = tmp_path / "model"

    def fail(place: Path) -> None:
        (place / "half").write_bytes(b"x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_directory(path, fail)
    assert os.listdir(tmp_path) == []
    files.write_directory(path, fill_with(OLD))
    with pytest.raises(KeyboardInterrupt):
        files.write_directory(path, fail)
    assert tree(path) == OLD
    assert os.listdir(tmp_path) == ["model"]


def test_a_file_is_not_replaced_by_a_directory(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"the user's model")
    with pytest.raises(StorageError, match="a file stands where a directory is needed"):
        files.write_directory(tmp_path / "net.onnx", fill_with(NEW))
    assert tree(tmp_path) == {"net.onnx": b"the user's model"}


def test_a_link_to_a_directory_is_followed(tmp_path: Path) -> None:
    files.write_directory(tmp_path / "v1", fill_with(OLD))
    (tmp_path / "current").symlink_to("v1")
    files.write_directory(tmp_path / "current", fill_with(NEW))
    assert (tmp_path / "current").is_symlink()
    assert tree(tmp_path / "v1") == NEW
    assert sorted(os.listdir(tmp_path)) == ["current", "v1"]


# --- power cuts: what is renamed is on the disk already, and the renaming is too before we say so


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is flushed, renamed and exchanged, in order, by the last part of its path."""
    seen: list[tuple[str, str]] = []
    fsync, rename, replace, exchange = os.fsync, os.rename, os.replace, files._exchange

    def flush(handle: int) -> None:
        seen.append(("flush", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    def moved(move: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def wrapped(source: Any, target: Any) -> Any:
            seen.append(("rename", Path(target).name))
            return move(source, target)

        return wrapped

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "rename", moved(rename))
    monkeypatch.setattr(os, "replace", moved(replace))
    monkeypatch.setattr(files, "_exchange", moved(exchange))
    return seen


def test_a_file_is_flushed_renamed_and_the_renaming_flushed(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    files.write(tmp_path / "file", b"x")
    (first, name), *rest = calls
    assert first == "flush"
    assert name.startswith(files.TEMPORARY)
    assert rest == [("rename", "file"), ("flush", tmp_path.name)]


def test_all_of_a_directory_is_flushed_before_it_takes_its_place(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    for content in (OLD, NEW):
        calls.clear()
        files.write_directory(tmp_path / "model", fill_with(content))
        place = calls.index(("rename", "model"))
        flushed = {name for what, name in calls[:place] if what == "flush"}
        assert {Path(name).name for name in content} <= flushed
        assert any(name.startswith(files.TEMPORARY) for name in flushed), "the directory itself"
        assert calls[place + 1 :] == [("flush", tmp_path.name)]


# --- killed at any moment

KILLED = """
import os, sys
from pathlib import Path
from farthing import files

seen, last = 0, int(sys.argv[2])

def mortal(call):
    def wrapped(*args, **more):
        global seen
        seen += 1
        if seen == last:
            os._exit(77)  # nothing is flushed, no finally runs: as SIGKILL leaves it
        result = call(*args, **more)
        seen += 1
        if seen == last:
            os._exit(77)
        return result
    return wrapped

for name in ("fsync", "rename", "replace", "open", "mkdir", "chmod", "unlink", "rmdir"):
    setattr(os, name, mortal(getattr(os, name)))
files._exchange = mortal(files._exchange) if sys.argv[3] == "exchange" else lambda first, second: False
path = Path(sys.argv[1])
new = {"manifest.json": b"new", "model.bin": b"2" * 1000}
def fill(place):
    for name, data in new.items():
        (place / name).write_bytes(data)
if sys.argv[4] == "directory":
    files.write_directory(path, fill)
else:
    files.write(path, b"new" * 1000)
"""


def killed_at(step: int, path: Path, exchange: bool, what: str) -> bool:
    arguments = [str(path), str(step), "exchange" if exchange else "not", what]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode in {0, 77}, done.stderr
    return done.returncode == 77


def test_a_file_is_old_or_new_wherever_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    outcomes = []
    for step in range(1, 100):
        files.write(path, b"old" * 1000)
        killed = killed_at(step, path, exchange=True, what="file")
        outcomes.append(path.read_bytes())
        assert outcomes[-1] in {b"old" * 1000, b"new" * 1000}
        files.sweep(path)
        assert os.listdir(tmp_path) == ["file"]
        if not killed:
            break
    assert len(outcomes) > 5
    assert outcomes == sorted(outcomes, reverse=True), "once new, always new"


@pytest.mark.parametrize("before", [None, OLD], ids=["absent", "old"])
def test_a_directory_is_old_or_new_wherever_its_writer_is_killed(
    tmp_path: Path, before: dict[str, bytes] | None
) -> None:
    path = tmp_path / "model"
    states = []
    for step in range(1, 200):
        shutil.rmtree(path, ignore_errors=True)
        if before:
            files.write_directory(path, fill_with(before))
        killed = killed_at(step, path, exchange=True, what="directory")
        states.append(tree(path) if path.exists() else None)
        assert states[-1] in (before, NEW), "never half, never absent if it was there"
        files.sweep(path)
        assert leftovers(tmp_path) == []
        if not killed:
            break
    assert states[0] == before
    assert states[-1] == NEW
    assert len(states) > 10


def test_without_exchange_a_sweep_puts_the_old_directory_back(tmp_path: Path) -> None:
    path = tmp_path / "model"
    absent = 0
    for step in range(1, 200):
        shutil.rmtree(path, ignore_errors=True)
        files.write_directory(path, fill_with(OLD))
        killed = killed_at(step, path, exchange=False, what="directory")
        absent += not path.exists()
        files.sweep(path)
        assert tree(path) in (OLD, NEW)
        assert leftovers(tmp_path) == []
        if not killed:
            break
    assert absent, "the moment between the two renames was tried"


def test_sweep_touches_only_what_writers_of_that_path_left(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    ours = [".tmp-abcd1234-out", ".tmp-abcd1235-out"]
    others = [".tmp-abcd1234-out-2", ".tmp-abcd1234-outer", ".tmp-out", "out"]
    for name in (*ours, *others):
        (tmp_path / name).touch()
    (tmp_path / ".tmp-abcd1236-out").symlink_to("elsewhere")
    (tmp_path / ".tmp-abcd1237-out").mkdir()
    files.sweep(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "elsewhere"])
    assert os.listdir(tmp_path / "elsewhere") == ["kept"]


# --- places that refuse


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_named_and_old_content_stays(small_disk: Path) -> None:
    files.write(small_disk / "file", b"old")
    files.write_directory(small_disk / "model", fill_with(OLD))
    big = b"x" * (1 << 20)
    with pytest.raises(StorageError, match=r"cannot write .*file: the disk is full"):
        files.write(small_disk / "file", big)
    with pytest.raises(StorageError, match=r"cannot write .*model: the disk is full"):
        files.write_directory(small_disk / "model", fill_with({"manifest.json": b"new", "model.bin": big}))
    assert (small_disk / "file").read_bytes() == b"old"
    assert tree(small_disk / "model") == OLD
    assert leftovers(small_disk) == []
    source = small_disk.parent / "source"
    source.mkdir()
    (source / "noise").write_bytes(os.urandom(1 << 20))
    with pytest.raises(StorageError, match="the disk is full"):
        files.pack(source, ["noise"], small_disk / "a.zip")
    files.pack(source, ["noise"], small_disk.parent / "a.zip")
    (small_disk / "unpacked").mkdir()
    with pytest.raises(StorageError, match="the disk is full"):
        files.unpack(small_disk.parent / "a.zip", small_disk / "unpacked")
    assert leftovers(small_disk) == []


def test_a_limit_on_file_size_is_named(tmp_path: Path) -> None:
    """The way to run out of space that needs no privileges."""
    code = """
        import resource, signal, sys
        from pathlib import Path
        from farthing import files
        from farthing.errors import StorageError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        path = Path(sys.argv[1])
        files.write(path / "file", b"old")
        for act in (
            lambda: files.write(path / "file", b"x" * 100_000),
            lambda: files.write_directory(path / "m", lambda place: (place / "a").write_bytes(b"x" * 100_000)),
        ):
            try:
                act()
            except StorageError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("larger than this process or file system allows") == 2
    assert tree(tmp_path) == {"file": b"old"}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 10_000


def test_a_read_only_file_system_is_named(tmp_path: Path) -> None:
    place = tmp_path / "fixed"
    place.mkdir()
    files.write(place / "file", b"old")
    bound = subprocess.run(["mount", "--bind", str(place), str(place)], capture_output=True, check=False)
    if bound.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
        for act in (
            lambda: files.write(place / "file", b"new"),
            lambda: files.write(place / "deeper" / "file", b"new"),
            lambda: files.write_directory(place / "model", fill_with(NEW)),
        ):
            with pytest.raises(StorageError, match="the file system is read-only: choose another directory"):
                act()
        assert tree(place) == {"file": b"old"}
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("place", ["/sys/farthing", "/proc/farthing"])
def test_a_place_nobody_may_write_to_is_a_storage_error(place: str) -> None:
    for act in (
        lambda: files.write(Path(place) / "file", b"x"),
        lambda: files.write_directory(Path(place), fill_with(NEW)),
    ):
        with pytest.raises(StorageError, match=f"cannot write {place}"):
            act()


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_directory_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="permission denied"):
        files.write(tmp_path / "file", b"x")
    tmp_path.chmod(0o700)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "directory").mkdir()
    with pytest.raises(StorageError, match="a file stands where a directory is needed"):
        files.write(tmp_path / "file" / "below", b"x")
    with pytest.raises(StorageError, match="a file stands where a directory is needed"):
        files.write(tmp_path / "file" / "far" / "below", b"x")
    with pytest.raises(StorageError, match="a directory stands where a file is needed"):
        files.write(tmp_path / "directory", b"x")
    assert leftovers(tmp_path) == []


def test_a_source_that_is_missing_is_named(tmp_path: Path) -> None:
    def fill(place: Path) -> None:
        shutil.copyfile(tmp_path / "no such source", place / "a")

    with pytest.raises(StorageError, match="no such source"):
        files.write_directory(tmp_path / "model", fill)


# --- locks


def test_a_lock_shuts_out_threads_and_processes_until_released(tmp_path: Path) -> None:
    place = tmp_path / "deep" / ".lock"
    found: list[str] = []

    def try_it() -> None:
        try:
            with files.lock(place, "the directory out"):
                found.append("got it")
        except StorageError as error:
            found.append(str(error))

    code = """
        import sys
        from pathlib import Path
        from farthing import files
        with files.lock(Path(sys.argv[1]), "out"):
            pass
    """
    with files.lock(place, "the directory out"):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
        child = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert found == [
        f"the directory out is in use by another process (lock file {place}): wait for it or choose another directory"
    ]
    assert child.returncode
    assert "StorageError" in child.stderr
    try_it()
    assert found[-1] == "got it"


def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        from farthing import files
        with files.lock(Path(sys.argv[1]), "out"):
            print("held", flush=True)
            time.sleep(60)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "lock")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    assert child.stdout.readline() == "held\n"
    with pytest.raises(StorageError, match="in use"), files.lock(tmp_path / "lock", "out"):
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    with files.lock(tmp_path / "lock", "out"):
        pass


def test_the_lock_file_goes_with_the_lock_and_still_shuts_out(tmp_path: Path) -> None:
    """A file that is removed while another opens it must not let two in."""
    place, inside, most, turns = tmp_path / ".lock", [0], [0], [0]

    def work() -> None:
        for _ in range(300):
            with contextlib.suppress(StorageError), files.lock(place, "out"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                turns[0] += 1
                time.sleep(0)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert turns[0] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_released_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.lock(tmp_path / "lock", "out"):
        1 / 0  # noqa: B018
    with files.lock(tmp_path / "lock", "out"):
        pass


# --- archives


@given(
    st.dictionaries(
        st.text("abcXYZ012-_.", min_size=1, max_size=20).filter(lambda name: set(name) != {"."}),
        st.binary(max_size=5000),
        min_size=1,
        max_size=5,
    )
)
def test_pack_and_unpack_give_the_same_files(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, bytes]
) -> None:
    root = tmp_path_factory.mktemp("zip")
    for place in ("one", "two"):
        (root / place).mkdir()
    for name, data in content.items():
        (root / "one" / name).write_bytes(data)
    files.pack(root / "one", content, root / "a.zip")
    files.unpack(root / "a.zip", root / "two")
    assert tree(root / "two") == content


def test_the_same_content_packs_to_the_same_bytes(tmp_path: Path) -> None:
    for place, order in (("one", ["a", "b"]), ("two", ["b", "a"])):
        (tmp_path / place).mkdir()
        for name in order:
            (tmp_path / place / name).write_bytes(name.encode() * 9)
        (tmp_path / place / "a").chmod(0o600 if place == "one" else 0o755)
        (tmp_path / place / f"beside-{place}").touch()
        files.pack(tmp_path / place, order, tmp_path / f"{place}.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def archive(path: Path, *members: tuple[str, bytes], mode: int = 0o644, flags: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            zipped.writestr(info, data)
    return path


def refused(place: Path, path: Path, match: str, **more: int) -> None:
    out = place / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises(StorageError, match=match):
        files.unpack(path, out, **more)
    assert [p for p in place.rglob("*") if p.name.startswith("evil")] == []
    shutil.rmtree(out)


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/tmp/evil",
        "//evil",
        "a\\..\\evil",
        "..",
        ".",
        "./",
        "a/../evil",
        "C:\\evil",
    ],
)
def test_names_that_leave_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    refused(tmp_path, archive(tmp_path / "a.zip", (name, b"x")), "unsafe name")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    refused(
        tmp_path,
        archive(tmp_path / "a.zip", ("evil", b"/etc/passwd"), mode=kind | 0o644),
        "unsafe name or link",
    )


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a", "a"), ("a", "./a"), ("d/a", "d//a")])
def test_a_name_given_twice_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    refused(tmp_path, archive(tmp_path / "a.zip", *[(name, b"x") for name in names]), "twice")


def test_a_file_that_is_also_a_directory_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, archive(tmp_path / "a.zip", ("a", b"x"), ("a/b", b"x")), "a file stands where")
    refused(tmp_path, archive(tmp_path / "b.zip", ("a/b", b"x"), ("a", b"x")), "a directory stands where")


def test_bombs_are_refused_before_they_unpack(tmp_path: Path) -> None:
    refused(
        tmp_path, archive(tmp_path / "a.zip", ("evil", bytes(1 << 20))), "more than 1000 bytes", limit=1000
    )
    many = archive(tmp_path / "b.zip", *[(f"evil{i}", b"") for i in range(files.MAX_MEMBERS + 1)])
    refused(tmp_path, many, "members")


def test_a_member_longer_than_declared_is_refused(tmp_path: Path) -> None:
    """A lie in the central directory, which the check of sizes believes: unpacking must not."""
    path = archive(tmp_path / "a.zip", ("model", bytes(100_000)))
    data = bytearray(path.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<I", 10)
    path.write_bytes(data)
    refused(tmp_path, path, "not a sound zip|more than it declares", limit=1000)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as zipped:
        zipped.writestr("a", b"x" * 100)
    refused(tmp_path, tmp_path / "a.zip", "other than deflate")


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", ("a", b"x"))
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    path.write_bytes(data)
    refused(tmp_path, path, "not a sound zip")


def test_an_archive_that_is_missing_or_none(tmp_path: Path) -> None:
    refused(tmp_path, tmp_path / "absent.zip", "not a sound zip archive")
    for content in (b"", b"PK\x03\x04", b"text" * 100):
        (tmp_path / "a.zip").write_bytes(content)
        refused(tmp_path, tmp_path / "a.zip", "not a sound zip archive")


SOUND = b"".join(bytes([i % 251]) for i in range(3000))


@given(st.data())
def test_a_damaged_archive_is_a_storage_error_or_the_same_content(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever bytes are overwritten or cut off: one typed error, and nothing outside the directory."""
    root = tmp_path_factory.mktemp("damaged")
    path = archive(root / "a.zip", ("dir/model", SOUND), ("manifest.json", b"{}"))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    (root / "out").mkdir()
    try:
        files.unpack(path, root / "out")
    except StorageError:
        pass
    else:
        assert set(tree(root / "out").values()) <= {SOUND, b"{}"}
    assert sorted(os.listdir(root)) == ["a.zip", "out"]
