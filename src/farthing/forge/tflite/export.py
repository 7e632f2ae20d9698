"""ONNX to TFLite: the same network for LiteRT, microcontrollers and what else reads ``.tflite`` files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.tflite import operators, schema
from farthing.forge.tflite.builder import Builder, Storage
from farthing.forge.tflite.net import Net, Node
from farthing.forge.tflite.reading import read
from farthing.forge.tflite.rewriting import simplify
from farthing.model import Manifest, Model, TensorSpec, checked
from farthing.recipe import PassSection
from farthing.target import Target
from farthing.task import Task

FILE = "model.tflite"
PICTURE = (0, 2, 3, 1)  # NHWC in terms of NCHW


class ExportTflite(PassSection, frozen=True, kw_only=True):
    """Write an ONNX model as TFLite, without TensorFlow.

    A float graph gives a float file. A graph with Q/DQ nodes gives int8 operators from the very scales and zero points
    of these nodes; operators without them compute in float32. A picture goes in as NHWC, and the manifest says so;
    every other input and all outputs keep the shape and order that ONNX gave them. What TFLite cannot say exactly is
    refused.

    Attributes:
        weights: how weights of float operators are stored: ``float32``, ``float16`` (widened when loaded), or ``int8``,
            one scale an output, with activations quantized as they come ("dynamic range").
        io: type of the inputs and outputs of a quantized graph; ``uint8`` and ``int8`` leave the conversion from and
            to real numbers to the caller (the manifest's preprocess does it for pictures).
    """

    reads: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "ai-edge-litert", "flatbuffers")

    weights: Storage = "float32"
    io: Literal["float32", "uint8", "int8"] = "float32"

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError naming the operator, its node and why it cannot be written."""
        manifest = model.manifest
        if manifest.format != "onnx":
            raise UnsupportedError(
                f"{manifest.name} is {manifest.format}: only ONNX models are written as TFLite"
            )
        net = read(graph.load(model.file), manifest.inputs)
        simplify(net)
        data, specs = convert(net, manifest, self.weights)
        return Model.create(checked(manifest, format="tflite", inputs=specs), {FILE: data})


def convert(net: Net, manifest: Manifest, storage: Storage) -> tuple[bytes, tuple[TensorSpec, ...]]:
    """The file, and the inputs as they are now."""
    builder = Builder(net, storage)
    inputs: dict[str, int] = {}
    specs = []
    for spec in manifest.inputs:
        picture = manifest.preprocess is not None and spec.layout == "NCHW" and len(spec.shape) == 4
        order = PICTURE if picture else tuple(range(len(spec.shape)))
        shape = tuple(net.shapes[spec.name][i] for i in order)
        inputs[spec.name] = builder.input(spec.name, shape, spec.dtype)
        builder.put(spec.name, inputs[spec.name], order)
        changed: dict[str, Any] = {"shape": tuple(spec.shape[i] for i in order), "layout": "NHWC"}
        specs.append(checked_spec(spec, changed) if picture else spec)
    for node in net.nodes:
        operators.write(builder, node)
    outputs = _outputs(builder, net)
    return schema.write(builder.tensors, builder.operators, inputs, outputs), tuple(specs)


def checked_spec(spec: TensorSpec, changed: Mapping[str, Any]) -> TensorSpec:
    """A copy of a spec with some fields replaced."""
    import msgspec

    return msgspec.structs.replace(spec, **changed)


def _outputs(builder: Builder, net: Net) -> dict[str, int]:
    """The outputs as float32 in ONNX's order, each a tensor of its own with its name."""
    found: dict[str, int] = {}
    for name, shown in net.outputs.items():
        node = Node("output", name, (shown,), (name,))
        if builder.is_constant(shown):
            node.refuse("it is a constant; drop it from the graph's outputs")
        view = builder.float_view(shown, node)
        tensor = builder.place(view, [[axis] for axis in range(len(view.shape))])
        made = builder.tensors[tensor]
        if made.name:  # an input, or an output already
            tensor = builder.copy(tensor)
        builder.tensors[tensor].name = name
        found[name] = tensor
    return found
