"""OpenVINO (https://docs.openvino.ai): its own IR, and ONNX files, on CPUs and on GPUs and NPUs by Intel."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar, Literal, Self

from numpy.typing import NDArray

from farthing.engines.base import (
    FileTensor,
    StreamState,
    Tensors,
    check_feeds,
    check_manifest,
    check_options,
    refuse_closed,
    refuse_sizes,
)
from farthing.engines.external import locations
from farthing.errors import EngineError, ModelError, UnsupportedError, nearest, require
from farthing.model import Model, TensorSpec
from farthing.options import EngineOptions

CPU, AUTO = "CPU", "AUTO"
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
SHARED_BYTES = 32768  # larger inputs are read where they lie; below, copying costs less than wrapping
ELEMENT_TYPES = {  # as OpenVINO writes them -> as numpy and manifests do
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "bf16": "bfloat16",
    "boolean": "bool",
    "string": "str",
    **{
        f"{kind}{bits}": f"{name}{bits}"
        for kind, name in (("i", "int"), ("u", "uint"))
        for bits in (4, 8, 16, 32, 64)
    },
}
_UNSUPPORTED = (
    "No conversion rule found",
    "does not support the following ONNX operations",  # 2025.0
    "doesn't contain the operation",
    "from unsupported opset",
    "Unsupported operation",
    "not implemented",
)


def runtime() -> ModuleType:
    """The openvino package, its telemetry off.

    Importing openvino announces itself to a server and keeps a number for this user in the home directory, unless the
    package ``openvino_telemetry`` is not to be had: for this process it is not. nncf goes by the same rule.

    Raises:
        NotInstalled: openvino is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return require("openvino", "openvino")


