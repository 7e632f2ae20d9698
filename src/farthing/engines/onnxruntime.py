"""ONNX Runtime (https://onnxruntime.ai): ONNX files on CPUs, and on whatever its providers reach."""

from __future__ import annotations

import os
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
)
from farthing.engines.external import locations
from farthing.errors import EngineError, ModelError, UnsupportedError, nearest, require
from farthing.model import Model, TensorSpec
from farthing.options import EngineOptions

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
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bfloat16)": "bfloat16",
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
    """An ONNX model in ONNX Runtime. Any number of threads may call ``run``; one with state takes turns."""

    name: ClassVar[str] = "onnxruntime"
    formats: ClassVar[frozenset[str]] = frozenset({"onnx"})
    concurrency: ClassVar[Literal["threads", "serial"]] = "threads"

    def __init__(self, model: Model, options: EngineOptions) -> None:
        check_options("ONNX Runtime", options, spin=True)
        ort = runtime()
        self.version: str = ort.__version__
        self.providers = _providers(ort, options.providers)
        manifest = model.manifest
        _check_external(model)
        self._session: Any = _open_session(ort, model, options, self.providers)
        check_manifest(model, _tensors(self._session.get_inputs()), _tensors(self._session.get_outputs()))
        self.inputs: Sequence[TensorSpec] = manifest.data_inputs
        self.outputs: Sequence[TensorSpec] = tuple(spec for spec in manifest.outputs if spec.role != "state")
        self._names = [spec.name for spec in self.outputs]
        self._state = StreamState(model)
        self._all_names = [*self._names, *self._state.outputs]
        self._turn = threading.Lock()
        self._failure = _failures(ort)

    @classmethod
    def installed(cls) -> str:
        """See `Engine.installed`."""
        return str(runtime().__version__)

    @property
    def stateful(self) -> bool:
        return bool(self._state.inputs)

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """See `Engine.run`; one call costs a few microseconds over ONNX Runtime's own."""
        check_feeds(self.inputs, feeds)
        session = self._session
        if session is None:
            refuse_closed()
        try:
            if self._state.inputs:
                with self._turn:
                    results = session.run(self._all_names, self._state.joined(feeds))
                    return self._state.keep(dict(zip(self._all_names, results, strict=True)))
            return dict(zip(self._names, session.run(self._names, feeds), strict=True))
        except self._failure as error:
            raise EngineError(f"ONNX Runtime failed: {error}") from error

    def session(self) -> Self:
        """A stream of its own; the runtime session and its weights are shared."""
        if self._session is None:
            refuse_closed()
        stream = object.__new__(type(self))
        stream.__dict__.update(self.__dict__, _state=self._state.fresh(), _turn=threading.Lock())
        return stream

    def close(self) -> None:
        self._session = None
        self._state = self._state.fresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _providers(ort: ModuleType, wanted: Sequence[str]) -> list[str]:
    available = ort.get_available_providers()
    for provider in wanted:
        if provider not in available:
            raise EngineError(
                f"this ONNX Runtime has no provider {provider!r}; {nearest(provider, available)}"
            )
    return [*wanted] if CPU in wanted else [*wanted, CPU]


def session_options(ort: ModuleType, options: EngineOptions) -> Any:
    """ONNX Runtime's session options for ours: thread counts honoured, spinning as asked, log quiet.

    Without memory patterns: kept for each batch size, they cost a server of a MobileNet 90 MB, and saved no time.
    """
    settings = ort.SessionOptions()
    settings.enable_mem_pattern = False
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.log_severity_level = 4  # errors are raised: they need not be printed as well
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    return settings


def _open_session(ort: ModuleType, model: Model, options: EngineOptions, providers: list[str]) -> Any:
    try:
        settings = session_options(ort, options)
        return ort.InferenceSession(str(model.file), settings, providers=providers, enable_fallback=0)
    except _failures(ort) as error:
        text = str(error)
        if any(mark in text for mark in _UNSUPPORTED):
            raise UnsupportedError(
                f"ONNX Runtime {ort.__version__} cannot run {model.file}: {text}"
            ) from error
        raise ModelError(f"ONNX Runtime cannot load {model.file}: {text}") from error


def _check_external(model: Model) -> None:
    """Refuse weights in a file that the manifest does not name, and whose content nobody checked."""
    for name in sorted(locations(model.file) - model.manifest.files.keys()):
        raise ModelError(
            f"{model.file} keeps weights in {name!r}, which its manifest does not name: convert it again"
        )


_UNSUPPORTED = (
    "NOT_IMPLEMENTED",
    "is not a registered function/op",
    "No Op registered",
    "No opset import",
    "till opset",
    "Unsupported model IR version",
)


def _failures(ort: ModuleType) -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its own errors have no common root below Exception."""
    own = vars(ort.capi.onnxruntime_pybind11_state).values()
    return (
        RuntimeError,
        ValueError,
        *(part for part in own if isinstance(part, type) and issubclass(part, Exception)),
    )


def _tensors(args: Sequence[Any]) -> list[FileTensor]:
    return [FileTensor(arg.name, _DTYPES.get(str(arg.type), str(arg.type)), tuple(arg.shape)) for arg in args]
