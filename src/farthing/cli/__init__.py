"""The command line: parse, call, print. One module per group of commands, imported when its command is used."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import farthing
from farthing.cli.interrupt import EXIT_CODE, INTERRUPT, MESSAGE, program

TYPE_CHECKING = False  # whatever is imported here is waited for before Ctrl-C is answered

if TYPE_CHECKING:
    import argparse

COMMANDS = {
    "convert": (
        "making",
        "bring a trained network into the form Farthing works on, checked against its source",
    ),
    "init": ("making", "write a task and a manifest from your data and a model, asking what it cannot know"),
    "inspect": ("making", "show a model's tensors, operators, parameters, MACs, size and placement"),
    "optimize": ("searching", "find the best measured artefact for a task, a device and a budget"),
    "apply": ("applying", "run steps that you wrote by hand: training, pruning, quantization, export"),
    "sensitivity": ("analysing", "find which operators low precision hurts, and which should stay in float"),
    "study": ("analysing", "measure every method and every width on one task: accuracy, latency, size"),
    "search": (
        "architectures",
        "look for a small network that does a task, taught by a model, for a device and a budget",
    ),
    "compare": ("compare", "lay two searches side by side: what changed, and by how much"),
    "matrix": ("matrix", "run models in every engine: equal, or refused and by which operator"),
    "cut": ("cutting", "cut a model into parts for several cores or devices, or into early exits"),
    "exits": ("leaving", "give a classifier early exits, train them, and measure what they save"),
    "bench": (
        "benching",
        "measure latency, throughput, load time, memory and energy; race models and engines",
    ),
    "evaluate": ("measuring", "score a model on a split of a task"),
    "predict": ("measuring", "label pictures or arrays with a model"),
    "serve": ("serving", "answer inference requests over HTTP and gRPC, with batching, versions and metrics"),
    "target": ("boards", "boards that measure for us over SSH: add, list, show, update, remove"),
    "doctor": ("doctor", "look for what stands in the way of a good run, and say how to mend it"),
    "monitor": (
        "monitoring",
        "watch this device: load, memory, temperature, power, throttling; say what is wrong, and plot it",
    ),
    "store": ("stores", "models a device keeps: add, list, activate, rollback, gc, verify"),
    "demo": ("searching", "train a small network on real digits and optimise it for this machine"),
    "targets": ("catalogue", "list the devices of the catalogue, or show one, or this machine"),
    "cache": ("searching", "show or clear what searches and downloads have kept"),
    "plugins": ("searching", "list the engines, passes, tasks, metrics and decoders that are known"),
}
EPILOG = """\
A first look:            farthing demo
Your own model:          farthing convert model.onnx --out model
                         farthing init model --data photos/ --out work
                         farthing optimize work/model --task work/task.yaml --budget "accuracy_drop<=0.01" --out best
                         farthing predict best photo.jpg

Exit codes: 0 done, 1 not as it should be (the budget is not met, engines differ, the doctor found a problem),
2 bad input, 70 an error of our own (please report it), 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: the command's; None takes those of this process and answers to Ctrl-C, as befits a program.
    """
    if arguments is None:
        return program(lambda: _run(sys.argv[1:]))
    try:
        return _run(list(arguments))
    except KeyboardInterrupt:
        print(MESSAGE, file=sys.stderr)
        return EXIT_CODE


def _run(words: list[str]) -> int:
    from farthing.errors import FarthingError, absent

    parser = _parser(words)
    if not words:
        parser.print_help()
        return 0
    parsed = _parsed(parser, words)
    try:
        _check_place()
        code: int = parsed.run(parsed)
    except FarthingError as error:
        INTERRUPT.check()  # an import that was cut off says that a package is damaged
        print(f"farthing: {error}{_about_the_cache(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        INTERRUPT.check()
        print(f"farthing: {absent(error, 'forge')}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        code = 0
    _mute()
    return code


def _mute() -> None:
    """What nobody reads any more goes nowhere, or Python's end would fail with code 120."""
    import contextlib
    import os

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):  # it is no file
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _about_the_cache(error: Exception) -> str:
    """How to move the cache, for an error that is about a place in it."""
    from farthing.cli.options import cache_directory
    from farthing.errors import StorageError

    about = isinstance(error, StorageError) and str(cache_directory()) in str(error)
    return " (this is the cache: the environment variable FARTHING_CACHE moves it)" if about else ""


def _parsed(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """The arguments; for a misspelt command or option the nearest right one is suggested, and the exit code is 2."""
    from farthing.errors import nearest, suggestion

    if not words[0].startswith("-") and words[0] not in COMMANDS:
        parser.error(f"no command is called {words[0]!r}; {nearest(words[0], COMMANDS)}")
    parsed, unknown = parser.parse_known_args(words)
    if unknown:
        known = [word.strip("[],") for word in parsed.parser.format_usage().split() if "--" in word]
        wrong = unknown[0].partition("=")[0]
        parsed.parser.error(f"{wrong!r} is not understood; {suggestion(wrong, known)}".rstrip("; "))
    return parsed


def _check_place() -> None:
    """Paths are relative to the working directory: without one nothing can be found or written."""
    from pathlib import Path

    from farthing.errors import StorageError

    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise StorageError("the working directory is gone: change to one that exists") from error


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """All commands by name and help; only the one that is asked for is imported."""
    import argparse
    import importlib

    parser = argparse.ArgumentParser(
        prog="farthing",
        description="From a trained network to the best measured artefact for a small device.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"farthing {farthing.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    asked = next((word for word in words if not word.startswith("-")), "")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if name == asked:
            part = importlib.import_module(f"farthing.cli.{module}")
            getattr(part, f"{name}_arguments")(command)
            command.set_defaults(run=getattr(part, name), parser=command)
    return parser
