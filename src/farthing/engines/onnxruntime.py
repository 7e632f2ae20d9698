"""ONNX Runtime (https://onnxruntime.ai): ONNX files on CPUs, and on whatever its providers reach."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar, Literal, Self

from numpy.typing import NDArray

from farthing.engines.base import EngineOptions, Tensors, check_feeds, zero_state
from farthing.errors import EngineError, ModelError, UnsupportedError, nearest, require
from farthing.model import Model, TensorSpec

CPU = "CPUExecutionProvider"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
    "tensor(string)": "str",
}


def runtime() -> ModuleType:
    """The onnxruntime package, its telemetry off (its Linux wheel has it on unless told otherwise).

    Raises:
        NotInstalled: onnxruntime is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    return require("onnxruntime", "onnxruntime")


class OnnxRuntimeEngine:
    """An ONNX model in ONNX Runtime. Any number of threads may call ``run`` at once, unless it keeps state."""

    name: ClassVar[str] = "onnxruntime"
    formats: ClassVar[frozenset[str]] = frozenset({"onnx"})
    concurrency: ClassVar[Literal["threads", "serial"]] = "threads"

    def __init__(self, model: Model, options: EngineOptions) -> None:
        ort = runtime()
        self.version: str = ort.__version__
        self.providers = _providers(ort, options.providers)
        manifest = model.manifest
        self._open = _open_session(ort, model, options, self.providers)
        _check_tensors(model, self._open)
        self.inputs: Sequence[TensorSpec] = manifest.data_inputs
        self.outputs: Sequence[TensorSpec] = tuple(spec for spec in manifest.outputs if spec.role != "state")
        self._state_inputs = tuple(spec for spec in manifest.inputs if spec.role == "state")
        self._state_outputs = tuple(spec.name for spec in manifest.outputs if spec.role == "state")
        self._names = [spec.name for spec in self.outputs]
        self._state = zero_state(self._state_inputs)
        self._failure: tuple[type[Exception], ...] = (RuntimeError, ValueError, *_ort_errors(ort))
        self._session: Any = self._open

    @property
    def stateful(self) -> bool:
        return bool(self._state_inputs)

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """See `Engine.run`; one call costs a few microseconds over ONNX Runtime's own."""
        check_feeds(self.inputs, feeds)
        if self._session is None:
            raise EngineError("this engine is closed: open the model again")
        try:
            if self._state_inputs:
                return self._run_stateful(feeds)
            return dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        except self._failure as error:
            raise EngineError(f"ONNX Runtime failed: {error}") from error

    def _run_stateful(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        results = self._session.run([*self._names, *self._state_outputs], {**feeds, **self._state})
        kept = results[len(self._names) :]
        self._state = {spec.name: value for spec, value in zip(self._state_inputs, kept, strict=True)}
        return dict(zip(self._names, results, strict=False))

    def session(self) -> Self:
        """A stream of its own; the runtime session and its weights are shared."""
        if self._session is None:
            raise EngineError("this engine is closed: open the model again")
        stream = object.__new__(type(self))
        stream.__dict__.update(self.__dict__)
        stream._state = zero_state(self._state_inputs)
        return stream

    def close(self) -> None:
        self._session = None
        self._open = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _providers(ort: ModuleType, wanted: Sequence[str]) -> list[str]:
    available = ort.get_available_providers()
    for provider in wanted:
        if provider not in available:
            raise EngineError(f"this ONNX Runtime has no provider {provider!r}; {nearest(provider, available)}")
    return [*wanted] if CPU in wanted else [*wanted, CPU]


def session_options(ort: ModuleType, options: EngineOptions) -> Any:
    """ONNX Runtime's session options for ours: thread counts honoured, spinning as asked, log quiet."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    return settings


def _open_session(ort: ModuleType, model: Model, options: EngineOptions, providers: list[str]) -> Any:
    try:
        return ort.InferenceSession(str(model.file), session_options(ort, options), providers=providers)
    except _ort_errors(ort) as error:
        text = str(error)
        if any(mark in text for mark in ("NOT_IMPLEMENTED", "is not a registered function/op", "opset")):
            raise UnsupportedError(f"ONNX Runtime {ort.__version__} cannot run {model.file}: {text}") from error
        if "external data" in text.lower() or "model_path" in text:
            raise ModelError(f"{model.file} lacks its external weight files: {text}") from error
        raise ModelError(f"ONNX Runtime cannot load {model.file}: {text}") from error


def _ort_errors(ort: ModuleType) -> tuple[type[Exception], ...]:
    states = ort.capi.onnxruntime_pybind11_state
    names = "Fail InvalidArgument NoSuchFile NoModel InvalidProtobuf InvalidGraph NotImplemented RuntimeException EPFail"
    return tuple(getattr(states, name) for name in names.split())


def _check_tensors(model: Model, session: Any) -> None:
    """Hold the manifest against the file: names and element types in order."""
    manifest = model.manifest
    for what, declared, real in (
        ("inputs", manifest.inputs, session.get_inputs()),
        ("outputs", manifest.outputs, session.get_outputs()),
    ):
        ours = [(spec.name, spec.dtype) for spec in declared]
        theirs = [(arg.name, _DTYPES.get(arg.type, arg.type)) for arg in real]
        if ours != theirs:
            raise ModelError(f"{model.path}: the manifest declares {what} {ours}, but the file has {theirs}")
