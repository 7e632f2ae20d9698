"""Where the elements of an ONNX tensor lie in a TFLite one: views that take transposes and reshapes for free.

ONNX is channels first, TFLite channels last. Every tensor of the graph is a `View` of a TFLite tensor: which axes of
what is stored make up each axis that ONNX means. Transposing, flattening or splitting axes changes the view alone; data
moves only when an operator cannot take what lies there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Size(NamedTuple):
    """The size of one axis at two choices of the free axes: equal if the axis is fixed."""

    first: int
    second: int

    @property
    def free(self) -> bool:
        return self.first != self.second

    @property
    def signature(self) -> int:
        """The size, -1 if it is free."""
        return -1 if self.free else self.first


ONE = Size(1, 1)
Shape = tuple[Size, ...]
Groups = Sequence[Sequence[int]]


def fixed(sizes: Iterable[int]) -> Shape:
    """A shape without free axes."""
    return tuple(Size(size, size) for size in sizes)


def product(sizes: Iterable[Size]) -> Size:
    """How many elements axes of these sizes hold together."""
    known = list(sizes)
    return Size(math.prod(size.first for size in known), math.prod(size.second for size in known))


def firsts(shape: Shape) -> tuple[int, ...]:
    """The sizes with the free axes at their first choice."""
    return tuple(size.first for size in shape)


class View(NamedTuple):
    """An ONNX tensor in a TFLite one.

    Attributes:
        tensor: number of the TFLite tensor.
        atoms: a factorisation of its elements in the order of storage; the tensor's own shape may join or split them.
        axes: for each axis of the ONNX tensor the atoms it consists of, major first. Atoms of size 1 may be in none.
    """

    tensor: int
    atoms: Shape
    axes: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> Shape:
        """The shape that ONNX means."""
        return tuple(product(self.atoms[i] for i in axis) for axis in self.axes)

    def order(self, groups: Groups) -> list[int]:
        """The atoms, those of size 1 left out, in the order that lays the axes out in groups."""
        wanted = (i for group in groups for axis in group for i in self.axes[axis])
        return [i for i in wanted if self.atoms[i] != ONE]

    @property
    def straight(self) -> bool:
        """Whether the elements lie in the order that ONNX means."""
        order = self.order([range(len(self.axes))])
        return order == sorted(order)

    def simple(self) -> list[int]:
        """The axes in the order in which they lie, by their first atoms; one of size 1 stays by its neighbour."""
        keys: list[tuple[int, int]] = []
        last = -1
        for number, axis in enumerate(self.axes):
            real = [i for i in axis if self.atoms[i] != ONE] or list(axis)
            last = min(real, default=last)
            keys.append((last, number))
        return [number for _, number in sorted(keys)]

    def transposed(self, permutation: Sequence[int]) -> View:
        """The view with its axes in another order."""
        return self._replace(axes=tuple(self.axes[i] for i in permutation))

    def reshaped(self, shape: Shape) -> View | None:
        """The view with another shape, or None if the elements must move first."""
        pieces: list[list[Size]] = [[size] for size in self.atoms]
        axes: list[list[tuple[int, int]]] = []
        for old, new in runs(self.shape, shape):
            atoms = [i for axis in old for i in self.axes[axis] if self.atoms[i] != ONE]
            found = _divided([self.atoms[i] for i in atoms], [shape[axis] for axis in new])
            if found is None:
                return None
            for place, parts in zip(atoms, found.parts, strict=True):
                pieces[place] = parts
            axes += [[(atoms[k], part) for k, part in axis] for axis in found.axes]
        starts = [0, *_running(len(parts) for parts in pieces)]
        named = iter(axes)
        numbered = tuple(
            () if size == ONE else tuple(starts[place] + part for place, part in next(named))
            for size in shape
        )
        return View(self.tensor, tuple(size for parts in pieces for size in parts), numbered)


def whole(tensor: int, shape: Shape, axes: Sequence[int | None]) -> View:
    """A view of a tensor whose i-th axis is the ONNX axis ``axes[i]``; None for an axis of size 1 that ONNX lacks."""
    where = {axis: place for place, axis in enumerate(axes) if axis is not None}
    return View(tensor, shape, tuple((where[axis],) for axis in range(len(where))))


def _running(lengths: Iterable[int]) -> list[int]:
    total, sums = 0, []
    for length in lengths:
        total += length
        sums.append(total)
    return sums


def runs(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Runs of axes before and after a reshape that hold the same number of elements; axes of size 1 left out.

    Raises:
        ValueError: the shapes do not hold the same number of elements.
    """
    left = [i for i, size in enumerate(old) if size != ONE]
    right = [i for i, size in enumerate(new) if size != ONE]
    found = []
    while left and right:
        a, b = [left.pop(0)], [right.pop(0)]
        while (have := product(old[i] for i in a)) != (want := product(new[i] for i in b)):
            take, into = (left, a) if (have.second, have.first) < (want.second, want.first) else (right, b)
            if not take:
                raise ValueError(f"{firsts(old)} cannot become {firsts(new)}")
            into.append(take.pop(0))
        found.append((a, b))
    if left or right:
        raise ValueError(f"{firsts(old)} cannot become {firsts(new)}")
    return found


class _Division(NamedTuple):
    parts: list[list[Size]]  # what each atom falls into
    axes: list[list[tuple[int, int]]]  # for each new axis: (atom, part)


def _divided(atoms: Sequence[Size], wanted: Sequence[Size]) -> _Division | None:
    """Atoms split so that each wanted size is a run of them; None if a wanted border cuts through one unevenly."""
    parts: list[list[Size]] = [[] for _ in atoms]
    axes: list[list[tuple[int, int]]] = []
    place, rest = 0, (atoms[0] if atoms else ONE)
    for size in wanted:
        axis: list[tuple[int, int]] = []
        while size != ONE:
            taken = rest if _divides(rest, size) else size if _divides(size, rest) else None
            if taken is None:
                return None
            axis.append((place, len(parts[place])))
            parts[place].append(taken)
            size, rest = _quotient(size, taken), _quotient(rest, taken)
            if rest == ONE and place + 1 < len(atoms):
                place, rest = place + 1, atoms[place + 1]
        axes.append(axis)
    return _Division(parts, axes)


def _divides(a: Size, b: Size) -> bool:
    return b.first % a.first == 0 and b.second % a.second == 0


def _quotient(a: Size, b: Size) -> Size:
    return Size(a.first // b.first, a.second // b.second)


def merged(sizes: Sequence[Size], permutation: Sequence[int]) -> tuple[list[Size], list[int]]:
    """A transposition with the axes that stay neighbours joined."""
    blocks: list[list[int]] = []
    for axis in permutation:
        if blocks and blocks[-1][-1] + 1 == axis:
            blocks[-1].append(axis)
        else:
            blocks.append([axis])
    ordered = sorted(blocks)
    return [product(sizes[i] for i in run) for run in ordered], [ordered.index(run) for run in blocks]
