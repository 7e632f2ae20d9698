"""The figures of compression: pruning, students and 8 bits on trained networks, and the effort `normal` on the demo's.

    python benchmarks/compress.py [--only CASE] [--json FILE] [--cache DIR] [--quick] [--seeds N]

Size is the deployed file against the smallest float file of any engine. Speed is the best float32 engine against the
deployed file in LiteRT, one thread, all in one interleaved race, compared by medians; float goes in and comes out, so
quantizing the input is in the time. Drops are differences on the test split, sample by sample, which nothing before has
looked at: the mean over seeds must keep the bar and each seed one and a half times of it. Networks and what recipes
make of them are kept in the cache directory, so that a second run only measures. Other tools are compared with by
`benchmarks/engines.py --only peers`.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # both before what they speak to is imported
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np

from farthing import bench
from farthing.bench import Rule
from farthing.bench.machine import Here
from farthing.bench.racing import Timed
from farthing.forge.optimize import optimize
from farthing.measure import Scenario
from farthing.options import EngineOptions
from harness import artefacts, compressing, table
from harness.artefacts import Setting
from harness.compressing import BATCH, CASES, ENGINE, Case
from harness.table import Bar, Row

QUICK = Rule(warmup=2, min_count=20, min_seconds=0.3, max_seconds=5.0)
TRIAL = "digits, pruned"
ONE = EngineOptions()


def rows(setting: Setting, name: str, seeds: int) -> list[Row]:
    """Size, speeds and drop of a recipe."""
    case = CASES[name]
    found = compressing.compressed(setting, name, 0)
    float_bytes = compressing.smallest(setting, found)
    made = [
        Row(
            case=f"{name}: size",
            ours=found.result.size_bytes / 1e3,
            unit="kB",
            limit=float_bytes / 4e3,
            ratio=float_bytes / found.result.size_bytes,
            bar=Bar(figure="ratio", sign=">=", value=case.bars.smaller),
            note=f"smallest float file {float_bytes / 1e3:.4g} kB; the limit is a byte for each weight of four",
        )
    ]
    for scenario, bar in (("offline", case.bars.offline), ("single_stream", case.bars.single)):
        if bar is not None:
            made.append(_speed(setting, name, found, scenario, bar))  # type: ignore[arg-type]
    return [*made, _drop(setting, name, case, min(seeds, case.seeds))]


def _speed(setting: Setting, name: str, found: compressing.Compressed, scenario: Scenario, bar: float) -> Row:
    floats = compressing.floats(setting, found)
    entrants = [*((model, engine, ONE) for engine, model in floats.items()), (found.result, ENGINE, ONE)]
    raced = bench.race_models(entrants, scenario, found.task, BATCH, setting.rule, Here())
    timed = [one for _, one in raced]
    medians = {engine: _milliseconds(one) for engine, one in zip(floats, timed[:-1], strict=True)}
    best = min(medians, key=lambda engine: medians[engine])
    over, own = timed[-1].over(timed[[*floats].index(best)]), timed[-1].over(timed[[*floats].index(ENGINE)])
    return Row(
        case=f"{name}: {'batches of 32' if scenario == 'offline' else 'single stream'}",
        ours=_milliseconds(timed[-1]),
        unit="ms",
        peers={f"{engine} float32": value for engine, value in medians.items()},
        ratio=over.value,
        low=over.low,
        high=over.high,
        bar=Bar(figure="ratio", sign=">=", value=bar),
        note=f"over {best} float32; over {ENGINE}'s own {own}",
    )


def _milliseconds(timed: Timed) -> float:
    return float(np.median(timed.calls)) * 1000


def _drop(setting: Setting, name: str, case: Case, seeds: int) -> Row:
    mean, each = compressing.drops(setting, name, seeds)
    points = 100 * mean.value
    worst = 100 * max(each)
    bar = case.bars.drop
    tells = (
        "" if 100 * mean.high <= bar or 100 * mean.low > bar else "; cannot tell: the interval holds the bar"
    )
    return Row(
        case=f"{name}: mean drop",
        ours=max(points, worst / 1.5),
        unit="points",
        low=100 * mean.low,
        high=100 * mean.high,
        bar=Bar(figure="ours", sign="<=", value=bar),
        note=f"mean {points:.3g} over {seeds} of {case.seeds} seeds ({_listed(each)}), worst {worst:.3g}{tells}",
    )


def _listed(each: Sequence[float]) -> str:
    return ", ".join(f"{100 * value:.3g}" for value in each)


def effort(setting: Setting, seeds: int) -> list[Row]:
    """`--effort normal` on the network of the demo, from nothing and again."""
    del seeds
    model, task = artefacts.baseline(setting, "cnn-mnist", 0), artefacts.data(setting, "cnn-mnist")
    spent: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        for _ in range(2):
            began = time.perf_counter()
            result = optimize(
                model, task, "this", out=Path(name) / "best", effort="normal", cache=Path(name) / "cache"
            )
            spent.append(time.perf_counter() - began)
    most = ((600.0, "from nothing"), (5.0, "from the cache"))
    return [
        Row(
            case=f"effort normal, {words}",
            ours=seconds,
            unit="s",
            bar=Bar(figure="ours", sign="<=", value=limit),
            note=result.summary.sentence,
        )
        for seconds, (limit, words) in zip(spent, most, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a bar is not reached."""
    parser = table.parser("Figures of compression", [*CASES, "effort"])
    parser.add_argument("--cache", type=Path, metavar="DIR", help="networks and results are kept here")
    parser.add_argument("--quick", action="store_true", help="short races: rough figures")
    parser.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="seeds of a case, at most (default 5)"
    )
    parsed: argparse.Namespace = parser.parse_args(arguments)
    given = {"cache": parsed.cache.resolve()} if parsed.cache else {}
    given |= {"rule": QUICK} if parsed.quick else {}
    setting = Setting(**given)
    measures: dict[str, Callable[[], list[Row]]] = {
        name: functools.partial(rows, setting, name, parsed.seeds) for name in CASES
    }
    measures["effort"] = functools.partial(effort, setting, parsed.seeds)
    only = parsed.only or [name for name in measures if name != TRIAL]
    remark = "short races: rough figures" if parsed.quick else ""
    return table.run(measures, only, parsed.json, remark)


if __name__ == "__main__":
    sys.exit(main())
