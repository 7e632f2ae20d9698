from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from farthing.device.serving.power.governor import CPUFREQ, Governor
from farthing.errors import ConfigError, StorageError, TargetError


def settings(root: Path) -> list[str]:
    return [file.read_text().strip() for file in sorted(root.glob(f"{CPUFREQ}/*/scaling_[gm]*"))]


class Nvpmodel:
    """Answers as NVIDIA's tool does."""

    def __init__(self, mode: int = 0, known: Sequence[int] = (0, 1, 2)) -> None:
        self.mode, self.known = mode, known

    def __call__(self, command: Sequence[str], timeout_s: float, lines: int | None = None) -> str | None:
        if list(command) == ["nvpmodel", "-q"]:
            return f"NV Power Mode: MODE_15W\n{self.mode}\n"
        wanted = int(command[2])
        if wanted not in self.known:
            return None
        self.mode = wanted
        return ""


def test_what_was_set_is_put_back(cpufreq: Path) -> None:
    before = settings(cpufreq)
    with Governor(cpufreq, None) as governor:
        assert governor.available
        assert governor.set_governor(["unheard", "powersave"]) == "powersave"
        assert governor.cap(0.5) == 1_200_000
        assert governor.cap(0.1) == 600_000  # no lower than the lowest
        assert governor.set_governor(["performance"]) == "performance"
        assert settings(cpufreq) == ["performance", "400000", "performance", "600000"]
    assert settings(cpufreq) == before
    governor.close()
    assert settings(cpufreq) == before


def test_a_process_that_was_killed_is_put_right_by_the_next(cpufreq: Path, tmp_path: Path) -> None:
    before, record = settings(cpufreq), tmp_path / "run" / "power.json"
    record.parent.mkdir()
    program = f"""
import os, pathlib, signal
from farthing.device.serving.power.governor import Governor
governor = Governor(pathlib.Path({str(cpufreq)!r}), None, pathlib.Path({str(record)!r}))
governor.set_governor(["performance"])
governor.cap(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == -signal.SIGKILL
    assert settings(cpufreq) == ["performance", "900000", "performance", "1200000"]
    assert record.is_file()
    Governor(cpufreq, None, record)
    assert settings(cpufreq) == before
    assert not record.exists()


def test_a_program_that_ends_without_closing_puts_it_back_and_its_forks_do_not(cpufreq: Path) -> None:
    before = settings(cpufreq)
    program = f"""
import os, pathlib, sys
from farthing.device.serving.power.governor import CPUFREQ, Governor
root = pathlib.Path({str(cpufreq)!r})
governor = Governor(root, None)
governor.set_governor(["performance"])
if os.fork() == 0:
    sys.exit()
os.wait()
print((root / CPUFREQ / "policy0" / "scaling_governor").read_text())
raise RuntimeError("the program fails")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == "performance"
    assert "the program fails" in ended.stderr
    assert settings(cpufreq) == before


@contextmanager
def another(root: Path, record: Path | None) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has set the machine and waits for a word."""
    program = f"""
import pathlib, sys
from farthing.device.serving.power.governor import Governor
with Governor(pathlib.Path({str(root)!r}), None, {record and str(record)!r} and pathlib.Path({str(record)!r})) as one:
    one.set_governor(["performance"])
    print("set", flush=True)
    sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "set\n"
        yield process
        process.kill()


@pytest.mark.parametrize("recorded", [True, False])
def test_of_two_processes_one_sets_the_machine(cpufreq: Path, tmp_path: Path, recorded: bool) -> None:
    before, record = settings(cpufreq), tmp_path / "power.json" if recorded else None
    with another(cpufreq, record) as process:
        theirs = settings(cpufreq)
        late = Governor(cpufreq, None, record)
        for set_it in (lambda: late.set_governor(["powersave"]), lambda: late.cap(0.5)):
            with pytest.raises(TargetError, match="another governor, of this process or of another one"):
                set_it()
        late.close()
        assert settings(cpufreq) == theirs != before, "what is in use is not put back"
        process.communicate("\n", timeout=60)
    assert settings(cpufreq) == before
    with late:
        assert late.set_governor(["powersave"]) == "powersave"
        with pytest.raises(TargetError, match="another governor"):
            Governor(cpufreq, None).cap(0.5)
    assert settings(cpufreq) == before


