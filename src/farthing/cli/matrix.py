"""``farthing matrix``: which engines compute the same from a model as its own does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from farthing.cli import options, show

if TYPE_CHECKING:
    from farthing.anatomy import Cell, Matrix

EPILOG = """\
Every pair runs in a process of its own: an engine that crashes or hangs fails its own cell. What an engine does not
read is exported for it, where there is a pass for that. Exit code 1: an engine differs from the model's own, or failed.

example: farthing matrix model other.onnx --engine onnxruntime,openvino --html matrix.html
"""


def matrix_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing matrix``."""
    parser.epilog = EPILOG
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="model directories, zips, outputs of a search, or model files",
    )
    parser.add_argument("--engine", default="", metavar="A,B", help="engines (default: all that are known)")
    parser.add_argument("--task", metavar="T", help="run on its samples (default: seeded random numbers)")
    parser.add_argument(
        "--seconds", type=float, default=300.0, metavar="S", help="most for one pair (default: %(default)s)"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the matrix as a page, too")
    options.add_json(parser)


def matrix(parsed: argparse.Namespace) -> int:
    """Run ``farthing matrix``."""
    from farthing.errors import ConfigError
    from farthing.forge.matrix import matrix as compare
    from farthing.recipe import Progress

    if not 0 < parsed.seconds < 86400:
        raise ConfigError("--seconds is above 0 and below 86400")
    task = options.open_task(parsed.task, *parsed.models) if parsed.task else None
    models = [options.open_model(name, task) for name in parsed.models]
    with show.progress(False, quiet=parsed.json) as listener:
        found = compare(
            models,
            tuple(filter(None, parsed.engine.split(","))),
            task,
            seconds=parsed.seconds,
            tick=lambda text: listener(Progress(stage="matrix", text=text)),
        )
    if parsed.html:
        from farthing import files
        from farthing.forge.report.portable import render_matrix

        files.write(parsed.html, render_matrix(found).encode())
    print(show.as_json(found) if parsed.json else _table(found))
    return 1 if any(cell.verdict in {"differs", "failed"} for cell in found.cells) else 0


def _table(found: Matrix) -> str:
    rows = [
        [model, *(_words(found.cell(model, engine)) for engine in found.engines)] for model in found.models
    ]
    lines = [show.table(["model", *found.engines], rows, width=show.room()), "", f"inputs: {found.inputs}"]
    for cell in found.cells:
        if cell.detail:
            lines.append(f"{cell.model} in {cell.engine}: {cell.detail}")
    return "\n".join(lines)


def _words(cell: Cell) -> str:
    if cell.relative is not None:
        return f"{cell.verdict}, error {cell.relative:.1e} (tolerance {cell.tolerance:.0e})"
    return f"{cell.verdict}: {cell.operator}" if cell.operator else cell.verdict
