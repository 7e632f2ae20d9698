"""Graph passes that keep the numbers: fuse and fold, and compact."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from farthing.engines.onnxruntime import CPU, runtime
from farthing.errors import UnsupportedError, require
from farthing.forge import graph
from farthing.forge.folding import fold
from farthing.model import Model
from farthing.recipe import FLOATS, PassSection
from farthing.scratch import Scratch
from farthing.target import Target
from farthing.task import Task

ONNX = (*FLOATS, "float16", "int8", "mixed", "dynamic", "blocks", "stored", "reduced")
"""All forms of ONNX models."""
OPSET = 13  # the first whose quantized operators take a scale for each channel


class Fuse(PassSection, frozen=True, kw_only=True):
    """Fold constants, fold batch normalization into convolutions and dense layers, drop nodes that do nothing.

    ONNX Runtime's portable ("basic") rewrites, applied ahead of time, and what they leave of batch normalization
    behind dense layers and transposed convolutions: the result is standard ONNX, and quantization sees the operators
    that will run. An older opset is brought to 13, which int8 needs, if onnx can.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")
    forms: ClassVar[Mapping[str, str]] = {form: form for form in (*FLOATS, "reduced")}

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError if ONNX Runtime cannot load the graph."""
        ort = runtime()
        source = _modern(graph.load(model.file))
        with Scratch() as folder:
            place = folder / "fused.onnx"
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = str(place)
            options.log_severity_level = 4
            try:
                ort.InferenceSession(graph.save_bytes(source), options, providers=[CPU])
            except graph.failures() as error:
                raise UnsupportedError(f"{model.file} cannot be fused: {error}") from error
            fused = graph.load(place)
        fold(fused)
        return Model.create(model.manifest, {"model.onnx": graph.save_bytes(fused)})


def _modern(proto: Any) -> Any:
    opset = next((entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}), OPSET)
    if opset >= OPSET:
        return proto
    converter = require("onnx.version_converter", "forge")
    try:
        return converter.convert_version(proto, OPSET)
    except graph.failures():
        return proto


class Compact(PassSection, frozen=True, kw_only=True):
    """Shorten what is only there to be read: tensor and node names, documentation, metadata; share equal constants.

    Inputs and outputs keep their names. On a small quantized net the names outweigh the numbers.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("onnx",)
    forms: ClassVar[Mapping[str, str]] = {form: form for form in ONNX}

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        proto = graph.load(model.file)
        _share_constants(proto)
        _rename(proto)
        _strip(proto)
        return Model.create(model.manifest, {"model.onnx": graph.save_bytes(proto)})


def _graphs(top: Any) -> Iterator[Any]:
    """A graph and those inside its If, Loop and Scan nodes, outer ones first."""
    yield top
    for node in top.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graphs(inner)


def _share_constants(proto: Any) -> None:
    """Store equal initializers once; quantized files repeat the same scale and zero point many times.

    Those that are inputs or outputs as well, or whose name an inner graph gives to something of its own, stay.
    """
    numpy_helper = require("onnx.numpy_helper", "forge")
    top, *inner = _graphs(proto.graph)
    kept_names = {value.name for value in (*top.input, *top.output)} | {n for g in inner for n in _defined(g)}
    first: dict[tuple[Any, ...], str] = {}
    same: dict[str, str] = {}
    spare = []
    for place, tensor in enumerate(top.initializer):
        if tensor.name in kept_names or tensor.data_type == tensor.STRING:
            continue
        array = numpy_helper.to_array(tensor)
        if not tensor.raw_data and array.dtype.kind in "iuf":  # negative numbers take ten bytes as varints
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        same[tensor.name] = first.setdefault((tensor.data_type, array.shape, array.tobytes()), tensor.name)
        if same[tensor.name] != tensor.name:
            spare.append(place)
    for place in reversed(spare):
        del top.initializer[place]
    for each in (top, *inner):
        for node in each.node:
            node.input[:] = [same.get(name, name) for name in node.input]
        for value in each.output:
            value.name = same.get(value.name, value.name)


def _defined(inner: Any) -> Iterator[str]:
    """Names that a graph gives: to its inputs, constants and results."""
    yield from (value.name for value in inner.input)
    yield from (tensor.name for tensor in inner.initializer)
    yield from (sparse.values.name for sparse in inner.sparse_initializer)
    yield from (name for node in inner.node for name in node.output)


def _rename(proto: Any) -> None:
    """One short name for each name, the same in inner graphs: what refers to what stays as it is."""
    fixed: set[str] = {value.name for value in [*proto.graph.input, *proto.graph.output]}
    names = (name for name in _short_names() if name not in fixed)
    short: dict[str, str] = {name: name for name in ("", *fixed)}

    def renamed(name: str) -> str:
        if name not in short:
            short[name] = next(names)
        return short[name]

    for each in _graphs(proto.graph):
        sparse = [tensor.values for tensor in each.sparse_initializer]
        for named in (*each.initializer, *sparse, *each.input, *each.output):
            named.name = renamed(named.name)
        for node in each.node:
            node.input[:] = map(renamed, node.input)
            node.output[:] = map(renamed, node.output)


def _short_names() -> Iterator[str]:
    letters = string.ascii_letters
    for length in itertools.count(1):
        yield from map("".join, itertools.product(letters, repeat=length))


def _strip(proto: Any) -> None:
    for field in (
        "producer_name",
        "producer_version",
        "doc_string",
        "domain",
        "model_version",
        "metadata_props",
    ):
        proto.ClearField(field)
    used = {""} | {function.domain for function in proto.functions}
    for each in [*_graphs(proto.graph), *proto.functions]:
        for node in each.node:
            used.add(node.domain)
            for field in ("name", "doc_string", "metadata_props"):
                node.ClearField(field)
    for each in _graphs(proto.graph):
        for field in ("value_info", "doc_string", "metadata_props", "quantization_annotation"):
            each.ClearField(field)
        each.name = "g"
        for named in (*each.initializer, *each.input, *each.output):
            named.ClearField("doc_string")
    kept = [(entry.domain, entry.version) for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    for domain, version in kept:
        proto.opset_import.add(domain=domain, version=version)
