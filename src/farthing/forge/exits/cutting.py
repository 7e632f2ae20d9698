"""A model that was trained with exits becomes a bundle of parts, with thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from farthing.bench import batch_size, first_feeds, outputs
from farthing.bundle import Bundle, Exits
from farthing.engines.base import open_engine
from farthing.errors import UnsupportedError
from farthing.forge import graph, macs
from farthing.forge.cut import cut
from farthing.forge.cut.flow import Flow
from farthing.forge.exits.thresholds import Held, chosen
from farthing.forge.exits.training import ExitTraining
from farthing.forge.training.losses import answers_of, understood
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.task import Task

Array = NDArray[Any]


class Parted(NamedTuple):
    """A bundle of exits, and what it is made of.

    Attributes:
        bundle: the parts, with the thresholds in its manifest.
        exits: the thresholds.
        costs: multiply-accumulates of a sample that leaves at each exit, one after the other.
    """

    bundle: Bundle
    exits: Exits
    costs: tuple[int, ...]


def parted(
    model: Model,
    options: ExitTraining,
    task: Task,
    path: Path,
    *,
    engine: str = "onnxruntime",
    settings: EngineOptions | None = None,
) -> Parted:
    """Choose thresholds on the validation split, unless the options have them, and cut the model at its exits.

    Args:
        model: that `exits.train.v1` made.
        options: of that pass.
        task: with a validation split.
        path: the bundle's directory.
        engine, settings: what runs the model meanwhile.

    Raises:
        TaskError: no validation split.
        UnsupportedError: no thresholds keep the accuracy, or the work of the model cannot be counted.
        StorageError: the bundle cannot be written.
    """
    split = task.split("validation")
    few = first_feeds(task, "validation", model.manifest)
    costs = costs_of(model, few)
    exits = Exits(
        measure=options.measure, thresholds=options.thresholds, scores=answers_of(understood(model))
    )
    if not exits.thresholds:
        with open_engine(model, engine, settings) as opened:
            found = outputs(opened, model.manifest, task, split)
        scores = [found[name] for name in in_order(model)]
        labels = np.asarray(split.labels)
        held = Held(scores, labels, split.groups)
        exits = chosen(held, exits, task.metric, options.accuracy_drop, options.certainty)
    early = in_order(model)[:-1]
    made = cut(model, path, at=early, exits=exits, feeds=few, engine=engine, options=settings)
    return Parted(made.bundle, exits, costs)


def in_order(model: Model) -> list[str]:
    """The scores of each exit, the last one at the end; it is the first output."""
    last, *early = (spec.name for spec in model.manifest.outputs)
    return [*early, last]


def costs_of(model: Model, fed: Mapping[str, Array]) -> tuple[int, ...]:
    """Multiply-accumulates of one sample up to each exit, seen in a run on one, or on as many as the batch is fixed at.

    Raises:
        UnsupportedError: they cannot be counted.
    """
    proto = graph.load(model.file)
    work, why = macs.by_node(proto, fed)
    if work is None:
        raise UnsupportedError(f"the work of {model.manifest.name} is not known: {why}")
    group = Flow(proto).ancestors([[name] for name in in_order(model)[:-1]])
    sums = [0] * len(model.manifest.outputs)
    for node, number in group.items():
        sums[number] += work.get(node, 0)
    return tuple((np.cumsum(sums) // batch_size(model.manifest, 1)).tolist())
