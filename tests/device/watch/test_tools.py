"""Commands run for real, and what becomes of those that hang, fail, talk too much or are not there."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from farthing.device.watch.probes.tools import MOST_BYTES, Tools, run
from farthing.testing import FakeClock


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_what_a_command_says() -> None:
    assert run(python("print('throttled=0x0')"), 30) == "throttled=0x0\n"
    assert run([sys.executable, "-c", "import sys; print(sys.argv[1:])", "$HOME; ls", "*"], 30) == (
        "['$HOME; ls', '*']\n"
    ), "no shell looks at the arguments"


def test_the_first_lines_of_one_that_never_ends_and_its_children_end_with_it(tmp_path: Path) -> None:
    code = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
number = 0
while True:
    print("line", number, flush=True)
    number += 1
    time.sleep(0.01)
"""
    assert run(python(code), 60, lines=2) == "line 0\nline 1\n"
    child = Path("/proc") / (tmp_path / "child").read_text()
    end = time.monotonic() + 30
    while child.exists() and "Z" not in (child / "stat").read_text().rpartition(")")[2][:3]:
        assert time.monotonic() < end, "the child lives on"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "command",
    [
        ["/nowhere/at/all"],
        ["no-such-command-anywhere"],
        ["nul\0byte"],
        ["/"],
        python("print('half an answer'); raise SystemExit(3)"),
        python(f"print('x' * {2 * MOST_BYTES})"),
    ],
    ids=["no file", "no command", "null byte", "directory", "failed", "too much"],
)
def test_what_gives_nothing(command: list[str]) -> None:
    assert run(command, 60) is None


def test_one_that_hangs_is_stopped() -> None:
    assert run(python("import time; print('a', flush=True); time.sleep(600)"), 0.3) is None
    assert run(python("import time; time.sleep(600)"), 0.3, lines=1) is None
    silent = "import os, time; os.close(1); time.sleep(600)"
    assert run(python(silent), 0.3) is None, "its output is closed, but it does not end"


def test_bytes_that_are_no_text_are_taken() -> None:
    assert run(python("import sys; sys.stdout.buffer.write(bytes(range(256)))"), 30) is not None


def test_a_tool_that_failed_is_left_alone_for_a_minute(tmp_path: Path) -> None:
    tool, clock = tmp_path / "tool", FakeClock()
    tools = Tools(run, clock)
    assert tools.ask(str(tool), "now") == ""
    tool.write_text("#!/bin/sh\necho $1\n")
    tool.chmod(0o755)
    assert tools.ask(str(tool), "now") == ""
    assert tools.ask(str(tool), "then") == "then\n", "another question of the same tool"
    clock.advance(60)
    assert tools.ask(str(tool), "now") == "now\n"


def test_without_a_runner_nothing_is_asked() -> None:
    assert Tools(None, FakeClock()).ask(sys.executable, "-c", "print(1)") == ""
