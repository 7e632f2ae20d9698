"""ONNX files in and out: loaded with typed errors and no surprises, saved to the same bytes every time."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import external_data_helper, helper

from farthing.engines.onnxruntime import CPU, runtime, session_options
from farthing.errors import EngineError, ModelError, UnsupportedError, suggestion
from farthing.model import DTYPES, TensorSpec
from farthing.options import EngineOptions

Array = NDArray[Any]
OFFICIAL = ("", "ai.onnx", "ai.onnx.ml")
RUNTIME = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
MAX_BYTES = 2 << 30  # what one protobuf message can hold


def load(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file; weights kept in other files are loaded if they lie in its directory.

    Raises:
        ModelError: no such file, empty, truncated, not ONNX, a pickle or a torch archive (never unpickled),
            broken rules of the format, or external weights that are missing or outside the directory.
        UnsupportedError: an opset, IR version or operator that the installed onnx does not know.
    """
    model = parse(read(path), str(path))
    _load_external(model, path)
    _complete(model)
    check(model, str(path))
    return model


def read(path: Path) -> bytes:
    """The bytes of a model file.

    Raises:
        ModelError: no such file, or one that cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


def parse(data: bytes, where: str) -> onnx.ModelProto:
    """Decode a model without its external weights; ``where`` names it in error messages. See `load`."""
    if not data:
        raise ModelError(f"{where} is empty: copy or export the model again")
    if data[:1] == b"\x80":
        raise ModelError(f"{where} is a Python pickle, not ONNX: refused, never unpickled")
    if data[:4] == b"PK\x03\x04":
        raise ModelError(f"{where} is a zip archive (torch saves those), not ONNX: refused, never unpickled")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{where} is not ONNX, or is cut short ({error}): copy or export it again"
        ) from error
    if not model.ir_version or not model.graph.node or not model.graph.output:
        raise ModelError(f"{where} holds no ONNX graph, or is cut short: copy or export it again")
    if not all(isinstance(name, str) for name in _names(model)):
        raise ModelError(f"{where} is damaged (a name in it is not text): copy or export it again")
    return model


def _names(model: onnx.ModelProto) -> Iterator[object]:
    """Every name in a model: text, or bytes where the file is damaged."""
    yield from (entry.domain for entry in model.opset_import)
    for node in nodes(model.graph):
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    for tensor in tensors(model):
        yield from (tensor.name, *(entry.value for entry in tensor.external_data))


def check(model: onnx.ModelProto, where: str) -> None:
    """Hold a model against what the installed onnx knows, and against the rules of the format. See `load`."""
    if model.ir_version > onnx.IR_VERSION:
        raise UnsupportedError(
            f"{where} has IR version {model.ir_version}, newest known: {onnx.IR_VERSION}: update onnx"
        )
    _check_operators(model, where)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{where} breaks the rules of ONNX: {_first_line(error)}") from error
    except ValueError as error:
        raise UnsupportedError(f"{where} is too large for one file: {_first_line(error)}") from error


def _complete(model: onnx.ModelProto) -> None:
    """Give outputs that declare no shape the inferred one, in place: the rules demand one, runtimes do not."""
    bare = [value for value in model.graph.output if not value.type.tensor_type.HasField("shape")]
    if bare:
        known = {value.name: value for value in inferred(model).graph.output}
        for value in bare:
            value.CopyFrom(known[value.name])


OLDEST = 7  # that ONNX Runtime promises to run whole; of older ones it runs some operators


def _refuse_old(data: bytes, version: str, said: str) -> None:
    """Say what to do about a model that ONNX Runtime does not load, and that is older than what it promises to run."""
    found = opset(onnx.load_model_from_string(data))
    if found < OLDEST:
        raise UnsupportedError(
            f"the model has opset {found}, of which ONNX Runtime {version} runs a part only ({said}): export it with "
            f"opset {OLDEST} or above (17 is usual), or try onnx.version_converter.convert_version on it"
        )


def _check_operators(model: onnx.ModelProto, where: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    versions = {entry.domain: entry.version for entry in model.opset_import}
    versions.setdefault("", versions.get("ai.onnx", 1))
    if versions[""] > newest:
        raise UnsupportedError(
            f"{where} has opset {versions['']}, newest known: {newest}; export it with a lower opset"
        )
    local = {(function.domain, function.name) for function in model.functions}
    for node in nodes(model.graph):
        if node.domain in RUNTIME or (node.domain, node.op_type) in local:
            continue
        known = node.domain in OFFICIAL and onnx.defs.has(
            node.op_type, versions.get(node.domain, 1), domain="" if node.domain == "ai.onnx" else node.domain
        )
        if not known:
            operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise UnsupportedError(
                f"{where}: operator {operator} (node {node.name or list(node.output)!r}) is unknown in opset "
                f"{versions.get(node.domain, 'none')}: export the model without it"
            )


def opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators in a model; 1, the oldest, where it names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in OFFICIAL[:2]), default=1)


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph and of the graphs inside its If, Loop and Scan nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from nodes(inner)


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Tensors that the outer graph stores, by name, open to change: initializers, and what Constant nodes state."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute, text as bytes; ``default`` where it has none of that name."""
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors that a node reads, and those that graphs inside it take from outside."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield from _captured(inner)


