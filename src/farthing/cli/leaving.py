"""``farthing exits``: a classifier that answers easy samples early."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from farthing.cli import options, show
from farthing.config import plain
from farthing.measure import compare

if TYPE_CHECKING:
    from farthing.apps.exits import EarlyExits, Times

EXITS = """\
A classifier in ONNX gets exits and is trained on with all of them; thresholds are chosen on validation: the cheapest
that, with a certainty of --certainty, lose no more than --drop against the last exit on other samples. DIR is a bundle
that `EarlyExit` serves; exits.json in it has what is said here and a step for recipes. Another --drop, --certainty or
--measure trains nothing again. Interrupted? Run the same command again.

example: farthing exits work/model --task work/task.yaml --out exits --drop 0.005
"""


def exits_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing exits``."""
    parser.epilog = EXITS
    parser.add_argument("model", help="model directory, zip, output of a search, or an ONNX file, in float")
    options.add_task(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="bundle directory to write")
    parser.add_argument("--drop", type=float, default=0.005, metavar="X",
                        help="what the metric may lose against the last exit (default: %(default)s)")  # fmt: skip
    parser.add_argument("--certainty", type=float, default=0.95, metavar="P",
                        help="with which it loses no more on other samples; 0.5 goes right to the edge on validation "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--at", nargs="+", default=[], metavar="TENSOR",
                        help="put exits behind these tensors, in order (default: planned by work)")  # fmt: skip
    parser.add_argument("--exits", type=int, default=2, metavar="N",
                        help="plan so many, beside the last one (default: %(default)s)")  # fmt: skip
    parser.add_argument("--head", choices=["pool", "conv"], default="pool",
                        help="pooling alone, or a convolution before it (default: %(default)s)")  # fmt: skip
    parser.add_argument("--measure", choices=["confidence", "entropy"], default="confidence",
                        help="how sure an exit is (default: %(default)s)")  # fmt: skip
    parser.add_argument("--epochs", type=int, default=20, metavar="N",
                        help="passes over the training data (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the training (default: %(default)s)"
    )
    options.add_engine(parser)
    options.add_json(parser)


def exits(parsed: argparse.Namespace) -> int:
    """Run ``farthing exits``."""
    import msgspec

    from farthing.apps.exits import early_exits
    from farthing.forge.cache import Cache
    from farthing.forge.exits.training import ExitTraining
    from farthing.options import make_options

    made = ExitTraining(
        schedule=msgspec.structs.replace(ExitTraining().schedule, epochs=parsed.epochs, seed=parsed.seed),
        places=tuple(parsed.at),
        count=parsed.exits,
        head=parsed.head,
        measure=parsed.measure,
        accuracy_drop=parsed.drop,
        certainty=parsed.certainty,
    )
    task = options.open_task(parsed.task, parsed.model)
    model = options.open_model(parsed.model, task, keep=False)
    with show.progress(parsed.json) as listener:
        found = early_exits(
            model,
            task,
            Path(parsed.out),
            made,
            cache=Cache(options.cache_directory()),
            engine=parsed.engine or "onnxruntime",
            settings=make_options(parsed.threads, parsed.spin, parsed.provider, parsed.precision),
            listener=listener,
        )
    print(
        show.as_json({"event": "result", **plain(found)}) if parsed.json else _exits_text(found, parsed.out)
    )
    return 0


def _exits_text(found: EarlyExits, out: str) -> str:
    """The exits, what they do on each split, and the time."""
    times = [_paying(one) for one in found.times]
    return "\n".join(
        [_exits(found), "", _splits(found), "", *times, f"Timed in turns: {found.engine}.", f"Bundle: {out}"]
    )


def _exits(found: EarlyExits) -> str:
    """Each exit: where it is, when samples leave there, and how many do."""
    rows = [
        [
            one.name,
            one.place or "the end",
            "-" if one.threshold is None else f"{one.threshold:.4g}",
            f"{one.macs / found.given_macs:.0%}",
            *(f"{judged.shares[number]:.0%}" for judged in found.judged),
        ]
        for number, one in enumerate(found.exits)
    ]
    splits = [judged.split for judged in found.judged]
    head = ["exit", "behind", "threshold", "work so far", *(f"leave, {name}" for name in splits)]
    return show.table(head, rows, width=show.room())


def _splits(found: EarlyExits) -> str:
    """The metric on each split, and the work saved."""
    head = [f"{found.metric} on", "samples", "as given", "last exit", "with exits", "drop", "work saved"]
    rows = [
        [
            one.split,
            str(one.samples),
            *(f"{score.value:.4f}" for score in (one.given, one.whole, one.cascade)),
            show.interval(one.drop, digits=4),
            f"{1 - one.macs / found.given_macs:.0%}",
        ]
        for one in found.judged
    ]
    return show.table(head, rows, width=show.room())


def _paying(times: Times) -> str:
    """What a sample takes, what of that is no computing, and whether exits pay."""
    one = "One sample at a time" if times.batch == 1 else f"In batches of {times.batch}"
    given, exits, computing = map(show.milliseconds, (times.given_ms, times.exits_ms, times.computing_ms))
    words = f"{one}: {given} as given, {exits} with exits, {computing} of it computing; " + show.interval(
        times.speedup, unit=" x"
    )
    verdict = compare(times.speedup)
    if verdict == "better":
        return f"{words}: faster."
    if times.pays_from_ms is None:
        return f"{words}. Too few samples leave: the parts together compute no less than the whole."
    slower = "slower" if verdict == "worse" else "too near to tell"
    return (
        f"{words}: {slower}. With as many leaving, exits pay where a sample takes more than "
        f"{show.milliseconds(times.pays_from_ms)} as given; the rest of the time goes into handing samples on."
    )
