"""The output directory of a search: written beside its place and swapped in whole, earlier results stay until then."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

import farthing
from farthing import files
from farthing.config import Section, read, to_json, to_yaml
from farthing.errors import ConfigError, ModelError, StorageError, UnsupportedError
from farthing.forge.report import render
from farthing.forge.script import standalone
from farthing.model import Model
from farthing.recipe import RECIPE_FILE, Recipe, Result, Summary

MODEL, RECIPE, RESULT, REPORT, SCRIPT = "model", RECIPE_FILE, "result.json", "report.html", "predict.py"
OURS = {MODEL, RECIPE, RESULT, REPORT}


@contextlib.contextmanager
def claimed(directory: Path, ours: Collection[str] = OURS) -> Iterator[Path]:
    """Hold an output directory for the length of a ``with`` block: absent, empty, or with an earlier result.

    What a killed search left beside it is removed; nothing in it is touched. ``ours`` is what an earlier result holds.

    Raises:
        StorageError: another search holds it, it holds something else or is a file or a mount point, or it may not
            be written to.
    """
    with files.explained(directory):  # a working directory that is gone, a loop of links
        directory = directory if directory.name not in {"", ".."} else directory.resolve()
        _refuse_foreign(directory, ours)
    with files.lock(directory.parent / f".{directory.name}.lock", f"the output directory {directory}"):
        files.sweep(directory)
        with files.explained(directory), _probe(directory):
            pass
        yield directory


def _refuse_foreign(directory: Path, ours: Collection[str]) -> None:
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise StorageError(f"{directory} is not a directory: choose another output directory")
    if directory.is_mount():
        raise StorageError(
            f"{directory} is a mount point, which cannot be swapped: choose a directory inside it"
        )
    if directory.exists() and Path.cwd().is_relative_to(directory.resolve()):
        raise StorageError(
            f"{directory} is where you stand, and would be swapped away: choose a directory inside it"
        )
    if directory.exists():
        foreign = sorted(path.name for path in directory.iterdir() if path.name not in ours)
        if foreign:
            raise StorageError(
                f"{directory} holds {foreign[0]!r}, which no search wrote: choose another output directory"
            )


def _probe(directory: Path) -> tempfile.TemporaryDirectory[str]:
    """A directory made beside the output directory and removed: whether that is possible is known before the search."""
    return tempfile.TemporaryDirectory(
        prefix=files.TEMPORARY, suffix=f"-{directory.name}", dir=directory.parent
    )


def write(winner: Model, recipe: Recipe, summary: Summary, directory: Path) -> Result:
    """Write model, stand-alone script, recipe, result and report; return the Result with the saved model.

    Raises:
        StorageError: the disk is full or read-only; what was there before is untouched.
    """

    def fill(fresh: Path) -> None:
        _fill(winner, recipe, fresh)
        (fresh / RESULT).write_bytes(to_json(summary))
        (fresh / REPORT).write_text(render(summary, recipe), "utf-8")

    files.write_directory(directory, fill)
    return Result(Model.open(directory / MODEL), recipe, summary, directory)


def write_made(model: Model, recipe: Recipe, directory: Path) -> Model:
    """Write a model that no search made, with stand-alone script and recipe; return it as saved.

    Raises:
        StorageError: the disk is full or read-only; what was there before is untouched.
    """
    files.write_directory(directory, lambda fresh: _fill(model, recipe, fresh))
    return Model.open(directory / MODEL)


def _fill(model: Model, recipe: Recipe, fresh: Path) -> None:
    model.save(fresh / MODEL)
    try:
        (fresh / MODEL / SCRIPT).write_text(standalone(model.manifest, recipe.options), "utf-8")
    except UnsupportedError as error:
        (fresh / MODEL / SCRIPT).write_text(f"raise SystemExit({str(error)!r})\n", "utf-8")
    (fresh / RECIPE).write_text(to_yaml(recipe), "utf-8")


def read_summary(place: Path) -> Summary:
    """The summary in an output directory of a search, or in a ``result.json``.

    Raises:
        ModelError: there is none, or its figures contradict one another.
        ConfigError: it cannot be understood, damaged or of another version.
    """
    file = place / RESULT if place.is_dir() else place
    if not file.is_file():
        raise ModelError(f"{place} is not the output of `farthing optimize`: it has no {RESULT}")
    try:
        summary = read(file, Summary)
    except ConfigError as error:
        raise ConfigError(f"{error}{_of_another_version(file)}") from error
    if wrong := _contradiction(summary):
        raise ModelError(f"{file} {wrong}: run the search again")
    return summary


class _Versions(Section, frozen=True, forbid_unknown_fields=False):
    versions: dict[str, str] = {}


def _of_another_version(file: Path) -> str:
    try:
        found = msgspec.json.decode(file.read_bytes(), type=_Versions).versions.get("farthing")
    except (OSError, msgspec.MsgspecError):
        return ""
    ours = farthing.__version__
    return f"; it was written by Farthing {found}, and this is {ours}" if found not in {None, ours} else ""


def _contradiction(summary: Summary) -> str:
    """What cannot be true of a summary; empty if nothing is."""
    if not summary.candidates:
        return "lists no candidate"
    if [candidate.number for candidate in summary.candidates] != [*range(len(summary.candidates))]:
        return "does not number its candidates from 0"
    if not 0 <= summary.winner < len(summary.candidates):
        return f"names candidate {summary.winner} as its winner, of {len(summary.candidates)}"
    for candidate in summary.candidates:
        gains = [candidate.speedup, candidate.offline_speedup, candidate.over_float, candidate.over_engine]
        figures = [value for gain in gains if gain for value in (gain.value, gain.high)]
        for one in candidate.measurements.values():
            figures += [one.p50_ms, one.p90_ms, one.p99_ms, one.throughput]
        if not all(0 < figure < math.inf for figure in figures):
            return f"gives candidate {candidate.number} a time or a speed that nothing can have"
    return ""
