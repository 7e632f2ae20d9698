"""Structured pruning: the least important channels are taken out, and what is left is trained on."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from farthing.errors import ConfigError
from farthing.forge.training.passes import TrainingPass
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

Importance = Literal["l1", "l2", "bn", "taylor"]


class StructuredPrune(TrainingPass, frozen=True, kw_only=True):
    """Take out channels of convolutions and neurons of dense layers; the file and its layers get smaller.

    Which channels go together is found by following them through the graph (`farthing.forge.prune.labels`); which go
    first, by their importance. How wide each layer stays is decided

    - by ``latency``, where it is given: layers are narrowed step by step, each time those that lose the least
      importance for the time they save, measured on the machine (after NetAdapt, Yang et al. 2018,
      https://arxiv.org/abs/1804.03230), until the network takes that share of its time;
    - else by ``ratio``, with all channels ranked together or in each layer.

    Both are planned once: the widths stand in the recipe, and a replay measures nothing. A network that measures slower
    with its narrower layers is refused.

    Attributes:
        ratio: share of the channels to take out, 0..1.
        latency: share of the time for one sample to be left, 0..1; None goes by ``ratio``.
        engine: what runs the network when it is timed; empty takes the first that opens ONNX.
        importance: ``l1``, ``l2``, ``bn`` or ``taylor``, see `farthing.forge.prune.channels.Channels.importance`.
        ranking: ``global`` ranks the channels of all layers together, ``layer`` those of each for themselves.
        multiple: widths are rounded to multiples of this, which engines compute fastest.
        least: share of its channels that every layer keeps.
        widths: node name -> channels that stay; filled in by planning.
        rounds: in how many steps the channels go, with training after each: the last one as ``schedule`` says, earlier
            ones for a quarter of its epochs.
        norms: train with batch normalization where the file has none, folded away again afterwards.
    """

    schedule: Schedule = Schedule(epochs=10, lr=2e-3)
    ratio: float = 0.5
    latency: float | None = None
    engine: str = ""
    importance: Importance = "l2"
    ranking: Literal["global", "layer"] = "global"
    multiple: int = 8
    least: float = 0.1
    widths: dict[str, int] = {}
    rounds: int = 1
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
        """The same with the widths filled in."""
        from farthing.forge.prune.pruning import plan

        return self if self.widths else replace(self, widths=plan(self, model, target, task, workshop))

    def work(self, model: Model, target: Target, task: Task, workshop: Workshop) -> Model:
        """Raises UnsupportedError for a network that cannot be pruned, TaskError for data that do not serve."""
        from farthing.forge.prune.pruning import prune

        return prune(self.planned(model, target, task, workshop), model, task, workshop)
