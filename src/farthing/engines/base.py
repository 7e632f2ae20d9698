"""What an engine is: it computes, synchronously, and says what it can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from farthing import plugins
from farthing.errors import (
    EngineError,
    FeedError,
    ModelError,
    NotInstalled,
    PluginError,
    nearest,
)
from farthing.model import DTYPES, Model, TensorSpec
from farthing.options import EngineOptions

Tensors = Mapping[str, NDArray[Any]]
"""Tensor name -> array."""


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

    @classmethod
    def installed(cls) -> str:
        """The version of the runtime.

        Raises:
            NotInstalled: its package is missing; the message names the extra.
        """
        ...

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Compute the outputs for one feed; batched where ``batch_axis`` is set.

        Raises:
            FeedError: a tensor is missing, unknown, or of the wrong type or shape.
            EngineError: the runtime failed, or the engine is closed.
        """
        ...

    def session(self) -> Self:
        """A stream of its own for a stateful model, state at its start; it shares the loaded weights.

        Streams are closed one by one; the weights go with the last of them.
        """
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
        engine: engine name; empty takes the first known one that runs the model's format, built-in ones first.
        options: threads and the like.

    Raises:
        PluginError: no engine of that name.
        NotInstalled: the engine's package is missing; the message names the extra.
        EngineError: this engine does not run the format, or cannot do what the options ask.
        ModelError: no engine runs the format, or the file is damaged or not what its manifest says.
        UnsupportedError: the file needs an operator or feature that the engine lacks.
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
    broken = []
    for name in chain(plugins.BUILTIN["engine"], plugins.names("engine")):
        try:
            formats = plugins.get("engine", name).formats
        except (NotInstalled, PluginError) as error:
            broken.append(str(error))
            continue
        if model_format in formats:
            return name
        known |= formats
    raise ModelError(
        "; ".join([f"no engine runs the format {model_format!r}; {nearest(model_format, known)}", *broken])
    )


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, object]) -> None:
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
        elif (
            not isinstance(array, np.ndarray)
            or not _is_dtype(array.dtype, spec.dtype)
            or not _fits(array.shape, spec.shape)
        ):
            _refuse_array(spec, array)
    if len(specs) > 1:
        _check_free_axes([(spec, feeds[spec.name]) for spec in specs])


_NUMPY = {name: np.dtype(name) for name in DTYPES - {"str", "bfloat16"}}


def _is_dtype(dtype: np.dtype[Any], name: str) -> bool:
    known = _NUMPY.get(name)
    if known is not None:
        return dtype == known  # byte order counts
    return dtype.kind in "UO" if name == "str" else dtype.name == name


def _check_free_axes(fed: Sequence[tuple[TensorSpec, Any]]) -> None:
    """Axes of one name have one size."""
    sizes: dict[str, int] = {}
    for spec, array in fed:
        for name, size in zip(spec.shape, array.shape, strict=True):
            if isinstance(name, str) and sizes.setdefault(name, size) != size:
                raise FeedError(
                    f"the axis {name!r} is {size} in input {spec.name!r}, but {sizes[name]} in another"
                )


def _fits(shape: tuple[int, ...], declared: tuple[int | str, ...]) -> bool:
    if len(shape) != len(declared):
        return False
    for size, limit in zip(shape, declared, strict=True):
        if size != limit and not isinstance(limit, str):
            return False
    return True


def _refuse_names(specs: Sequence[TensorSpec], feeds: Mapping[str, object]) -> None:
    wanted = [spec.name for spec in specs]
    missing = [name for name in wanted if name not in feeds]
    unknown = [name for name in feeds if name not in wanted]
    hint = f"; {nearest(unknown[0], wanted)}" if unknown else ""
    raise FeedError(f"inputs missing: {missing or 'none'}, unknown: {unknown or 'none'}{hint}")


def _refuse_array(spec: TensorSpec, array: object) -> None:
    wanted = f"{spec.dtype} {list(spec.shape)}"
    if not isinstance(array, np.ndarray):
        raise FeedError(f"input {spec.name!r} is a {type(array).__name__}: give a numpy array, {wanted}")
    dtype = array.dtype.name if array.dtype.isnative else f"{array.dtype.name} of foreign byte order"
    raise FeedError(f"input {spec.name!r} is {dtype} {list(array.shape)}, but the model takes {wanted}")


def batch_of(specs: Sequence[TensorSpec], feeds: Tensors) -> int:
    """How many samples feeds hold: the size of the first batch axis, 1 if there is none."""
    for spec in specs:
        if spec.batch_axis is not None:
            return int(feeds[spec.name].shape[spec.batch_axis])
    return 1


def zero_state(specs: Sequence[TensorSpec], batch: int = 1) -> dict[str, NDArray[Any]]:
    """State tensors at the start of a stream: zeros, ``batch`` at a free batch axis, other free axes of size 1."""
    return {spec.name: np.zeros(spec.sized(batch), spec.dtype) for spec in specs}


def refuse_batch(began: int, batch: int) -> None:
    """Raise the FeedError of a stateful stream that gets another batch than it began with."""
    raise FeedError(f"this stream began with batches of {began}, not {batch}: open a session() for them")
