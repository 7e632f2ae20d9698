"""``farthing monitor`` as a user meets it: a time, Ctrl-C, a terminal, a tree of another machine, bad input."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from farthing.cli import main
from farthing.device.watch.record import Record

PATIENCE = 60


def hot(root: Path) -> Path:
    """A board that is throttled."""
    for name, text in {
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": "84000",
        "sys/class/thermal/cooling_device0/type": "thermal-cpufreq-0",
        "sys/class/thermal/cooling_device0/cur_state": "2",
        "proc/device-tree/model": "Board of a test\0",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def start(words: list[str], place: Path, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """A command as a terminal starts it: Ctrl-C is not ignored."""
    (place / "tmp").mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "farthing", "monitor", *words],
        cwd=place,
        env={**os.environ, "TMPDIR": str(place / "tmp"), "COLUMNS": "80", "LINES": "24"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_this_machine_for_a_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["monitor", "--for", "0.2", "--every", "0.1", "--disk", str(tmp_path)]
    out, data = tmp_path / "report.html", tmp_path / "readings.json"
    assert main([*words, "--out", str(out), "--json", str(data)]) in {0, 1}
    shown = capsys.readouterr().out
    record = msgspec.json.decode(data.read_bytes(), type=Record)
    assert (record.count, len(record.readings)) == (3, 3)
    assert f"written: {out}" in shown
    assert "<svg" in out.read_text("utf-8")
    missing = [span.quantity for span in record.spans if not span.count]
    assert f"unavailable: {', '.join(missing)}" in shown
    if not Path("/sys/class/thermal").is_dir() or not any(Path("/sys/class/thermal").iterdir()):
        assert "temperature" in missing


def test_json_alone_is_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["monitor", "--for", "0", "--json", "--root", str(hot(tmp_path))]) == 1
    record = msgspec.json.decode(capsys.readouterr().out, type=Record)
    assert record.machine == "Board of a test"
    assert record.throttling == {"cooling by thermal-cpufreq-0": 1}
    assert [advice.level for advice in record.advice] == ["problem", "warning"]


def test_another_machines_tree_and_thresholds_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, mine = hot(tmp_path / "tree"), tmp_path / "mine.yaml"
    mine.write_text("temperature_c: 90\n")
    assert main(["monitor", "--for", "0", "--root", str(root), "--thresholds", str(mine)]) == 1
    shown = capsys.readouterr().out
    assert "PROBLEM: throttling: held back in 1 of 1 readings: cooling by thermal-cpufreq-0" in shown
    assert "-> cool it" in shown
    assert "warning: temperature" not in shown
    assert "84.0" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--every", "0"], "--every 0"),
        (["--every", "nan"], "--every nan"),
        (["--for", "-1"], "--for -1"),
        (["--for", "nan"], "--for nan"),
        (["--root", "/no/such/place"], "no such directory"),
        (["--disk", "/no/such/place"], "no such path"),
        (["--out", "/no/such/place/report.html"], "make it first"),
        (["--json", "/no/such/place/data.json"], "make it first"),
        (["--out", "."], ". cannot be written: it is a directory; name a file in it"),
        (["--thresholds", "/no/such/file.yaml"], "cannot read"),
    ],
    ids=lambda value: str(value),
)
def test_bad_input_is_said_before_anything_is_waited_for(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["monitor", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_early_and_the_report_is_written(number: int, tmp_path: Path) -> None:
    process = start(["--every", "0.05", "--out", "report.html", "--json", "data.json"], tmp_path)
    assert process.stderr is not None
    first = process.stderr.readline()
    assert first.startswith("0 s"), "the first reading was told"
    time.sleep(0.3)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode in {0, 1}, err
    assert "interrupted" not in err, "that is how it is meant to end"
    assert "written: report.html" in out
    record = msgspec.json.decode((tmp_path / "data.json").read_bytes(), type=Record)
    assert record.count >= 1
    assert (tmp_path / "report.html").read_text("utf-8").startswith("<!doctype html>")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_on_a_terminal_one_line_is_written_over(tmp_path: Path) -> None:
    mine, its = pty.openpty()
    process = start(["--for", "0.3", "--every", "0.1"], tmp_path, stderr=its)
    os.close(its)
    out, _ = process.communicate(timeout=PATIENCE)
    said = b""
    while True:
        try:
            part = os.read(mine, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    os.close(mine)
    lines = said.decode().split("\r")
    assert sum(line.startswith(("0 s", "\x1b")) or " s  " in line for line in lines) >= 4
    assert all(len(line.replace("\x1b[K", "").strip()) < 80 for line in lines)
    assert "quantity" in out
