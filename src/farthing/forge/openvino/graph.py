"""ONNX models into OpenVINO's graphs, and these into files: small ones, and the same bytes every time."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from farthing.engines.openvino import OpenVinoEngine, runtime
from farthing.errors import ModelError, UnsupportedError, require
from farthing.forge import graph
from farthing.model import Manifest, Model
from farthing.scratch import Scratch

XML, BIN = "model.xml", "model.bin"
SHARED_BYTES = 1 << 14  # scales, ranges and shapes, not weights


def from_onnx(model: Model) -> Any:
    """An ONNX model as OpenVINO's graph, simplified as OpenVINO's own converter does it.

    Q/DQ pairs become FakeQuantize nodes and int8 weights with their scales, which OpenVINO computes in 8 bits.

    Raises:
        UnsupportedError: operators that OpenVINO lacks are named; so is any other reason why it refuses the graph.
        NotInstalled: openvino is not installed.
    """
    ov = runtime()
    transformations = require("openvino._offline_transformations", "openvino")
    proto = graph.load(model.file)
    _fold_biases(proto)
    try:
        read = ov.Core().read_model(graph.save_bytes(proto))
        transformations.apply_moc_transformations(read, cf=True, smart_reshape=True)
    except RuntimeError as error:
        raise UnsupportedError(
            f"OpenVINO {OpenVinoEngine.installed()} cannot convert {model.manifest.name}: {reason(error)}"
        ) from error
    _check(read, model.manifest)
    return read


def from_files(model: Model) -> Any:
    """The graph of a model that is OpenVINO's already.

    Raises:
        ModelError: OpenVINO cannot read it.
    """
    ov = runtime()
    try:
        return ov.Core().read_model(str(model.file))
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot read {model.file}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What an OpenVINO error says, without the source lines of OpenVINO it came through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    missing = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return "; ".join(missing) or " ".join(telling[:2]) or type(error).__name__


def _fold_biases(proto: onnx.ModelProto) -> None:
    """Biases stored as int32 with a scale become float32, in place: OpenVINO would widen them at every call."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    kept = {value.name for value in proto.graph.output}
    left = []
    for node in proto.graph.node:
        source = stored.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        folds = source is not None and source.data_type == onnx.TensorProto.INT32 and len(source.dims) < 2
        scale = stored.get(node.input[1]) if folds else None
        if source is None or scale is None or node.output[0] in kept:
            left.append(node)
            continue
        bias = numpy_helper.to_array(source).astype(np.float32) * numpy_helper.to_array(scale)
        proto.graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), node.output[0]))
    del proto.graph.node[:]
    proto.graph.node.extend(left)


def _check(read: Any, manifest: Manifest) -> None:
    """Every input and output of the manifest is there by name."""
    for specs, ports in ((manifest.inputs, read.inputs), (manifest.outputs, read.outputs)):
        names = {name for port in ports for name in port.get_names()}
        lost = [spec.name for spec in specs if spec.name not in names]
        if lost:
            raise UnsupportedError(f"OpenVINO's graph of {manifest.name} has no {', '.join(lost)} any more")


def to_model(read: Any, manifest: Manifest, half: bool = False) -> Model:
    """A graph as a model of two files, ``model.xml`` and ``model.bin``.

    On a small net the text outweighs the numbers. So names are numbers but for inputs and outputs, equal constants
    are one node, and what OpenVINO works out when it reads the file is left out: sizes between the nodes, remarks,
    white space.

    Args:
        half: store weights as float16.
    """
    ov = runtime()
    _share_constants(read)
    _rename(read, {spec.name for spec in (*manifest.inputs, *manifest.outputs)})
    with Scratch() as folder:
        place = folder / XML
        ov.save_model(read, str(place), compress_to_fp16=half)
        text = _slim(place.read_bytes())
        return Model.create(manifest, {XML: text, BIN: place.with_name(BIN)})


def _share_constants(read: Any) -> None:
    """Nodes that read equal small constants read the same one."""
    first: dict[tuple[Any, ...], Any] = {}
    for node in read.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_byte_size() > SHARED_BYTES:
            continue
        kind = node.get_element_type().get_type_name()
        if kind not in {"f32", "f16", "i64", "i32", "i8", "u8"}:
            continue
        kept = first.setdefault((kind, tuple(node.shape), node.data.tobytes()), node)
        if kept is not node:
            for user in list(node.output(0).get_target_inputs()):
                user.replace_source_output(kept.output(0))


def _rename(read: Any, fixed: set[str]) -> None:
    read.set_friendly_name("m")
    for number, node in enumerate(read.get_ordered_ops()):
        if node.get_type_name() != "Parameter":
            node.set_friendly_name(str(number))
        for port in node.outputs():
            port.get_tensor().set_names(port.get_names() & fixed)


def _slim(text: bytes) -> bytes:
    """The XML without white space, remarks on the whole, and the sizes that nodes infer."""
    top, end, _ = text.rpartition(b"</edges>")
    text = re.sub(rb">\s+<", b"><", top + end + b"</net>")
    if b"body>" in text:  # the sizes of graphs inside nodes are read
        return text
    return re.sub(rb"<dim>-?\d+</dim>", b"", text)
