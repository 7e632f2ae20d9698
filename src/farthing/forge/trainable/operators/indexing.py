"""Operators that pick out of a tensor, or put into it, and padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from farthing.forge.trainable.binding import AsStored
from farthing.forge.trainable.builder import Builder, Value, bare
from farthing.forge.trainable.node import Node

END = 1 << 31


def slices(builder: Builder, node: Node) -> Value:
    """A range along some axes."""
    x = builder.value(node, 0)
    if node.get("starts") is not None:
        starts, ends = list(node.get("starts")), list(node.get("ends"))
        axes = list(node.get("axes", range(len(starts))))
        return builder.call(sliced, x, starts, ends, axes, [1] * len(starts))
    ends_of = [builder.value(node, place) for place in (1, 2)]
    count = builder.sizes(ends_of[0])[0][0]
    axes = builder.integers(node, 3, "axes") or list(range(count))
    steps = builder.integers(node, 4, "steps") or [1] * count
    plain = [[int(n) for n in end] if isinstance(end, Tensor) else end for end in ends_of]
    return builder.call(sliced, x, *plain, axes, steps)


def sliced(
    x: Tensor,
    starts: Tensor | Sequence[int],
    ends: Tensor | Sequence[int],
    axes: Sequence[int],
    steps: Sequence[int],
) -> Tensor:
    """A range along some axes; ends may be computed, steps below 0 go backwards."""
    first, last = (list(map(int, end)) for end in (starts, ends))
    for start, end, axis, step in zip(first, last, axes, steps, strict=True):
        size = x.shape[axis]
        if step < 0:
            picks = range(size)[_clipped(start, size) : _stop(end, size) : step]
            x = x.index_select(axis, torch.tensor(picks, dtype=torch.int64))
            continue
        index = [slice(None)] * x.ndim
        index[axis] = slice(start, end if end < END else None, step)
        x = x[tuple(index)]
    return x


def _clipped(start: int, size: int) -> int:
    return min(start, size - 1)


def _stop(end: int, size: int) -> int | None:
    return None if end < -size else end


def gather(builder: Builder, node: Node) -> Value:
    """Slices at some places along an axis; out of a stored table, an embedding layer."""
    axis, places = int(node.get("axis", 0)), builder.value(node, 1)
    shape = builder.weights.shape(node.input(0))
    if shape is not None and len(shape) == 2 and axis in {0, -2} and not isinstance(places, Tensor):
        tensor, order = builder.weights.source(node.input(0))
        if list(order) == [0, 1] and builder.weights.free(tensor, AsStored()):
            name = builder.add(node, bare(nn.Embedding, shape[0], shape[1]))
            builder.weights.bind(tensor, AsStored(), name, ["weight"])
            return builder.run(name, builder.call(from_front, places, shape[0]))
    x = builder.value(node, 0) if isinstance(places, Tensor) else builder.weight(node, 0)
    if isinstance(places, Tensor) and places.ndim == 0:
        return builder.call(torch.select, x, axis, int(places))
    return builder.call(picked, x, places, axis)


def from_front(places: Tensor, size: int) -> Tensor:
    """Places counted from the end as places from the start."""
    return torch.where(places < 0, places + size, places)


def picked(x: Tensor, places: Tensor, axis: int) -> Tensor:
    """Slices at some places along an axis, in the shape of the places."""
    axis %= x.ndim
    chosen = x.index_select(axis, from_front(places, x.shape[axis]).reshape(-1))
    return chosen.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


def gather_elements(builder: Builder, node: Node) -> Value:
    """One number for each place."""
    return builder.call(elements, builder.value(node, 0), builder.value(node, 1), int(node.get("axis", 0)))


def elements(x: Tensor, places: Tensor, axis: int) -> Tensor:
    """See `gather_elements`."""
    return x.gather(axis, from_front(places, x.shape[axis]))


def gather_nd(builder: Builder, node: Node) -> Value:
    """Slices at places of several axes."""
    return builder.call(
        gathered_nd, builder.value(node, 0), builder.value(node, 1), int(node.get("batch_dims", 0))
    )


def gathered_nd(x: Tensor, places: Tensor, batch: int) -> Tensor:
    """See `gather_nd`."""
    depth = places.shape[-1]
    flat_x = x.reshape(-1, *x.shape[batch:])
    flat = places.reshape(len(flat_x), -1, depth)
    index = [torch.arange(len(flat_x)).reshape(-1, 1).expand(flat.shape[:2])]
    index += [from_front(flat[..., axis], flat_x.shape[axis + 1]) for axis in range(depth)]
    return flat_x[tuple(index)].reshape(*places.shape[:-1], *x.shape[batch + depth :])


def scatter_elements(builder: Builder, node: Node) -> Value:
    """A tensor with some of its numbers replaced, or added to."""
    how = {"none": "", "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[
        node.get("reduction", "none")
    ]
    inputs = [builder.value(node, place) for place in range(3)]
    return builder.call(scattered, *inputs, int(node.get("axis", 0)), how)


def scattered(x: Tensor, places: Tensor, updates: Tensor, axis: int, how: str) -> Tensor:
    """See `scatter_elements`."""
    places = from_front(places, x.shape[axis])
    return x.scatter_reduce(axis, places, updates, how) if how else x.scatter(axis, places, updates)


def scatter_nd(builder: Builder, node: Node) -> Value:
    """A tensor with some of its slices replaced, or added to."""
    how = node.get("reduction", "none")
    if how not in {"none", "add"}:
        node.refuse(f"it reduces by {how}")
    return builder.call(scattered_nd, *(builder.value(node, place) for place in range(3)), how == "add")


def scattered_nd(x: Tensor, places: Tensor, updates: Tensor, add: bool) -> Tensor:
    """See `scatter_nd`."""
    index = tuple(from_front(places[..., axis], x.shape[axis]) for axis in range(places.shape[-1]))
    return x.index_put(index, updates, accumulate=add)


def pad(builder: Builder, node: Node) -> Value:
    """Longer at the ends: by a number, mirrored, repeated or round and round; below 0, shorter."""
    x, mode = builder.value(node, 0), node.get("mode", "constant")
    amounts = builder.integers(node, 1, "pads") or []
    axes = builder.integers(node, 3, "axes") or list(range(len(amounts) // 2))
    axes = [axis % builder.rank(x) for axis in axes]
    half = len(axes)
    ends = [(axis, amounts[i], amounts[i + half]) for i, axis in enumerate(axes)]
    if mode == "constant":
        given = builder.constant(node, 2, "value").item() if node.input(2) else node.get("value", 0.0)
        before, after = ([0] * builder.rank(x) for _ in range(2))
        for axis, first, last in ends:
            before[axis], after[axis] = first, last
        flat = [amount for pair in zip(before[::-1], after[::-1], strict=True) for amount in pair]
        return builder.call(functional.pad, x, flat, value=given)
    for axis, first, last in ends:
        if first or last:
            x = builder.call(continued, x, axis, first, last, mode)
    return x


def continued(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """One axis made longer by what is there already."""
    size = x.shape[axis]
    places = torch.arange(-before, size + after)
    if mode == "edge":
        places = places.clamp(0, size - 1)
    elif mode == "wrap":
        places = places % size
    elif size > 1:
        places = places % (2 * size - 2)
        places = torch.where(places < size, places, 2 * size - 2 - places)
    else:
        places = torch.zeros_like(places)
    return x.index_select(axis, places)


def trilu(builder: Builder, node: Node) -> Value:
    """What lies above or below a diagonal."""
    k = int(builder.constant(node, 1, "diagonal").item()) if node.input(1) else 0
    return builder.call(torch.triu if node.get("upper", 1) else torch.tril, builder.value(node, 0), k)


def one_hot(builder: Builder, node: Node) -> Value:
    """A one at each place along a new axis."""
    depth = int(builder.constant(node, 1, "depth").reshape(-1)[0].item())
    return builder.call(hot, builder.value(node, 0), depth, builder.value(node, 2), int(node.get("axis", -1)))


def hot(places: Tensor, depth: int, values: Tensor, axis: int) -> Tensor:
    """See `one_hot`; ``values`` are those of zero and one."""
    places = places.to(torch.int64)
    inside = torch.where(places < 0, places + depth, places)
    marks = (inside.unsqueeze(-1) == torch.arange(depth)).movedim(-1, axis)
    return torch.where(marks, values[1], values[0])


def non_zero(builder: Builder, node: Node) -> Value:
    """Where numbers are not 0, (axes, places)."""
    return builder.call(torch.t, builder.call(torch.nonzero, builder.value(node, 0)))


def grid_sample(builder: Builder, node: Node) -> Value:
    """Numbers at places between pixels."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(
        node.get("mode", "linear"), node.get("mode", "bilinear")
    )
    padding, corners = node.get("padding_mode", "zeros"), bool(node.get("align_corners", 0))
    x, grid = builder.value(node, 0), builder.value(node, 1)
    return builder.call(functional.grid_sample, x, grid, mode, padding, corners)
