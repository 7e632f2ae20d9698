"""How wide each layer stays, and training what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from farthing.errors import UnsupportedError
from farthing.forge.prune import narrowing
from farthing.forge.prune.channels import Channels, Coupling
from farthing.forge.prune.structured import StructuredPrune
from farthing.forge.trainable import Trainable, trainable
from farthing.forge.training.loop import alone
from farthing.forge.training.losses import loss_of, understood
from farthing.forge.training.samples import Samples
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.recipe import Progress
from farthing.target import Target
from farthing.task import Task

Array = NDArray[Any]
GRADIENTS, AT_ONCE = 1024, 64  # training samples that gradients are taken from, and of how many one is


def plan(
    options: StructuredPrune, model: Model, target: Target, task: Task, workshop: Workshop
) -> dict[str, int]:
    """The width of each coupling, see `StructuredPrune`.

    Raises:
        UnsupportedError: a network that cannot be pruned, or not as far as asked for, or that is slower for it.
    """
    channels = Channels(model)
    known, scores = channels.couplings, _scores(options, channels, task)
    floors = {name: _floor(one, options) for name, one in known.items()}
    if options.latency is None:
        widths = _ranked(options, known, scores, floors)
    else:
        wanted = narrowing.Wanted(options.latency, options.engine, options.multiple)
        widths = narrowing.narrowed(channels, scores, floors, wanted, workshop)
    if all(widths[name] == one.width for name, one in known.items()):
        raise UnsupportedError(
            f"{model.manifest.name} has no layer left to narrow: its layers keep multiples of {options.multiple} "
            f"and a share of {options.least:g} at least; ask for a larger ratio, or a smaller multiple"
        )
    if options.latency is None and target.is_machine(workshop.machine.target):
        narrowing.check_time(channels, scores, widths, options.engine, workshop)
    return widths


def prune(options: StructuredPrune, model: Model, task: Task, workshop: Workshop) -> Model:
    """The network with the widths of the options, trained on; see `StructuredPrune`.

    Raises:
        UnsupportedError: a network that cannot be pruned, or that did not get smaller.
        TaskError: data that do not serve to train on.
    """
    before = {name: one.width for name, one in Channels(model).couplings.items()}
    pruned = model
    for number in range(1, options.rounds + 1):
        widths = {
            name: width + (before.get(name, width) - width) * (options.rounds - number) // options.rounds
            for name, width in options.widths.items()
        }
        pruned = _round(options, model, pruned, task, widths, number, workshop)
    if pruned.size_bytes >= model.size_bytes:
        raise UnsupportedError(
            f"pruning {model.manifest.name} gave {pruned.size_bytes} bytes, no fewer than its {model.size_bytes}"
        )
    return pruned


def _round(
    options: StructuredPrune,
    first: Model,
    model: Model,
    task: Task,
    widths: Mapping[str, int],
    number: int,
    workshop: Workshop,
) -> Model:
    """Take channels out of what rounds before this one have left of the first model, and train on."""
    samples = Samples(task, understood(model))
    text = f"pruning {model.manifest.name}, {number} of {options.rounds}: {_words(widths)}"
    workshop.listener(Progress(stage="train", text=text))
    channels = Channels(model)
    smaller, left = channels.without(widths, _scores(options, channels, task))
    made = trainable(smaller)
    if options.norms:
        _insert_norms(made, trainable(model), left, samples)
    schedule = options.schedule
    if number < options.rounds:
        schedule = replace(schedule, epochs=max(1, schedule.epochs // 4))
    replace(options, schedule=schedule).train(made, samples, first, workshop.part(f"round-{number}"))
    return made.to_model()


def _scores(options: StructuredPrune, channels: Channels, task: Task) -> dict[str, Array]:
    """The importance of each channel."""
    if options.importance != "taylor":
        return channels.importance(options.importance)
    return channels.importance(
        "taylor", _gradients(trainable(channels.model), task, options.schedule.threads)
    )


def _floor(one: Coupling, options: StructuredPrune) -> int:
    """The fewest channels to leave."""
    unit = narrowing.unit(one, options.multiple)
    return min(one.width, max(one.least, unit, -(-int(one.width * options.least) // unit) * unit))


def _ranked(
    options: StructuredPrune,
    known: Mapping[str, Coupling],
    scores: Mapping[str, Array],
    floors: Mapping[str, int],
) -> dict[str, int]:
    """Widths by importance, rounded to the nearest multiple."""
    every = np.sort(np.concatenate([*scores.values()]))
    edge = every[int(len(every) * options.ratio)]
    widths = {}
    for name, one in known.items():
        kept = one.width * (1 - options.ratio)
        if options.ranking == "global":
            kept = one.least + one.step * float((scores[name] >= edge).sum())
        unit = narrowing.unit(one, options.multiple)
        widths[name] = min(one.width, max(floors[name], round(kept / unit) * unit))
    return widths


def _insert_norms(made: Trainable, before: Trainable, left: Mapping[str, Array], samples: Samples) -> None:
    """Batch normalization for a network that lost channels, that gives those that are left the mean and spread that
    they had before: what the others gave them is missing.
    """
    for each in (before, made):
        each.insert_norms(batch.inputs for batch in samples.spread())
    for node, layer in made.layers.items():
        if layer in made.norms and layer in before.norms and node in left:
            new: Any = made.module.get_submodule(made.norms[layer])
            old: Any = before.module.get_submodule(before.norms[layer])
            picks = torch.from_numpy(left[node])
            with torch.no_grad():
                new.weight.copy_(old.weight[picks])
                new.bias.copy_(old.bias[picks])


def _gradients(made: Trainable, task: Task, threads: int) -> Iterator[dict[str, Array]]:
    """The gradients of the loss over some training samples, batch by batch, by the names of the stored tensors."""
    if task.metric.needs == "reference" and task.loss is None:
        raise UnsupportedError(
            f"importance taylor goes by the gradient of a loss, and metric {task.metric.name} compares with the model "
            "itself, which leaves none: use importance l2, or give the task a loss of its own"
        )
    samples = Samples(task, understood(made.model))
    loss = loss_of(task, samples.manifest)
    for batch in samples.spread(GRADIENTS, AT_ONCE):
        made.module.zero_grad()
        with alone(threads):
            torch.autograd.backward(loss(made.module(*batch.inputs), batch))
        yield made.gradients()


def _words(widths: Mapping[str, int]) -> str:
    shown = [f"{name} {width}" for name, width in [*widths.items()][:3]]
    return ", ".join([*shown, *(["..."] if len(widths) > 3 else [])])
