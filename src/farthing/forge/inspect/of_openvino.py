"""OpenVINO IR: what is in the XML, and which kernel of which precision runs each node how long."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from farthing.anatomy import Placed
from farthing.engines.openvino import CPU, ELEMENT_TYPES, PRECISIONS, runtime
from farthing.errors import ModelError
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
from farthing.model import DTYPES, TensorSpec
from farthing.options import EngineOptions

_SKIPPED = {"Constant", "Parameter", "Result"}
_UNCOUNTED = re.compile("LSTM|GRU|RNN|Einsum|ScaledDotProduct|Deformable|TensorIterator|^Loop$|^If$|DFT")


def look(subject: Subject) -> Inspection:
    """See `farthing.forge.inspect.inspect`."""
    openvino = runtime()
    try:
        model = openvino.Core().read_model(subject.path)
    except RuntimeError as error:
        said = next((line for line in str(error).splitlines() if line.strip()), "unreadable")
        raise ModelError(f"OpenVINO cannot read {subject.path}: {said.strip()}") from error
    try:
        return _look(openvino, model, subject)
    except UnicodeDecodeError as error:
        raise ModelError(f"{subject.path} has names that are no text: convert or copy it again") from error


def _look(openvino: Any, model: Any, subject: Subject) -> Inspection:
    manifest = subject.manifest
    inputs = manifest.inputs if manifest else tuple(_spec(port) for port in model.inputs)
    outputs = manifest.outputs if manifest else tuple(_spec(port) for port in model.outputs)
    nodes = model.get_ordered_ops()
    kinds = Counter(node.get_type_name() for node in nodes if node.get_type_name() not in _SKIPPED)
    shown = Counter(node.get_friendly_name() for node in nodes)

    def key(port: Any) -> str:
        name = port.get_node().get_friendly_name()
        return f"{name if shown[name] == 1 else port.get_node().get_name()}:{port.get_index()}".removesuffix(
            ":0"
        )

    stored = {key(node.output(0)): _stored(node) for node in nodes if node.get_type_name() == "Constant"}
    core = openvino.Core()
    found = Inspection(
        name=subject.name,
        format=manifest.format if manifest else "openvino",
        size_bytes=subject.size_bytes,
        inputs=inputs,
        outputs=outputs,
        opset=max((_opset(node) for node in nodes), default=0) or None,
        operators=dict(kinds.most_common()),
        nodes=sum(kinds.values()),
        parameters=sum(part.numbers for part in stored.values()),
        weights=weights(stored.values()),
        layers=layers(_readers(nodes, key), stored),
        zeros=share_of_zeros(stored.values()),
        runtime=f"openvino {openvino.__version__}",
        providers=tuple(core.available_devices),
    )
    fed, reason = subject.fed(inputs)
    if reason:
        return msgspec.structs.replace(found, notes=(f"not run: {reason}",))
    try:
        arrays = [fed.get(spec.name, np.zeros(spec.sized(1), spec.dtype)) for spec in inputs]
        placement = _placed(core, model, arrays, subject.options)
        work, reason = _macs(model, arrays)
    except (RuntimeError, TypeError, ValueError) as error:
        said = str(error).strip().splitlines()
        return msgspec.structs.replace(found, notes=(f"not run: {said[-1] if said else 'OpenVINO failed'}",))
    notes = () if work is not None else (f"multiply-accumulates not counted: {reason}",)
    return msgspec.structs.replace(
        found,
        macs=None if work is None else work // batch(inputs, fed),
        placement=placement,
        notes=notes,
    )


def _spec(port: Any) -> TensorSpec:
    shape = tuple(
        int(size.get_length()) if size.is_static else f"free_{axis}"
        for axis, size in enumerate(port.partial_shape)
    )
    dtype = dtype_name(port.element_type.get_type_name())
    name = port.any_name if port.names else port.node.get_friendly_name()
    return TensorSpec(name=name, dtype=dtype if dtype in DTYPES else "float32", shape=shape)


def dtype_name(word: str) -> str:
    """The numpy name of one of OpenVINO's element types."""
    return ELEMENT_TYPES.get(word, word)


def _opset(node: Any) -> int:
    version = node.get_type_info().version_id or ""
    match = re.fullmatch(r"opset(\d+)", version)
    return int(match[1]) if match else 0


def _stored(node: Any) -> Stored:
    port = node.output(0)
    count = math.prod(port.shape)
    name = dtype_name(port.element_type.get_type_name())
    zeros = zeros_in(node.data) if len(port.shape) > 1 and name in WEIGHTS else None
    return Stored(count, name, int(node.get_byte_size()), zeros)


