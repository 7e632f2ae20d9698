"""``farthing bench``: one model in one engine in full, or several models, engines and thread counts in one race."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from farthing.cli import options, show

if TYPE_CHECKING:
    from farthing.bench import Compared, Rule, Tick
    from farthing.bench.machine import Machine
    from farthing.model import Model
    from farthing.options import EngineOptions
    from farthing.task import Task

EXAMPLES = """\
scenarios (MLPerf Inference):
  single-stream   the next sample when the last is answered; p90 counts
  multi-stream    queries of eight samples; p99 counts
  server          samples arrive at random and wait their turn; p99 with the waiting counts. Without --rate the
                  highest rate is found whose p99 stays within --bound
  offline         batches as fast as they are taken; samples a second count

examples:
  farthing bench best --task mnist-5k --scenario offline --batch 32
  farthing bench model.onnx best --engine onnxruntime,openvino --threads 1,2
  farthing bench best --on my-pi --scenario server --bound 20
"""


def bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing bench``."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "model", nargs="+", help="model directory, zip, output of a search, or model file; several are raced"
    )
    parser.add_argument(
        "--task", metavar="T", help="run on its samples; without one on random numbers (timing only)"
    )
    parser.add_argument(
        "--scenario",
        choices=["single-stream", "multi-stream", "server", "offline"],
        default="single-stream",
        help="see below (default: %(default)s)",
    )
    parser.add_argument(
        "--batch", type=int, default=32, metavar="N", help="samples a call, offline (default: %(default)s)"
    )
    parser.add_argument("--rate", type=float, metavar="R", help="queries a second to offer, server")
    parser.add_argument(
        "--bound",
        type=float,
        default=15.0,
        metavar="MS",
        help="limit of p99, server (default: %(default)s ms)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="threads that answer, server (default: %(default)s)",
    )
    parser.add_argument(
        "--min-count", type=int, default=200, metavar="N", help="least timed calls (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="least seconds (default: %(default)s)"
    )
    parser.add_argument(
        "--no-memory", action="store_true", help="skip the child process that measures peak memory"
    )
    parser.add_argument(
        "--on",
        default="this",
        metavar="NAME",
        help="where: a board of `farthing target` (default: this machine)",
    )
    parser.add_argument(
        "--engine",
        default="",
        metavar="NAME,NAME",
        help="engine (default: the first that runs the format); several are raced",
    )
    parser.add_argument(
        "--threads",
        default="1",
        metavar="N,N",
        help="threads one inference may use (default: 1); several are raced",
    )
    options.add_ways(parser)
    options.add_json(parser)


def bench(parsed: argparse.Namespace) -> int:
    """Run ``farthing bench``."""
    from farthing.bench.remote import find_machine
    from farthing.cli.boards import tell
    from farthing.recipe import Progress

    rule = _rule(parsed)
    task = options.open_task(parsed.task, *parsed.model) if parsed.task else None
    models = [options.open_model(path, task) for path in parsed.model]
    entrants = _entrants(parsed, models)
    with (
        find_machine(parsed.on, options.boards_directory(), tell) as machine,
        show.progress(False, quiet=parsed.json) as listener,
    ):

        def tick(done: int, total: int) -> None:
            listener(Progress(stage="bench", text="timing", done=done, total=total))

        if len(entrants) == 1:
            text = _alone(parsed, *entrants[0], task, rule, machine, tick)
        else:
            text = _raced(parsed, entrants, task, rule, machine, tick)
    print(text)
    if task is None and not parsed.json:
        print("inputs         random numbers: fit for timing, not for accuracy (give --task for real ones)")
    return 0


def _rule(parsed: argparse.Namespace) -> Rule:
    from farthing.bench import Rule
    from farthing.errors import ConfigError

    if parsed.batch < 1 or parsed.min_count < 1 or not 0 <= parsed.seconds < 3600:
        raise ConfigError("--batch and --min-count are at least 1, --seconds from 0 to 3600")
    if not parsed.bound > 0 or parsed.workers < 1:
        raise ConfigError("--bound is above 0, --workers at least 1")
    most = max(60.0, 4 * parsed.seconds)
    return Rule(min_count=parsed.min_count, min_seconds=parsed.seconds, max_seconds=most)


def _entrants(parsed: argparse.Namespace, models: Sequence[Model]) -> list[tuple[Model, str, EngineOptions]]:
    """Every model in every engine named, with every thread count."""
    from farthing.options import make_options

    engines, counts = options.names(parsed.engine) or ("",), options.counts(parsed.threads) or (1,)
    if parsed.on == "this":
        options.mind_cores(counts)
    return [
        (model, engine, make_options(threads, parsed.spin, parsed.provider, parsed.precision))
        for model, engine, threads in product(models, engines, counts)
    ]


def _alone(
    parsed: argparse.Namespace,
    model: Model,
    engine: str,
    how: EngineOptions,
    task: Task | None,
    rule: Rule,
    machine: Machine,
    tick: Tick,
) -> str:
    from farthing.bench import bench as measure
    from farthing.bench import bench_server

    if parsed.scenario == "server":
        found = bench_server(
            model, rate=parsed.rate, bound_ms=parsed.bound, workers=parsed.workers, engine=engine, options=how,
            task=task, rule=rule, memory=not parsed.no_memory, machine=machine, tick=tick,
        )  # fmt: skip
    else:
        found = measure(
            model, scenario=parsed.scenario.replace("-", "_"), engine=engine, options=how, task=task,
            batch=parsed.batch, rule=rule, memory=not parsed.no_memory, machine=machine, tick=tick,
        )  # fmt: skip
    return show.as_json(found) if parsed.json else show.measurement(found)


def _raced(
    parsed: argparse.Namespace,
    entrants: Sequence[tuple[Model, str, EngineOptions]],
    task: Task | None,
    rule: Rule,
    machine: Machine,
    tick: Tick,
) -> str:
    from farthing.bench import compare_engines

    found = compare_engines(
        entrants,
        scenario=parsed.scenario.replace("-", "_"),
        task=task,
        batch=parsed.batch,
        rule=rule,
        machine=machine,
        tick=tick,
    )
    if parsed.json:
        return "\n".join(show.as_json(one) for one in found)
    models = list({id(model): model for model, _, _ in entrants}.values())
    words = _words(parsed.model, models)
    return _table([word for word in words for _ in range(len(entrants) // len(words))], found)


def _words(paths: Sequence[str], models: Sequence[Model]) -> list[str]:
    """What tells models apart: their names, or what was typed where two have the same."""
    names = [model.manifest.name for model in models]
    return names if len(set(names)) == len(names) else list(paths)


def _table(names: Sequence[str], found: Sequence[Compared]) -> str:
    rows = [
        [
            name,
            one.measurement.engine,
            str(one.measurement.options),
            show.megabytes(one.measurement.size_mb),
            show.milliseconds(one.measurement.p50_ms),
            show.milliseconds(one.measurement.p90_ms),
            show.milliseconds(one.measurement.p99_ms),
            f"{one.measurement.throughput:,.0f}",
            show.interval(one.ratio, unit="x") if one.ratio else "-",
            one.verdict if one.ratio else "compared with",
        ]
        for name, one in zip(names, found, strict=True)
    ]
    head = ["model", "engine", "options", "size", "p50", "p90", "p99", "samples/s", "speed", "verdict"]
    first = found[0].measurement
    title = f"{first.scenario}, batch {first.batch}, interleaved, on {first.machine}"
    return f"{title}\n{show.table(head, rows, ('size', 'p99', 'p90'), show.room())}"