def _captured(inner: onnx.GraphProto) -> Iterator[str]:
    own = {value.name for value in inner.input} | {tensor.name for tensor in inner.initializer}
    own |= {sparse.values.name for sparse in inner.sparse_initializer}
    for node in inner.node:
        yield from (name for name in reads(node) if name not in own)
        own.update(node.output)
    yield from (value.name for value in inner.output if value.name not in own)


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    root = path.resolve().parent
    outside = external(model)
    for tensor in outside:
        _check_external(tensor, root, path)
    if outside:
        external_data_helper.load_external_data_for_model(model, str(root))


def external(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The weights that a model, as parsed, keeps in other files."""
    return [tensor for tensor in tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All stored tensors: initializers and constants, those of inner graphs and functions included."""
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                yield from (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else []))
    for function in model.functions:
        for node in function.node:
            for attribute in node.attribute:
                yield from (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else []))


def _check_external(tensor: onnx.TensorProto, root: Path, path: Path) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "")
    place = Path(os.path.normpath(root / name))
    if not name or Path(name).is_absolute() or not place.is_relative_to(root) or place == root:
        raise ModelError(
            f"{path}: weights of {tensor.name!r} point outside its directory ({name!r}): refused"
        )
    if not place.is_file():
        raise ModelError(f"{path} keeps weights in {name!r}, which is missing: copy it beside the model")
    if not place.resolve().is_relative_to(root) or place.is_symlink():
        raise ModelError(f"{path}: its weight file {name!r} is a link: refused, copy the file itself")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError as error:
        raise ModelError(f"{path}: weights of {tensor.name!r} have a broken place ({error})") from error
    if offset < 0 or length < 0 or offset + length > place.stat().st_size:
        raise ModelError(f"{path}: its weight file {name!r} is cut short: copy it again")


def save_bytes(model: onnx.ModelProto) -> bytes:
    """A model as bytes; the same model always gives the same bytes.

    Raises:
        UnsupportedError: more than the 2 GiB one file can hold.
    """
    try:
        if model.ByteSize() < MAX_BYTES:
            return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError):
        pass
    raise UnsupportedError("the model is larger than the 2 GiB one ONNX file can hold")


def tensor_specs(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs in the order of the file. Free axes keep their names, or are called ``free_0`` and so on.

    Weights listed as inputs are left out; ``batch_axis`` and ``layout`` are left open.

    Raises:
        UnsupportedError: an input or output that is no tensor, or whose number of axes is not known.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in weights]
    results = list(model.graph.output)
    taken = {d.dim_param for v in (*given, *results) for d in v.type.tensor_type.shape.dim if d.dim_param}
    names = (name for name in (f"free_{i}" for i in range(1 << 20)) if name not in taken)
    return tuple(_spec(v, names) for v in given), tuple(_spec(v, names) for v in results)


def _spec(value: onnx.ValueInfoProto, names: Iterator[str]) -> TensorSpec:
    kind = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type":
        raise UnsupportedError(
            f"tensor {value.name!r} is a {value.type.WhichOneof('value')}: only tensors can be run"
        )
    if not kind.HasField("shape"):
        raise UnsupportedError(f"tensor {value.name!r} declares no shape: export the model with shapes")
    shape = tuple(d.dim_value if d.dim_value > 0 else d.dim_param or next(names) for d in kind.shape.dim)
    if kind.elem_type not in helper.get_all_tensor_dtypes() or dtype_name(kind.elem_type) not in DTYPES:
        raise UnsupportedError(
            f"tensor {value.name!r} has an element type that cannot be fed ({kind.elem_type})"
        )
    return TensorSpec(name=value.name, dtype=dtype_name(kind.elem_type), shape=shape)


def dtype_name(element: int) -> str:
    """The numpy name of an ONNX element type, as in ``float32``; text is ``str``."""
    if element == onnx.TensorProto.STRING:
        return "str"
    name: str = helper.tensor_dtype_to_np_dtype(element).name
    return name