def test_who_comes_second_puts_right_what_the_killed_first_one_left(cpufreq: Path, tmp_path: Path) -> None:
    before, record = settings(cpufreq), tmp_path / "power.json"
    with another(cpufreq, record) as process:
        second = Governor(cpufreq, None, record)
        process.kill()
        process.wait(60)
    with second:
        second.cap(0.5)
        assert settings(cpufreq)[0] == "performance", "as the first one left it"
    assert settings(cpufreq) == before
    assert not record.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), (json.dumps({"files": {"/etc/passwd": "x"}}), "no CPU settings")],
)
def test_a_record_that_is_none_is_refused(cpufreq: Path, tmp_path: Path, content: str, message: str) -> None:
    record = tmp_path / "power.json"
    record.write_text(content)
    with pytest.raises(StorageError, match=message):
        Governor(cpufreq, None, record)


def test_what_is_not_permitted_is_said(cpufreq: Path) -> None:
    for file in cpufreq.glob(f"{CPUFREQ}/*/scaling_governor"):
        file.unlink()
        file.mkdir()  # root may write everything else
    with (
        Governor(cpufreq, None) as governor,
        pytest.raises(TargetError, match=r"cannot be set to powersave: .*needs root"),
    ):
        governor.set_governor(["powersave"])


def test_a_machine_without_settings_says_so(tmp_path: Path) -> None:
    governor = Governor(tmp_path, None)
    assert not governor.available
    with pytest.raises(TargetError, match="lets nobody choose"):
        governor.set_governor(["performance"])
    with pytest.raises(TargetError, match="lets nobody limit"):
        governor.cap(1.0)
    with pytest.raises(TargetError, match="no Jetson"):
        governor.set_nvpmodel(1)
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError):
            governor.cap(share)


def test_a_jetson_changes_its_mode_and_back(tmp_path: Path) -> None:
    tool = Nvpmodel(mode=2)
    with Governor(tmp_path, tool) as governor:
        governor.set_nvpmodel(1)
        governor.set_nvpmodel(0)
        assert tool.mode == 0
        with pytest.raises(TargetError, match="did not take mode 9"):
            governor.set_nvpmodel(9)
    assert tool.mode == 2
    with Governor(tmp_path, tool) as governor:
        with pytest.raises(TargetError, match="did not take mode 9"):
            governor.set_nvpmodel(9)
        tool.mode = 0  # somebody else's choice since then
    assert tool.mode == 0


def test_what_cannot_be_put_back_is_named_and_not_forgotten(cpufreq: Path, tmp_path: Path) -> None:
    before, record = settings(cpufreq), tmp_path / "power.json"
    governor = Governor(cpufreq, None, record)
    governor.set_governor(["performance"])
    for file in cpufreq.glob(f"{CPUFREQ}/*/scaling_governor"):
        file.unlink()
        file.mkdir()
    for _ in range(2):
        with pytest.raises(TargetError, match=r"policy0/scaling_governor was 'schedutil'"):
            governor.close()
    assert record.is_file()
    for file in cpufreq.glob(f"{CPUFREQ}/*/scaling_governor"):
        file.rmdir()
        file.write_text("performance")
    Governor(cpufreq, None, record)  # whoever comes later has another try
    assert settings(cpufreq) == before
    assert not record.exists()


def test_a_process_killed_while_nvpmodel_runs_is_put_right(tmp_path: Path) -> None:
    record, tool = tmp_path / "power.json", Nvpmodel(mode=2)

    def killed(command: Sequence[str], timeout_s: float, lines: int | None = None) -> str | None:
        told = tool(command, timeout_s)
        if command[1:] == ["-m", "1"]:
            raise SystemExit
        return told

    with pytest.raises(SystemExit):
        Governor(tmp_path, killed, record).set_nvpmodel(1)
    assert tool.mode == 1
    Governor(tmp_path, tool, record)
    assert tool.mode == 2
