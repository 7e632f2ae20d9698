"""The command line as a user meets it: help that teaches, exit codes, messages, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from farthing.cli import COMMANDS, main


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert name in shown


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_that_explains_its_arguments(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: farthing {name}" in shown
    assert COMMANDS[name][1][1:40] in " ".join(shown.split())


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["optimise-it"])
    assert stopped.value.code == 2
    assert "optimise-it" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from farthing.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('numpy', 'torch', 'onnx', 'onnxruntime', 'rich') if n in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "nowhere"], "nowhere"),
        (["predict", "nowhere", "x.jpg"], "nowhere"),
        (["evaluate", "nowhere", "--task", "mnist-5k"], "nowhere"),
        (["optimize", "nowhere", "--task", "mnist-5k", "--out", "out"], "nowhere"),
    ],
)
def test_bad_input_ends_with_exit_code_2_and_a_message(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("farthing: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_plugins_lists_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0
    shown = capsys.readouterr().out
    assert "onnxruntime" in shown
    assert "quantize.static.v1" in shown
    assert "mnist-5k" in shown


def test_cache_is_shown_and_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FARTHING_CACHE", str(tmp_path / "kept"))
    entry = tmp_path / "kept" / "values" / "ab" / "x.json"
    entry.parent.mkdir(parents=True)
    entry.write_text(json.dumps([1] * 1000))
    assert main(["cache"]) == 0
    assert "3.0 kB" in capsys.readouterr().out
    assert main(["cache", "--clear"]) == 0
    assert not entry.exists()
