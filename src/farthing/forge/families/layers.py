"""Layers and blocks of a network as plain data: shapes, parameters, multiply-accumulates and memory by arithmetic.

Shapes are those of one sample, channels first: ``(channels, height, width)`` or ``(channels, length)``; after the last
pooling ``(features,)``. One layer is what an engine runs as one operator: a convolution with its normalization folded
in and its activation fused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from farthing.config import Section
from farthing.errors import ConfigError

Shape = tuple[int, ...]
Kind = Literal["conv", "maxpool", "average", "flatten", "dense"]
Activation = Literal["none", "relu", "relu6"]
Padding = Literal["same", "even"]
LEARNT = ("conv", "dense")


class Layer(Section, frozen=True, kw_only=True):
    """One operator of a network.

    Attributes:
        kind: ``conv`` and ``maxpool`` (1-D or 2-D, as the sample is), ``average`` over all places, ``flatten``, or
            ``dense``.
        inputs, outputs: channels (of ``dense``: features); 0 for layers that keep what they get.
        kernel, stride: of windows, the same along every axis.
        groups: of a convolution; as many as ``inputs`` make it depthwise.
        norm: batch normalization after a convolution; it takes the place of the bias.
        activation: what follows.
        padding: ``same`` as in TensorFlow (a stride of s gives ceil(n / s) places, the odd zero comes last), which
            TFLite runs without an operator of its own; or ``even``, (kernel - 1) // 2 zeros on every side.
    """

    kind: Kind
    inputs: int = 0
    outputs: int = 0
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    norm: bool = False
    activation: Activation = "none"
    padding: Padding = "same"

    def shape(self, given: Shape) -> Shape:
        """What comes out of a sample of that shape.

        Raises:
            ConfigError: the layer does not take such a sample, or its window is larger than what is left of it.
        """
        if self.kind == "average":
            return given[:1]
        if self.kind == "flatten":
            return (math.prod(given),)
        if self.inputs and given[0] != self.inputs:
            raise ConfigError(f"a layer of {self.inputs} inputs cannot take a sample of shape {list(given)}")
        if self.kind == "dense":
            return (self.outputs,)
        sizes = tuple(self._size(n) for n in given[1:])
        if not all(size >= 1 for size in sizes):
            raise ConfigError(
                f"a window of {self.kernel} does not fit into {list(given[1:])} places: use fewer strides and poolings"
            )
        return (self.outputs or given[0], *sizes)

    def _size(self, places: int) -> int:
        before, after = self.pads(places)
        return (places + before + after - self.kernel) // self.stride + 1

    def pads(self, places: int) -> tuple[int, int]:
        """Zeros before and after an axis of so many places."""
        if self.padding == "even":
            return (self.kernel - 1) // 2, (self.kernel - 1) // 2
        total = max((math.ceil(places / self.stride) - 1) * self.stride + self.kernel - places, 0)
        return total // 2, total - total // 2

    def weights(self, axes: int) -> int:
        """Numbers in its kernel, for samples of so many axes beside the channels."""
        if self.kind == "dense":
            return self.inputs * self.outputs
        return self.inputs // self.groups * self.outputs * self.kernel**axes if self.kind == "conv" else 0

    def macs(self, given: Shape) -> int:
        """Multiply-accumulates for a sample; those of biases, activations and poolings do not count, as is usual."""
        if self.kind not in LEARNT:
            return 0
        return self.weights(len(given) - 1) * math.prod(self.shape(given)[1:])


class Block(Section, frozen=True, kw_only=True):
    """Layers one after another, perhaps beside a short cut: the unit that is measured on a device.

    Attributes:
        body: the layers.
        shortcut: layers beside them whose result is added, none of them for the sample itself; None adds nothing.
        activation: what follows the addition.
    """

    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] | None = None
    activation: Activation = "none"

    def shape(self, given: Shape) -> Shape:
        """What comes out of a sample of that shape."""
        for layer in self.body:
            given = layer.shape(given)
        return given

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, in the order in which they run."""
        return (*self.body, *(self.shortcut or ()))


class Cost(Section, frozen=True, kw_only=True):
    """What a network costs whatever runs it, with batch normalization folded away.

    Attributes:
        weights, biases: numbers stored.
        macs: multiply-accumulates of one inference.
        activations: most numbers that are alive at one moment when the layers run in their order, one sample:
            inputs and output of the layer that runs, and what a later one still needs.
    """

    weights: int
    biases: int
    macs: int
    activations: int

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.weights + self.biases

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters of an int8 model: weights of 8 bits, biases of 32."""
        return self.weights + 4 * self.biases

    @property
    def activation_bytes(self) -> int:
        """Peak bytes of the activations of an int8 model: what a microcontroller needs beside its own buffers."""
        return self.activations

    @property
    def float_weight_bytes(self) -> int:
        """Bytes of the parameters in float32."""
        return 4 * self.parameters

    @property
    def float_activation_bytes(self) -> int:
        """Peak bytes of the activations in float32."""
        return 4 * self.activations


def cost_of(blocks: Sequence[Block], shape: Shape) -> Cost:
    """The cost of blocks that run one after another on a sample of a shape."""
    weights = biases = macs = peak = 0
    for block in blocks:
        peak = max(peak, _peak(block, shape))
        for branch in (block.body, block.shortcut or ()):
            given = shape
            for layer in branch:
                weights += layer.weights(len(given) - 1)
                biases += layer.outputs if layer.kind in LEARNT else 0
                macs += layer.macs(given)
                given = layer.shape(given)
        shape = block.shape(shape)
    return Cost(weights=weights, biases=biases, macs=macs, activations=peak)


def _peak(block: Block, shape: Shape) -> int:
    """Most numbers alive while a block runs: its body first, then its short cut, then their sum."""
    kept = 0 if block.shortcut is None else math.prod(shape)
    peak, body = _branch(block.body, shape, kept)
    if block.shortcut is None:
        return peak
    result = math.prod(body)
    beside, added = _branch(block.shortcut, shape, 0)
    return max(peak, beside + result if block.shortcut else 0, math.prod(added) + 2 * result)


def _branch(layers: Sequence[Layer], shape: Shape, kept: int) -> tuple[int, Shape]:
    """Most numbers alive while layers run and so many are kept for later (the sample itself), and what comes out."""
    peak = 0
    for number, layer in enumerate(layers):
        result = layer.shape(shape)
        if layer.kind != "flatten":  # the same numbers by another name
            peak = max(peak, math.prod(shape) + math.prod(result) + (kept if number else 0))
        shape = result
    return peak, shape
