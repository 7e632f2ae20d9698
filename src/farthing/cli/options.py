"""Arguments that several commands share, and the environment: FARTHING_CACHE, _CONFIG and _STORE are read from it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from farthing.assets import default_cache
from farthing.errors import ModelError, suggestion
from farthing.model import Model

TYPE_CHECKING = False

if TYPE_CHECKING:
    from farthing.task import Task

TASK = "built-in name, task file, or module:function"


def cache_directory() -> Path:
    """Where results and downloads are kept: ``$FARTHING_CACHE``, or ``~/.cache/farthing``."""
    named = os.environ.get("FARTHING_CACHE")
    return Path(named).expanduser() if named else default_cache()


def boards_directory() -> Path:
    """Where boards are kept by name: below ``$FARTHING_CONFIG``, or ``~/.config/farthing``."""
    named = os.environ.get("FARTHING_CONFIG")
    return (Path(named).expanduser() if named else Path.home() / ".config" / "farthing") / "targets"


def store_directory() -> Path:
    """Where a device keeps its models: ``$FARTHING_STORE``, or ``~/.local/share/farthing/store``."""
    named = os.environ.get("FARTHING_STORE")
    return Path(named).expanduser() if named else Path.home() / ".local" / "share" / "farthing" / "store"


def add_engine(parser: argparse.ArgumentParser) -> None:
    """``--engine``, ``--threads``, ``--spin``, ``--precision``, ``--provider``."""
    parser.add_argument(
        "--engine", default="", metavar="NAME", help="engine (default: the first that runs the format)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="threads one inference may use (default: 1)"
    )
    add_ways(parser)


def add_ways(parser: argparse.ArgumentParser) -> None:
    """``--spin``, ``--precision``, ``--provider``: how an engine runs, beside its threads."""
    parser.add_argument(
        "--spin", action="store_true", help="let idle threads spin: faster if the machine is ours alone"
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="arithmetic of float operators, where the engine and the CPU can (default: %(default)s)",
    )
    parser.add_argument(
        "--provider",
        action="append",
        default=[],
        metavar="NAME",
        help="the engine's device or delegate, best first",
    )


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def counts(text: str) -> tuple[int, ...]:
    """Thread counts separated by commas.

    Raises:
        ConfigError: no numbers, or impossible ones.
    """
    from farthing.errors import ConfigError
    from farthing.options import make_options

    try:
        given = [int(part) for part in names(text)]
    except ValueError as error:
        raise ConfigError(f"--threads {text!r} is not a list of numbers, as in 1,2") from error
    return tuple(make_options(count).threads for count in given)


def mind_cores(threads: Sequence[int]) -> None:
    """Say on standard error if more threads are asked for than this machine has processors for them."""
    from farthing.target import Target

    most = max(threads, default=1)
    cores = (Target.detect().cores or most) if most > 1 else most
    if most > cores:
        few = f"{cores} processor{'s' * (cores > 1)}"
        print(f"note: {most} threads on {few}: they take turns, which is slower than fewer", file=sys.stderr)


def add_task(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """``--task``."""
    parser.add_argument("--task", required=required, metavar="T", help=TASK)


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON lines, for programs")


def open_model(path: str, task: Task | None = None, keep: bool = True) -> Model:
    """A model directory, a zip of one, the output of a search, or any file `convert` reads (assumptions are printed).

    Args:
        path: as the user named it.
        task: whose samples say what a file takes that does not say so itself.
        keep: take TorchScript as it is, not as ONNX.

    Raises:
        ModelError: none of these.
    """
    from farthing.forge.convert.recognise import kind_of

    place = existing(path)
    if place.is_dir() or kind_of(place, place.read_bytes()) == "model":
        return Model.open(place)
    from farthing.forge.convert import convert

    samples = samples_of(task) if task and task.form == "tensor" else None
    conversion = convert(place, samples=samples, keep=keep)
    for assumption in conversion.assumptions:
        print(f"assumed: {assumption}", file=sys.stderr)
    return conversion.model


def samples_of(task: Task) -> dict[str, Any]:
    """Some validation samples of a task of tensors, for `convert` to check a model on."""
    split = task.split("validation")
    return dict(split.take(range(min(16, len(split)))))


def existing(path: str) -> Path:
    """The path of a model that a user named.

    Raises:
        ModelError: there is nothing (the nearest name beside it is suggested), or nothing that may be read.
    """
    place = Path(path)
    try:
        place.stat()
    except FileNotFoundError:
        beside = os.listdir(place.parent) if os.access(place.parent, os.R_OK) else []
    except (OSError, ValueError) as error:  # a name too long, a file where a directory is needed, a null byte
        raise ModelError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    else:
        if os.access(place, os.R_OK):
            return place
        raise ModelError(f"cannot read {path}: you have no right to; ask its owner for it")
    meant = suggestion(place.name, beside) or "give a model directory, a zip of one, or a model file"
    raise ModelError(f"{path} does not exist: {meant}")


def open_task(name: str, *models: str) -> Task:
    """A task as ``--task`` names it; the module of ``module:function`` is also looked for in the working directory.

    So is the module of its loss.

    What has to be fetched for it is said on standard error, with its licence.

    Args:
        name: of the task.
        models: paths that must exist before anything is fetched.

    Raises:
        ModelError: one of the models is not there.
        TaskError: no such task, or one that cannot be used.
    """
    from farthing.task import find_task

    for model in models:
        existing(model)
    if ":" in name:
        stand_here()
    task = find_task(name, cache_directory(), lambda event: print(event, file=sys.stderr))
    if isinstance(task.loss, str):
        stand_here()
    return task


def stand_here() -> None:
    """Find the user's modules where the user stands, as ``python -m`` does."""
    if "" not in sys.path:
        sys.path.insert(0, "")
