"""Dynamic int8: weights in 8 bits, activations quantized while running. For MatMul-heavy nets only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from farthing.engines.onnxruntime import runtime
from farthing.errors import UnsupportedError, require
from farthing.forge import graph
from farthing.forge.quantize.calibrate import quiet
from farthing.model import Model, Quantization, checked
from farthing.recipe import FLOATS, PassSection
from farthing.scratch import Scratch
from farthing.target import Target
from farthing.task import Task

OPERATORS = ("MatMul", "Gemm", "LSTM", "Attention")


class DynamicInt8(PassSection, frozen=True, kw_only=True):
    """Quantize the weights of matrix products to int8; activations are quantized at run time.

    Convolutions are left alone: ONNX Runtime has no fast kernel for dynamic ones (measured at 0.1x to 0.3x).

    Attributes:
        per_channel: a scale for each output channel.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")
    forms: ClassVar[Mapping[str, str]] = dict.fromkeys(FLOATS, "dynamic")

    per_channel: bool = False

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError if there is no matrix product to quantize."""
        runtime()
        tools = require("onnxruntime.quantization", "forge")
        reduce_range = target.arch == "x86_64" and not target.vnni
        needed = () if reduce_range or target.arch != "x86_64" else ("vnni",)
        source = graph.inferred(graph.load(model.file))
        if not pays(source):
            raise UnsupportedError(
                f"{model.manifest.name} has no {', '.join(OPERATORS)} with weights to quantize"
            )
        with Scratch() as folder, quiet():
            place = folder / "model.onnx"
            tools.quantize_dynamic(
                source,
                place,
                op_types_to_quantize=list(OPERATORS),
                per_channel=self.per_channel,
                reduce_range=reduce_range,
                weight_type=tools.QuantType.QInt8,
            )
            quantized = graph.load(place)
        manifest = checked(
            model.manifest,
            quantization=Quantization(
                scheme="dynamic",
                weights="int8",
                activations="uint8",
                per_channel=self.per_channel,
                reduce_range=reduce_range,
            ),
            requires=tuple(dict.fromkeys([*model.manifest.requires, *needed])),
        )
        return Model.create(manifest, {"model.onnx": graph.save_bytes(quantized)})


def pays(model: Any, share: float = 0.0) -> bool:
    """Whether matrix products hold more than ``share`` of the parameters of a graph."""
    sizes = {tensor.name: graph.elements(tensor) for tensor in model.graph.initializer}
    heavy = {
        name for node in model.graph.node if node.op_type in OPERATORS for name in node.input if name in sizes
    }
    total = sum(sizes.values())
    return total > 0 and sum(sizes[name] for name in heavy) > share * total
