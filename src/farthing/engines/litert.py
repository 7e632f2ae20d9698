"""LiteRT (https://ai.google.dev/edge/litert), formerly TensorFlow Lite: ``.tflite`` files on CPUs and delegates."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from farthing.engines import tflite
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
from farthing.errors import EngineError, ModelError, UnsupportedError, require
from farthing.model import Model, TensorSpec
from farthing.options import EngineOptions

XNNPACK, BUILTIN, REFERENCE = "xnnpack", "builtin", "reference"
_RESOLVERS = {XNNPACK: "BUILTIN", BUILTIN: "BUILTIN_WITHOUT_DEFAULT_DELEGATES", REFERENCE: "BUILTIN_REF"}
_KEPT = 2  # interpreters, each with its own sizes of the free axes
_FAILURES = (RuntimeError, ValueError)
_UNSUPPORTED = ("unresolved custom op", "Didn't find op for builtin opcode", "Op builtin_code out of range")


def runtime() -> ModuleType:
    """The ``ai_edge_litert.interpreter`` module.

    Raises:
        NotInstalled: ai-edge-litert is not installed.
    """
    return require("ai_edge_litert.interpreter", "litert")


class _Tensor(NamedTuple):
    """An input or output: its number in the graph, the name the manifest gives it, and what the file says of it."""

    number: int
    name: str
    dtype: str
    shape: tuple[int | None, ...]
    zero: int


class LiteRtEngine:
    """A TFLite model in LiteRT's interpreter. Callers take turns; each session has an interpreter of its own."""

    name: ClassVar[str] = "litert"
    formats: ClassVar[frozenset[str]] = frozenset({"tflite"})
    concurrency: ClassVar[Literal["threads", "serial"]] = "serial"

    def __init__(self, model: Model, options: EngineOptions) -> None:
        check_options("LiteRT", options)
        runtime()
        self.version = self.installed()
        self._path = model.file
        manifest = model.manifest
        data = _read(model)
        content = tflite.read(data, model.file)
        self._inputs = _named(content.inputs, [spec.name for spec in manifest.inputs])
        self._outputs = _named(content.outputs, [spec.name for spec in manifest.outputs])
        check_manifest(
            model, *([FileTensor(*one[1:4]) for one in side] for side in (self._inputs, self._outputs))
        )
        self._specs = manifest.inputs
        self.inputs: Sequence[TensorSpec] = manifest.data_inputs
        self.outputs: Sequence[TensorSpec] = tuple(spec for spec in manifest.outputs if spec.role != "state")
        self._free = any(isinstance(size, str) for spec in manifest.inputs for size in spec.shape)
        self._state = StreamState(model, {one.name: one.zero for one in self._inputs})
        self._variables = content.variables
        self._make: Callable[[], Any] | None = _maker(model, data, options)
        self._sized: dict[tuple[tuple[int, ...], ...], Any] = {}
        self._spare: Any = None
        self._turn = threading.Lock()
        self._try_once(model)

    @classmethod
    def installed(cls) -> str:
        """See `Engine.installed`."""
        runtime()
        return str(require("ai_edge_litert", "litert").__version__)

    @property
    def stateful(self) -> bool:
        return self._variables or bool(self._state.inputs)

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """See `Engine.run`; results are copies. One call costs a few microseconds over the interpreter's own."""
        check_feeds(self.inputs, feeds)
        with self._turn:
            if self._make is None:
                refuse_closed()
            try:
                if not self._state.inputs:
                    return self._invoke(self._interpreter(self._make, feeds), feeds)
                fed = self._state.joined(feeds)
                return self._state.keep(self._invoke(self._interpreter(self._make, fed), fed))
            except _FAILURES as error:
                raise EngineError(f"LiteRT failed on {self._path}: {error}") from error

    def _invoke(self, interpreter: Any, feeds: Tensors) -> dict[str, NDArray[Any]]:
        for one in self._inputs:
            interpreter.set_tensor(one.number, feeds[one.name])
        interpreter.invoke()
        return {one.name: _result(interpreter, one) for one in self._outputs}

    def _interpreter(self, make: Callable[[], Any], feeds: Tensors) -> Any:
        """One with memory for these sizes: those of the most recent sizes are kept, the oldest is given new ones."""
        sizes = tuple([feeds[spec.name].shape for spec in self._specs]) if self._free else ()
        interpreter = self._sized.get(sizes)
        if interpreter is not None:
            return interpreter
        if self._sized and self._variables:
            refuse_sizes(next(iter(self._sized)), sizes)
        interpreter, self._spare = self._spare, None
        if interpreter is None:
            full = len(self._sized) == _KEPT
            interpreter = self._sized.pop(next(iter(self._sized))) if full else make()
        for one, shape in zip(self._inputs, sizes, strict=False):
            interpreter.resize_tensor_input(one.number, shape, strict=True)
        interpreter.allocate_tensors()
        self._sized[sizes] = interpreter
        return interpreter

    def _try_once(self, model: Model) -> None:
        """Make an interpreter for single samples: shows operators that LiteRT lacks and shapes that do not fit."""
        free = any(spec.free_axes for spec in self._specs)
        feeds = {spec.name: np.empty(spec.sized(1), np.uint8) for spec in self._specs}
        try:
            if self._make:
                self._interpreter(self._make, feeds)
        except _FAILURES as error:
            if not free or _is_unsupported(error):  # sizes of 1 may be too small for it
                _refuse(model, error)
        if self._free:  # other sizes are likely to come
            self._spare = self._sized.popitem()[1] if self._sized else None

    def session(self) -> Self:
        """A stream of its own, with an interpreter of its own; the file's content is shared."""
        if self._make is None:
            refuse_closed()
        stream = object.__new__(type(self))
        stream.__dict__.update(
            self.__dict__, _state=self._state.fresh(), _turn=threading.Lock(), _sized={}, _spare=None
        )
        return stream

    def close(self) -> None:
        with self._turn:
            self._make = None
            self._sized, self._spare = {}, None
            self._state = self._state.fresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _result(interpreter: Any, one: _Tensor) -> NDArray[Any]:
    """A copy of an output; LiteRT's own refuses one that turned out empty."""
    try:
        array: NDArray[Any] = interpreter.get_tensor(one.number)
    except ValueError:
        shapes = {detail["index"]: detail["shape"].tolist() for detail in interpreter.get_output_details()}
        if 0 not in shapes[one.number]:
            raise
        return np.zeros(shapes[one.number], one.dtype)
    return array


