"""Masks over weights that grow while a network trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from farthing.errors import UnsupportedError
from farthing.forge.prune.unstructured import UnstructuredPrune
from farthing.forge.trainable import Trainable, trainable
from farthing.forge.trainable.norms import BACK
from farthing.forge.training.loop import Hook, Moment
from farthing.forge.training.losses import understood
from farthing.forge.training.samples import Samples
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.task import Task

LOOKS = 50
TINY = 1e-30
"""Weights nearer to zero than this are: kernels take denormal numbers ten times as long."""
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *BACK)


def zeroed(options: UnstructuredPrune, model: Model, task: Task, workshop: Workshop) -> Model:
    """The network trained on while weights go; see `UnstructuredPrune`.

    Raises:
        UnsupportedError: there are no layers to prune, or a pattern that none of them fits.
        TaskError: data that do not serve to train on.
    """
    samples = Samples(task, understood(model))
    made = trainable(model)
    layers = _layers(made, options)
    if options.norms:
        made.insert_norms(batch.inputs for batch in samples.spread())
    masks = Masks(options, layers)
    options.train(made, samples, model, workshop, [masks])
    masks.apply()
    _flush(made.module)
    return made.to_model()


def _layers(made: Trainable, options: UnstructuredPrune) -> dict[str, nn.Module]:
    """Layers whose weights may go, by the names of their nodes."""
    unknown = [name for name in options.skip if name not in made.layers]
    if unknown:
        raise UnsupportedError(
            f"{made.model.manifest.name} has no layer {unknown[0]!r} to skip: it has {', '.join(made.layers)}"
        )
    every = {name: made.module.get_submodule(layer) for name, layer in made.layers.items()}
    wanted = {name: layer for name, layer in every.items() if name not in options.skip}
    found: dict[str, nn.Module] = {n: layer for n, layer in wanted.items() if isinstance(layer, LAYERS)}
    fitting = {node: layer for node, layer in found.items() if _fits(_table(layer), options)}
    if not fitting:
        what = f"whose weights fit the pattern {options.pattern}" if found else "with weights"
        raise UnsupportedError(f"{made.model.manifest.name} has no layer {what}: nothing can be pruned")
    return fitting


def _fits(table: Tensor, options: UnstructuredPrune) -> bool:
    if options.neighbours:
        return table.shape[1] % options.neighbours[1] == 0
    if options.block:
        return all(size % part == 0 for size, part in zip(table.shape, options.block, strict=True))
    return True


def _table(layer: Any) -> Tensor:
    """A layer's weights as a matrix, outputs by inputs; a view."""
    weight: Tensor = layer.weight
    if isinstance(layer, BACK):
        weight = weight.movedim(1, 0)
    return weight.movedim(1, -1).flatten(1) if weight.ndim > 2 else weight


class Masks(Hook):
    """The share of zeros that a schedule asks for, kept at zero.

    Args:
        options: how many, when and which.
        layers: whose weights.
    """

    def __init__(self, options: UnstructuredPrune, layers: Mapping[str, nn.Module]) -> None:
        self._options, self._layers = options, dict(layers)
        self._masks: dict[str, Tensor] = {}

    def before_step(self, moment: Moment) -> None:
        """Look at the weights anew, when it is time."""
        options = self._options
        end = (moment.steps * 3) // 4 if options.end is None else options.end
        end = min(max(end, options.begin + 1), moment.steps - 1)
        every = options.frequency or max(1, (end - options.begin) // LOOKS)
        if moment.step == end or (
            options.begin <= moment.step < end and (moment.step - options.begin) % every == 0
        ):
            progress = (moment.step - options.begin) / max(1, end - options.begin)
            self._look(progress)
            self.apply()

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
            layer: Any = self._layers[name]
            layer.weight.mul_(mask)

    @torch.no_grad()
    def _look(self, progress: float) -> None:
        options = self._options
        rising = 1 - (1 - progress) ** options.power
        share = options.initial + (options.final - options.initial) * rising
        scores = {name: _scores(_table(layer), options) for name, layer in self._layers.items()}
        for name, kept in _kept(scores, options, share, rising).items():
            layer: Any = self._layers[name]
            self._masks[name] = _as_weight(kept, layer).to(layer.weight.dtype)


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


def _as_weight(kept: Tensor, layer: Any) -> Tensor:
    """A matrix, outputs by inputs, as the layer's weights lie."""
    weight: Tensor = layer.weight
    if weight.ndim <= 2:
        return kept
    shape = list(weight.movedim(1, 0).shape if isinstance(layer, BACK) else weight.shape)
    unfolded = kept.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    return unfolded.movedim(0, 1) if isinstance(layer, BACK) else unfolded


@torch.no_grad()
def _flush(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter[parameter.abs() < TINY] = 0
