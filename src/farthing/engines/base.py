"""What an engine is: it computes, synchronously, and says what it can do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from farthing import plugins
from farthing.config import Section
from farthing.errors import ConfigError, EngineError, FeedError, ModelError, nearest
from farthing.model import Model, TensorSpec

Tensors = Mapping[str, NDArray[Any]]
"""Tensor name -> array."""


class EngineOptions(Section, frozen=True, kw_only=True):
    """How to run a model; every engine honours these or refuses them.

    Attributes:
        threads: threads one ``run`` may use, the caller's included.
        spin: let idle threads spin: lower latency when the machine is ours, harmful when it is shared.
        providers: the engine's own names of devices or delegates, best first; empty means the CPU.
    """

    threads: int = 1
    spin: bool = False
    providers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= 1024:
            raise ValueError(f"threads must be from 1 to 1024, not {self.threads}")


class Engine(Protocol):
    """A model loaded into a runtime.

    Class attributes:
        name: as in the plugin table.
        formats: manifest formats it can open.
        concurrency: ``threads`` if several threads may call ``run`` at once, ``serial`` if callers take turns.

    Attributes:
        inputs, outputs: the tensors callers feed and get: state tensors are kept by the session.
        stateful: whether ``run`` remembers; then each stream needs a ``session`` of its own.
    """

    name: ClassVar[str]
    formats: ClassVar[frozenset[str]]
    concurrency: ClassVar[Literal["threads", "serial"]]

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...
    @property
    def outputs(self) -> Sequence[TensorSpec]: ...
    @property
    def stateful(self) -> bool: ...
    @property
    def version(self) -> str: ...

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Compute the outputs for one feed; batched where ``batch_axis`` is set.

        Raises:
            FeedError: a tensor is missing, unknown, or of the wrong type or shape.
            EngineError: the runtime failed, or the engine is closed.
        """
        ...

    def session(self) -> Self:
        """A stream of its own for a stateful model, state at its start; it shares the loaded weights."""
        ...

    def close(self) -> None:
        """Give the memory back; ``run`` then raises EngineError. Closing twice is allowed."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


def open_engine(model: Model, engine: str = "", options: EngineOptions | None = None) -> Engine:
    """Load a model into an engine.

    Args:
        model: the model.
        engine: engine name; empty takes the first known one that runs the model's format.
        options: threads and the like.

    Raises:
        PluginError: no engine of that name.
        NotInstalled: the engine's package is missing; the message names the extra.
        EngineError: no engine runs this format, or the runtime refuses the file.
        ModelError: the file is not what its manifest says.
    """
    kind = plugins.get("engine", engine or engine_for(model.manifest.format))
    if model.manifest.format not in kind.formats:
        able = ", ".join(sorted(kind.formats))
        raise EngineError(f"engine {kind.name} runs {able} files, not {model.manifest.format!r}")
    return kind(model, options or EngineOptions())  # type: ignore[no-any-return]


def engine_for(model_format: str) -> str:
    """The name of the first engine in the plugin table that runs a format.

    Raises:
        ModelError: no engine runs it.
    """
    known: set[str] = set()
    for name in plugins.names("engine"):
        formats = plugins.get("engine", name).formats
        if model_format in formats:
            return name
        known |= formats
    raise ModelError(f"no engine runs the format {model_format!r}; {nearest(model_format, known)}")


def make_options(threads: int = 1, spin: bool = False, providers: Sequence[str] = ()) -> EngineOptions:
    """EngineOptions from a caller's values, with a ConfigError for impossible ones."""
    try:
        return EngineOptions(threads=threads, spin=spin, providers=tuple(providers))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_feeds(specs: Sequence[TensorSpec], feeds: Tensors) -> None:
    """Check names, element types and shapes of feeds against the inputs, cheaply.

    Raises:
        FeedError: saying which tensor is wrong, what it is and what it should be.
    """
    if len(feeds) != len(specs):
        _refuse_names(specs, feeds)
    for spec in specs:
        array = feeds.get(spec.name)
        if array is None:
            _refuse_names(specs, feeds)
        elif array.dtype.name != spec.dtype or not _fits(array.shape, spec.shape):
            _refuse_array(spec, array)


def _fits(shape: tuple[int, ...], declared: tuple[int | str, ...]) -> bool:
    if len(shape) != len(declared):
        return False
    for size, limit in zip(shape, declared, strict=True):
        if size != limit and not isinstance(limit, str):
            return False
    return True


def _refuse_names(specs: Sequence[TensorSpec], feeds: Tensors) -> None:
    wanted = [spec.name for spec in specs]
    missing = [name for name in wanted if name not in feeds]
    unknown = [name for name in feeds if name not in wanted]
    hint = f"; {nearest(unknown[0], wanted)}" if unknown else ""
    raise FeedError(f"inputs missing: {missing or 'none'}, unknown: {unknown or 'none'}{hint}")


def _refuse_array(spec: TensorSpec, array: NDArray[Any]) -> None:
    raise FeedError(
        f"input {spec.name!r} is {array.dtype.name} {list(array.shape)}, "
        f"but the model takes {spec.dtype} {list(spec.shape)}"
    )


def zero_state(specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """State tensors at the start of a stream: zeros, free axes of size 1."""
    return {spec.name: np.zeros(spec.sized(1), spec.dtype) for spec in specs}


def thread_count() -> int:
    """Threads of this process now (Linux)."""
    return len(os.listdir("/proc/self/task"))
