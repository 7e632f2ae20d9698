"""Masks over weights that grow while a network trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from farthing.errors import ConfigError, UnsupportedError
from farthing.forge.prune.unstructured import UnstructuredPrune
from farthing.forge.trainable import Trainable, trainable
from farthing.forge.trainable.norms import BACK
from farthing.forge.training.loop import Hook, Moment
from farthing.forge.training.losses import understood
from farthing.forge.training.samples import Samples
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.recipe import Progress
from farthing.task import Task

LOOKS = 50
TINY = 1e-30
"""Weights nearer to zero than this are: kernels take denormal numbers ten times as long."""
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *BACK)
SHOWN = 3


class Weight(NamedTuple):
    """Weights of a layer that may go.

    Attributes:
        layer: whose they are.
        name: of its parameter.
    """

    layer: nn.Module
    name: str = "weight"

    @property
    def tensor(self) -> Tensor:
        """The parameter as it is now."""
        found: Tensor = getattr(self.layer, self.name)
        return found

    @property
    def table(self) -> Tensor:
        """The same as a matrix, outputs by inputs; a view."""
        weight = self.tensor
        if isinstance(self.layer, BACK):
            weight = weight.movedim(1, 0)
        return weight.movedim(1, -1).flatten(1) if weight.ndim > 2 else weight

    def unfolded(self, kept: Tensor) -> Tensor:
        """Such a matrix as the weights lie."""
        weight = self.tensor
        if weight.ndim <= 2:
            return kept
        back = isinstance(self.layer, BACK)
        shape = list(weight.movedim(1, 0).shape if back else weight.shape)
        unfolded = kept.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
        return unfolded.movedim(0, 1) if back else unfolded


def zeroed(options: UnstructuredPrune, model: Model, task: Task, workshop: Workshop) -> Model:
    """The network trained on while weights go; see `UnstructuredPrune`.

    Raises:
        UnsupportedError: there are no layers to prune, or a pattern that none of them fits.
        TaskError: data that do not serve to train on.
    """
    samples = Samples(task, understood(model))
    made = trainable(model)
    weights = _weights(made, options, workshop)
    if options.norms:
        made.insert_norms(batch.inputs for batch in samples.spread())
    masks = Masks(options, weights)
    options.train(made, samples, model, workshop, [masks])
    masks.apply()
    _flush(made.module)
    return made.to_model()


def _weights(made: Trainable, options: UnstructuredPrune, workshop: Workshop) -> dict[str, Weight]:
    """Weights that may go, by the names of their nodes."""
    unknown = [name for name in options.skip if name not in made.layers]
    if unknown:
        raise UnsupportedError(
            f"{made.model.manifest.name} has no layer {unknown[0]!r} to skip: it has {', '.join(made.layers)}"
        )
    found: dict[str, Weight] = {}
    for node, place in made.layers.items():
        layer = made.module.get_submodule(place)
        if node not in options.skip and isinstance(layer, LAYERS):
            found[node] = Weight(layer)
        elif node not in options.skip and isinstance(layer, nn.RNNBase):
            names = [name for name, _ in layer.named_parameters() if name.startswith("weight")]
            found |= {f"{node}.{name}": Weight(layer, name) for name in names}
    fitting = {name: weight for name, weight in found.items() if _fits(weight.table, options)}
    if not fitting:
        what = f"whose weights fit the pattern {options.pattern}" if found else "with weights"
        raise UnsupportedError(f"{made.model.manifest.name} has no layer {what}: nothing can be pruned")
    if dense := [name for name in found if name not in fitting]:
        more = ", ..." if len(dense) > SHOWN else ""
        text = f"{len(dense)} of {len(found)} stay dense, their weights do not fit {options.pattern}: "
        workshop.listener(Progress(stage="train", text=text + ", ".join(dense[:SHOWN]) + more))
    return fitting


def _fits(table: Tensor, options: UnstructuredPrune) -> bool:
    if options.neighbours:
        return table.shape[1] % options.neighbours[1] == 0
    if options.block:
        return all(size % part == 0 for size, part in zip(table.shape, options.block, strict=True))
    return True


class Masks(Hook):
    """The share of zeros that a schedule asks for, kept at zero.

    Args:
        options: how many, when and which.
        weights: those that may go, by name.
    """

    def __init__(self, options: UnstructuredPrune, weights: Mapping[str, Weight]) -> None:
        self._options, self._weights = options, dict(weights)
        self._masks: dict[str, Tensor] = {}

    def start(self, moment: Moment) -> None:
        """See whether the training is long enough."""
        last = max(self._options.begin, self._options.end or 0)
        if last >= moment.steps:
            raise ConfigError(
                f"weights are to go in steps {self._options.begin} to {last}, and the training has {moment.steps} in "
                f"all (0..{moment.steps - 1}): lower `begin` and `end`, or train for more epochs"
            )

    def before_step(self, moment: Moment) -> None:
        """Look at the weights anew, when it is time."""
        begin = self._options.begin
        end = (moment.steps * 3) // 4 if self._options.end is None else self._options.end
        end = min(max(end, begin + 1), moment.steps - 1)
        every = self._options.frequency or max(1, (end - begin) // LOOKS)
        if moment.step == end:
            self._look(1.0)
        elif begin <= moment.step < end and (moment.step - begin) % every == 0:
            self._look((moment.step - begin) / (end - begin))

    def after_step(self, moment: Moment) -> None:
        """What is zero stays zero."""
        self.apply()

    def state(self) -> dict[str, Any]:
        return dict(self._masks)

    def restore(self, state: Mapping[str, Any]) -> None:
        self._masks = dict(state)

    @torch.no_grad()
    def apply(self) -> None:
        """Set what is masked to zero."""
        for name, mask in self._masks.items():
            self._weights[name].tensor.mul_(mask)

    @torch.no_grad()
    def _look(self, progress: float) -> None:
        options = self._options
        rising = 1 - (1 - progress) ** options.power
        share = options.initial + (options.final - options.initial) * rising
        scores = {name: _scores(weight.table, options) for name, weight in self._weights.items()}
        for name, kept in _kept(scores, options, share, rising).items():
            weight = self._weights[name]
            self._masks[name] = weight.unfolded(kept).to(weight.tensor.dtype)
        self.apply()


def _scores(table: Tensor, options: UnstructuredPrune) -> Tensor:
    """How much each weight matters: its magnitude, or that of its block, repeated over the block."""
    if not options.block:
        return table.abs()
    outs, ins = options.block
    blocks = table.abs().reshape(table.shape[0] // outs, outs, table.shape[1] // ins, ins)
    means = blocks.mean((1, 3), keepdim=True)
    return means.expand(blocks.shape).reshape(table.shape)


def _kept(
    scores: Mapping[str, Tensor], options: UnstructuredPrune, share: float, rising: float
) -> dict[str, Tensor]:
    """Which weights stay."""
    if options.neighbours:
        return {name: _of_neighbours(table, *options.neighbours, rising) for name, table in scores.items()}
    if options.ranking == "layer":
        return {name: _largest([table], share)[0] for name, table in scores.items()}
    return dict(zip(scores, _largest([*scores.values()], share), strict=True))


def _largest(tables: list[Tensor], share: float) -> list[Tensor]:
    """All but a share of the weights, the smallest; of equal ones (those of a block) all or none."""
    every = torch.cat([table.flatten() for table in tables])
    count = int(share * len(every))
    if not count:
        return [torch.ones_like(table, dtype=torch.bool) for table in tables]
    edge = every.kthvalue(count).values
    return [table > edge for table in tables]


def _of_neighbours(table: Tensor, left: int, of: int, rising: float) -> Tensor:
    """Of each run of neighbours the largest; as many go as the schedule is far."""
    gone = round((of - left) * rising)
    runs = table.reshape(table.shape[0], -1, of)
    order = runs.argsort(dim=-1, stable=True)
    kept = torch.ones_like(runs, dtype=torch.bool).scatter(-1, order[..., :gone], False)
    return kept.reshape(table.shape)


@torch.no_grad()
def _flush(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter[parameter.abs() < TINY] = 0