class OpenVinoEngine:
    """A model in OpenVINO. Any number of threads may call ``run``; one with state takes turns."""

    name: ClassVar[str] = "openvino"
    formats: ClassVar[frozenset[str]] = frozenset({"openvino", "onnx"})
    concurrency: ClassVar[Literal["threads", "serial"]] = "threads"

    def __init__(self, model: Model, options: EngineOptions) -> None:
        check_options("OpenVINO", options, precisions=tuple(PRECISIONS))
        ov = runtime()
        self.version = self.installed()
        core = ov.Core()
        device = _device(core, options)
        network = _read(core, model)
        _check(model, network)
        _fix_sizes(ov, model, network)
        manifest = model.manifest
        self.inputs: Sequence[TensorSpec] = manifest.data_inputs
        self.outputs: Sequence[TensorSpec] = tuple(spec for spec in manifest.outputs if spec.role != "state")
        self._fed = [spec.name for spec in manifest.inputs]
        self._given = [spec.name for spec in manifest.outputs]
        self._types = [port.get_element_type() for port in network.inputs]
        self._tensor: Any = ov.Tensor
        self._variables = bool(network.get_variables())
        self._state = StreamState(model)
        self._compiled: Any = _compile(core, network, model, device, options)
        self._idle: list[_Request] = []
        self._began: list[tuple[int, ...]] | None = None
        self._turn = threading.Lock()

    @classmethod
    def installed(cls) -> str:
        """See `Engine.installed`."""
        return str(runtime().__version__).partition("-")[0]

    @property
    def stateful(self) -> bool:
        return self._variables or bool(self._state.inputs)

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """See `Engine.run`; results are copies. One call costs less than OpenVINO's own with a dictionary."""
        check_feeds(self.inputs, feeds)
        if not self.stateful:
            return self._infer(feeds)
        with self._turn:
            if self._variables:
                self._keep_sizes([feeds[spec.name].shape for spec in self.inputs])
            return self._state.keep(self._infer(self._state.joined(feeds)))

    def _keep_sizes(self, sizes: list[tuple[int, ...]]) -> None:
        if self._began is not None and self._began != sizes:
            refuse_sizes(self._began, sizes)
        self._began = sizes

    def _infer(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """In a request of this call's own: as many are made as calls overlap, and a stream has one."""
        compiled = self._compiled
        if compiled is None:
            refuse_closed()
        try:
            request = self._idle.pop() if self._idle else None
        except IndexError:  # another thread took it
            request = None
        try:
            request = request or _Request(compiled.create_infer_request(), self._types, self._tensor)
            results = request.infer([feeds[name] for name in self._fed])
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed: {_short(error)}") from error
        if self._compiled is not None:
            self._idle.append(request)
        return dict(zip(self._given, results, strict=True))

    def session(self) -> Self:
        """A stream of its own, with a request of its own; the compiled model and its weights are shared."""
        if self._compiled is None:
            refuse_closed()
        stream = object.__new__(type(self))
        stream.__dict__.update(
            self.__dict__, _state=self._state.fresh(), _idle=[], _began=None, _turn=threading.Lock()
        )
        return stream

    def close(self) -> None:
        self._compiled = None
        self._idle = []
        self._state = self._state.fresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Request:
    """An inference request and memory for its inputs, which lasts as long as their sizes."""

    def __init__(self, request: Any, types: Sequence[Any], tensor: Any) -> None:
        self._request = request
        self._types = types
        self._tensor = tensor
        self._views: list[NDArray[Any] | None] = [None] * len(types)

    def infer(self, arrays: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        for number, array in enumerate(arrays):
            view = self._views[number]
            if array.nbytes >= SHARED_BYTES and array.flags.carray:  # contiguous, aligned and writeable
                self._request.set_input_tensor(number, self._tensor(array, shared_memory=True))
                self._views[number] = None
                continue
            if view is None or view.shape != array.shape:
                own = self._tensor(self._types[number], array.shape)
                self._request.set_input_tensor(number, own)
                view = self._views[number] = own.data
            view[...] = array
        results: tuple[NDArray[Any], ...] = self._request.infer().to_tuple()  # copies
        return results


def _device(core: Any, options: EngineOptions) -> str:
    """OpenVINO's name for the devices asked for: one, or several that share the operators, the best first."""
    known = [*core.available_devices, AUTO]
    for provider in options.providers:
        if provider not in known:
            raise EngineError(
                f"OpenVINO has no device (provider) {provider!r} here; {nearest(provider, known)}"
            )
    if len(options.providers) < 2:
        return options.providers[0] if options.providers else CPU
    if AUTO in options.providers:
        raise EngineError("the provider AUTO chooses a device itself: name it alone")
    return "HETERO:" + ",".join(options.providers)


def _config(device: str, options: EngineOptions) -> dict[str, Any]:
    """Properties for a device; threads and the rest of the CPU's are passed on by the devices that wrap it.

    Threads are not pinned to cores: two processes would be given the same ones. Activations are not quantized behind
    the caller's back where weights are.
    """
    asked = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": PRECISIONS[options.precision]}
    cpu = {
        **asked,
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    if device == CPU:
        return cpu
    return {**asked, "DEVICE_PROPERTIES": {CPU: cpu}} if CPU in device or device == AUTO else asked


def _read(core: Any, model: Model) -> Any:
    """The network. IR without a second file is read from memory: OpenVINO would look for weights beside it."""
    file, *others = (model.path / name for name in model.manifest.files)
    try:
        if model.manifest.format == "onnx":
            _check_external(model)
            return core.read_model(file)
        file.read_text("utf-8")
        return core.read_model(file, others[0]) if others else core.read_model(file.read_bytes(), b"")
    except UnicodeDecodeError as error:
        raise ModelError(f"{file} holds what is no text: convert or copy it again") from error
    except (RuntimeError, OSError) as error:
        if any(mark in str(error) for mark in _UNSUPPORTED):
            raise UnsupportedError(
                f"OpenVINO {runtime().__version__} cannot run {file}: {_short(error)}"
            ) from error
        hint = "" if others or model.manifest.format == "onnx" else "; its manifest names no file of weights"
        raise ModelError(f"OpenVINO cannot load {file}: {_short(error)}{hint}") from error


def _check_external(model: Model) -> None:
    for name in sorted(locations(model.file) - model.manifest.files.keys()):
        raise ModelError(
            f"{model.file} keeps weights in {name!r}, which its manifest does not name: convert it again"
        )


def _short(error: Exception) -> str:
    """What OpenVINO says without where in its source it says it."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return "; ".join(kept)[:500] or str(error)[:500]


def _check(model: Model, network: Any) -> None:
    manifest = model.manifest
    sides = [
        [_file_tensor(port, specs[i].name if i < len(specs) else "") for i, port in enumerate(ports)]
        for ports, specs in ((network.inputs, manifest.inputs), (network.outputs, manifest.outputs))
    ]
    check_manifest(model, *sides)
    for one in (*sides[0], *sides[1]):
        if one.dtype in {"str", "bfloat16"}:
            raise UnsupportedError(f"OpenVINO takes no {one.dtype} tensors from Python: {one.name!r} is one")


def describe(model: Model) -> tuple[list[FileTensor], list[FileTensor]]:
    """Inputs and outputs as the file declares them, whatever the manifest says of them.

    Raises:
        ModelError: it cannot be read.
        NotInstalled: openvino is not installed.
    """
    network = _read(runtime().Core(), model)
    inputs, outputs = (
        [_file_tensor(port, "") for port in side] for side in (network.inputs, network.outputs)
    )
    return inputs, outputs


def _file_tensor(port: Any, wanted: str) -> FileTensor:
    """What a file says of an input or output, under the manifest's name if that is one of its names."""
    names = port.get_names() or {port.get_node().get_friendly_name()}
    shape = port.get_partial_shape()
    sizes = None
    if shape.rank.is_static:
        sizes = tuple(size.get_length() if size.is_static else None for size in shape)
    kind = str(port.get_element_type().get_type_name())
    return FileTensor(wanted if wanted in names else min(names), ELEMENT_TYPES.get(kind, kind), sizes)


def _fix_sizes(ov: ModuleType, model: Model, network: Any) -> None:
    """Tell the network the sizes that the manifest fixes and the file leaves open; it is faster for it."""
    shapes = {}
    for number, (port, spec) in enumerate(zip(network.inputs, model.manifest.inputs, strict=True)):
        real = port.get_partial_shape()
        if real.is_dynamic and any(isinstance(size, int) for size in spec.shape):
            shapes[number] = ov.PartialShape([size if isinstance(size, int) else -1 for size in spec.shape])
    try:
        if shapes:
            network.reshape(shapes)
    except RuntimeError as error:
        raise ModelError(
            f"{model.file} cannot have the sizes its manifest states: {_short(error)}"
        ) from error


def _compile(core: Any, network: Any, model: Model, device: str, options: EngineOptions) -> Any:
    try:
        compiled = core.compile_model(network, device, _config(device, options))
        if device == CPU:
            _check_compiled(compiled, options)
    except RuntimeError as error:
        text = f"OpenVINO {runtime().__version__} cannot run {model.file} on {device}: {_short(error)}"
        if any(mark in str(error) for mark in _UNSUPPORTED):
            raise UnsupportedError(text) from error
        raise ModelError(text) from error
    return compiled


def _check_compiled(compiled: Any, options: EngineOptions) -> None:
    """OpenVINO takes other values than it was given where the machine lacks something: say so."""
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if precision != PRECISIONS[options.precision]:
        raise EngineError(
            f"OpenVINO does not compute in {options.precision} on this CPU (it would take "
            f"{ELEMENT_TYPES.get(precision, precision)}): leave the precision out"
        )
    threads = compiled.get_property("INFERENCE_NUM_THREADS")
    if threads != options.threads:
        raise EngineError(f"OpenVINO runs at most {threads} threads on this machine, not {options.threads}")
