"""``farthing optimize``, ``farthing demo``, ``farthing cache`` and ``farthing plugins``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from farthing.cli import options, show
from farthing.plugins import BUILTIN

if TYPE_CHECKING:
    from farthing.bench.machine import Machine
    from farthing.target import Target

BUDGET = "accuracy_drop<=0.01"
BUDGETS = """\
budgets, separated by commas:
  accuracy_drop<=0.01    most the task's metric may lose (0.01 is one point); assumed if no accuracy limit is given
  accuracy_min>=0.9      least value of the metric
  latency_ms<=5          p90, single stream, batch 1, engine only, on this machine
  throughput_min>=1000   samples a second, offline
  size_mb<=1             model files, 10^6 bytes
  peak_memory_mb<=100    a process that loads and runs it
  energy_mj<=2           an inference; needs a machine with a meter

efforts:
  quick      fuses and quantizes; nothing is trained
  normal     also takes channels out, trains in 8 bits where quantization alone loses too much, and teaches a small
             student: some five minutes of training; not even that if what is cheaper keeps a budget that limits more
             than accuracy
  thorough   takes channels out as far as that goes and searches the student's architecture: up to an hour of training
Training needs a train split in the task, and the model's ONNX file alone.

The output directory holds model/ (with a stand-alone predict.py), report.html, recipe.yaml and result.json.
Interrupted? Run the same command again: what was done is kept. The same search once more takes seconds.

example: farthing optimize work/model --task work/task.yaml --budget "accuracy_drop<=0.01, size_mb<=1" --out best
"""

SEARCHING = {
    "effort": None, "budget": None, "target": "this", "engine": "", "threads": "", "allow_slower": False, "again": False
}  # fmt: skip
"""What only a search heeds, with what it is if it is not given."""


def optimize_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing optimize``."""
    parser.epilog = BUDGETS
    parser.add_argument("model", help="model directory, zip, or model file: the baseline")
    options.add_task(parser)
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="output directory: new, empty, or an earlier result"
    )
    parser.add_argument(
        "--target",
        default="this",
        metavar="NAME",
        help="a board of `farthing target`, which then measures; a device of `farthing targets`; or a file that "
        "describes one (default: this machine)",
    )
    parser.add_argument(
        "--effort",
        choices=("quick", "normal", "thorough"),
        help="how far to go: see below (default: quick)",
    )
    parser.add_argument("--budget", metavar="LIMITS", help=f"see below (default: {BUDGET})")
    parser.add_argument(
        "--engine",
        default="",
        metavar="NAME,NAME",
        help="engines that may run the candidates (default: all that are installed and fit the target)",
    )
    parser.add_argument(
        "--threads", default="", metavar="N,N", help="thread counts to try (default: 1 and all cores)"
    )
    parser.add_argument(
        "--allow-slower", action="store_true", help="let a slower model win if the budget asks for it"
    )
    parser.add_argument("--again", action="store_true", help="measure again, even what is cached")
    parser.add_argument(
        "--recipe",
        metavar="FILE",
        help="make the artefact of a recipe.yaml again; measures nothing, so takes none of the options above but "
        "--task and --out",
    )
    options.add_json(parser)


def optimize(parsed: argparse.Namespace) -> int:
    """Run ``farthing optimize``."""
    from farthing.forge.optimize import optimize as search

    if parsed.recipe:
        return _replay(parsed)
    command = shlex.join(["farthing", *sys.argv[1:]])
    task = options.open_task(parsed.task, parsed.model)
    model = options.open_model(parsed.model, task, keep=False)
    counts = options.counts(parsed.threads)
    with place(parsed.target, counts) as (machine, target), show.progress(parsed.json) as listener:
        result = search(
            model,
            task,
            target,
            BUDGET if parsed.budget is None else parsed.budget,
            Path(parsed.out),
            engines=options.names(parsed.engine),
            threads=counts,
            effort=parsed.effort or "quick",
            allow_slower=parsed.allow_slower,
            cache=options.cache_directory(),
            measure_again=parsed.again,
            machine=machine,
            listener=listener,
            command=command,
        )
    if parsed.json:
        print(show.as_json({"event": "result", "directory": str(result.directory), **_plain(result.summary)}))
    else:
        print(show.summary(result.summary))
        print(f"\nReport: {result.directory / 'report.html'}\nModel:  {result.directory / 'model'}")
    return 0 if result.met else 1


def _plain(summary: object) -> dict[str, object]:
    from farthing.config import plain

    return dict(plain(summary))


