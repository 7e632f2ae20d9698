"""The output directory of a search: written beside its place and swapped in whole, so earlier results stay until then."""

from __future__ import annotations

from pathlib import Path

import msgspec

from farthing import files
from farthing.config import plain, read, to_yaml
from farthing.errors import ModelError, StorageError, UnsupportedError
from farthing.forge.report import render
from farthing.forge.script import standalone
from farthing.model import Model
from farthing.recipe import Recipe, Result, Summary

MODEL, RECIPE, RESULT, REPORT, SCRIPT = "model", "recipe.yaml", "result.json", "report.html", "predict.py"
OURS = {MODEL, RECIPE, RESULT, REPORT}


def claim(directory: Path) -> None:
    """Check that results may be written to a directory: absent, empty, or holding an earlier result.

    Raises:
        StorageError: it holds something else, is a file, or may not be written to.
    """
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise StorageError(f"{directory} is not a directory: choose another output directory")
    if directory.exists():
        foreign = sorted(path.name for path in directory.iterdir() if path.name not in OURS)
        if foreign:
            raise StorageError(f"{directory} holds {foreign[0]!r}, which no search wrote: choose another output directory")
    probe = directory.parent / f"{files.TEMPORARY}probe-{directory.name}"
    files.write(probe, b"")
    probe.unlink(missing_ok=True)


def write(winner: Model, recipe: Recipe, summary: Summary, directory: Path) -> Result:
    """Write model, stand-alone script, recipe, result and report; return the Result with the saved model.

    Raises:
        StorageError: the disk is full or read-only; what was there before is untouched.
    """

    def fill(fresh: Path) -> None:
        winner.save(fresh / MODEL)
        try:
            (fresh / MODEL / SCRIPT).write_text(standalone(winner.manifest, recipe.threads))
        except UnsupportedError as error:
            (fresh / MODEL / SCRIPT).write_text(f'raise SystemExit({str(error)!r})\n')
        (fresh / RECIPE).write_text(to_yaml(recipe))
        (fresh / RESULT).write_bytes(msgspec.json.format(msgspec.json.encode(plain(summary))) + b"\n")
        (fresh / REPORT).write_text(render(summary, recipe))

    files.write_directory(directory, fill)
    return Result(Model.open(directory / MODEL), recipe, summary, directory)


def read_summary(directory: Path) -> Summary:
    """The summary of an earlier search.

    Raises:
        ModelError: the directory is not the output of a search.
    """
    if not (directory / RESULT).is_file():
        raise ModelError(f"{directory} is not the output of `farthing optimize`: it has no {RESULT}")
    return read(directory / RESULT, Summary)
