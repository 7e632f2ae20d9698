"""What is in a model: tensors, operators, parameters, work, size, and which provider runs each node how long."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.bench import random_array
from farthing.config import Section
from farthing.engines.onnxruntime import runtime
from farthing.errors import FarthingError, require
from farthing.model import Manifest, Model, TensorSpec

Array = NDArray[Any]
RUNS = 5


class Weights(Section, frozen=True, kw_only=True):
    """Stored numbers of one element type."""

    dtype: str
    count: int
    bytes: int


class Placed(Section, frozen=True, kw_only=True):
    """One node as the runtime runs it.

    Attributes:
        node: its name.
        operator: what runs, fused parts included, as in ``com.microsoft.nchwc.Conv + Relu``.
        provider: the execution provider, as in ``CPUExecutionProvider``.
        microseconds: median time of its kernel with the profiler on, which adds a little to each.
        shape: of its first output.
    """

    node: str
    operator: str
    provider: str
    microseconds: float
    shape: tuple[int, ...] = ()


class Inspection(Section, frozen=True, kw_only=True):
    """What `inspect` found. None and empty mean not known; ``notes`` say why.

    Attributes:
        name, format, size_bytes: from the manifest and the files.
        inputs, outputs: tensors in the order of the file.
        opset: of the standard operators.
        operators: operator -> how often it occurs in the file, inner graphs included.
        nodes: how many there are in all.
        parameters: stored numbers; ``weights`` has them by element type.
        macs: multiply-accumulates for one sample.
        runtime: name and version of the engine that ran it; ``providers`` those it has here.
        placement: nodes as they run after the runtime's own fusions, in order.
        activation_peak_bytes: most memory for activations at any time of one run.
        notes: what could not be found out, and why.
    """

    name: str
    format: str
    size_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int | None = None
    operators: dict[str, int] = {}
    nodes: int = 0
    parameters: int | None = None
    weights: tuple[Weights, ...] = ()
    macs: int | None = None
    runtime: str = ""
    providers: tuple[str, ...] = ()
    placement: tuple[Placed, ...] = ()
    activation_peak_bytes: int | None = None
    notes: tuple[str, ...] = ()


def inspect(model: Model | Path | str, feeds: Mapping[str, Array] | None = None) -> Inspection:
    """Look into a model and run it a few times under the runtime's profiler.

    Args:
        model: a model, its directory or zip, or an ONNX file.
        feeds: inputs to run it on; without them, seeded random numbers for one sample.

    Raises:
        ModelError: not a model, or a damaged one.
        UnsupportedError: an operator or opset that is not known.
        NotInstalled: onnx or onnxruntime is missing.
    """
    if not isinstance(model, Model):
        place = Path(model)
        if place.is_file() and place.read_bytes()[:4] != b"PK\x03\x04":
            return _look(place, None, place.stat().st_size, feeds)
        model = Model.open(place)
    manifest = model.manifest
    if manifest.format != "onnx":
        return Inspection(
            name=manifest.name,
            format=manifest.format,
            size_bytes=model.size_bytes,
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            notes=(f"operators and placement are shown for ONNX models, this one is {manifest.format!r}",),
        )
    return _look(model.file, manifest, model.size_bytes, feeds)


def _look(path: Path, manifest: Manifest | None, size: int, feeds: Mapping[str, Array] | None) -> Inspection:
    require("onnx", "forge")
    from farthing.forge import graph, macs  # need onnx

    proto = graph.load(path)
    inputs, outputs = graph.tensor_specs(proto) if manifest is None else (manifest.inputs, manifest.outputs)
    weights = _weights(proto)
    kinds = Counter(f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in graph.nodes(proto.graph))
    ort = runtime()
    found = Inspection(
        name=manifest.name if manifest else path.stem,
        format="onnx",
        size_bytes=size,
        inputs=inputs,
        outputs=outputs,
        opset=max(
            (entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}), default=None
        ),
        operators=dict(kinds.most_common()),
        nodes=sum(kinds.values()),
        parameters=sum(part.count for part in weights),
        weights=weights,
        runtime=f"onnxruntime {ort.__version__}",
        providers=tuple(ort.get_available_providers()),
    )
    fed, reason = (dict(feeds), "") if feeds is not None else _random_feeds(inputs)
    if reason:
        return msgspec.structs.replace(found, notes=(f"not run: {reason}",))
    work, reason = macs.count(proto, fed)
    samples = _batch(inputs, fed)
    notes = [f"multiply-accumulates not counted: {reason}"] if work is None else []
    try:
        placement, peak = _profile(proto, fed)
    except FarthingError as error:
        return msgspec.structs.replace(found, notes=(*notes, f"placement not known: {error}"))
    return msgspec.structs.replace(
        found,
        macs=None if work is None else work // samples,
        placement=placement,
        activation_peak_bytes=peak,
        notes=tuple(notes),
    )


def _weights(proto: Any) -> tuple[Weights, ...]:
    """Stored numbers by element type, the most bytes first."""
    from farthing.forge import graph

    totals: dict[str, tuple[int, int]] = {}
    for tensor in graph.tensors(proto):
        name = graph.dtype_name(tensor.data_type)
        count, size = totals.get(name, (0, 0))
        numbers = math.prod(tensor.dims)
        totals[name] = (count + numbers, size + graph.tensor_bytes(tensor, numbers))
    found = [Weights(dtype=name, count=count, bytes=size) for name, (count, size) in totals.items()]
    return tuple(sorted(found, key=lambda part: (-part.bytes, part.dtype)))


def _random_feeds(inputs: tuple[TensorSpec, ...]) -> tuple[dict[str, Array], str]:
    """Random numbers for one sample, or the reason why none can be made."""
    for spec in inputs:
        first = 0 if spec.batch_axis is None else spec.batch_axis
        free = [size for axis, size in enumerate(spec.shape) if isinstance(size, str) and axis != first]
        if free and spec.role == "data":
            return {}, f"input {spec.name!r} has the free axes {', '.join(free)}: give inputs to run it on"
        if spec.dtype == "str":
            return {}, f"input {spec.name!r} takes text: give inputs to run it on"
    generator = np.random.default_rng(0)
    return {spec.name: random_array(spec.sized(1), spec.dtype, generator) for spec in inputs}, ""


def _batch(inputs: tuple[TensorSpec, ...], feeds: Mapping[str, Array]) -> int:
    """Samples in the feeds."""
    sizes = [
        feeds[s.name].shape[s.batch_axis] for s in inputs if s.batch_axis is not None and s.name in feeds
    ]
    return max(sizes, default=1) or 1


def _profile(proto: Any, feeds: Mapping[str, Array]) -> tuple[tuple[Placed, ...], int | None]:
    """Nodes in the order they run, from the runtime's own profile of a few runs, the first left out."""
    from farthing.forge import graph

    with tempfile.TemporaryDirectory(prefix="farthing-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        session = graph.Session(proto, profile=str(Path(folder) / "profile"), save=str(optimised))
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
