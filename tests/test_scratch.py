"""Temporary directories of programs that use the library: gone when they end, or an hour after they were killed."""

from __future__ import annotations

import os
import shutil
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
    """As if nobody had touched them for an hour, nor what holds them."""
    for place in {*places, *(place.parent for place in places)}:
        os.utime(place, (time.time() - 3700,) * 2)


def test_it_goes_with_its_block_its_object_or_its_process(tmp_path: Path) -> None:
    with Scratch(str(tmp_path)) as folder:
        (folder / "a").write_text("x")
        assert folder.parent.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
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


def test_hundreds_of_them_take_one_handle(tmp_path: Path) -> None:
    """Each temporary model has one: with a lock for each, a process met its limit of open files."""
    program = """
import gc, resource
from farthing.testing import fake_model
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
models = [fake_model(seed=seed) for seed in range(300)]
print(all(model.verify() is None for model in models), len({model.path for model in models}))
del models[:299]
gc.collect()
print(models[0].verify() is None and len(list(models[0].path.parent.iterdir())))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["True", "300", "1"], done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_fork_has_its_own_and_leaves_those_of_its_parent(tmp_path: Path) -> None:
    program = """
import os, sys
from farthing.scratch import Scratch
mine = Scratch()
if os.fork() == 0:
    with Scratch() as other:
        print(other.parent != mine.path.parent, flush=True)
    sys.exit()  # what Python does at its end is done here as well
os.wait()
print(mine.path.is_dir())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["True", "True"]
    assert list(tmp_path.iterdir()) == []


def test_one_that_others_removed_is_made_anew(tmp_path: Path) -> None:
    with Scratch(str(tmp_path)) as first:
        shutil.rmtree(first.parent)
        with Scratch(str(tmp_path)) as second:
            assert second.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_handles_do_not_pile_up(tmp_path: Path) -> None:
    def handles() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = handles()
    for _ in range(20):
        with Scratch(str(tmp_path)):
            pass
    assert handles() == before
