"""Temporary directories of programs that use the library: gone when they end, or an hour after they were killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from farthing.scratch import Scratch, sweep

KEEPS = """
import os, signal, sys
from farthing.scratch import Scratch
first, second = Scratch(), Scratch()
(second.path / "half").write_text("x")
print(first.path, second.path, flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "wait":
    sys.stdin.read()
"""


def start(what: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", KEEPS, what],
        env={**os.environ, "TMPDIR": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ran(what: str, root: Path) -> list[Path]:
    return [Path(word) for word in start(what, root).communicate(timeout=60)[0].split()]


def aged(*places: Path) -> None:
    for place in places:
        os.utime(place, (time.time() - 3700,) * 2)


def test_it_goes_with_its_block_its_object_or_its_process(tmp_path: Path) -> None:
    with Scratch(str(tmp_path)) as folder:
        (folder / "a").write_text("x")
        assert folder.parent == tmp_path
    assert not folder.exists()
    kept = Scratch(str(tmp_path))
    place = kept.path
    del kept
    assert not place.exists()
    assert not any(place.exists() for place in ran("end", tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_program_left_goes_an_hour_later(tmp_path: Path) -> None:
    left = ran("kill", tmp_path)
    others = [tmp_path / "farthing-abc", tmp_path / "abc"]
    for other in others:
        other.mkdir()
    link = tmp_path / "farthing-lib-link"
    link.symlink_to(others[0], target_is_directory=True)
    ran("end", tmp_path)
    assert all(place.exists() for place in left), "they may belong to a living one"
    aged(*left, *others)
    ran("end", tmp_path)
    assert not any(place.exists() for place in left)
    assert all(place.exists() for place in (*others, link))


def test_those_of_a_living_program_stay(tmp_path: Path) -> None:
    living = start("wait", tmp_path)
    assert living.stdout is not None
    places = [Path(word) for word in living.stdout.readline().split()]
    aged(*places)
    sweep(str(tmp_path))
    assert (places[1] / "half").exists()
    living.communicate(timeout=60)
    assert list(tmp_path.iterdir()) == []
    sweep(str(tmp_path / "not there"))


def test_handles_do_not_pile_up(tmp_path: Path) -> None:
    def handles() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = handles()
    for _ in range(20):
        with Scratch(str(tmp_path)):
            pass
    assert handles() == before
