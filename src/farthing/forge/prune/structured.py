"""Structured pruning: the least important channels are taken out, and what is left is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farthing.bench.feeding import batch_size
from farthing.errors import ConfigError, UnsupportedError
from farthing.forge.prune import narrowing
from farthing.forge.prune.channels import Channels, Coupling, Importance
from farthing.forge.trainable import Trainable, trainable
from farthing.forge.training.loop import train
from farthing.forge.training.losses import loss_of
from farthing.forge.training.samples import CHUNK, Batch, Samples
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.recipe import PassSection, Progress
from farthing.target import Target
from farthing.task import Task

Array = NDArray[Any]
MEASURED = 512  # training samples that statistics of batch normalization are measured on
GRADIENTS = 1024  # training samples that gradients are taken from


class StructuredPrune(PassSection, frozen=True, kw_only=True):
    """Take out channels of convolutions and neurons of dense layers; the file and its layers get smaller.

    Which channels go together is found by following them through the graph (`farthing.forge.prune.labels`); which go
    first, by their importance. How wide each layer stays is decided

    - by ``latency``, where it is given: layers are narrowed step by step, each time the one that loses the least
      importance for the time it saves, measured on the machine (after NetAdapt, Yang et al. 2018,
      https://arxiv.org/abs/1804.03230), until the network takes that share of its time;
    - else by ``ratio``, with all channels ranked together or in each layer.

    Both are planned once: the widths stand in the recipe, and a replay measures nothing.

    Attributes:
        ratio: share of the channels to take out, 0..1.
        latency: share of the time for one batch to be left, 0..1; None goes by ``ratio``.
        engine: what runs the network when it is timed for ``latency``; empty takes the first that opens ONNX.
        importance: ``l1``, ``l2``, ``bn`` or ``taylor``, see `farthing.forge.prune.channels.Channels.importance`.
        ranking: ``global`` ranks the channels of all layers together, ``layer`` those of each for themselves.
        multiple: widths are rounded to multiples of this, which engines compute fastest.
        least: share of its channels that every layer keeps.
        widths: node name -> channels that stay; filled in by planning.
        rounds: in how many steps the channels go, with training after each.
        schedule: of the last training; earlier ones take a quarter of its epochs.
        norms: train with batch normalization where the file has none, folded away again afterwards.
    """

    reads: ClassVar[tuple[str, ...]] = ("train", "calibration")
    libraries: ClassVar[tuple[str, ...]] = ("torch", "onnx")

    ratio: float = 0.5
    latency: float | None = None
    engine: str = ""
    importance: Importance = "l2"
    ranking: Literal["global", "layer"] = "global"
    multiple: int = 8
    least: float = 0.1
    widths: dict[str, int] = {}
    rounds: int = 1
    schedule: Schedule = Schedule(epochs=10, lr=2e-3)
    norms: bool = True

    def __post_init__(self) -> None:
        for name in ("ratio", "latency", "least"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"{name} is a share from 0 to below 1, not {value}")
        for name in ("multiple", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is a whole number from 1, not {getattr(self, name)}")
        for node, width in self.widths.items():
            if width < 1:
                raise ConfigError(f"node {node!r} keeps a channel at least, not {width}")

    def planned(self, model: Model, target: Target, task: Task, workshop: Workshop) -> StructuredPrune:
        """The same with the widths filled in; see the class."""
        if self.widths:
            return self
        channels = Channels(model)
        known, scores = channels.couplings, self._scores(channels, task)
        floors = {name: self._floor(one) for name, one in known.items()}
        if self.latency is None:
            widths = self._ranked(known, scores, floors)
        else:
            wanted = narrowing.Wanted(self.latency, self.engine, self.multiple)
            widths = narrowing.narrowed(channels, scores, floors, wanted, workshop)
        if all(widths[name] == one.width for name, one in known.items()):
            raise UnsupportedError(
                f"{model.manifest.name} has no layer left to narrow: its layers keep multiples of {self.multiple} "
                f"and a share of {self.least:g} at least; ask for a larger ratio, or a smaller multiple"
            )
        return msgspec.structs.replace(self, widths=widths)

    def within(self, workshop: Workshop) -> _Work:
        """The pass with progress, and with training that goes on after a kill."""
        return _Work(self, workshop)

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError for a network that cannot be pruned, TaskError for data that do not serve."""
        return self.within(Workshop())(model, target, task)

    def _scores(self, channels: Channels, task: Task) -> dict[str, Array]:
        """The importance of each channel."""
        if self.importance != "taylor":
            return channels.importance(self.importance)
        return channels.importance(self.importance, _gradients(trainable(channels.model), task))

    def _floor(self, one: Coupling) -> int:
        """The fewest channels to leave."""
        unit = _unit(one, self.multiple)
        return min(one.width, max(one.least, unit, -(-int(one.width * self.least) // unit) * unit))

    def _ranked(
        self, known: Mapping[str, Coupling], scores: Mapping[str, Array], floors: Mapping[str, int]
    ) -> dict[str, int]:
        """Widths by importance, rounded to the nearest multiple."""
        every = np.sort(np.concatenate([*scores.values()]))
        edge = every[int(len(every) * self.ratio)]
        widths = {}
        for name, one in known.items():
            kept = one.width * (1 - self.ratio)
            if self.ranking == "global":
                kept = one.least + one.step * float((scores[name] >= edge).sum())
            unit = _unit(one, self.multiple)
            widths[name] = min(one.width, max(floors[name], round(kept / unit) * unit))
        return widths


class _Work:
    def __init__(self, options: StructuredPrune, workshop: Workshop) -> None:
        self._options, self._workshop = options, workshop

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        options = self._options.planned(model, target, task, self._workshop)
        before = {name: one.width for name, one in Channels(model).couplings.items()}
        pruned = model
        for number in range(1, options.rounds + 1):
            widths = {
                name: width + (before.get(name, width) - width) * (options.rounds - number) // options.rounds
                for name, width in options.widths.items()
            }
            pruned = self._round(pruned, task, widths, number)
        if pruned.size_bytes >= model.size_bytes:
            raise UnsupportedError(
                f"pruning {model.manifest.name} gave {pruned.size_bytes} bytes, no fewer than its {model.size_bytes}"
            )
        return pruned

    def _round(self, model: Model, task: Task, widths: Mapping[str, int], number: int) -> Model:
        """Take channels out and train on."""
        options, samples = self._options, Samples(task, model.manifest)
        text = f"pruning {model.manifest.name}, {number} of {options.rounds}: {_words(widths)}"
        self._workshop.listener(Progress(stage="train", text=text))
        channels = Channels(model)
        smaller, left = channels.without(widths, options._scores(channels, task))
        made = trainable(smaller)
        if options.norms:
            _insert_norms(made, trainable(model), left, samples)
        schedule = options.schedule
        if number < options.rounds:
            schedule = msgspec.structs.replace(schedule, epochs=max(1, schedule.epochs // 4))
        loss = loss_of(task, model.manifest)
        train(made.module, samples, loss, schedule, workshop=self._workshop.part(f"round-{number}"))
        return made.to_model()


def _spread(samples: Samples, count: int) -> Iterator[Batch]:
    """Some samples from all over the split: data are often sorted by class."""
    picks = torch.linspace(0, len(samples) - 1, min(count, len(samples))).round().long()
    size = batch_size(samples.manifest, CHUNK)
    for part in torch.split(picks, size):
        if len(part) == size or len(picks) < size:
            yield samples.batch(part)


def _inputs(samples: Samples) -> Iterator[tuple[Tensor, ...]]:
    """Some training samples as a module takes them."""
    return (batch.inputs for batch in _spread(samples, MEASURED))


def _insert_norms(made: Trainable, before: Trainable, left: Mapping[str, Array], samples: Samples) -> None:
    """Batch normalization for a network that lost channels, that gives those that are left the mean and spread that
    they had before: what the others gave them is missing.
    """
    before.insert_norms(_inputs(samples))
    made.insert_norms(_inputs(samples))
    for node, layer in made.layers.items():
        if layer in made.norms and layer in before.norms and node in left:
            new: Any = made.module.get_submodule(made.norms[layer])
            old: Any = before.module.get_submodule(before.norms[layer])
            picks = torch.from_numpy(left[node])
            with torch.no_grad():
                new.weight.copy_(old.weight[picks])
                new.bias.copy_(old.bias[picks])


def _gradients(made: Trainable, task: Task) -> dict[str, Array]:
    """The gradients of the loss over some training samples, by the names of the stored tensors."""
    samples = Samples(task, made.model.manifest)
    loss = loss_of(task, made.model.manifest)
    for batch in _spread(samples, GRADIENTS):
        torch.autograd.backward(loss(made.module(*batch.inputs), batch))
    return made.gradients()


def _unit(one: Coupling, multiple: int) -> int:
    """The steps in which a width may change."""
    return multiple if multiple % one.step == 0 else one.step * multiple


def _words(widths: Mapping[str, int]) -> str:
    shown = [f"{name} {width}" for name, width in [*widths.items()][:3]]
    return ", ".join([*shown, *(["..."] if len(widths) > 3 else [])])