def _readers(nodes: Sequence[Any], key: Callable[[Any], str]) -> list[Reader]:
    """The operators; one that asks for a shape alone reads no numbers."""
    return [
        Reader(
            node.get_friendly_name(),
            node.get_type_name(),
            [key(node.input_value(i)) for i in range(node.get_input_size())],
            [key(node.output(i)) for i in range(node.get_output_size())],
        )
        for node in nodes
        if node.get_type_name() not in {"Constant", "ShapeOf"}
    ]


# Work -----------------------------------------------------------------------------------------------------------

Shapes = Sequence[tuple[int, ...]]


def _product(shapes: Shapes, out: tuple[int, ...], node: Any) -> int:
    across = node.get_attributes().get("transpose_a", False)
    return math.prod(out) * shapes[0][-2 if across and len(shapes[0]) > 1 else -1]


_MACS: dict[str, Callable[[Shapes, tuple[int, ...], Any], int]] = {
    "Convolution": lambda shapes, out, _: math.prod(out) * math.prod(shapes[1][1:]),
    "GroupConvolution": lambda shapes, out, _: math.prod(out) * math.prod(shapes[1][2:]),
    "ConvolutionBackpropData": lambda shapes, _, __: math.prod(shapes[0]) * math.prod(shapes[1][1:]),
    "GroupConvolutionBackpropData": lambda shapes, _, __: math.prod(shapes[0]) * math.prod(shapes[1][2:]),
    "MatMul": _product,
}


def _macs(model: Any, arrays: Sequence[Array]) -> tuple[int | None, str]:
    """Multiply-accumulates of one run, from the shapes that OpenVINO infers for the feeds."""
    sized = model.clone()
    sized.reshape({number: list(array.shape) for number, array in enumerate(arrays)})
    total = 0
    for node in sized.get_ordered_ops():
        kind = node.get_type_name()
        if _UNCOUNTED.search(kind):
            return None, f"the operator {kind} is not counted"
        if kind in _MACS:
            ports = [node.input_value(i) for i in range(node.get_input_size())]
            if any(port.partial_shape.is_dynamic for port in (*ports, node.output(0))):
                return None, f"the shapes of {kind} {node.get_friendly_name()} depend on the data"
            total += _MACS[kind]([tuple(port.shape) for port in ports], tuple(node.output(0).shape), node)
    return total, ""


# Placement ------------------------------------------------------------------------------------------------------


def _placed(core: Any, model: Any, arrays: Sequence[Array], options: EngineOptions) -> tuple[Placed, ...]:
    """Nodes of the graph that OpenVINO made, in the order they run, on one thread."""
    device = options.providers[0] if len(options.providers) == 1 else CPU
    precision = {"INFERENCE_PRECISION_HINT": PRECISIONS[options.precision]}
    threads = {"INFERENCE_NUM_THREADS": 1} if device == CPU else {}
    compiled = core.compile_model(model, device, {"PERF_COUNT": True, **precision, **threads})
    request = compiled.create_infer_request()
    times: dict[str, list[float]] = {}
    for _ in range(RUNS + 1):
        request.infer(list(arrays))
        for part in request.get_profiling_info():
            times.setdefault(part.node_name, []).append(part.real_time.total_seconds() * 1e6)
    devices = ", ".join(compiled.get_property("EXECUTION_DEVICES"))
    nodes = [node for node in compiled.get_runtime_model().get_ordered_ops() if _runs(node)]
    return tuple(
        _one(node, devices, times) for node in sorted(nodes, key=lambda n: int(_told(n, "execOrder") or 0))
    )


def _runs(node: Any) -> bool:
    return _told(node, "layerType") not in {"Input", "Output", "Const", "Constant", "Parameter", "Result", ""}


def _told(node: Any, key: str) -> str:
    """What OpenVINO's CPU plugin says of a node, as text; empty if it does not."""
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""


def _one(node: Any, devices: str, times: Mapping[str, Sequence[float]]) -> Placed:
    name = node.get_friendly_name()
    kernel, shape = _told(node, "primitiveType"), node.output(0).partial_shape
    spent = times.get(name, ())[1:]
    return Placed(
        node=name,
        operator=f"{_told(node, 'layerType')} ({kernel})"
        if kernel not in {"", "undef"}
        else _told(node, "layerType"),
        provider=devices,
        microseconds=statistics.median(spent) if spent else None,
        shape=tuple(shape.to_shape()) if shape.is_static else (),
        precision=dtype_name(_told(node, "runtimePrecision").lower()),
    )
