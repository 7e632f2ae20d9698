"""Resize and Upsample: written only where TFLite computes the very same mixture of pixels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.forge.tflite.builder import Builder, as_groups, channels_last
from farthing.forge.tflite.layout import Shape
from farthing.forge.tflite.net import Node

Array = NDArray[Any]
Mixture = NDArray[np.float64]  # (results, inputs): how much of each input pixel a result is
CLOSE = 1e-5  # as near as the float32 coordinates of both come


def resize(builder: Builder, node: Node) -> None:
    """RESIZE_NEAREST_NEIGHBOR or RESIZE_BILINEAR with the options that give ONNX's mixture of pixels, if any do."""
    before, after = builder.shape(node.inputs[0], node), builder.net.shape(node.outputs[0], node)
    mode = node.get("mode", "nearest")
    if len(before) not in {3, 4} or before[:2] != after[:2]:
        node.refuse(
            f"only height and width of pictures can be resized, not {len(before)} axes or the channels"
        )
    if (
        mode not in {"nearest", "linear", "bilinear"}
        or node.get("antialias", 0)
        or node.get("exclude_outside", 0)
    ):
        node.refuse(
            f"mode {mode!r} with these options is not what TFLite computes; it knows nearest and linear"
        )
    builder.net.sizes(node.inputs[0], node, range(2, len(before)))
    kind = "nearest" if mode == "nearest" else "linear"
    wanted = [_wanted(builder, node, kind, place, before, after) for place in range(2, len(before))]
    for corners, centres in ((False, False), (False, True), (True, False)):
        pairs = [(before[i].first, after[i].first) for i in range(2, len(before))]
        found = [_tflite(kind, size, out, corners, centres) for size, out in pairs]
        if all(np.allclose(a, b, atol=CLOSE) for a, b in zip(wanted, found, strict=True)):
            _write(builder, node, kind, corners, centres, after)
            return
    node.refuse(
        f"{kind} with coordinates {node.get('coordinate_transformation_mode', 'asymmetric')!r} mixes other pixels than "
        "TFLite's asymmetric, half_pixel and align_corners"
    )


def _write(builder: Builder, node: Node, kind: str, corners: bool, centres: bool, after: Shape) -> None:
    code = "RESIZE_NEAREST_NEIGHBOR" if kind == "nearest" else "RESIZE_BILINEAR"
    options = "ResizeNearestNeighborOptions" if kind == "nearest" else "ResizeBilinearOptions"
    tensor = builder.place(builder.view(node.inputs[0], node), as_groups(channels_last(len(after))))
    source = builder.tensors[tensor]
    height = after[2] if len(after) == 4 else source.shape[1]
    inputs = [tensor, builder.integers([height.first, after[-1].first])]
    shape = (after[0], height, after[-1], after[1])
    made = builder.add(
        code,
        inputs,
        shape,
        source.dtype,
        source.params,
        options,
        alignCorners=corners,
        halfPixelCenters=centres,
    )
    builder.put(node.outputs[0], made, channels_last(len(after)))


def _wanted(builder: Builder, node: Node, kind: str, place: int, before: Shape, after: Shape) -> Mixture:
    """What ONNX computes along one axis."""
    size, out = before[place].first, after[place].first
    scale = _scale(builder, node, place, len(before)) or out / size
    how = node.get("coordinate_transformation_mode", "half_pixel" if node.kind == "Resize" else "asymmetric")
    if node.kind == "Upsample" or (node.kind == "Resize" and builder.net.opset == 10):
        how = "asymmetric"
    coordinates: dict[str, Callable[[Array], Array]] = {
        "asymmetric": lambda x: x / scale,
        "half_pixel": lambda x: (x + 0.5) / scale - 0.5,
        "pytorch_half_pixel": lambda x: (x + 0.5) / scale - 0.5 if out > 1 else x * 0,
        "align_corners": lambda x: x * (size - 1) / (out - 1) if out > 1 else x * 0,
    }
    if how not in coordinates:
        node.refuse(f"TFLite knows no coordinates {how!r}")
    at = coordinates[how](np.arange(out, dtype=np.float64))
    if kind == "linear":
        low = np.floor(at)
        return _mixed(size, low, low + 1, at - low)
    rounding = node.get("nearest_mode", "round_prefer_floor")
    if node.kind == "Upsample" or builder.net.opset == 10:
        rounding = "floor"
    rounds: dict[str, Callable[[Array], Array]] = {
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    nearest = rounds[rounding](at)
    return _mixed(size, nearest, nearest, np.zeros(out))


def _scale(builder: Builder, node: Node, place: int, rank: int) -> float:
    """The factor that ONNX is told along an axis; 0 if it is told sizes instead."""
    name = node.input(1 if node.kind == "Upsample" or builder.net.opset == 10 else 2)
    if "scales" in node.attributes:
        return float(node.attributes["scales"][place])
    if not name or builder.constant(name, node).data.size == 0:
        return 0.0
    scales = builder.constant(name, node).data
    axes = [int(axis) % rank for axis in node.get("axes", range(rank))]
    return float(scales[axes.index(place)]) if place in axes else 1.0


def _tflite(kind: str, size: int, out: int, corners: bool, centres: bool) -> Mixture:
    """What TFLite's reference kernels compute along one axis."""
    step = np.float32((size - 1) / (out - 1)) if corners and out > 1 else np.float32(size / out)
    x = np.arange(out, dtype=np.float32)
    if kind == "nearest":
        at = (x + np.float32(0.5)) * step if centres else x * step
        nearest = np.floor(at + np.float32(0.5)) if corners else np.floor(at)
        return _mixed(size, nearest, nearest, np.zeros(out))
    at = (x + np.float32(0.5)) * step - np.float32(0.5) if centres else x * step
    low = np.floor(at)
    return _mixed(size, low, low + 1, at - low)


def _mixed(size: int, low: Array, high: Array, share: Array) -> Mixture:
    """Two pixels a result, the second with its share; those outside are the border's."""
    mixture = np.zeros((len(low), size))
    rows = np.arange(len(low))
    for index, weight in itertools.chain([(low, 1 - share), (high, share)]):
        np.add.at(mixture, (rows, np.clip(index, 0, size - 1).astype(int)), weight)
    return mixture
