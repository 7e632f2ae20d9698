"""The stored tensors of a graph, and the parameters of a module that they become."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from farthing.forge.trainable.binding import Binding, Layout
from farthing.forge.trainable.node import Node

SLOTS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1)}
"""Operators whose weights may be computed from stored tensors, and where they stand."""


class Weights:
    """Stored tensors, by name, and which parameter of which layer each has become.

    Args:
        root: the module that has or will have the layers.
        stored: initializers and the values of Constant nodes.

    Attributes:
        bindings: what became parameters so far.
    """

    def __init__(self, root: nn.Module, stored: Mapping[str, Tensor]) -> None:
        self.bindings: list[Binding] = []
        self._root = root
        self._stored = {name: tensor for name, tensor in stored.items() if tensor.is_floating_point()}
        self._same: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._bound: dict[str, Binding] = {}

    def __getitem__(self, tensor: str) -> Tensor:
        """A stored tensor as it lies in the file."""
        return self._stored[tensor]

    def alias(self, name: str, of: str, order: Sequence[int] | None = None) -> None:
        """Note that a tensor is a stored one as it is, or with its axes in another order."""
        if of in self._stored or of in self._same:
            source, before = self.source(of)
            self._same[name] = (source, tuple(before[axis] for axis in order or range(len(before))))

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a stored tensor of floating-point numbers; None for any other tensor."""
        if name not in self._stored and name not in self._same:
            return None
        tensor, order = self.source(name)
        return tuple(self._stored[tensor].shape[axis] for axis in order)

    def source(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The stored tensor behind a name, and the order of its axes."""
        return self._same.get(name) or (name, tuple(range(self._stored[name].ndim)))

    def binding(self, tensor: str) -> Binding | None:
        """What a stored tensor has become."""
        return self._bound.get(tensor)

    def free(self, tensor: str, layout: Layout) -> bool:
        """Whether a stored tensor can be a layer's parameter in a layout: not if it is one already in another."""
        return tensor not in self._bound or self._bound[tensor].layout == layout

    def bind(
        self, tensor: str, layout: Layout, layer: str, fields: Sequence[str], learnt: bool = True
    ) -> Binding:
        """Make a stored tensor parameters (or buffers) of a layer; one that is bound already is shared.

        Args:
            tensor: name of the stored tensor.
            layout: how it is laid out there.
            layer: its name; empty for the module itself.
            fields: names of the parameters in the layer.
            learnt: False makes buffers.
        """
        module, before = self._root.get_submodule(layer), self._bound.get(tensor)
        if before is None:
            parts = [part.contiguous().clone() for part in layout.unpack(self._stored[tensor])]
        else:
            parts = [attribute(self._root, place) for place in before.places]
        for field, part in zip(fields, parts, strict=True):
            if learnt:  # set, not registered: recurrent layers take note
                setattr(module, field, part if isinstance(part, nn.Parameter) else nn.Parameter(part))
            else:
                module.register_buffer(field, part)
        binding = Binding(tensor, layout, tuple(f"{layer}.{field}" if layer else field for field in fields))
        self._bound.setdefault(tensor, binding)
        self.bindings.append(binding)
        return binding


def attribute(root: nn.Module, place: str) -> Tensor:
    """A parameter or buffer by its name."""
    path, _, field = place.rpartition(".")
    found: Tensor = getattr(root.get_submodule(path), field)
    return found


def behind(nodes: Iterable[Node], stored: Mapping[str, Tensor]) -> list[str]:
    """Stored tensors of which the weights of layers are computed, as by a mask or a norm: they are what is learnt.

    Masks, of zeros and ones alone, are not.
    """
    makers: dict[str, Node] = {}
    found: dict[str, None] = {}
    for node in nodes:
        if all(name in stored or name in makers or not name for name in node.inputs):
            makers |= dict.fromkeys(node.outputs, node)
        for place in SLOTS.get(node.kind, ()):
            ahead = [name for name in [node.input(place)] if name in makers and not _view(name, makers)]
            while ahead:
                name = ahead.pop()
                ahead += makers[name].inputs if name in makers else ()
                if name in stored and _learnable(stored[name]):
                    found[name] = None
    return list(found)


def _learnable(tensor: Tensor) -> bool:
    masks = bool(((tensor == 0) | (tensor == 1)).all())
    return tensor.is_floating_point() and tensor.numel() > 1 and not masks


def _view(name: str, makers: Mapping[str, Node]) -> bool:
    """Whether a tensor is a stored one, at most transposed."""
    while name in makers:
        if makers[name].kind not in {"Identity", "Transpose"}:
            return False
        name = makers[name].inputs[0]
    return True
