"""Static int8: weights and activations in 8 bits, scales fixed from calibration data, as QDQ nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from onnx import ModelProto, TensorProto

from farthing.bench import Tick
from farthing.engines.onnxruntime import runtime
from farthing.errors import ConfigError, UnsupportedError, require
from farthing.forge import graph
from farthing.forge.fuse import OPSET
from farthing.forge.quantize.bias import SAMPLES, correct_biases
from farthing.forge.quantize.calibrate import Calibrator, chunk, model_feeds, quiet, ranges
from farthing.model import Model, Quantization, checked
from farthing.recipe import FLOATS, PassSection
from farthing.target import Target
from farthing.task import Task

VNNI = "vnni"
PRODUCTS = ("MatMul", "Gemm")


class StaticInt8(PassSection, frozen=True, kw_only=True):
    """Quantize weights and activations to 8 bits (Jacob et al., 2018, https://arxiv.org/abs/1712.05877).

    What is left None is chosen from the target's instruction set: on x86 uint8 activations and int8 weights,
    whose products VNNI sums without saturation; without VNNI the weights keep 7 bits (``reduce_range``), because
    ``vpmaddubsw`` adds pairs of products in 16 bits; on ARM both are int8. Activations keep a zero point either
    way: ranges of both signs and of one fill all 8 bits, and a ReLU after a convolution costs nothing. Operators that
    read or give what is infinite on the calibration data, as masks of attention are, stay float.

    Attributes:
        calibrator: ``minmax``, ``percentile``, ``entropy`` or ``mse``.
        percentile: per cent of values that ``percentile`` keeps.
        samples: most calibration samples used.
        activations, weights: ``uint8`` or ``int8``.
        per_channel: a scale for each output channel of a weight.
        reduce_range: 7-bit weights.
        exclude: names of nodes that stay float.
        products_only: quantize only what goes into matrix products with stored weights; what comes out of them, and all
            else, stays float. For transformers, where a few outliers would take the range of all.
        correct_biases: see `farthing.forge.quantize.bias.correct_biases`.
    """

    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")
    forms: ClassVar[Mapping[str, str]] = dict.fromkeys(FLOATS, "int8")

    calibrator: Calibrator = "minmax"
    percentile: float = 99.99
    samples: int = 256
    activations: Literal["uint8", "int8"] | None = None
    weights: Literal["uint8", "int8"] = "int8"
    per_channel: bool = True
    reduce_range: bool | None = None
    exclude: tuple[str, ...] = ()
    products_only: bool = False
    correct_biases: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"samples is a whole number from 1, not {self.samples}")
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"percentile is above 50 and at most 100, not {self.percentile}")

    def resolved(self, target: Target) -> StaticInt8:
        """The same pass with every option fixed for a target."""
        arm = target.arch.startswith(("arm", "aarch"))
        activations = self.activations or ("int8" if arm else "uint8")
        saturates = not arm and not target.vnni and activations == "uint8"
        reduce_range = self.reduce_range if self.reduce_range is not None else saturates
        return msgspec.structs.replace(self, activations=activations, reduce_range=reduce_range)

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError if nothing in the graph can be quantized, TaskError for unusable data."""
        return self.made(model, target, task)

    def made(self, model: Model, target: Target, task: Task, tick: Tick | None = None) -> Model:
        """The same; ``tick`` is called with (done, total) layers where they are gone through one by one."""
        _check_opset(graph.load(model.file), model)
        operators = PRODUCTS if self.products_only else ()
        found = ranges(model, task, self.calibrator, self.percentile, self.samples, operators)
        return self.quantized(model, target, task, found, tick)

    def quantized(
        self, model: Model, target: Target, task: Task, found: Any, tick: Tick | None = None
    ) -> Model:
        """The model with scales from ranges, in the form that `farthing.forge.quantize.calibrate.ranges` gives."""
        fixed = self.resolved(target)
        source = graph.load(model.file)
        quantized = _quantize(source, found, fixed)
        if not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in quantized.graph.node}:
            raise UnsupportedError(f"{model.manifest.name} has no operator that can be quantized to int8")
        quantized = fixed.mended(source, quantized, model, task, tick)
        manifest = checked(
            model.manifest,
            quantization=Quantization(
                scheme="static",
                weights=fixed.stored_weights,
                activations=fixed.activations or "",
                per_channel=fixed.per_channel,
                reduce_range=bool(fixed.reduce_range),
                calibrator=self.calibrator,
                excluded=self.exclude,
            ),
            requires=tuple(dict.fromkeys([*model.manifest.requires, *_requires(fixed, target)])),
        )
        return Model.create(manifest, {"model.onnx": graph.save_bytes(quantized)})

    def products(self, source: ModelProto) -> list[str]:
        """Names of the matrix products with stored weights.

        Raises:
            UnsupportedError: there are none.
        """
        stored = {tensor.name for tensor in source.graph.initializer}
        found = [
            n.name for n in source.graph.node if n.op_type in PRODUCTS and stored.intersection(n.input[:2])
        ]
        if not found:
            raise UnsupportedError(
                "the model has no matrix product with stored weights: leave products_only out"
            )
        return found

    @property
    def stored_weights(self) -> str:
        """Type of the weights in the file, for the manifest."""
        return self.weights

    def mended(
        self, source: ModelProto, quantized: ModelProto, model: Model, task: Task, tick: Tick | None
    ) -> ModelProto:
        """What rounding did, put right as far as it can be.

        Args:
            source: the float graph, every node with a name of its own; quantized: the same with Q/DQ pairs.
            model: the float model.
        """
        if self.correct_biases:
            correct_biases(source, quantized, _batches(model, task, self.samples))
        return quantized


