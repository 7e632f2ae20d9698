"""Convolutions and matrix products as what they are: rows of weights times columns of inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

Array = NDArray[Any]
LAYERS = {"Conv", "Gemm", "MatMul"}


@dataclass(frozen=True)
class Layer:
    """A layer with stored weights.

    Attributes:
        node: Conv, Gemm or MatMul; its first input is the data, the second the weights.
        shape: of the weights as they are stored.
        groups: of a convolution; 1 for others. Each group has its own outputs, from its own inputs.
        across: whether outputs are the last axis of the stored weights, not the first.
    """

    node: onnx.NodeProto
    shape: tuple[int, ...]
    groups: int = 1
    across: bool = False

    @property
    def inputs_each(self) -> int:
        """Inputs of one output."""
        outputs = self.shape[-1] if self.across else self.shape[0]
        return math.prod(self.shape) // outputs

    def matrix(self, stored: Array) -> Array:
        """Stored weights as (groups, rows, columns)."""
        own = stored.T if self.across else stored
        return own.reshape(self.groups, own.shape[0] // self.groups, -1)

    def stored(self, matrix: Array) -> Array:
        """The other way."""
        shape = self.shape[::-1] if self.across else self.shape
        own = matrix.reshape(shape)
        return np.ascontiguousarray(own.T if self.across else own)

    def count(self, data: Array) -> int:
        """How many columns a batch of data gives: one for each place of the output."""
        if self.node.op_type != "Conv":
            return math.prod(data.shape[:-1])
        return len(data) * math.prod(window.count for window in self._windows(data))

    def inputs(self, data: Array, picks: Array, zero: float = 0.0) -> Array:
        """Some columns of a batch of data, as (groups, picks, columns).

        Args:
            data: (n, channels, ...) for convolutions, (..., columns) for others.
            picks: their numbers, of `count`.
            zero: what stands for zero in the data: convolutions pad with it.
        """
        if self.node.op_type != "Conv":
            return data.reshape(-1, data.shape[-1])[picks][None]
        windows = self._windows(data)
        sample, *places = np.unravel_index(picks, (len(data), *(window.count for window in windows)))
        rank = len(windows)
        inside = np.ones((len(picks), *[1] * rank), bool)
        index: list[Any] = [sample.reshape(-1, *[1] * rank), slice(None)]
        for axis, (window, place) in enumerate(zip(windows, places, strict=True)):
            at = window.at(place).reshape(-1, *(window.kernel if i == axis else 1 for i in range(rank)))
            inside = inside & (at >= 0) & (at < window.size)
            index.append(np.clip(at, 0, window.size - 1))
        found = data[tuple(index)]  # picks, kernel, channels
        found[~inside] = zero
        found = np.moveaxis(found, -1, 1).reshape(len(picks), self.groups, -1)
        return np.ascontiguousarray(found.transpose(1, 0, 2))

    def _windows(self, data: Array) -> list[Window]:
        rank = len(self.shape) - 2
        given = {item.name: helper.get_attribute_value(item) for item in self.node.attribute}
        pads = given.get("pads", [0] * 2 * rank)
        auto = given.get("auto_pad", b"NOTSET").decode()
        return [
            Window.of(
                data.shape[2 + axis],
                self.shape[2 + axis],
                given.get("strides", [1] * rank)[axis],
                given.get("dilations", [1] * rank)[axis],
                (pads[axis], pads[axis + rank]),
                auto,
            )
            for axis in range(rank)
        ]


@dataclass(frozen=True)
class Window:
    """How a kernel moves along one axis of ``size`` numbers: ``count`` places, the first ``before`` ahead of it."""

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    count: int

    @classmethod
    def of(
        cls, size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], auto: str
    ) -> Window:
        """From what an ONNX node says."""
        reach = (kernel - 1) * dilation + 1
        if auto.startswith("SAME"):
            total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
            less = total // 2
            pads = (less, total - less) if auto == "SAME_UPPER" else (total - less, less)
        elif auto == "VALID":
            pads = (0, 0)
        return cls(size, kernel, stride, dilation, pads[0], (size + sum(pads) - reach) // stride + 1)

    def at(self, places: Array) -> Array:
        """Where the kernel lies at some places, (places, kernel); outside the axis there is padding."""
        return places[:, None] * self.stride - self.before + np.arange(self.kernel) * self.dilation


def layer_of(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> Layer | None:
    """The layer that a node is, or None if it is none, or its weights are not stored, or are scaled as it runs.

    Args:
        stored: what the graph stores, by name.
    """
    weights = stored.get(node.input[1]) if node.op_type in LAYERS else None
    if weights is None or weights.data_type != onnx.TensorProto.FLOAT or 0 in weights.dims:
        return None
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    shape = tuple(weights.dims)
    if node.op_type == "Conv":
        return Layer(node, shape, given.get("group", 1))
    plain = not given.get("transA", 0) and given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0
    return Layer(node, shape, across=not given.get("transB", 0)) if len(shape) == 2 and plain else None
