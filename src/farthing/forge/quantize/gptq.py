"""Static quantization whose weights, of 8 bits or 4, are rounded for what they do to each layer's answers (GPTQ)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper, version_converter

from farthing import bench
from farthing.bench import Tick
from farthing.errors import ConfigError, UnsupportedError
from farthing.forge import graph
from farthing.forge.quantize.blocks import int4
from farthing.forge.quantize.calibrate import MOST_NUMBERS, chunk, model_feeds
from farthing.forge.quantize.columns import layer_of
from farthing.forge.quantize.compensate import MOST_INPUTS, compensate
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.quantize.twins import Twin, twins
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.recipe import Progress
from farthing.target import Target
from farthing.task import Task

OPSET = 21  # the first that knows numbers of 4 bits
LEAST_SAMPLES = 16


class Gptq(StaticInt8, frozen=True, kw_only=True):
    """Static quantization as `StaticInt8` does it, with weights that make up for one another's rounding.

    Layer after layer, each with the inputs that the layers before it now give: a column of weights is rounded, and the
    columns after it take over what that did to the outputs (Frantar et al. 2022, https://arxiv.org/abs/2210.17323); the
    outputs aimed at are those in float, as far as a held-out half of the calibration data bears that out; biases take
    what is left of the means. It needs no training and no gradients.

    Weights of 4 bits halve the file, not the time: they become int8 when the model is loaded, and are computed as such.

    Attributes:
        bits: of the weights in the file.
        eight: names of layers whose weights keep 8 bits where others have 4; None: the first layer, the last one, and
            convolutions with groups.
        rounding_samples: most calibration samples that the rounding looks at, fewer if they are large.
        places: most places of a layer's output that it looks at.
    """

    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx", "numpy")

    bits: Literal[8, 4] = 8
    eight: tuple[str, ...] | None = None
    rounding_samples: int = 256
    places: int = 16384

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correct_biases:
            raise ConfigError("correct_biases is for quantize.static.v1: this step corrects them in any case")
        if self.bits == 4 and self.weights != "int8":
            raise ConfigError(
                f"weights of 4 bits are computed as int8, not {self.weights}: leave weights out"
            )
        if self.rounding_samples < 1 or self.places < 1:
            raise ConfigError("rounding_samples and places are whole numbers from 1")

    @property
    def stored_weights(self) -> str:
        return "int4" if self.bits == 4 else self.weights

    def within(self, workshop: Workshop) -> Callable[[Model, Target, Task], Model]:
        """The same pass, which says how far it is."""

        def tick(done: int, total: int) -> None:
            text = f"rounding weights, layer {done} of {total}"
            workshop.listener(Progress(stage="passes", text=text, done=done, total=total))

        return lambda model, target, task: self.made(model, target, task, tick)

    def mended(
        self, source: ModelProto, quantized: ModelProto, model: Model, task: Task, tick: Tick | None
    ) -> ModelProto:
        """Raises UnsupportedError if weights of 4 bits are asked for and there is nothing to store so."""
        found = list(twins(source, quantized))
        eight = None if self.bits == 8 else frozenset(_sensitive(found) if self.eight is None else self.eight)
        small = compensate(
            source,
            quantized,
            rounding_feeds(model, task, self.rounding_samples),
            places=self.places,
            reduced=bool(self.reduce_range),
            eight=eight,
            tick=tick,
        )
        if eight is None:
            return quantized
        if not small:
            raise UnsupportedError(
                f"{model.manifest.name} has no layer whose weights could be stored in 4 bits; use 8"
            )
        return _packed(quantized, set(small), model.manifest.name)


def four_bits(proto: ModelProto) -> int:
    """How many weights would get 4 bits, unless told otherwise."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    layers = [layer for node in proto.graph.node if (layer := layer_of(node, stored))]
    inner = [layer for layer in layers[1:-1] if layer.groups == 1 and layer.inputs_each <= MOST_INPUTS]
    return sum(math.prod(layer.shape) for layer in inner)


def _sensitive(found: list[Twin]) -> list[str]:
    """The first layer, the last, and those whose outputs have few inputs each."""
    ends = {0, len(found) - 1}
    return [twin.name for place, twin in enumerate(found) if place in ends or twin.layer.groups > 1]


def rounding_feeds(model: Model, task: Task, samples: int) -> list[dict[str, Any]]:
    """Calibration samples spread over the split, batch by batch; at least two batches, if there are two samples."""
    split = task.split("calibration")
    fitting = bench.fitting_batch(model.manifest, samples, task, split, 2 * MOST_NUMBERS)
    count = min(len(split), samples, max(fitting, LEAST_SAMPLES))
    order = np.unique(np.linspace(0, len(split) - 1, count).round().astype(np.int64))
    size = max(1, min(chunk(model, task), (len(order) + 1) // 2))
    return [model_feeds(model, task, order[start : start + size]) for start in range(0, len(order), size)]


def _packed(quantized: ModelProto, names: set[str], where: str) -> ModelProto:
    """Weights stored in 4 bits, and cast to 8 before they are read: runtimes do that once, when they load the model."""
    try:
        packed = version_converter.convert_version(quantized, max(OPSET, graph.opset(quantized)))
    except graph.failures() as error:
        raise UnsupportedError(
            f"{where} cannot be brought to opset {OPSET}, which numbers of 4 bits need: {error}"
        ) from error
    packed.ir_version = max(packed.ir_version, 10)
    casts = []
    for tensor in packed.graph.initializer:
        if tensor.name in names:
            small = f"{tensor.name}/4"
            casts.append(helper.make_node("Cast", [small], [tensor.name], name=small, to=TensorProto.INT8))
            tensor.CopyFrom(int4(numpy_helper.to_array(tensor), small))
    nodes = [*casts, *packed.graph.node]
    del packed.graph.node[:]
    packed.graph.node.extend(nodes)
    return packed
