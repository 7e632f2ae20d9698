"""``farthing search``: a network looked for, instead of made smaller."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from farthing.cli import options, show

if TYPE_CHECKING:
    from farthing.forge.search.architecture import SearchArchitecture
    from farthing.forge.search.found import Found
    from farthing.model import Manifest

BUDGET = "accuracy_drop<=0.01"
EPILOG = """\
Networks come from four families (plain, dscnn, resnet, mobilenet), 2-D for pictures and 1-D for signals. What each
costs is a sum over its blocks, which are timed once on this machine, or on a board, and kept; for microcontrollers
operations and bytes are counted instead (--engine none). Random networks are drawn, the most promising of every price
are trained, most of them for a few epochs; what came of these proposes the next. Those that no other beats are made
ready, scored and timed whole.

budgets, separated by commas:
  accuracy_drop<=0.01    most the metric may lose against the teacher (0.01 is one point); assumed if it is not given
  latency_ms<=0.01       predicted time of a call
  size_kb<=16            predicted size of the deployed file
  macs<=1e6              multiply-accumulates
  parameters<=1e4        weights and biases
  activation_kb<=32      peak memory of the activations

The output directory holds model/ (as deployed), trained/ (the same network in float32, for `farthing optimize`),
report.html, search.json, and with a teacher recipe.yaml.

Interrupted? Run the same command again: trials, checkpoints and times are kept. More --trials go on from those there
are. The same command in other terminals, with --join in place of --out, shares the trials.

example: farthing search work/task.yaml --teacher work/model --budget "accuracy_drop<=0.01, size_kb<=16" --out small
"""


def search_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing search``."""
    parser.epilog = EPILOG
    parser.add_argument("task", metavar="TASK", help=f"{options.TASK}; with a train split")
    parser.add_argument(
        "--teacher",
        metavar="MODEL",
        help="the model that does the work so far: it teaches, and accuracy is compared with it",
    )
    parser.add_argument(
        "--manifest",
        metavar="FILE",
        help="without a teacher: a manifest.json that says what networks take and give (default: read off arrays)",
    )
    parser.add_argument("--out", metavar="DIR", help="output directory: new, empty, or an earlier result")
    parser.add_argument(
        "--join", action="store_true", help="only take part in a search that runs in another terminal"
    )
    parser.add_argument("--budget", default=BUDGET, metavar="LIMITS", help="see below (default: %(default)s)")
    parser.add_argument(
        "--target",
        default="this",
        metavar="NAME",
        help="a board, a device, or a file (default: this machine)",
    )
    parser.add_argument(
        "--engine",
        default="",
        metavar="NAME",
        help="what runs the network; none counts operations (default: the fastest)",
    )
    parser.add_argument("--float", action="store_true", help="deploy in float32, not in int8")
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N", help="samples a call (default: %(default)s)"
    )
    parser.add_argument("--families", default="", metavar="NAME,NAME", help="which families (default: all)")
    parser.add_argument(
        "--prefer",
        choices=["speed", "accuracy"],
        default="speed",
        help="of what keeps the budget take the fastest, or the most accurate (default: %(default)s)",
    )
    parser.add_argument(
        "--trials", type=int, default=12, metavar="N", help="networks to train (default: %(default)s)"
    )
    parser.add_argument(
        "--hours",
        type=float,
        metavar="H",
        help="end after so many, as soon as one network is trained to its end; the same command goes on from there",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=27,
        metavar="N",
        help="of what is trained to the end (default: %(default)s)",
    )
    parser.add_argument(
        "--lr", type=float, default=5e-3, metavar="RATE", help="highest learning rate (default: %(default)s)"
    )
    parser.add_argument(
        "--augment",
        choices=["none", "affine", "flip", "jitter"],
        default="none",
        help="change samples anew in each epoch: affine, flip: pictures; jitter: signals (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of search and training (default: %(default)s)"
    )
    options.add_json(parser)


def search(parsed: argparse.Namespace) -> int:
    """Run ``farthing search``."""
    from farthing.cli.searching import place
    from farthing.errors import ConfigError
    from farthing.forge.search.job import find

    if bool(parsed.out) == parsed.join:
        raise ConfigError(
            "give --out DIR for what is found, or --join to take part in a search of another terminal"
        )
    wanted = _options(parsed)
    teachers = [parsed.teacher] if parsed.teacher else []
    task = options.open_task(parsed.task, *teachers)
    teacher = options.open_model(parsed.teacher, task, keep=False) if parsed.teacher else None
    with place(parsed.target, ()) as (machine, target), show.progress(parsed.json) as listener:
        found = find(
            task,
            parsed.out,
            teacher=teacher,
            manifest=_manifest(parsed.manifest),
            target=target,
            options=wanted,
            machine=machine,
            cache=options.cache_directory(),
            listener=listener,
            command=shlex.join(["farthing", *sys.argv[1:]]),
        )
    if found is None:
        return 0
    _print(found, parsed)
    return 0 if found.met else 1


def _options(parsed: argparse.Namespace) -> SearchArchitecture:
    from farthing.config import convert
    from farthing.forge.search.architecture import SearchArchitecture
    from farthing.forge.search.estimate import parse_limits

    drop, limits = parse_limits(parsed.budget)
    given = {
        "engine": parsed.engine,
        "number": "float32" if parsed.float else "int8",
        "batch": parsed.batch,
        "families": list(options.names(parsed.families)),
        "prefer": parsed.prefer,
        "trials": parsed.trials,
        "hours": parsed.hours,
        "accuracy_drop": 0.01 if drop is None else drop,
        "limits": limits,
        "schedule": {
            "epochs": parsed.epochs,
            "lr": parsed.lr,
            "augment": parsed.augment,
            "seed": parsed.seed,
        },
    }
    return convert(given, SearchArchitecture, "the command line")


def _manifest(path: str | None) -> Manifest | None:
    from farthing.config import read
    from farthing.model import Manifest

    return None if path is None else read(Path(path), Manifest)


def _print(found: Found, parsed: argparse.Namespace) -> None:
    from farthing.config import plain
    from farthing.forge.search.words import prediction, rows

    if parsed.json:
        print(show.as_json({"event": "result", "directory": parsed.out, **plain(found)}))
        return
    heads, body = rows(found)
    print(show.table(heads, body, width=show.room()))
    for text in ("", found.sentence, prediction(found), *(f"Note: {note}" for note in found.notes)):
        print(text)
    print(f"\nReport: {Path(parsed.out) / 'report.html'}\nModel:  {Path(parsed.out) / 'model'}")
