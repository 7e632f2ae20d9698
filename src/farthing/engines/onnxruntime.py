"""ONNX Runtime (https://onnxruntime.ai): ONNX files on CPUs, and on whatever its providers reach."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar, Literal, Self

from numpy.typing import NDArray

from farthing.engines.base import Tensors, batch_of, check_feeds, refuse_batch, zero_state
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
        ort = runtime()
        self.version: str = ort.__version__
        self.providers = _providers(ort, options.providers)
        manifest = model.manifest
        _check_external(model)
        self._session: Any = _open_session(ort, model, options, self.providers)
        _check_tensors(model, self._session)
        self.inputs: Sequence[TensorSpec] = manifest.data_inputs
        self.outputs: Sequence[TensorSpec] = tuple(spec for spec in manifest.outputs if spec.role != "state")
        self._state_inputs = tuple(spec for spec in manifest.inputs if spec.role == "state")
        self._state_outputs = tuple(spec.name for spec in manifest.outputs if spec.role == "state")
        self._names = [spec.name for spec in self.outputs]
        self._state: dict[str, NDArray[Any]] | None = None
        self._turn = threading.Lock()
        self._failure = _failures(ort)

    @classmethod
    def installed(cls) -> str:
        """See `Engine.installed`."""
        return str(runtime().__version__)

    @property
    def stateful(self) -> bool:
        return bool(self._state_inputs)

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """See `Engine.run`; one call costs a few microseconds over ONNX Runtime's own."""
        check_feeds(self.inputs, feeds)
        session = self._session
        if session is None:
            raise EngineError("this engine is closed: open the model again")
        try:
            if self._state_inputs:
                with self._turn:
                    return self._run_stateful(session, feeds)
            return dict(zip(self._names, session.run(self._names, feeds), strict=True))
        except self._failure as error:
            raise EngineError(f"ONNX Runtime failed: {error}") from error

    def _run_stateful(self, session: Any, feeds: Tensors) -> dict[str, NDArray[Any]]:
        batch = batch_of(self.inputs, feeds)
        state = self._state or zero_state(self._state_inputs, batch)
        for spec in self._state_inputs:
            began = (
                batch
                if spec.batch_axis is None or spec.fixed_batch
                else state[spec.name].shape[spec.batch_axis]
            )
            if began != batch:
                refuse_batch(began, batch)
        results = session.run([*self._names, *self._state_outputs], {**feeds, **state})
        kept = results[len(self._names) :]
        self._state = {spec.name: value for spec, value in zip(self._state_inputs, kept, strict=True)}
        return dict(zip(self._names, results, strict=False))

    def session(self) -> Self:
        """A stream of its own; the runtime session and its weights are shared."""
        if self._session is None:
            raise EngineError("this engine is closed: open the model again")
        stream = object.__new__(type(self))
        stream.__dict__.update(self.__dict__, _state=None, _turn=threading.Lock())
        return stream

    def close(self) -> None:
        self._session = self._state = None

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


def _check_tensors(model: Model, session: Any) -> None:
    """Hold the manifest against the file: names and element types in order, and sizes of the axes."""
    manifest = model.manifest
    for what, declared, real in (
        ("inputs", manifest.inputs, session.get_inputs()),
        ("outputs", manifest.outputs, session.get_outputs()),
    ):
        ours = [(spec.name, spec.dtype) for spec in declared]
        theirs = [(arg.name, _DTYPES.get(arg.type, arg.type)) for arg in real]
        if ours != theirs:
            raise ModelError(f"{model.path}: the manifest declares {what} {ours}, but the file has {theirs}")
        for spec, arg in zip(declared, real, strict=True):
            if not _sizes_agree(spec.shape, arg.shape, free_too=what == "inputs"):
                shape = list(spec.shape)
                raise ModelError(
                    f"{model.path}: the manifest declares {spec.name!r} {shape}, but the file has {arg.shape}"
                )


def _sizes_agree(declared: Sequence[int | str], real: Sequence[int | str | None], free_too: bool) -> bool:
    """Whether no size contradicts; the file may leave open what the manifest fixes; an unknown shape is []."""
    if len(declared) != len(real):
        return not real and not free_too
    pairs = zip(declared, real, strict=True)
    return all(a == b or not isinstance(b, int) or (isinstance(a, str) and not free_too) for a, b in pairs)
