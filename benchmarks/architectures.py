"""How far architecture search can be trusted: predicted and measured times, proxies and trained accuracy."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch

from farthing.apps.demo import manifest as of_mnist
from farthing.bench.machine import Here
from farthing.config import Section
from farthing.forge.families import Architecture, Shape
from farthing.forge.search.deployment import Deployment, Number
from farthing.forge.search.described import described
from farthing.forge.search.estimate import Estimator
from farthing.forge.search.lookup import Entry, Lookup, Piece
from farthing.forge.search.proxies import PROXIES, score
from farthing.forge.search.space import Space
from farthing.forge.search.validation import Validation
from farthing.forge.training import standin
from farthing.forge.training.distillation import Distillation
from farthing.forge.training.losses import loss_of
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.target import Target
from farthing.task import find_task
from harness import table
from harness.table import Bar, Row

MOST_MACS = 3e6
PARTS = 4
CHOSEN = "synflow"  # what a search uses unless told otherwise; the others are there to compare with
PICTURE, SIGNAL = (1, 28, 28), (6, 100)


class Setting(Section, frozen=True, kw_only=True):
    """How much is measured: networks that are timed whole, networks that are trained, and their epochs."""

    timed: int = 12
    trained: int = 40
    epochs: int = 4


def drawn(shape: Shape, outputs: int, count: int) -> list[Architecture]:
    """Random networks of all families that a small device would run."""
    estimator, space = Estimator(shape, outputs), Space.of(shape)
    every = (space.random(seed) for seed in range(100_000))
    small = (one for one in every if estimator.counted(one).macs <= MOST_MACS)
    return [one for one, _ in zip(small, range(count), strict=False)]


def tau(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's rank correlation: pairs in the same order less pairs in the other, over all that differ (tau-b)."""
    a, b = (
        np.sign(np.subtract.outer(x, x))[np.triu_indices(len(x), 1)] for x in map(np.asarray, (one, other))
    )
    return float((a * b).sum() / np.sqrt((a != 0).sum() * (b != 0).sum()))


def prices(engine: str, number: Number, shape: Shape, batch: int, setting: Setting) -> list[Row]:
    """The sum over a network's blocks against the network timed whole."""
    entry: Entry = "picture" if len(shape) == 3 else "tensor"
    deployment = Deployment(engine=engine, number=number)
    look = Lookup(deployment, Here(), Target.detect(), batch=batch, entry=entry)
    nets = [one.blocks(shape, 10) for one in drawn(shape, 10, setting.timed)]
    found = [look.price(blocks, shape) for blocks in nets]
    whole = look.measured([Piece(blocks=blocks, shape=shape, entry=entry) for blocks in nets])
    times = [a.milliseconds / b.milliseconds - 1 for a, b in zip(found, whole, strict=True)]
    sizes = [a.size_bytes / b.size_bytes - 1 for a, b in zip(found, whole, strict=True)]
    order = tau([one.milliseconds for one in found], [one.milliseconds for one in whole])
    what = f"{engine} {number}, {'pictures' if len(shape) == 3 else 'signals'}, batch {batch}"
    note = (
        f"median error of the time in %; {100 * max(map(abs, times)):.0f} % at most, sizes "
        f"{100 * max(map(abs, sizes)):.0f} % at most; rank correlation {order:.2f}"
    )
    bar = Bar(figure="ours", sign="<=", value=5 if engine == "litert" else 50)
    return [Row(case=f"price in {what}", ours=100 * median(map(abs, times)), bar=bar, note=note)]


def proxies(name: str, setting: Setting) -> list[Row]:
    """Scores of untrained networks against their accuracy after a short training."""
    task = find_task(name)
    samples = Samples(task, of_mnist(name, task) if task.form == "image" else described(task))
    validation, loss = Validation(task, samples.manifest, None), loss_of(task, samples.manifest)
    shape, outputs = standin.form(samples)
    nets = drawn(shape, outputs, setting.trained)
    batch = samples.batch(torch.arange(0, len(samples), max(1, len(samples) // 64))[:64])
    schedule = Schedule(epochs=setting.epochs, lr=5e-3)
    learned = [
        validation.score(standin.trained(one, samples, schedule, [], Distillation(), Workshop()))
        for one in nets
    ]
    costs = [Estimator(shape, outputs).counted(one) for one in nets]
    known: dict[str, list[float]] = {"parameters": [cost.parameters for cost in costs]}
    known["multiply-accumulates"] = [cost.macs for cost in costs]
    for proxy in PROXIES:
        known[proxy] = [score(proxy, standin.network(one, samples), batch, loss) for one in nets]
    bars = {what: Bar(figure="ours", sign=">=", value=0 if what == CHOSEN else -1) for what in known}
    parts = np.array_split(np.argsort(known["multiply-accumulates"]), PARTS)
    rows = []
    for what, values in known.items():
        alike = [tau([values[i] for i in part], [learned[i] for i in part]) for part in parts]
        note = (
            f"Kendall's tau over {len(nets)} networks, {setting.epochs} epochs; among those of a like size, "
        )
        note += f"{np.mean(alike):.2f}: the mean over {PARTS} parts by multiply-accumulates"
        rows.append(Row(case=f"{name}: {what}", ours=tau(values, learned), bar=bars[what], note=note))
    return rows


CASES: dict[str, Callable[[Setting], list[Row]]] = {
    "litert": functools.partial(prices, "litert", "int8", PICTURE, 1),
    "litert-32": functools.partial(prices, "litert", "int8", PICTURE, 32),
    "litert-signals": functools.partial(prices, "litert", "int8", SIGNAL, 1),
    "litert-float": functools.partial(prices, "litert", "float32", PICTURE, 1),
    "onnxruntime": functools.partial(prices, "onnxruntime", "int8", PICTURE, 1),
    "onnxruntime-float": functools.partial(prices, "onnxruntime", "float32", PICTURE, 1),
    "openvino": functools.partial(prices, "openvino", "int8", PICTURE, 1),
    "proxies-digits": functools.partial(proxies, "digits"),
    "proxies-mnist": functools.partial(proxies, "mnist-5k"),
    "proxies-watch": functools.partial(proxies, "watch"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a bar is not reached."""
    parser = table.parser("Predictions of architecture search against what was measured", list(CASES))
    parser.add_argument(
        "--quick", action="store_true", help="few networks: shows that it runs, the figures are rough"
    )
    parsed: argparse.Namespace = parser.parse_args(arguments)
    setting = Setting(timed=3, trained=4, epochs=1) if parsed.quick else Setting()
    measures = {name: functools.partial(case, setting) for name, case in CASES.items()}
    return table.run(
        measures, parsed.only, parsed.json, "few networks: rough figures" if parsed.quick else ""
    )


if __name__ == "__main__":
    sys.exit(main())
