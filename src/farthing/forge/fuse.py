"""Graph passes that keep the numbers: fuse and fold, and compact."""

from __future__ import annotations

import itertools
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from farthing.engines.onnxruntime import CPU, runtime
from farthing.errors import UnsupportedError, require
from farthing.forge import graph
from farthing.model import Model
from farthing.recipe import PassSection
from farthing.target import Target
from farthing.task import Task


class Fuse(PassSection, frozen=True, kw_only=True):
    """Fold constants, fold batch normalization into convolutions, drop nodes that do nothing.

    ONNX Runtime's portable ("basic") rewrites, applied ahead of time: the result is standard ONNX, and
    quantization sees the operators that will run.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError if ONNX Runtime cannot load the graph."""
        ort = runtime()
        graph.load(model.file)
        with tempfile.TemporaryDirectory(prefix="farthing-") as folder:
            place = Path(folder) / "fused.onnx"
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = str(place)
            options.log_severity_level = 4
            try:
                ort.InferenceSession(str(model.file), options, providers=[CPU])
            except graph.failures() as error:
                raise UnsupportedError(f"{model.file} cannot be fused: {error}") from error
            fused = graph.load(place)
        return Model.create(model.manifest, {"model.onnx": graph.save_bytes(fused)})


class Compact(PassSection, frozen=True, kw_only=True):
    """Shorten what is only there to be read: tensor and node names, documentation, metadata; share equal constants.

    Inputs and outputs keep their names. On a small quantized net the names outweigh the numbers.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("onnx",)

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        proto = graph.load(model.file)
        if not any(attribute.HasField("g") for node in proto.graph.node for attribute in node.attribute):
            _share_constants(proto)
            _rename(proto)
        _strip(proto)
        return Model.create(model.manifest, {"model.onnx": graph.save_bytes(proto)})


def _strip(proto: Any) -> None:
    used = {node.domain for node in proto.graph.node} | {""}
    kept = [(entry.domain, entry.version) for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    for domain, version in kept:
        proto.opset_import.add(domain=domain, version=version)
    for field in ("producer_name", "producer_version", "doc_string", "domain", "model_version", "metadata_props"):
        proto.ClearField(field)
    for field in ("value_info", "doc_string", "metadata_props", "quantization_annotation"):
        proto.graph.ClearField(field)
    proto.graph.name = "g"
    for node in proto.graph.node:
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)
    for tensor in proto.graph.initializer:
        tensor.ClearField("doc_string")


def _share_constants(proto: Any) -> None:
    """Store equal initializers once; quantized files repeat the same scale and zero point many times."""
    numpy_helper = require("onnx.numpy_helper", "forge")
    outputs = {value.name for value in proto.graph.output}
    first: dict[tuple[Any, ...], str] = {}
    same: dict[str, str] = {}
    kept = []
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        key = (tensor.data_type, array.shape, array.tobytes())
        owner = tensor.name if tensor.name in outputs else first.setdefault(key, tensor.name)
        same[tensor.name] = owner
        if owner == tensor.name:
            kept.append(numpy_helper.from_array(array, tensor.name))
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    for node in proto.graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]


def _rename(proto: Any) -> None:
    fixed = {value.name for value in [*proto.graph.input, *proto.graph.output]}
    names = (name for name in _short_names() if name not in fixed)
    short = {name: name for name in fixed} | {"": ""}
    for tensor in proto.graph.initializer:
        if tensor.name not in short:
            short[tensor.name] = next(names)
        tensor.name = short[tensor.name]
    for node in proto.graph.node:
        for group in (node.input, node.output):
            for i, name in enumerate(group):
                if name not in short:
                    short[name] = next(names)
                group[i] = short[name]


def _short_names() -> Iterator[str]:
    letters = string.ascii_letters
    for length in itertools.count(1):
        yield from map("".join, itertools.product(letters, repeat=length))
