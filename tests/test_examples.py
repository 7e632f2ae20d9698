"""Each example runs from its own file, in an empty directory, and leaves what it says it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=directory,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_examples_are_here() -> None:
    numbered = sorted(path.name for path in EXAMPLES.glob("[0-9]*.py"))
    assert numbered == ["01_optimize_onnx.py", "02_own_pictures.py", "03_own_pass.py"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_fit_a_few_screens(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 110


def test_01_optimize_onnx(tmp_path: Path) -> None:
    said = run("01_optimize_onnx.py", tmp_path, "found")
    assert "the model as given" in said
    assert "'output':" in said
    assert (tmp_path / "found" / "report.html").is_file()


def test_03_own_pass(tmp_path: Path) -> None:
    said = run("03_own_pass.py", tmp_path)
    assert "examples.low-rank.v1, 1 thread: " in said
    assert "failed" not in said
    assert (tmp_path / "best" / "model" / "manifest.json").is_file()


def test_02_own_pictures(tmp_path: Path) -> None:
    said = run("02_own_pictures.py", tmp_path)
    assert "assumed: values: 0..1" in said
    right = sum(line.startswith(f"{label}: {label} (") for label in range(10) for line in said.splitlines())
    assert right >= 8, said