@contextmanager
def place(name: str, threads: Sequence[int]) -> Iterator[tuple[Machine, Target]]:
    """Where candidates are measured and what they are for: a board measures itself, other targets are descriptions."""
    from farthing.bench.remote import Boards, find_machine
    from farthing.cli.boards import tell
    from farthing.target import THIS, Target

    boards = options.boards_directory()
    own = name in Boards(boards).names()
    target = None if own else Target.find(name)
    if not own:
        options.mind_cores(threads)
    with find_machine(name if own else THIS, boards, tell) as machine:
        yield machine, target or machine.target


def _replay(parsed: argparse.Namespace) -> int:
    from farthing.errors import ConfigError, StorageError
    from farthing.forge.cache import Cache
    from farthing.forge.inspect import inspect
    from farthing.forge.replay import read_recipe, replay

    for name, empty in SEARCHING.items():
        if getattr(parsed, name) != empty:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"--recipe makes an artefact as recorded, and searches nothing: leave {option} out"
            )
    out = Path(parsed.out)
    if out.exists() and any(out.iterdir()):
        raise StorageError(f"{out} is not empty: a replay writes a model into a new directory")
    recipe = read_recipe(Path(parsed.recipe))
    task = options.open_task(parsed.task, parsed.model)
    model = options.open_model(parsed.model, task, keep=False)
    with show.progress(parsed.json) as listener:
        made = replay(recipe, model, task, Cache(options.cache_directory()), listener=listener)
    made.save(out / "model")
    inside = inspect(made, run=False)
    if parsed.json:
        facts = {"event": "result", "directory": str(out), "digest": made.digest, "recorded": recipe.artefact}
        sizes = {"bytes": inside.size_bytes, "zipped_bytes": inside.zipped_bytes, "zeros": inside.zeros}
        print(show.as_json({**facts, **sizes}))
        return 0
    same = ", as recorded" if made.digest == recipe.artefact else ""
    other = f", as accurate as {recipe.artefact[:12]}, which was recorded" if recipe.artefact else ""
    print(f"{out / 'model'}: {made.digest}{same or other}")
    print(f"size: {show.sizes(inside.size_bytes, inside.zipped_bytes)}{show.zeros(inside.zeros)}")
    return 0


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing demo``."""
    parser.add_argument(
        "--out", default="farthing-demo", metavar="DIR", help="output directory (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the training (default: %(default)s)"
    )
    options.add_json(parser)


def demo(parsed: argparse.Namespace) -> int:
    """Run ``farthing demo``."""
    from farthing.apps.demo import run
    from farthing.errors import ConfigError

    if parsed.seed < 0:
        raise ConfigError(f"--seed is a whole number from 0, not {parsed.seed}")
    with show.progress(parsed.json) as listener:
        shown = run(Path(parsed.out), cache=options.cache_directory(), seed=parsed.seed, listener=listener)
    if parsed.json:
        print(show.as_json({"event": "result", **_plain(shown.result.summary)}))
        return 0 if shown.result.met else 1
    print(show.summary(shown.result.summary))
    print("\nPredictions of the optimised model on test pictures it has never seen:")
    rows = [[name, truth, f"{label} ({score:.2f})"] for name, truth, label, score in shown.predictions]
    print(show.table(["picture", "truth", "predicted"], rows))
    print(f"\nReport: {shown.result.directory / 'report.html'}")
    print(f"Try:    farthing predict {shown.result.directory} {shown.pictures[0]}")
    print("demo: " + ("the budget is met" if shown.result.met else "the budget is not met"))
    return 0 if shown.result.met else 1


def cache_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing cache``."""
    parser.add_argument("--clear", action="store_true", help="remove the results of passes and measurements")


def cache(parsed: argparse.Namespace) -> int:
    """Run ``farthing cache``."""
    from farthing.forge.cache import Cache

    kept = Cache(options.cache_directory())
    if parsed.clear:
        kept.clear()
    print(f"{kept.root}: {show.megabytes(kept.size_bytes() / 1e6)}")
    return 0


def plugins_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing plugins``."""
    groups = ", ".join(f"farthing.{kind}" for kind in BUILTIN)
    parser.epilog = f"Packages add their own under the entry points {groups}."


def plugins(parsed: argparse.Namespace) -> int:
    """Run ``farthing plugins``."""
    from farthing.plugins import names

    for kind in BUILTIN:
        print(f"{kind:<8} {', '.join(names(kind))}")
    return 0