def _read(model: Model) -> bytes:
    try:
        return model.file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {model.file}: {error.strerror or error}") from error


def _named(tensors: Sequence[tflite.FileTensor], wanted: Sequence[str]) -> list[_Tensor]:
    """The file's tensors in the manifest's order, where that names each by its signature's name or its own."""
    by_name = {name: one for one in tensors for name in reversed(one.names)}
    own = [one.names[0] for one in tensors]
    names = wanted if len(wanted) == len(tensors) and set(wanted) <= by_name.keys() else own
    return [
        _Tensor(one.number, name, one.dtype, one.shape, one.zero_points[0] if one.zero_points else 0)
        for name, one in ((name, by_name[name]) for name in names)
    ]


def _maker(model: Model, data: bytes, options: EngineOptions) -> Callable[[], Any]:
    """What makes an interpreter as the options ask."""
    lite = runtime()
    named = [provider for provider in options.providers if provider in _RESOLVERS]
    if len(named) > 1:
        raise EngineError(f"the providers {' and '.join(named)} exclude one another: name one")
    resolver = lite.OpResolverType[_RESOLVERS[named[0] if named else XNNPACK]]
    libraries = [provider for provider in options.providers if provider not in _RESOLVERS]
    for library in libraries:
        _check_library(library)

    def make() -> Any:
        try:
            return lite.Interpreter(
                model_content=data,
                num_threads=options.threads,
                experimental_op_resolver_type=resolver,
                experimental_delegates=[_delegate(lite, library) for library in libraries],
            )
        except _FAILURES as error:
            _refuse(model, error)

    return make


def _check_library(library: str) -> None:
    try:
        loaded = ctypes.CDLL(library)
    except OSError as error:
        raise EngineError(
            f"LiteRT's delegate (provider) {library!r} does not load: {error}; give the path of a delegate's library, "
            f"or one of {', '.join(_RESOLVERS)}"
        ) from error
    if not all(hasattr(loaded, f"tflite_plugin_{act}_delegate") for act in ("create", "destroy")):
        raise EngineError(f"LiteRT's delegate (provider) {library!r} is a library, but none of a delegate")


def _delegate(lite: ModuleType, library: str) -> Any:
    try:
        return lite.load_delegate(library)
    except ValueError as error:
        raise EngineError(f"LiteRT's delegate (provider) {library!r} refuses to work: {error}") from error


def _refuse(model: Model, error: Exception) -> NoReturn:
    """Say what LiteRT has against a file."""
    version = LiteRtEngine.installed()
    if _is_unsupported(error):
        raise UnsupportedError(f"LiteRT {version} cannot run {model.file}: {error}") from error
    raise ModelError(f"LiteRT {version} cannot load {model.file}: {error}") from error


def _is_unsupported(error: Exception) -> bool:
    return any(mark in str(error) for mark in _UNSUPPORTED)