def tensor_bytes(tensor: onnx.TensorProto, numbers: int) -> int:
    """Bytes that a tensor's numbers take, packed as ONNX packs them; text by its length."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    if tensor.raw_data:
        return len(tensor.raw_data)
    return numbers * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def run(
    model: onnx.ModelProto | bytes,
    feeds: Mapping[str, Array],
    extra: Sequence[str] = (),
    optimise: bool = True,
) -> dict[str, Array]:
    """Run a model once in ONNX Runtime, one thread, and return its outputs and the ``extra`` inner tensors.

    Raises:
        NotInstalled: onnxruntime is not installed.
        UnsupportedError: ONNX Runtime lacks an operator or the opset.
        ModelError: it refuses the model for another reason.
        EngineError: it fails while running.
    """
    return Session(model, extra, optimise).run(feeds)


class Session:
    """A model in ONNX Runtime, one thread, all graph optimisations on; see `run`.

    Args:
        model: a model, or its bytes.
        extra: inner tensors that are to be outputs as well.
        optimise: False switches the runtime's graph optimisations off.
        profile: prefix of the profile that the runtime is to write, if any.
        save: file that the runtime is to write the graph to as it will run it, if any.
    """

    def __init__(
        self,
        model: onnx.ModelProto | bytes,
        extra: Sequence[str] = (),
        optimise: bool = True,
        profile: str = "",
        save: str = "",
    ) -> None:
        self._ort = runtime()
        if extra:
            opened = onnx.ModelProto()
            opened.ParseFromString(model if isinstance(model, bytes) else save_bytes(model))
            opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
            model = opened
        settings = session_options(self._ort, EngineOptions())
        levels = self._ort.GraphOptimizationLevel
        settings.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
        if profile:
            settings.enable_profiling = True
            settings.profile_file_prefix = profile
        if save:
            settings.optimized_model_filepath = save
            settings.log_severity_level = 4  # it warns that the file fits this machine only
        self._failures = failures()
        data = model if isinstance(model, bytes) else save_bytes(model)
        self.session = self._open(data, settings)

    def _open(self, data: bytes, settings: Any) -> Any:
        try:
            return self._ort.InferenceSession(data, settings, providers=[CPU])
        except self._failures as error:
            text = _first_line(error)
            unsupported = (
                "NOT_IMPLEMENTED",
                "is not a registered",
                "opset",
                "IR version",
                "No Op registered",
            )
            kind = UnsupportedError if any(mark in str(error) for mark in unsupported) else ModelError
            _refuse_old(data, self._ort.__version__, text)
            raise kind(f"ONNX Runtime {self._ort.__version__} cannot load the model: {text}") from error

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name; results that are no tensors are left out."""
        names = [value.name for value in self.session.get_outputs()]
        try:
            results = self.session.run(names, dict(feeds))
        except self._failures as error:
            raise EngineError(f"ONNX Runtime failed to run the model: {_first_line(error)}") from error
        return {name: value for name, value in zip(names, results, strict=True) if hasattr(value, "dtype")}

    def end_profile(self) -> Path:
        """Stop profiling and return the file that was written."""
        return Path(self.session.end_profiling())


def failures() -> tuple[type[Exception], ...]:
    """The exceptions that ONNX Runtime raises; they have no common base of their own."""
    states = runtime().capi.onnxruntime_pybind11_state
    known = [kind for kind in vars(states).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (RuntimeError, ValueError, *known)


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the shapes of inner tensors inferred anew; exporters leave stale ones behind."""
    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    fresh.graph.ClearField("value_info")
    return onnx.shape_inference.infer_shapes(fresh)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give nodes without a name, or with one already taken, a name of their own, in place, by type and position."""
    taken: set[str] = set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{place}"
        taken.add(node.name)


def check_tensors(model: onnx.ModelProto, names: Sequence[str], where: str) -> None:
    """Refuse names that no tensor has which an operator of the graph gives.

    Raises:
        UnsupportedError: naming the first of them, and the nearest right one.
    """
    known = [name for node in model.graph.node for name in node.output if name]
    for name in names:
        if name not in known:
            raise UnsupportedError(f"{where} has no tensor {name!r}; {meant(name, known)}")


def meant(name: str, known: Collection[str]) -> str:
    """A sentence for an error message: the nearest right name of a tensor, or how they are called here."""
    first = ", ".join(repr(one) for one in [*known][:5])
    return suggestion(name, known) or f"its tensors are called {first}{' ...' if len(known) > 5 else ''}"


def elements(tensor: onnx.TensorProto) -> int:
    """How many numbers a tensor holds."""
    return math.prod(tensor.dims)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
