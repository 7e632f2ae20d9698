"""Which stored tensor of an ONNX file is which parameter of a module, and how the one is laid out as the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Layout(Protocol):
    """How a stored tensor becomes parameters, and parameters the stored tensor; two that are equal do the same."""

    def unpack(self, stored: Tensor) -> tuple[Tensor, ...]:
        """Parameters from what is stored."""
        ...

    def pack(self, parts: Sequence[Tensor], stored: Tensor) -> Tensor:
        """What to store for parameters that may have shrunk; ``stored`` is what was stored before."""
        ...


@dataclass(frozen=True)
class Binding:
    """A stored tensor and its parameters.

    Attributes:
        tensor: name of an initializer, or of what a Constant node gives.
        layout: how one becomes the other.
        places: names of the parameters in the module, as ``conv1.weight``.
    """

    tensor: str
    layout: Layout
    places: tuple[str, ...]


@dataclass(frozen=True)
class AsStored:
    """The same numbers in the same order."""

    def unpack(self, stored: Tensor) -> tuple[Tensor, ...]:
        return (stored,)

    def pack(self, parts: Sequence[Tensor], stored: Tensor) -> Tensor:
        return parts[0]


@dataclass(frozen=True)
class Permuted:
    """Axes in another order: axis ``i`` of the parameter is axis ``order[i]`` of what is stored."""

    order: tuple[int, ...]

    def unpack(self, stored: Tensor) -> tuple[Tensor, ...]:
        return (stored.permute(self.order),)

    def pack(self, parts: Sequence[Tensor], stored: Tensor) -> Tensor:
        return parts[0].permute(self.back)

    @property
    def back(self) -> tuple[int, ...]:
        """The order that undoes this one."""
        return tuple(self.order.index(axis) for axis in range(len(self.order)))


@dataclass(frozen=True)
class Vector:
    """One number a channel, stored with as many axes as it pleases, all but one of size 1."""

    def unpack(self, stored: Tensor) -> tuple[Tensor, ...]:
        return (stored.reshape(-1),)

    def pack(self, parts: Sequence[Tensor], stored: Tensor) -> Tensor:
        long = [axis for axis, size in enumerate(stored.shape) if size != 1] or [stored.ndim - 1]
        return parts[0].reshape([-1 if axis == long[0] else 1 for axis in range(stored.ndim)])


@dataclass(frozen=True)
class Gates:
    """Weights of a recurrent layer, (directions, gates x hidden, inputs): a matrix a direction, gates in torch's order.

    Attributes:
        order: gate ``i`` of torch is gate ``order[i]`` of ONNX.
    """

    order: tuple[int, ...]

    def unpack(self, stored: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._ordered(part, self.order) for part in stored)

    def pack(self, parts: Sequence[Tensor], stored: Tensor) -> Tensor:
        back = tuple(self.order.index(gate) for gate in range(len(self.order)))
        return torch.stack([self._ordered(part, back) for part in parts])

    @staticmethod
    def _ordered(part: Tensor, order: Sequence[int]) -> Tensor:
        gates = part.chunk(len(order))
        return torch.cat([gates[gate] for gate in order])


@dataclass(frozen=True)
class GateBiases:
    """Biases of a recurrent layer, (directions, 2 x gates x hidden): two vectors a direction, in torch's order."""

    order: tuple[int, ...]

    def unpack(self, stored: Tensor) -> tuple[Tensor, ...]:
        halves = [half for direction in stored for half in direction.chunk(2)]
        return Gates(self.order).unpack(torch.stack(halves))

    def pack(self, parts: Sequence[Tensor], stored: Tensor) -> Tensor:
        halves = Gates(self.order).pack(parts, stored)
        return halves.reshape(len(stored), -1)
