"""What an engine is: it computes, synchronously, and says what it can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, Protocol, Self

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


class StreamState:
    """The state tensors of one stream between its calls. Callers take turns.

    Args:
        model: whose manifest names them: the i-th state output feeds the i-th state input.
        zeros: number that stands for zero, by state input: quantized tensors may have another than 0.
    """

    def __init__(self, model: Model, zeros: Mapping[str, int] | None = None) -> None:
        self.inputs = tuple(spec for spec in model.manifest.inputs if spec.role == "state")
        self.outputs = tuple(spec.name for spec in model.manifest.outputs if spec.role == "state")
        self._data = model.manifest.data_inputs
        self._zeros = zeros or {}
        self._kept: dict[str, NDArray[Any]] | None = None

    def fresh(self) -> StreamState:
        """The state of another stream, at its start."""
        stream = object.__new__(type(self))
        stream.__dict__.update(self.__dict__, _kept=None)
        return stream

    def joined(self, feeds: Tensors) -> Tensors:
        """What a caller feeds, with the state beside it.

        Raises:
            FeedError: the stream began with another batch.
        """
        batch = batch_of(self._data, feeds)
        state = self._kept
        if state is None:
            state = {spec.name: self._zero(spec, batch) for spec in self.inputs}
        for spec in self.inputs:
            free = spec.batch_axis is not None and not spec.fixed_batch
            began = state[spec.name].shape[spec.batch_axis or 0] if free else batch
            if began != batch:
                refuse_batch(began, batch)
        return {**feeds, **state}

    def keep(self, results: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Keep the state outputs for the next call; the others are the caller's."""
        self._kept = {spec.name: results[name] for spec, name in zip(self.inputs, self.outputs, strict=True)}
        return {name: value for name, value in results.items() if name not in self.outputs}

    def _zero(self, spec: TensorSpec, batch: int) -> NDArray[Any]:
        return np.full(spec.sized(batch), self._zeros.get(spec.name, 0), spec.dtype)


def refuse_batch(began: int, batch: int) -> None:
    """Raise the FeedError of a stateful stream that gets another batch than it began with."""
    raise FeedError(f"this stream began with batches of {began}, not {batch}: open a session() for them")


def refuse_sizes(began: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]]) -> NoReturn:
    """Raise the FeedError of a stream whose state lies inside the model, and which gets other shapes than at first."""
    raise FeedError(
        f"this stream began with inputs of {[list(shape) for shape in began]}, "
        f"not {[list(shape) for shape in sizes]}: open a session() for them"
    )


def refuse_closed() -> NoReturn:
    """Raise the EngineError of an engine that was closed."""
    raise EngineError("this engine is closed: open the model again")


def check_options(
    engine: str, options: EngineOptions, *, spin: bool = False, precisions: Sequence[str] = ("float32",)
) -> None:
    """Refuse what an engine has no setting for.

    Raises:
        EngineError: spinning threads, or an arithmetic, that it does not offer.
    """
    if options.spin and not spin:
        raise EngineError(f"{engine} has no setting that lets idle threads spin: leave it out")
    if options.precision not in precisions:
        raise EngineError(
            f"{engine} computes float operators in {' or '.join(precisions)} here, not in {options.precision}: "
            "leave the precision out"
        )


class FileTensor(NamedTuple):
    """An input or output as a model file declares it; an axis of unknown size is its name there, or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None  # None: the file does not even say how many axes


BATCH = "batch"  # name of a free batch axis


def spec_of(name: str, dtype: str, shape: Sequence[int | str | None]) -> TensorSpec:
    """The spec of a tensor. Open sizes get names: a first axis is the batch, others those of their tensor and axis.

    Raises:
        ModelError: a type or a shape that no tensor has.
    """
    free = [BATCH if axis == 0 else f"{name}_{axis}" for axis in range(len(shape))]
    sizes = tuple(size if isinstance(size, int) else free[axis] for axis, size in enumerate(shape))
    try:
        return TensorSpec(
            name=name, dtype=dtype, shape=sizes, batch_axis=0 if sizes[:1] == (BATCH,) else None
        )
    except ValueError as error:
        raise ModelError(f"this model cannot be described: {error}") from error


def check_manifest(model: Model, inputs: Sequence[FileTensor], outputs: Sequence[FileTensor]) -> None:
    """Hold the manifest against the file: names and element types in order, and sizes of the axes.

    Raises:
        ModelError: the manifest declares something else; both are quoted.
    """
    manifest = model.manifest
    for what, declared, real in (
        ("inputs", manifest.inputs, inputs),
        ("outputs", manifest.outputs, outputs),
    ):
        ours = [(spec.name, spec.dtype) for spec in declared]
        theirs = [(one.name, one.dtype) for one in real]
        if ours != theirs:
            raise ModelError(f"{model.path}: the manifest declares {what} {ours}, but the file has {theirs}")
        for spec, one in zip(declared, real, strict=True):
            if one.shape is not None and not _sizes_agree(spec.shape, one.shape, free_too=what == "inputs"):
                raise ModelError(
                    f"{model.path}: the manifest declares {spec.name!r} {list(spec.shape)}, "
                    f"but the file has {list(one.shape)}"
                )


def _sizes_agree(declared: Sequence[int | str], real: Sequence[int | str | None], free_too: bool) -> bool:
    """Whether no size contradicts; the file may leave open what the manifest fixes; an unknown shape is []."""
    if len(declared) != len(real):
        return not real and not free_too
    pairs = zip(declared, real, strict=True)
    return all(a == b or not isinstance(b, int) or (isinstance(a, str) and not free_too) for a, b in pairs)
