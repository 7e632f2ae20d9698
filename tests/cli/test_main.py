"""The command line as a user meets it: help that teaches, exit codes, messages, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from farthing.cli import COMMANDS, main
from farthing.testing import fake_model

TASKS = """
import numpy as np
from farthing import Split, Task

def right():
    rows = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    return Task("right", {"validation": Split({"": rows}, np.arange(20) % 3)}, "top1")

def both():
    return Task("both", {name: right().splits["validation"] for name in ("calibration", "validation")}, "top1")

def like():
    return Task("like", right().splits, "agreement")
"""


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
    assert "no command is called 'optimise-it'; did you mean 'optimize'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "model", "--secnods", "3"], "'--secnods' is not understood; did you mean '--seconds'?"),
        (["bench", "model", "--scenarios=offline"], "did you mean '--scenario'?"),
        (["cache", "everything"], "farthing cache: error: 'everything' is not understood\n"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_one(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


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
        (["inspect", "nowhere"], "nowhere does not exist: give a model directory"),
        (["inspect", "x" * 300], "x: File name too long"),
        (["inspect", "nowhere/at/all"], "nowhere/at/all does not exist: give a model directory"),
        (
            ["optimize", "nowhere", "--task", "mnist-5k", "--out", "out"],
            "nowhere does not exist: give a model directory",
        ),
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


@pytest.mark.parametrize(
    ("words", "package"),
    [
        (["optimize", "model", "--task", "digits", "--out", "out"], "onnx"),
        (["demo", "--out", "out"], "torch"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(words: list[str], package: str, tmp_path: Path) -> None:
    fake_model().save(tmp_path / "model")
    program = (
        "import sys\n"
        "class Gone:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'onnx', 'torch'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "import farthing\n"
        "from farthing.cli import main\n"
        "try:\n"
        "    farthing.optimize\n"
        "except farthing.FarthingError as error:\n"
        "    print(error)\n"
        f"sys.exit(main({words!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert f"this needs the Python package '{package}'" in done.stderr
    assert "pip install 'farthing[forge]'" in done.stderr
    assert "this needs the Python package 'onnx'" in done.stdout, "in Python as well"
    assert not (tmp_path / "out").exists()


def test_the_nearest_name_beside_a_missing_model_is_suggested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    assert main(["inspect", str(tmp_path / "modle")]) == 2
    assert "modle does not exist: did you mean 'model'?" in capsys.readouterr().err


def test_without_a_working_directory_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["inspect", "model"]) == 2
    assert capsys.readouterr().err == "farthing: the working directory is gone: change to one that exists\n"


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a user stands: a model, and a module with tasks for it that only this directory has."""
    fake_model().save(tmp_path / "model")
    (tmp_path / "own_tasks.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in {"", "."}])
    yield tmp_path
    sys.modules.pop("own_tasks", None)


def test_a_task_in_a_module_is_looked_for_where_the_user_stands(
    at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "model", "--task", "own_tasks:right", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 20
    assert main(["evaluate", "model", "--task", "own_tasks:rihgt"]) == 2
    assert "own_tasks has no 'rihgt'; did you mean 'right'?" in capsys.readouterr().err
    assert main(["evaluate", "model", "--task", "own_taks:right"]) == 2
    assert "there is no module 'own_taks'; did you mean 'own_tasks'?" in capsys.readouterr().err


def test_a_metric_that_compares_names_the_option(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "model", "--task", "own_tasks:like"]) == 2
    assert "name that with --reference MODEL" in capsys.readouterr().err
    assert main(["evaluate", "model", "--task", "own_tasks:like", "--reference", "model"]) == 0
    assert capsys.readouterr().out.startswith("agreement 1.0000")


def test_more_threads_than_processors_are_remarked_once(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["evaluate", "model", "--task", "own_tasks:right"], ["bench", "model", "--seconds", "0"]):
        assert main([*words, "--threads", "999"]) in {0, 2}
        assert capsys.readouterr().err.count("note: 999 threads on ") == 1
        assert main(words) == 0
        assert "threads on" not in capsys.readouterr().err


def test_raced_models_of_one_name_are_told_apart(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_model().save(at / "other")
    assert main(["bench", "model", "other", "--seconds", "0", "--min-count", "1", "--no-memory"]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if " fake " in line]
    assert rows == ["model", "other"], "as typed, because both are called the same"


def test_a_cache_that_cannot_be_written_names_the_variable_that_moves_it(
    at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (at / "file").write_text("no directory")
    monkeypatch.setenv("FARTHING_CACHE", str(at / "file" / "cache"))
    words = ["optimize", "model", "--task", "own_tasks:both", "--threads", "1", "--out", "out"]
    assert main(words) == 2
    assert "(this is the cache: the environment variable FARTHING_CACHE moves it)" in capsys.readouterr().err
    monkeypatch.setenv("FARTHING_CACHE", str(at / "cache"))
    assert main([*words[:-1], str(at / "file" / "out")]) == 2
    assert "FARTHING_CACHE" not in capsys.readouterr().err


def test_the_seed_of_the_demo_is_from_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--seed", "-1"]) == 2
    assert "--seed is a whole number from 0, not -1" in capsys.readouterr().err


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
