"""Resize and Upsample: any axes, with the coordinates and rounding that ONNX defines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from farthing.forge.trainable.builder import Builder, Value
from farthing.forge.trainable.node import Node

INTERPOLATE: dict[tuple[str, str, str], dict[str, Any]] = {
    ("nearest", "asymmetric", "floor"): {"mode": "nearest"},
    ("linear", "half_pixel", ""): {"mode": "linear", "align_corners": False},
    ("linear", "pytorch_half_pixel", ""): {"mode": "linear", "align_corners": False},
    ("linear", "align_corners", ""): {"mode": "linear", "align_corners": True},
}
"""Ways that torch has itself, and faster: by mode, coordinates and rounding."""
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize(builder: Builder, node: Node) -> Value:
    """Another size along some axes; those that keep their size follow the input."""
    x, upsample = builder.value(node, 0), node.kind == "Upsample" or builder.opset < 11
    scales, sizes = _wanted(builder, node, upsample)
    rank = builder.rank(x)
    axes = [int(axis) % rank for axis in node.get("axes", range(rank))]
    before = builder.sizes(x)
    after = _after(builder, before, axes, scales, sizes)
    moving = [place for place, axis in enumerate(axes) if before[axis] != after[place]]
    mode, coordinates, rounding = _way(node, upsample)
    if not moving:
        return x
    picked = [axes[place] for place in moving]
    factors = None if scales is None else [scales[place] for place in moving]
    targets: Any = None
    if sizes is not None:
        static = [after[place][0] for place in moving if after[place][0] == after[place][1]]
        targets = static if len(static) == len(moving) else builder.call(chosen, sizes, moving)
    own = INTERPOLATE.get((mode, coordinates, rounding))
    several = all(after[place][0] > 1 for place in moving)  # at size 1 torch has coordinates of its own
    if own is not None and several and picked == list(range(2, rank)) and rank - 2 in MODES:
        settings = dict(own)
        if settings["mode"] == "linear":
            settings["mode"] = MODES[rank - 2]
        return builder.call(
            interpolated, x, targets, factors, settings["mode"], settings.get("align_corners")
        )
    a, outside = float(node.get("cubic_coeff_a", -0.75)), bool(node.get("exclude_outside", 0))
    return builder.call(resampled, x, picked, targets, factors, mode, coordinates, rounding, a, outside)


def _wanted(builder: Builder, node: Node, upsample: bool) -> tuple[list[float] | None, Value | None]:
    """The factors, or the sizes that are wanted."""
    if node.get("scales") is not None:
        return [float(factor) for factor in node.get("scales")], None
    place = 1 if upsample else 2
    if not upsample and node.input(3):
        return None, builder.value(node, 3)
    return [float(factor) for factor in builder.constant(node, place, "factors")], None


def _after(
    builder: Builder,
    before: Sequence[Any],
    axes: Sequence[int],
    scales: list[float] | None,
    sizes: Value | None,
) -> list[tuple[int, int]]:
    """The sizes of the resized axes in both trials."""
    if sizes is not None:
        first, second = ([int(size) for size in trial] for trial in builder.trial(sizes))
        return list(zip(first, second, strict=True))
    pairs = zip(axes, scales or [], strict=True)
    return [(math.floor(before[axis][0] * s), math.floor(before[axis][1] * s)) for axis, s in pairs]


def _way(node: Node, upsample: bool) -> tuple[str, str, str]:
    """Mode, coordinates and, for the nearest, rounding."""
    mode = node.get("mode", "nearest")
    coordinates = "asymmetric" if upsample else node.get("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if upsample else node.get("nearest_mode", "round_prefer_floor")
    if node.get("antialias", 0) or node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        node.refuse("it smooths (antialias), or keeps the aspect ratio")
    if coordinates == "tf_crop_and_resize":
        node.refuse("it crops as it resizes (tf_crop_and_resize)")
    return mode, coordinates, rounding if mode == "nearest" else ""


def chosen(sizes: Tensor, places: Sequence[int]) -> Tensor:
    """Some of the sizes."""
    return sizes[list(places)]


def interpolated(
    x: Tensor, sizes: Any, factors: Sequence[float] | None, mode: str, align_corners: bool | None
) -> Tensor:
    """All axes after the channels, by torch's own resampling."""
    if factors is not None:
        return functional.interpolate(
            x,
            scale_factor=list(factors),
            mode=mode,
            align_corners=align_corners,
            recompute_scale_factor=False,
        )
    return functional.interpolate(
        x, size=[int(size) for size in sizes], mode=mode, align_corners=align_corners
    )


