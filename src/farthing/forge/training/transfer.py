"""Features: tensors inside a student, taken out while it trains, and how far they are from a teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional

from farthing.errors import TaskError, UnsupportedError
from farthing.forge import graph
from farthing.forge.trainable import Trainable
from farthing.forge.training.distillation import Feature

POOLS = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}


def tapped(student: Trainable, names: Sequence[str]) -> fx.GraphModule:
    """The student's module, the same layers and parameters, with tensors inside as further outputs.

    What a convolution gives is taken behind the norm that was inserted after it.

    Raises:
        UnsupportedError: the module has no such tensor.
    """
    traced = student.traced
    for name in names:
        if name not in traced:
            raise UnsupportedError(
                f"the student {student.model.manifest.name} has no tensor {name!r} to take out while training; "
                f"{graph.meant(name, traced)}"
            )
    copy = fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    given: Any = copy.graph_copy(student.module.graph, twins)
    inner = [twins[_behind_norm(student, traced[name])] for name in names]
    copy.output((*given, *inner))
    return fx.GraphModule(student.module, copy)


def _behind_norm(student: Trainable, made: fx.Node) -> fx.Node:
    norm = student.norms.get(str(made.target)) if made.op == "call_module" else None
    return next((user for user in made.users if norm and user.target == norm), made)


class Transfer(nn.Module):
    """How far a student's feature is from a teacher's, each of samples along axis 0, and channels and places.

    Args:
        feature: what is compared, and how.
        own, other: one batch of each, for their shapes.

    Raises:
        TaskError: features that cannot be compared like that.
    """

    def __init__(self, feature: Feature, own: Tensor, other: Tensor) -> None:
        super().__init__()
        self.how, self.axis = feature.how, feature.axis
        few = own.ndim < (3 if self.how == "attention" else 2) or not -own.ndim < self.axis < own.ndim
        if own.ndim != other.ndim or own.ndim - 2 > max(POOLS) or few:
            wanted = "places to look at" if self.how == "attention" else f"channels along axis {self.axis}"
            raise TaskError(
                f"feature {feature.student!r} has shape {list(own.shape)}, and the teacher's {list(other.shape)}: "
                f"{self.how} needs {wanted} in both; name other tensors"
            )
        self.projection = (
            nn.Linear(own.shape[self.axis], other.shape[self.axis], bias=False)
            if self.how == "hint"
            else None
        )

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        own, other = _as_coarse(*(part.movedim(self.axis, 1) for part in (own, other)))
        if self.projection is None:
            gap = _attention(own) - _attention(other)
            return gap.square().sum(1).mean() / 2
        projected = self.projection(own.movedim(1, -1)).movedim(-1, 1)
        return functional.mse_loss(projected, other)


def _as_coarse(own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the fewer places of either along each axis."""
    size = [min(pair) for pair in zip(own.shape[2:], other.shape[2:], strict=True)]
    return _pooled(own, size), _pooled(other, size)


def _pooled(feature: Tensor, size: list[int]) -> Tensor:
    pool: Any = POOLS.get(len(size))
    return feature if list(feature.shape[2:]) == size or pool is None else pool(feature, size)


def _attention(feature: Tensor) -> Tensor:
    return functional.normalize(feature.square().sum(1).flatten(1), dim=1)
