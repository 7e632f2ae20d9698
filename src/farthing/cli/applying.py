"""``farthing apply``: steps written by hand."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from farthing.cli import options, show
from farthing.measure import compare

if TYPE_CHECKING:
    from farthing.forge.handmade import Applied
    from farthing.forge.inspect import Inspection
    from farthing.model import Model
    from farthing.task import Task

MANY = 0.1
"""The share of zeros that is spoken of: rounding makes some."""

APPLY = """\
FILE holds the steps in order, each a pass of `farthing plugins` with what of its options you want to set:

  - use: graph.fuse.v1
  - use: prune.structured.v1
    options: {ratio: 0.5, teacher: self, schedule: {epochs: 8}}
  - use: quantize.static.v1
    options: {calibrator: mse, correct_biases: true}
  - use: export.tflite.v1

or it is a recipe.yaml, in which only `steps` must be there; `engine` says what is to run the result.

Nothing is searched and nothing is refused for its accuracy. Before and after, each file in its engine, size, bytes as a
zip, the metric on the validation split and the time for a sample are measured. An order that makes no sense is refused
before anything runs. Interrupted or killed? Run the same command again: what was done is kept, and a training goes on
from its last epoch.

The output directory holds model/ (with a stand-alone predict.py) and recipe.yaml, with every option filled in;
`farthing optimize --recipe` makes the same from it again.

example: farthing apply work/model --task work/task.yaml --steps steps.yaml --out smaller
"""


def apply_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing apply``."""
    parser.epilog = APPLY
    parser.add_argument("model", help="model directory, zip, or model file")
    options.add_task(parser)
    parser.add_argument(
        "--steps", required=True, type=Path, metavar="FILE", help="a YAML list of steps, or a recipe"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="output directory: new, empty, or an earlier result",
    )
    parser.add_argument(
        "--target",
        default="",
        metavar="NAME",
        help="the device that options are chosen for, as in `farthing optimize` (default: the recipe's, or "
        "this machine)",
    )
    options.add_json(parser)


def apply(parsed: argparse.Namespace) -> int:
    """Run ``farthing apply``."""
    from farthing.cli.searching import place
    from farthing.forge.cache import Cache
    from farthing.forge.handmade import apply_steps, read_steps
    from farthing.forge.output import claimed, write_made
    from farthing.target import THIS

    wanted = read_steps(parsed.steps)
    task = options.open_task(parsed.task, parsed.model)
    model = options.open_model(parsed.model, task, keep=False)
    with (
        claimed(parsed.out) as out,
        place(parsed.target or THIS, ()) as (machine, target),
        show.progress(parsed.json) as listener,
    ):
        found = apply_steps(
            wanted,
            model,
            task,
            Cache(options.cache_directory()),
            target=target if parsed.target else None,
            machine=machine,
            listener=listener,
        )
        write_made(found.model, found.recipe, out)
    inside = _looked(model), _looked(found.model)
    print(_plain(found, inside, out) if parsed.json else _shown(found, inside, task, out))
    return 0


def _looked(model: Model) -> Inspection:
    from farthing.forge.inspect import inspect

    return inspect(model, run=False)


def _plain(found: Applied, inside: tuple[Inspection, Inspection], out: Path) -> str:
    names = ("model", *(step.use for step in found.recipe.steps))
    sizes = [{"after": name, "bytes": size} for name, size in zip(names, found.sizes, strict=True)]
    facts = {"event": "result", "directory": str(out), "digest": found.model.digest, "sizes": sizes}
    scores: dict[str, object] = {
        "before": found.before.accuracy,
        "after": found.after.accuracy,
        "drop": found.after.drop,
    }
    zips = [{"zipped_bytes": one.zipped_bytes, "zeros": one.zeros} for one in inside]
    scores |= {"samples": found.after.samples, "files": dict(zip(("before", "after"), zips, strict=True))}
    if found.laps is not None:
        first, last = found.laps
        scores["time"] = {"before": first.measurement, "after": last.measurement, "speedup": last.speedup}
    return show.as_json({**facts, **scores})


def _shown(found: Applied, inside: tuple[Inspection, Inspection], task: Task, out: Path) -> str:
    """Sizes after each step, the metric before and after, and where things are."""
    names = ("as given", *(step.use for step in found.recipe.steps))
    rows = [[name, show.megabytes(size / 1e6)] for name, size in zip(names, found.sizes, strict=True)]
    ratio = found.sizes[0] / found.sizes[-1]
    smaller = f"{ratio:.2f}x smaller" if ratio >= 1 else f"{1 / ratio:.2f}x larger"
    before, after = (show.megabytes(size / 1e6) for size in (found.sizes[0], found.sizes[-1]))
    first, last = found.before.accuracy.value, found.after.accuracy.value
    gone = f"lost {show.interval(found.after.drop, digits=4)}"
    samples = f"on {found.after.samples} validation samples, in {found.recipe.engine}"
    lines = [
        show.table(["step", "size"], rows, width=show.room()),
        "",
        f"size: {before} -> {after}, {smaller}",
        f"zip:  {_zips(*inside)}",
        f"time: {_times(found, inside[1].zeros or 0.0)}",
        f"{task.metric.name}: {first:.4f} -> {last:.4f}, {gone}, {samples}",
        "",
        f"Model:  {out / 'model'}",
        f"Recipe: {out / 'recipe.yaml'}",
    ]
    return "\n".join(lines)


def _zips(before: Inspection, after: Inspection) -> str:
    """What a zip makes of both, and the share of zeros among the weights."""
    sizes = [show.megabytes((one.zipped_bytes or 0) / 1e6) for one in (before, after)]
    return " -> ".join(sizes) + show.zeros(after.zeros)


def _times(found: Applied, zeros: float) -> str:
    """The time for a sample before and after, and whether zeros save any."""
    if found.laps is None:
        return f"not measured: the steps are for {found.recipe.target.name}, and this is another machine"
    before, after = (lap.measurement for lap in found.laps)
    ratio = found.laps[1].speedup
    verdict = compare(ratio)
    words = {"better": "faster", "worse": "slower", "same": "as fast", "cannot tell": "cannot be told apart"}
    idle = (
        f"; {after.engine} multiplies zeros like other numbers"
        if zeros >= MANY and verdict != "better"
        else ""
    )
    return (
        f"{show.milliseconds(before.p50_ms)} in {before.engine} -> {show.milliseconds(after.p50_ms)} in {after.engine} "
        f"a sample, {show.interval(ratio, unit='x')}: {words[verdict]}{idle}"
    )
