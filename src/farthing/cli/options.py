"""Arguments that several commands share, and the environment: FARTHING_CACHE is the only setting read from it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from farthing.assets import default_cache
from farthing.model import Model


def cache_directory() -> Path:
    """Where results and downloads are kept: ``$FARTHING_CACHE``, or ``~/.cache/farthing``."""
    named = os.environ.get("FARTHING_CACHE")
    return Path(named).expanduser() if named else default_cache()


def add_engine(parser: argparse.ArgumentParser) -> None:
    """``--engine``, ``--threads``, ``--spin``, ``--provider``."""
    parser.add_argument(
        "--engine", default="", metavar="NAME", help="engine (default: the first that runs the format)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="threads one inference may use (default: 1)"
    )
    parser.add_argument(
        "--spin", action="store_true", help="let idle threads spin: faster if the machine is ours alone"
    )
    parser.add_argument(
        "--provider",
        action="append",
        default=[],
        metavar="NAME",
        help="the engine's device or delegate, best first",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON lines, for programs")


def open_model(path: str) -> Model:
    """A model directory, a zip of one, the output of a search, or an ONNX file as it is (assumptions are printed).

    Raises:
        ModelError: none of these.
    """
    place = Path(path)
    if place.is_file() and not _is_zip(place):
        from farthing.forge.convert import convert

        conversion = convert(place)
        for assumption in conversion.assumptions:
            print(f"assumed: {assumption}", file=sys.stderr)
        return conversion.model
    return Model.open(place)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
