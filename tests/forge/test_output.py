"""The output directory: what is there stays until something whole takes its place, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farthing.errors import ModelError, StorageError
from farthing.files import file_digest
from farthing.forge import output
from farthing.model import Model
from farthing.recipe import Result
from farthing.task import Task

DRIVER = Path(__file__).parent / "driver.py"
Search = Callable[..., Result]


def tree(directory: Path) -> dict[str, str]:
    return {str(path): file_digest(path) for path in sorted(directory.rglob("*")) if path.is_file()}


def leftovers(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith(".tmp-"))


# Kills ------------------------------------------------------------------------------------------------------------


Order = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def killed(tmp_path: Path, cnn: Model, digits_task: Task) -> Order:
    """Run the driver: a search for each moment, each ended there by SIGKILL; what each left behind."""
    arrays = {}
    for name in ("calibration", "validation", "test"):
        split = digits_task.split(name)  # type: ignore[arg-type]
        arrays[f"{name}_x"], arrays[f"{name}_y"] = split.inputs[""][:120], np.asarray(split.labels)[:120]
    np.savez(tmp_path / "data.npz", **arrays)

    def run(*moments: tuple[str, int]) -> list[dict[str, Any]]:
        order = {
            "model": str(cnn.path),
            "data": str(tmp_path / "data.npz"),
            "out": str(tmp_path / "here" / "out"),
            "cache": str(tmp_path / "cache"),
            "moments": moments,
        }
        command = [sys.executable, str(DRIVER), json.dumps(order)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


NEVER = ("told", 10_000)


def test_a_search_killed_again_and_again_goes_on_and_ends(killed: Order, tmp_path: Path) -> None:
    """An earlier result is untouched until the end; what was made is not made again; nothing is left beside it."""
    first = killed(NEVER)[0]
    assert not first["killed"]
    assert first["whole"]
    for path in (tmp_path / "cache" / "values").rglob("*.json"):
        path.unlink()  # scores and times are not known any more
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "models").rglob("model.onnx")}
    assert len(made) >= 8
    moments = [("told", n) for n in (1, 3, 8, 13, 15, 18, 21)]
    *states, last = killed(*moments, NEVER)
    assert [state["killed"] for state in states] == [True] * len(states)
    assert all(state["tree"] == first["tree"] for state in states)
    assert not last["killed"]
    assert last["whole"]
    assert last["left"] == []
    assert leftovers(tmp_path / "here") == []
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "models").rglob("model.onnx")}
    assert now == made


def test_a_kill_at_any_change_to_a_file_leaves_the_old_result_or_the_new_one(
    killed: Order, tmp_path: Path
) -> None:
    """Before each directory made, file opened for writing or renamed, and before the swap itself."""
    killed(NEVER)
    *changes, last = killed(*(("change", n) for n in range(1, 99)))
    assert len(changes) > 10, "the search changes more than ten things beside its output"
    assert not last["killed"]
    assert all(state["whole"] for state in (*changes, last))
    assert any(state["left"] for state in changes), "some of the kills came half-way"
    trees = [json.dumps(state["tree"]) for state in changes]
    assert trees == sorted(trees, key=trees.index), "the old result until the new one is whole, never back"
    assert 2 <= len({*trees}) <= 4, "kills after the swap leave the new one"
    assert last["left"] == []
    assert leftovers(tmp_path / "here") == []


# Places that will not do ------------------------------------------------------------------------------------------


def test_foreign_files_are_left_alone(search: Search, cnn: Model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.docx").write_bytes(b"three years")
    before = tree(out)
    with pytest.raises(
        StorageError, match=r"out holds 'thesis\.docx', which no search wrote: choose another"
    ):
        search(cnn)
    assert tree(out) == before
    assert not (tmp_path / ".out.lock").exists()


def test_a_file_a_link_and_a_mount_point_are_no_output_directories(
    search: Search, cnn: Model, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("file", "link"):
        with pytest.raises(StorageError, match=f"{name} is not a directory"):
            search(cnn, out=tmp_path / name)
    with pytest.raises(StorageError, match="/proc is a mount point, which cannot be swapped"):
        search(cnn, out=Path("/proc"))
    with pytest.raises(StorageError, match="a file stands where a directory is needed"):
        search(cnn, out=tmp_path / "file" / "out")


def mounted(place: Path, options: str) -> bool:
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.fixture
def readonly(tmp_path: Path) -> Iterator[Path]:
    """A place where even this user may not write: one without the right, or, for root, one that nobody writes to."""
    place = tmp_path / "readonly"
    if os.geteuid():
        place.mkdir(mode=0o555)
        yield place
        place.chmod(0o755)
    elif mounted(place, "ro"):
        yield place
        subprocess.run(["umount", str(place)], check=True)
    else:
        yield Path("/sys/kernel")


def test_a_read_only_place_is_refused_before_the_search(search: Search, cnn: Model, readonly: Path) -> None:
    heard: list[Any] = []
    with pytest.raises(
        StorageError, match=r"cannot write .*: (the file system is read-only|permission|not perm)"
    ):
        search(cnn, out=readonly / "out", listener=heard.append)
    assert heard == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    if os.geteuid() or not mounted(place, "size=1m"):
        pytest.skip("no right to mount a small disk here; the test of file sizes covers it")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_keeps_the_earlier_result(search: Search, cnn: Model, small_disk: Path) -> None:
    out = small_disk / "out"
    search(cnn, out=out)
    before = tree(out)
    (small_disk / "filler").write_bytes(b"x" * max(0, os.statvfs(small_disk).f_bavail * 4096 - 40_000))
    with pytest.raises(StorageError, match=r"cannot write .*out.*: the disk is full: free some space"):
        search(cnn, out=out)
    assert tree(out) == before
    assert leftovers(small_disk) == []
    (small_disk / "filler").unlink()
    assert search(cnn, out=out).met


def test_a_cache_on_a_full_disk_says_so(search: Search, cnn: Model, small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * max(0, os.statvfs(small_disk).f_bavail * 4096 - 30_000))
    with pytest.raises(StorageError, match=r"cannot write .*small.*: the disk is full"):
        search(cnn, cache=small_disk / "cache")
    assert not (tmp_path / "out").exists()


def test_a_file_size_limit_keeps_the_earlier_result(search: Search, cnn: Model, tmp_path: Path) -> None:
    """The same without any right to mount: this process may write no more than 10 kB to a file."""
    search(cnn)
    before = tree(tmp_path / "out")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StorageError, match="larger than this process or file system allows"):
            search(cnn)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(tmp_path / "out") == before
    assert leftovers(tmp_path) == []


# Claims -----------------------------------------------------------------------------------------------------------


def test_only_this_outputs_leftovers_are_swept(tmp_path: Path) -> None:
    """Beside it another search may be writing its own; names that begin alike are not the same."""
    for name in (".tmp-abcdefgh-out", ".tmp-abcdefgh-out.old", ".tmp-abcdefgh-out-2", ".tmp-abcdefgh-other"):
        (tmp_path / name / "model").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    with output.claimed(tmp_path / "out") as place:
        assert place == tmp_path / "out"
        assert leftovers(tmp_path) == [".tmp-abcdefgh-other", ".tmp-abcdefgh-out-2"]
    assert list(place.iterdir()) == []


def test_a_claim_is_for_one_at_a_time_and_ends_with_its_block(tmp_path: Path) -> None:
    with (
        output.claimed(tmp_path / "out"),
        output.claimed(tmp_path / "other"),
        pytest.raises(StorageError, match="in use by another process"),
        output.claimed(tmp_path / "out"),
    ):
        pass
    with output.claimed(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_working_directory_that_is_gone_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for place in (Path(), Path("out")):
        with pytest.raises(StorageError, match="cannot write"), output.claimed(place):
            pass


def test_a_summary_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not the output of `farthing optimize`: it has no result\.json"):
        output.read_summary(tmp_path)


def test_what_is_written_can_be_read_by_others(search: Search, cnn: Model, tmp_path: Path) -> None:
    """Not the private rights of a temporary directory."""
    search(cnn)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in (tmp_path / "out").rglob("*"))


def test_the_working_directory_is_not_swapped_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from farthing.forge import output

    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for place in (Path(), Path(".."), tmp_path / "here"):
        with pytest.raises(StorageError, match="is where you stand"), output.claimed(place):
            pass
