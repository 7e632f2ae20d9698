"""ONNX files: what is in the graph, and which provider of ONNX Runtime runs each node how long."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from farthing.anatomy import Placed
from farthing.engines.onnxruntime import runtime
from farthing.errors import FarthingError, require
from farthing.forge.inspect.facts import (
    RUNS,
    WEIGHTS,
    Array,
    Inspection,
    Reader,
    Stored,
    Subject,
    batch,
    layers,
    share_of_zeros,
    weights,
    zeros_in,
)
from farthing.scratch import Scratch

_DTYPES = {"float": "float32", "double": "float64", "float16": "float16", "bfloat16": "bfloat16"} | {
    name: name for name in "int8 uint8 int16 uint16 int32 uint32 int64 uint64 bool".split()
}


def look(subject: Subject) -> Inspection:
    """See `farthing.forge.inspect.inspect`."""
    require("onnx", "forge")
    from farthing.forge import graph, macs

    proto = graph.load(subject.path)
    manifest = subject.manifest
    inputs, outputs = (manifest.inputs, manifest.outputs) if manifest else graph.tensor_specs(proto)
    kinds = Counter(f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in graph.nodes(proto.graph))
    readers, numbers = _numbers(proto)
    ort = runtime()
    found = Inspection(
        name=subject.name,
        format="onnx",
        size_bytes=subject.size_bytes,
        inputs=inputs,
        outputs=outputs,
        opset=max(
            (entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}), default=None
        ),
        operators=dict(kinds.most_common()),
        nodes=sum(kinds.values()),
        parameters=sum(part.numbers for part in numbers.values()),
        weights=weights(numbers.values()),
        layers=layers(readers, numbers),
        zeros=share_of_zeros(numbers.values()),
        runtime=f"onnxruntime {ort.__version__}",
        providers=tuple(ort.get_available_providers()),
    )
    fed, reason = subject.fed(inputs)
    if reason:
        return msgspec.structs.replace(found, notes=(f"not run: {reason}",))
    work, reason = macs.count(proto, fed)
    notes = [f"multiply-accumulates not counted: {reason}"] if work is None else []
    try:
        placement, peak = _profile(proto, fed)
    except FarthingError as error:
        return msgspec.structs.replace(found, notes=(*notes, f"placement not known: {error}"))
    return msgspec.structs.replace(
        found,
        macs=None if work is None else work // batch(inputs, fed),
        placement=placement,
        activation_peak_bytes=peak,
        notes=tuple(notes),
    )


def _numbers(proto: Any) -> tuple[list[Reader], dict[str, Stored]]:
    """The operators of a graph, and its stored tensors by name; what branches and loops hold belongs to their node."""
    from farthing.forge import graph

    stored = {tensor.name: _size_of(tensor) for tensor in proto.graph.initializer}
    for sparse in proto.graph.sparse_initializer:
        stored |= {
            sparse.values.name: _size_of(sparse.values),
            f"{sparse.values.name}.indices": _size_of(sparse.indices),
        }
    readers = []
    for place, node in enumerate(proto.graph.node):
        name = node.name or f"{node.op_type}_{place}"
        own = {f"{name}.{i}": _size_of(tensor) for i, tensor in enumerate(_tensors_of(node))}
        stored |= own
        nested = [n for inner in _graphs_of(node) for n in graph.nodes(inner)]
        read = [*node.input, *own, *(input_ for n in nested for input_ in n.input)]
        readers.append(Reader(name, node.op_type, read, [*node.output]))
    for function in proto.functions:
        own = {
            f"{function.name}.{i}": _size_of(tensor)
            for i, tensor in enumerate(t for node in function.node for t in _tensors_of(node))
        }
        stored |= own
        readers.append(Reader(function.name, "function", [*own, "its inputs"], []))
    return readers, stored


def _graphs_of(node: Any) -> list[Any]:
    return [g for a in node.attribute for g in (*a.graphs, *([a.g] if a.HasField("g") else []))]


def _tensors_of(node: Any) -> list[Any]:
    """Tensors that a node holds in its attributes, those of inner graphs included."""
    found = [t for a in node.attribute for t in (*a.tensors, *([a.t] if a.HasField("t") else []))]
    for inner in _graphs_of(node):
        found += [*inner.initializer, *(t for n in inner.node for t in _tensors_of(n))]
    return found


def _size_of(tensor: Any) -> Stored:
    from farthing.forge import graph

    to_array = require("onnx.numpy_helper", "forge").to_array
    count = math.prod(tensor.dims)
    dtype, size = graph.dtype_name(tensor.data_type), graph.tensor_bytes(tensor, count)
    zeros = zeros_in(to_array(tensor)) if len(tensor.dims) > 1 and dtype in WEIGHTS else None
    return Stored(count, dtype, size, zeros)


def _profile(proto: Any, feeds: Mapping[str, Array]) -> tuple[tuple[Placed, ...], int | None]:
    """Nodes in the order they run, from the runtime's own profile of a few runs, the first left out."""
    from farthing.forge import graph

    with Scratch() as folder:
        optimised = folder / "optimised.onnx"
        session = graph.Session(proto, profile=str(folder / "profile"), save=str(optimised))
        for _ in range(RUNS + 1):
            session.run(feeds)
        events = msgspec.json.decode(session.end_profile().read_bytes())
        forms = _forms(optimised)
    times: dict[str, list[float]] = {}
    about: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"], []).append(float(event["dur"]))
            about[event["name"]] = event["args"]
    placed = [
        _placed(name.removesuffix("_kernel_time"), about[name], spent, forms) for name, spent in times.items()
    ]
    peaks = [int(args["mem_in_use_peak"]) for args in about.values() if "mem_in_use_peak" in args]
    return tuple(placed), max(peaks, default=None)


def _placed(node: str, about: Mapping[str, Any], times: list[float], forms: Mapping[str, str]) -> Placed:
    each = max(1, len(times) // (RUNS + 1))  # a node inside a loop runs more than once
    shapes = about.get("output_type_shape") or [{}]
    return Placed(
        node=node,
        operator=forms.get(node, str(about.get("op_name", ""))),
        provider=str(about.get("provider", "")),
        microseconds=statistics.median(times[each:] or times) * each,
        shape=tuple(next(iter(shapes[0].values()), ())),
        precision=_DTYPES.get(next(iter(shapes[0]), ""), ""),
    )


def _forms(path: Path) -> dict[str, str]:
    """Node name -> operator with its domain and what was fused into it, from the graph the runtime made."""
    from farthing.forge import graph

    if not path.is_file():
        return {}
    forms = {}
    for node in graph.nodes(graph.parse(path.read_bytes(), "the optimised graph").graph):
        parts = [f"{node.domain}.{node.op_type}" if node.domain else node.op_type]
        if node.domain == "com.microsoft.nchwc" and node.op_type == "Conv" and len(node.input) > 3:
            parts.append("Add")
        parts += [a.s.decode() for a in node.attribute if a.name == "activation" and a.s]
        forms[node.name] = " + ".join(parts)
    return forms
