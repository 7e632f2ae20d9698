"""Operators that change the shape of a tensor, or speak of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from farthing.forge.trainable.builder import Builder, Size, Value
from farthing.forge.trainable.node import Node
from farthing.forge.trainable.operators.elementwise import dtype_of
from farthing.forge.trainable.stored import tensor_of

Entry = int | tuple[tuple[int, ...], int]
"""A size of a result: as stated, or the product of some of the input's axes over a divisor."""


def shape(builder: Builder, node: Node) -> Value:
    """The sizes of a tensor, as it runs."""
    return builder.measure(shape_of, builder.value(node, 0), int(node.get("start", 0)), node.get("end"))


def shape_of(x: Tensor, start: int, end: int | None) -> Tensor:
    """Sizes as int64."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def size(builder: Builder, node: Node) -> Value:
    """How many numbers a tensor holds."""
    return builder.measure(size_of, builder.value(node, 0))


def size_of(x: Tensor) -> Tensor:
    """A count as int64."""
    return torch.tensor(x.numel(), dtype=torch.int64)


def reshape(builder: Builder, node: Node) -> Value:
    """Another shape of the same numbers. It is said in terms of the input's axes, so it holds when these shrink."""
    x, target = (
        builder.value(node, 0),
        builder.value(node, 1) if node.input(1) else torch.tensor(node.get("shape")),
    )
    if isinstance(x, Tensor) and isinstance(target, Tensor):
        return x.reshape(_sizes(x, target, bool(node.get("allowzero", 0))))
    before = builder.sizes(x)
    allowed = bool(node.get("allowzero", 0))
    trials = zip(builder.trial(x), builder.trial(target), strict=True)
    first, second = (given.reshape(_sizes(given, wanted, allowed)).shape for given, wanted in trials)
    found = plan(before, list(zip(first, second, strict=True)))
    if found is None:
        return builder.call(reshape_to, x, target, allowed)
    return builder.call(reshape_by, x, found)


def _sizes(x: Tensor, target: Tensor, allowzero: bool) -> list[int]:
    wanted = [int(number) for number in target]
    return [x.shape[i] if n == 0 and not allowzero else n for i, n in enumerate(wanted)]


def reshape_to(x: Tensor, target: Tensor, allowzero: bool) -> Tensor:
    """To a shape that is computed."""
    return x.reshape(_sizes(x, target, allowzero))


def reshape_by(x: Tensor, entries: Sequence[Entry]) -> Tensor:
    """To a shape in terms of the input's axes; see `Entry`."""
    return x.reshape(
        [
            entry if isinstance(entry, int) else math.prod(x.shape[axis] for axis in entry[0]) // entry[1]
            for entry in entries
        ]
    )


def plan(before: Sequence[Size], after: Sequence[Size]) -> list[Entry] | None:
    """What a reshape does, in terms of the input's axes; None if that cannot be told from two trials.

    Axes of both sides are grouped, in order, into the smallest groups of one product. Where a group gives several axes,
    the largest takes what the others leave.

    >>> plan([(1, 2), (64, 64), (7, 7), (7, 7)], [(1, 2), (3136, 3136)])
    [((0,), 1), ((1, 2, 3), 1)]
    """
    entries: list[Entry] = []
    read = written = 0
    while written < len(after):
        given, made = [read] if read < len(before) else [], [written]
        read, written = read + len(given), written + 1
        while (short := _products(before, given)) != (long := _products(after, made)):
            if any(a < b for a, b in zip(short, long, strict=True)) and read < len(before):
                given.append(read)
                read += 1
            elif written < len(after):
                made.append(written)
                written += 1
            elif read < len(before):
                given.append(read)
                read += 1
            else:
                return None
        entries_of = _group(tuple(given), [after[axis] for axis in made])
        if entries_of is None:
            return None
        entries += entries_of
    if any(before[axis] != (1, 1) for axis in range(read, len(before))):
        return None
    return entries


def _products(sizes: Sequence[Size], axes: Sequence[int]) -> Size:
    return math.prod(sizes[axis][0] for axis in axes), math.prod(sizes[axis][1] for axis in axes)


def _group(given: tuple[int, ...], made: Sequence[Size]) -> list[Entry] | None:
    """One group: what follows the input is the axis that varies, else the largest; the others are as stated."""
    if len(given) == len(made) == 1:
        return [(given, 1)]
    varying = [place for place, (first, second) in enumerate(made) if first != second]
    if len(varying) > 1 or not given:
        return None if varying else [first for first, _ in made]
    largest = max(range(len(made)), key=lambda place: (made[place][0], place))
    follows = varying[0] if varying else largest
    divisor = math.prod(first for place, (first, _) in enumerate(made) if place != follows)
    return [(given, divisor) if place == follows else first for place, (first, _) in enumerate(made)]


def flatten(builder: Builder, node: Node) -> Value:
    """Two axes: those before one, and those from it on."""
    x = builder.value(node, 0)
    rank = builder.rank(x)
    axis = int(node.get("axis", 1))
    axis = axis + rank if axis < 0 else axis
    if axis == 1 and rank > 1:
        return builder.call(torch.flatten, x, 1)
    return builder.call(flat, x, axis)


