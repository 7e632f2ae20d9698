"""ONNX to TFLite: the same network for LiteRT, microcontrollers and what else reads ``.tflite`` files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import msgspec
import numpy as np

from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.quantize.static import VNNI
from farthing.forge.tflite import operators, schema
from farthing.forge.tflite.builder import Builder, Storage
from farthing.forge.tflite.net import Net, Node, Params
from farthing.forge.tflite.reading import read
from farthing.forge.tflite.rewriting import simplify
from farthing.model import Manifest, Model, Quantization, TensorSpec, checked
from farthing.recipe import FLOATS, PassSection
from farthing.target import Target
from farthing.task import Task

FILE = "model.tflite"
PICTURE = (0, 2, 3, 1)  # NHWC in terms of NCHW
QDQ = {"QuantizeLinear", "DequantizeLinear"}
Io = Literal["float32", "uint8", "int8"]


class ExportTflite(PassSection, frozen=True, kw_only=True):
    """Write an ONNX model as TFLite, without TensorFlow.

    A float graph gives a float file. A graph with Q/DQ nodes gives int8 operators from the very scales and zero points
    of these nodes; operators without them compute in float32. A picture goes in as NHWC, and the manifest says so;
    every other input and all outputs keep the shape and order that ONNX gave them. What TFLite cannot say exactly is
    refused.

    Attributes:
        weights: how weights of float operators are stored: ``float32``, ``float16`` (widened when loaded), or ``int8``,
            one scale an output, with activations quantized as they come ("dynamic range").
        io: type of the inputs and outputs of a quantized graph. With ``uint8`` and ``int8`` the manifest states their
            scales, from which real numbers are converted where they are fed and read.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "ai-edge-litert", "flatbuffers")
    forms: ClassVar[Mapping[str, str]] = dict.fromkeys((*FLOATS, "int8", "reduced"), "tflite")

    weights: Storage = "float32"
    io: Io = "float32"

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError naming the operator, its node and why it cannot be written."""
        manifest = model.manifest
        if manifest.format != "onnx":
            raise UnsupportedError(
                f"{manifest.name} is {manifest.format}: only ONNX models are written as TFLite"
            )
        net = read(graph.load(model.file), manifest.inputs)
        quantized = any(node.kind in QDQ for node in net.nodes)
        simplify(net)
        made = convert(net, manifest, self.weights, self.io)
        changed = checked(
            manifest,
            format="tflite",
            inputs=made.inputs,
            outputs=made.outputs,
            requires=tuple(
                need for need in manifest.requires if need != VNNI
            ),  # LiteRT's sums do not saturate
            quantization=_quantization(manifest.quantization, self.weights, quantized),
        )
        return Model.create(changed, {FILE: made.data})


def _quantization(given: Quantization | None, storage: Storage, quantized: bool) -> Quantization | None:
    """How the numbers of the written file are stored."""
    if quantized:
        known = given or Quantization(scheme="static", weights="int8", activations="int8")
        return msgspec.structs.replace(known, activations="int8", reduce_range=known.reduce_range)
    if storage == "float16":
        return Quantization(scheme="float16", weights="float16", activations="float32")
    if storage == "int8":
        return Quantization(scheme="dynamic", weights="int8", activations="int8", per_channel=True)
    return given


class Written(NamedTuple):
    """A file, and its inputs and outputs as a manifest names them."""

    data: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def convert(net: Net, manifest: Manifest, storage: Storage, io: Io) -> Written:
    """Write a simplified net."""
    builder = Builder(net, storage)
    inputs: dict[str, int] = {}
    specs = []
    for spec in manifest.inputs:
        picture = manifest.preprocess is not None and spec.layout == "NCHW" and len(spec.shape) == 4
        inputs[spec.name], changed = _input(builder, spec, picture, io)
        specs.append(changed)
    for node in net.nodes:
        operators.write(builder, node)
    outputs: dict[str, int] = {}
    results = []
    for spec in manifest.outputs:
        outputs[spec.name], changed = _output(builder, net, spec, io)
        results.append(changed)
    data = schema.write(builder.tensors, builder.operators, inputs, outputs)
    return Written(data, tuple(specs), tuple(results))


def _input(builder: Builder, spec: TensorSpec, picture: bool, io: Io) -> tuple[int, TensorSpec]:
    """The tensor of an input, and its spec as it is now."""
    order = PICTURE if picture else tuple(range(len(spec.shape)))
    if picture:
        spec = msgspec.structs.replace(spec, shape=tuple(spec.shape[i] for i in order), layout="NHWC")
    shape = tuple(builder.net.shapes[spec.name][i] for i in order)
    if io == "float32" or spec.dtype != "float32":
        tensor = builder.input(spec.name, shape, spec.dtype)
        builder.put(spec.name, tensor, order)
        return tensor, spec
    params = builder.asked(spec.name)
    if params is None:
        raise UnsupportedError(
            f"input {spec.name!r} is not quantized, or read at several scales: it cannot be {io}; quantize the model, "
            "or leave io at float32"
        )
    tensor = builder.input(spec.name, shape, io, _shifted(params, io))
    builder.put(spec.name, builder.convert(tensor, "int8", params), order)
    return tensor, _scaled(spec, params, io)


def _output(builder: Builder, net: Net, spec: TensorSpec, io: Io) -> tuple[int, TensorSpec]:
    """The tensor of an output, in ONNX's order and with its name, and its spec as it is now."""
    shown = net.outputs[spec.name]
    node = Node("output", spec.name, (shown,), (spec.name,))
    if builder.is_constant(shown):
        node.refuse("it is a constant; drop it from the graph's outputs")
    view = builder.view(shown, node)
    integer = io != "float32" and spec.dtype == "float32"
    params = builder.params(view.tensor)
    if integer and params is None:
        node.refuse(f"it is not quantized and cannot be {io}; quantize the model, or leave io at float32")
    view = view if integer else builder.real(view)
    tensor = builder.place(view, [[axis] for axis in range(len(view.shape))])
    if integer and params is not None:
        tensor = builder.convert(tensor, io, _shifted(params, io))
        spec = _scaled(spec, params, io)
    if builder.tensors[tensor].name:  # an input, or an output already
        tensor = builder.copy(tensor)
    builder.tensors[tensor].name = spec.name
    return tensor, spec


def _shifted(params: Params, io: Io) -> Params:
    """The same numbers as uint8, if that is asked for."""
    return params if io == "int8" else Params(params.scale, (params.zero[0] + 128,))


def _scaled(spec: TensorSpec, params: Params, io: Io) -> TensorSpec:
    """A spec of integers that stand for real numbers."""
    known = _shifted(params, io)
    scale = float(np.float32(known.scale[0]))
    return msgspec.structs.replace(spec, dtype=io, scale=scale, zero_point=known.zero[0])
