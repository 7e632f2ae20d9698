"""Whoever is killed, or loses power, at any moment leaves a whole store. See crashes.py for what that means."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from farthing.device.update.store import Store
from farthing.testing import fake_model

SCRIPT = Path(__file__).with_name("crashes.py")
PAIRS = {
    "add": [["2", "1"]],
    "activate": [["2", "1"], ["3", "2"]],
    "rollback": [["1", "2"], ["2", "1"]],
    "gc": [["2", "1"]],
    "download": [["2", "1"]],
    "damaged": [["1", ""], ["2", "1"]],
    "everything": [["2", "1"], ["4", "2"]],
}


@pytest.fixture
def place() -> Iterator[Path]:
    """In memory where that can be: the tests flush to the disk thousands of times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        yield Path(directory)


def interrupted(how: str, scenario: str, place: Path, seeds: int) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), how, scenario, str(place), str(seeds)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pairs"] == PAIRS[scenario], (
        "the pair from before and the one from after were seen, and no other"
    )
    assert found["points"] > (20 if how == "kill" else 4)


@pytest.mark.parametrize("scenario", [name for name in PAIRS if name != "everything"])
def test_a_kill_at_any_step_leaves_a_whole_store(place: Path, scenario: str) -> None:
    interrupted("kill", scenario, place, 0)


@pytest.mark.parametrize("scenario", [name for name in PAIRS if name != "everything"])
def test_a_power_cut_at_any_step_leaves_a_whole_store(place: Path, scenario: str) -> None:
    interrupted("power", scenario, place, 4)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "power"])
def test_several_changes_in_a_row(place: Path, how: str) -> None:
    interrupted(how, "everything", place, 100)


UPDATE = """
import sys
from pathlib import Path
from farthing.device.update.store import Store
store = Store(Path(sys.argv[1]), patience=0)
if "3" not in {entry.version for entry in store.list()}:
    store.add(sys.argv[2])
store.activate("net", "3")
store.gc(keep=0)
"""
CALLS = (
    "fsync,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,symlink,symlinkat,chmod,fchmodat,flock,write"
)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_killed_by_the_kernel_at_any_call(place: Path) -> None:
    """SIGKILL at the n-th call of each kind, given by strace to a program of its own."""
    store = Store(place / "before")
    for version in "12":
        store.add(fake_model(seed=int(version), name="net", version=version))
        store.activate("net", version)
    new = fake_model(seed=3, name="net", version="3")
    killed, seen = 0, set()
    for call in CALLS.split(","):
        for number in range(1, 1000):
            shutil.rmtree(place / "store", ignore_errors=True)
            shutil.copytree(place / "before", place / "store", symlinks=True)
            program = [sys.executable, "-Bc", UPDATE, str(place / "store"), str(new.path)]
            inject = [f"inject={call}:signal=KILL:when={number}", f"trace={call}"]
            if (
                subprocess.run(
                    ["strace", "-qq", "-o", "/dev/null", "-e", inject[1], "-e", inject[0], *program]
                ).returncode
                == 0
            ):
                break
            killed += 1
            with Store(place / "store").open("net") as model:
                seen.add(model.manifest.version)
            subprocess.run(program, check=True)
            with Store(place / "store").open("net") as model:
                assert model.manifest.version == "3"
            assert [entry.version for entry in Store(place / "store").list()] == ["2", "3"]
    assert seen == {"2", "3"}
    assert killed > 40