def _batches(model: Model, task: Task, samples: int) -> Iterator[dict[str, Any]]:
    order = np.arange(min(samples, SAMPLES, len(task.split("calibration"))))
    size = chunk(model, task)
    for start in range(0, len(order), size):
        yield model_feeds(model, task, order[start : start + size])


def _requires(fixed: StaticInt8, target: Target) -> tuple[str, ...]:
    """Full-range u8s8 saturates on an x86 CPU without VNNI: say so in the manifest."""
    unsafe = fixed.activations == "uint8" and fixed.weights == "int8" and not fixed.reduce_range
    return (VNNI,) if unsafe and target.arch == "x86_64" else ()


def _check_opset(source: Any, model: Model) -> None:
    opset = graph.opset(source)
    if opset < OPSET:
        raise UnsupportedError(
            f"{model.manifest.name} has opset {opset}, int8 needs {OPSET}: fuse it first, or export it with a newer one"
        )


def quantizable() -> list[str]:
    """Types of the operators that ONNX Runtime computes in 8 bits, or passes 8 bits through."""
    registry = require("onnxruntime.quantization.registry", "forge")
    return sorted({*registry.QLinearOpsRegistry, *registry.QDQRegistry})


def _unbounded(source: ModelProto, known: Collection[str], products: Collection[str]) -> list[str]:
    """Names of the nodes that read or give floats without a known range: those are infinite."""
    inferred = graph.inferred(source).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    lost = floats - {tensor.name for tensor in source.graph.initializer} - {*known}
    looked_at = [node for node in source.graph.node if not products or node.name in products]
    return [node.name for node in looked_at if lost.intersection([*node.input, *node.output])]


def _beyond(source: ModelProto) -> list[str]:
    """Names of nodes that ONNX Runtime's quantizer cannot give a scale for each channel: their bias would have other
    scales than their products.
    """
    return [
        node.name
        for node in source.graph.node
        if node.op_type == "ConvTranspose" and len(node.input) > 2 and graph.attribute(node, "group", 1) > 1
    ]


def _quantize(source: Any, found: Any, options: StaticInt8) -> Any:
    runtime()
    tools = require("onnxruntime.quantization", "forge")
    qdq = require("onnxruntime.quantization.qdq_quantizer", "forge")
    types = {"uint8": tools.QuantType.QUInt8, "int8": tools.QuantType.QInt8}
    graph.name_nodes(source)
    products = options.products(source) if options.products_only else []
    beyond = _beyond(source) if options.per_channel else []
    with quiet():
        quantizer = qdq.QDQQuantizer(
            graph.inferred(source),
            options.per_channel,
            bool(options.reduce_range),
            types[options.weights],
            types[options.activations or "uint8"],
            found,
            products,
            [*options.exclude, *beyond, *_unbounded(source, {*found}, products)],
            quantizable(),
            {
                "ActivationSymmetric": False,
                "WeightSymmetric": options.weights == "int8",
                "OpTypesToExcludeOutputQuantization": [*PRODUCTS] if options.products_only else [],
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    return quantizer.model.model