def resampled(
    x: Tensor,
    axes: Sequence[int],
    sizes: Any,
    factors: Sequence[float] | None,
    mode: str,
    coordinates: str,
    rounding: str,
    a: float,
    exclude_outside: bool,
) -> Tensor:
    """One axis after the other, each new number a weighted sum of old ones.

    Args:
        x: what is resized.
        axes: the axes that are.
        sizes: their new sizes, or None.
        factors: by how much they grow, or None.
        mode: ``nearest``, ``linear`` or ``cubic``.
        coordinates: the coordinate_transformation_mode of ONNX's Resize.
        rounding: its nearest_mode.
        a: its cubic_coeff_a.
        exclude_outside: numbers beyond the border weigh nothing.
    """
    for place, axis in enumerate(axes):
        old = x.shape[axis]
        new = int(sizes[place]) if sizes is not None else math.floor(old * (factors or [])[place])
        factor = factors[place] if factors is not None else new / old
        where = _coordinates(coordinates, torch.arange(new, dtype=torch.float32), old, new, factor)
        x = _sampled(x, axis, where, mode, rounding, a, exclude_outside)
    return x


def _coordinates(way: str, new: Tensor, old: int, count: int, factor: float) -> Tensor:
    """Where in the old axis each new place lies."""
    if way == "align_corners":
        return new * ((old - 1) / (count - 1)) if count > 1 else new * 0
    if way == "asymmetric":
        return new / factor
    if way == "tf_half_pixel_for_nn":
        return (new + 0.5) / factor
    if way == "pytorch_half_pixel" and count == 1:
        return new * 0
    shift = 0.0
    if way == "half_pixel_symmetric":
        shift = old / 2 * (1 - count / (factor * old))
    return shift + (new + 0.5) / factor - 0.5


def _sampled(
    x: Tensor, axis: int, where: Tensor, mode: str, rounding: str, a: float, exclude_outside: bool
) -> Tensor:
    size = x.shape[axis]
    if mode == "nearest":
        return x.index_select(axis, _rounded(where, rounding).clamp(0, size - 1))
    start = where.floor()
    taps = range(2) if mode == "linear" else range(-1, 3)
    weights = [_weight(where - start - tap, mode, a) for tap in taps]
    places = [start.long() + tap for tap in taps]
    if exclude_outside:
        inside = [(place >= 0) & (place < size) for place in places]
        weights = [weight * within for weight, within in zip(weights, inside, strict=True)]
        total = torch.stack(weights).sum(0)
        weights = [weight / total for weight in weights]
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    parts = [
        x.index_select(axis, place.clamp(0, size - 1)) * weight.reshape(shape).to(x.dtype)
        for place, weight in zip(places, weights, strict=True)
    ]
    return torch.stack(parts).sum(0)


def _rounded(where: Tensor, rounding: str) -> Tensor:
    shift = {"round_prefer_floor": -0.5, "round_prefer_ceil": 0.5}.get(rounding, 0.0)
    up = rounding in {"round_prefer_floor", "ceil"}
    return ((where + shift).ceil() if up else (where + shift).floor()).long()


def _weight(distance: Tensor, mode: str, a: float) -> Tensor:
    """How much a number at some distance counts (Keys 1981 for ``cubic``)."""
    d = distance.abs()
    if mode == "linear":
        return (1 - d).clamp(min=0)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))