def flat(x: Tensor, axis: int) -> Tensor:
    """Two axes: those before one, and those from it on."""
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(builder: Builder, node: Node) -> Value:
    """Axes in another order."""
    x = builder.value(node, 0)
    order = [int(axis) for axis in node.get("perm", range(builder.rank(x))[::-1])]
    builder.weights.alias(node.outputs[0], node.inputs[0], order)
    return builder.call(torch.permute, x, order)


def squeeze(builder: Builder, node: Node) -> Value:
    """Axes of size 1 left out."""
    x, axes = builder.value(node, 0), builder.integers(node, 1, "axes")
    if axes is None:
        axes = [axis for axis, both in enumerate(builder.sizes(x)) if both == (1, 1)]
    return builder.call(torch.squeeze, x, tuple(axes))


def unsqueeze(builder: Builder, node: Node) -> Value:
    """Axes of size 1 put in."""
    x, axes = builder.value(node, 0), builder.integers(node, 1, "axes") or []
    rank = builder.rank(x) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = builder.call(torch.unsqueeze, x, axis)
    return x


def concat(builder: Builder, node: Node) -> Value:
    """Tensors one after the other along an axis."""
    parts = [builder.value(node, place) for place in range(len(node.inputs))]
    return builder.call(torch.cat, parts, int(node.get("axis")))


def split(builder: Builder, node: Node) -> tuple[Value, ...]:
    """A tensor in parts along an axis; equal parts stay equal when the axis shrinks."""
    x, sizes, count = builder.value(node, 0), builder.integers(node, 1, "split"), len(node.outputs)
    axis = int(node.get("axis", 0))
    whole = builder.sizes(x)[axis]
    even = sizes is None or (len(set(sizes)) == 1 and whole[0] % count == 0)
    if even and all(size % count == 0 for size in whole):
        return builder.items(builder.call(torch.chunk, x, count, axis), count)
    if sizes is None:
        each = -(-whole[0] // count)
        sizes = [each] * (count - 1) + [whole[0] - each * (count - 1)]
    return builder.items(builder.call(torch.split, x, sizes, axis), count)


def expand(builder: Builder, node: Node) -> Value:
    """Repeated along axes of size 1; axes that stay as they are follow the input."""
    x, target = builder.value(node, 0), builder.value(node, 1)
    if isinstance(target, fx.Node) or len(target) != builder.rank(x):
        return builder.call(expand_to, x, target)
    stay = [
        both[0] != 1 and both[0] == int(size) for size, both in zip(target, builder.sizes(x), strict=True)
    ]
    sizes = [-1 if fixed or size == 1 else int(size) for size, fixed in zip(target, stay, strict=True)]
    return builder.call(Tensor.expand, x, sizes)


def expand_to(x: Tensor, target: Tensor) -> Tensor:
    """Repeated to a shape that is computed."""
    wanted = target.tolist()
    rank = max(len(wanted), x.ndim)
    sizes, wanted = ([1] * (rank - len(given)) + list(given) for given in (x.shape, wanted))
    return x.expand([size if other == 1 else other for size, other in zip(sizes, wanted, strict=True)])


def tile(builder: Builder, node: Node) -> Value:
    """Repeated along every axis."""
    return builder.call(
        Tensor.repeat, builder.value(node, 0), [int(n) for n in builder.constant(node, 1, "repeats")]
    )


def constant_of_shape(builder: Builder, node: Node) -> Value:
    """One number everywhere."""
    given = node.get("value")
    fill = torch.tensor(0.0) if given is None else tensor_of(given).reshape(-1)[0]
    return builder.call(filled, builder.value(node, 0), fill.item(), fill.dtype)


def filled(sizes: Tensor, fill: float, dtype: torch.dtype) -> Tensor:
    """One number everywhere, in a shape that is computed."""
    return torch.full(tuple(sizes.tolist()), fill, dtype=dtype)


def steps(builder: Builder, node: Node) -> Value:
    """Numbers from one to another."""
    return builder.call(stepped, *(builder.value(node, place) for place in range(3)))


def stepped(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """See `steps`."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def depth_to_space(builder: Builder, node: Node) -> Value:
    """Channels spread over blocks of pixels."""
    x, block = builder.value(node, 0), int(node.get("blocksize"))
    if node.get("mode", "DCR") == "CRD":
        return builder.call(torch.pixel_shuffle, x, block)
    return builder.call(spread, x, block)


def spread(x: Tensor, block: int) -> Tensor:
    """Depth to space with the block's place slowest in the channels."""
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(builder: Builder, node: Node) -> Value:
    """Blocks of pixels gathered into channels."""
    x, block = builder.value(node, 0), int(node.get("blocksize"))
    if node.get("mode", "DCR") == "CRD":
        return builder.call(torch.pixel_unshuffle, x, block)
    return builder.call(gathered, x, block)


def gathered(x: Tensor, block: int) -> Tensor:
    """Space to depth with the block's place slowest in the channels."""
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


def eye_like(builder: Builder, node: Node) -> Value:
    """Ones on a diagonal."""
    x = builder.value(node, 0)
    kind = dtype_of(node, int(node.get("dtype"))) if node.get("dtype") else builder.trial(x)[0].dtype
    return builder.call(eye, x, int(node.get("k", 0)), kind)


def eye(x: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    """See `eye_like`."""
    rows, columns = (torch.arange(count) for count in x.shape)
    return (columns == rows[:, None] + k).to(dtype)
