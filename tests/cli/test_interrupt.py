"""Ctrl-C, whenever it comes: one line, exit code 130, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from farthing import __version__
from farthing.cli import interrupt

PATIENCE = 60


def start(words: Sequence[str], place: Path, stdin: int | None = None) -> subprocess.Popen[str]:
    """A command as a terminal starts it: at the head of a process group, and with Ctrl-C not ignored."""
    for name in ("tmp", "work"):
        (place / name).mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=place / "work",
        env={**os.environ, "TMPDIR": str(place / "tmp"), "FARTHING_CACHE": str(place / "cache")},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def until_it_listens(place: Path, process: subprocess.Popen[str]) -> None:
    """It makes its temporary directory right after it took over Ctrl-C; what comes before is Python's own start."""
    end = time.monotonic() + PATIENCE
    while not any((place / "tmp").iterdir()) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.001)


def press(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)


def program(code: str, place: Path) -> subprocess.CompletedProcess[str]:
    """What becomes of a program whose command is ``run`` in ``code``."""
    head = "import sys, signal\nfrom farthing.cli.interrupt import INTERRUPT, program\n"
    text = f"{head}{textwrap.dedent(code)}\nsys.exit(program(run))"
    process = start(["-c", text], place)
    out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(text, process.returncode, out, err)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file: reading it imports all that a command may need."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    make, floats = onnx.helper, onnx.TensorProto.FLOAT
    values = [make.make_tensor_value_info(name, floats, ["n", 4]) for name in ("x", "y")]
    graph = make.make_graph([make.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
    path: Path = tmp_path_factory.mktemp("network") / "relu.onnx"
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("seconds", [0, 0.04, 0.1, 0.2, 0.35, 0.6, 1.2])
def test_whenever_it_comes_the_command_ends(network: Path, tmp_path: Path, seconds: float) -> None:
    process = start(["-m", "farthing", "bench", str(network), "--no-memory", "--seconds", "50"], tmp_path)
    until_it_listens(tmp_path, process)
    time.sleep(seconds)
    press(process)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    said = [line for line in err.splitlines() if not line.startswith(("assumed: ", "bench: "))]
    assert said == [interrupt.MESSAGE]
    assert list((tmp_path / "tmp").iterdir()) == []
    assert list((tmp_path / "work").iterdir()) == []


def test_a_finalizer_is_let_finish(tmp_path: Path) -> None:
    done = program(
        """
        import time, weakref
        class Held: pass
        def clean():
            signal.raise_signal(signal.SIGINT)
            print("all clean")
        def run():
            held = Held()
            weakref.finalize(held, clean)
            del held
            for _ in range(1000):
                time.sleep(0.01)
            return 0
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "all clean\n", f"{interrupt.MESSAGE}\n")


def test_a_directory_that_is_being_removed_goes_whole_unless_it_is_pressed_twice(tmp_path: Path) -> None:
    code = """
        import shutil, tempfile
        from pathlib import Path
        place = Path(tempfile.mkdtemp(dir=Path.cwd()))
        for i in range(20):
            (place / str(i)).touch()
        def pressed(event, arguments):
            if event == "os.remove" and PRESSES and not (place / "9").exists():
                PRESSES.pop()
                signal.raise_signal(signal.SIGINT)
        def run():
            sys.addaudithook(pressed)
            shutil.rmtree(place)
            return 0
        PRESSES = [0] * """
    for presses in (1, 2):
        done = program(f"{code.rstrip()} {presses}", tmp_path)
        assert (done.returncode, done.stderr) == (130, f"{interrupt.MESSAGE}\n")
        left = list((tmp_path / "work").iterdir())
        assert bool(left) == (presses == 2)


def test_one_that_cannot_be_raised_comes_again(tmp_path: Path) -> None:
    """An exception in a callback from C is lost."""
    done = program(
        """
        import ctypes, time
        def run():
            ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))()
            for _ in range(1000):
                time.sleep(0.01)
            return 0
        """,
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (130, f"{interrupt.MESSAGE}\n")


@pytest.mark.parametrize(
    "then",
    ["return 0", "return 2", "raise ImportError('half a module')", "INTERRUPT.check(); print('went on')"],
)
def test_one_that_is_swallowed_counts_all_the_same(tmp_path: Path, then: str) -> None:
    done = program(
        f"""
        def run():
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                pass
            {then}
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{interrupt.MESSAGE}\n")


def test_an_import_that_is_cut_off_is_no_damaged_package(network: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "cut.py").write_text(
        "import signal\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\n"
        "except BaseException as error:\n    raise ImportError('cannot load') from error\n"
    )
    process = start(["-m", "farthing", "evaluate", str(network), "--task", "cut:task"], tmp_path)
    _, err = process.communicate(timeout=PATIENCE)
    err = "".join(line for line in err.splitlines(keepends=True) if not line.startswith("assumed: "))
    assert (process.returncode, err) == (130, f"{interrupt.MESSAGE}\n")


def test_what_is_not_an_interrupt_is_not_taken_for_one(tmp_path: Path) -> None:
    done = program("def run(): raise ZeroDivisionError('a mistake of ours')", tmp_path)
    assert done.returncode == 70  # 1 would say that a budget is not met
    *traceback, last = done.stderr.splitlines()
    assert traceback[0] == "Traceback (most recent call last):"
    assert traceback[-1] == "ZeroDivisionError: a mistake of ours"
    assert (
        last
        == f"farthing: nobody foresaw this error: please report it with the lines above (Farthing {__version__})"
    )
    assert list((tmp_path / "tmp").iterdir()) == []
    done = program("def run(): sys.exit(2)", tmp_path)
    assert (done.returncode, done.stderr) == (2, "")
    done = program("class Bad:\n    def __del__(self): 1 / 0\ndef run():\n    Bad()\n    return 0", tmp_path)
    assert done.returncode == 0
    assert "ZeroDivisionError" in done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


LEFT = """
from pathlib import Path
import os, tempfile
def run():
    Path(tempfile.gettempdir(), "half").write_text("done")
    print(os.environ["TMPDIR"], flush=True)
    os.kill(os.getpid(), 9) if KILL else sys.stdin.readline()
    return 0
"""


def test_what_a_killed_command_left_goes_an_hour_later(tmp_path: Path) -> None:
    left = Path(program(f"KILL = True{LEFT}", tmp_path).stdout.strip())
    assert (left / "half").exists()
    others = [tmp_path / "tmp" / name for name in ("farthing-cli-mine", "farthing-abc", "abc")]
    others[0].symlink_to(tmp_path / "work", target_is_directory=True)
    for other in others[1:]:
        other.mkdir()
    assert program("def run(): return 0", tmp_path).returncode == 0
    assert left.exists(), "it may belong to a living one"
    for place in (left, *others[1:], tmp_path / "work"):
        os.utime(place, (time.time() - 3700,) * 2)
    assert program("def run(): return 0", tmp_path).returncode == 0
    assert not left.exists()
    assert all(other.exists() for other in others)


def test_the_directory_of_a_long_search_is_not_swept(tmp_path: Path) -> None:
    head = "import sys\nfrom farthing.cli.interrupt import program\nKILL = False"
    process = start(["-c", f"{head}{LEFT}sys.exit(program(run))"], tmp_path, stdin=subprocess.PIPE)
    assert process.stdout is not None
    place = Path(process.stdout.readline().strip())
    os.utime(place, (time.time() - 86400,) * 2)
    assert program("def run(): return 0", tmp_path).returncode == 0
    assert (place / "half").exists()
    assert process.communicate("\n", timeout=PATIENCE)[1] == ""
    assert not place.exists()


def test_a_background_job_goes_on(tmp_path: Path) -> None:
    done = program(
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        def run():
            signal.raise_signal(signal.SIGINT)
            print("done")
            return 0
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_called_from_python_nothing_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from farthing import cli

    def stop(words: list[str]) -> int:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    assert cli.main(["plugins"]) == 0
    monkeypatch.setattr(cli, "_run", stop)
    assert cli.main(["plugins"]) == interrupt.EXIT_CODE
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == before
