"""TorchScript archives (``torch.jit.save``) in PyTorch, on the CPU: the reference for what was trained there."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from farthing.engines.archive import checked_script
from farthing.engines.base import (
    StreamState,
    Tensors,
    check_feeds,
    check_options,
    refuse_closed,
    refuse_sizes,
)
from farthing.errors import EngineError, ModelError, UnsupportedError, require
from farthing.model import Model, TensorSpec
from farthing.options import EngineOptions

Array = NDArray[Any]
_TRIAL_SIZES = (1, 32, 224)  # for free axes other than the batch
_SCALARS = {"int": int, "float": float, "bool": bool}
_UNFED = frozenset({"str", "bfloat16"})
FAILURES = (RuntimeError, ValueError, TypeError, IndexError)
_TORCH_TURN = threading.Lock()  # torch has one number of threads for the whole process


def runtime() -> ModuleType:
    """The torch package.

    Raises:
        NotInstalled: torch is not installed.
    """
    return require("torch", "torchscript")


class TorchScriptEngine:
    """A TorchScript module, frozen. Callers of all such engines in a process take turns."""

    name: ClassVar[str] = "torchscript"
    formats: ClassVar[frozenset[str]] = frozenset({"torchscript"})
    concurrency: ClassVar[Literal["threads", "serial"]] = "serial"

    def __init__(self, model: Model, options: EngineOptions) -> None:
        check_options("TorchScript", options)
        if set(options.providers) - {"cpu"}:
            raise EngineError(
                f"TorchScript runs on the CPU here: no providers, not {list(options.providers)}"
            )
        torch = runtime()
        self.version: str = torch.__version__.partition("+")[0]
        self._torch: Any = torch
        self._path = model.file
        self._threads = options.threads
        self._specs = model.manifest.inputs
        self.inputs: Sequence[TensorSpec] = model.manifest.data_inputs
        self.outputs: Sequence[TensorSpec] = tuple(s for s in model.manifest.outputs if s.role != "state")
        self._given = [spec.name for spec in model.manifest.outputs]
        self._pristine: Any = load(model)
        self._kinds = _check_arguments(model, self._pristine)
        self._variables = _keeps_state(self._pristine)
        self._state = StreamState(model)
        self._module: Any = self._copy()
        self._began: list[tuple[int, ...]] | None = None
        self._turn = threading.Lock()
        self._try_once(model)

    @classmethod
    def installed(cls) -> str:
        """See `Engine.installed`."""
        return str(runtime().__version__).partition("+")[0]

    @property
    def stateful(self) -> bool:
        return self._variables or bool(self._state.inputs)

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """See `Engine.run`; inputs and results are copied: a script may write into what it gets, or give it back."""
        check_feeds(self.inputs, feeds)
        with self._turn:
            if self._module is None:
                refuse_closed()
            if self._variables:
                sizes = [feeds[spec.name].shape for spec in self.inputs]
                if self._began is not None and self._began != sizes:
                    refuse_sizes(self._began, sizes)
                self._began = sizes
            try:
                if not self._state.inputs:
                    return self._forward(self._module, feeds)
                return self._state.keep(self._forward(self._module, self._state.joined(feeds)))
            except FAILURES as error:
                raise EngineError(f"TorchScript failed on {self._path}: {last_line(error)}") from error

    def _forward(self, module: Any, feeds: Tensors) -> dict[str, Array]:
        arrays = [feeds[spec.name] for spec in self._specs]
        with _Threads(self._torch, self._threads):
            results = compute(self._torch, module, self._kinds, arrays)
        if len(results) != len(self._given):
            raise ValueError(f"it gives {len(results)} tensors, and the manifest names {len(self._given)}")
        return dict(zip(self._given, results, strict=True))

    def _copy(self) -> Any:
        """The module itself, or a copy at the start of its stream if it keeps a state; weights are shared."""
        return copy.deepcopy(self._pristine) if self._variables else self._pristine

    def _try_once(self, model: Model) -> None:
        """Run it on zeros: the file says nothing of sizes and element types, so this is how a false manifest shows.

        A setting may not be zero (a sample rate, say): if there is one, a failure shows nothing.
        """
        failure: Exception | None = None
        for size in _TRIAL_SIZES if any(spec.free_axes for spec in self._specs) else _TRIAL_SIZES[:1]:
            feeds = {spec.name: np.zeros(spec.sized(1, size), spec.dtype) for spec in self._specs}
            try:
                return _check_results(model, self._forward(self._copy(), feeds))
            except FAILURES as error:
                failure = error
        if any(spec.role == "parameter" for spec in self._specs):
            return None
        raise ModelError(
            f"{model.file} does not run as its manifest states: {failure and last_line(failure)}"
        )

    def session(self) -> Self:
        """A stream of its own; the weights are shared."""
        if self._module is None:
            refuse_closed()
        stream = object.__new__(type(self))
        stream.__dict__.update(
            self.__dict__,
            _state=self._state.fresh(),
            _module=self._copy(),
            _began=None,
            _turn=threading.Lock(),
        )
        return stream

    def close(self) -> None:
        with self._turn:
            self._module = self._pristine = None
            self._state = self._state.fresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load(model: Model) -> Any:
    """The module in evaluation mode, frozen: weights are constants, and what is left of its attributes is state.

    Raises:
        ModelError: no TorchScript archive, or a damaged one; pickled modules and weights alone are not loaded.
        UnsupportedError: it calls an operator that this torch lacks.
        NotInstalled: torch is not installed.
    """
    torch = runtime()
    try:
        clean = checked_script(model.file, model.file.read_bytes())
        frozen = torch.jit.freeze(torch.jit.load(io.BytesIO(clean), map_location="cpu").eval())
        return _written_anew(torch, frozen)
    except OSError as error:
        raise ModelError(f"cannot read {model.file}: {error.strerror or error}") from error
    except FAILURES as error:
        if "Unknown builtin op" in str(error):
            raise UnsupportedError(
                f"torch {torch.__version__} cannot run {model.file}: {_first_line(error)}"
            ) from error
        raise ModelError(
            f"{model.file} is not TorchScript that torch {torch.__version__} can load: {_first_line(error)}"
        ) from error


def _written_anew(torch: Any, frozen: Any) -> Any:
    """A frozen module saved and loaded: its operators remember functions that are gone, and errors look for them.

    Without this an error in the script ends the process (torch 2.13, ``InterpreterStateImpl::callstack``).
    """
    content = io.BytesIO()
    torch.jit.save(frozen, content)
    content.seek(0)
    return torch.jit.load(content, map_location="cpu")


def arguments(module: Any) -> list[tuple[str, type | None]]:
    """Names of what a script takes, and the Python type of what is no tensor; those with defaults come last."""
    schema = module.forward.schema.arguments[1:]
    return [(argument.name, _SCALARS.get(str(argument.type))) for argument in schema]


def compute(torch: Any, module: Any, kinds: Sequence[type | None], arrays: Sequence[Array]) -> list[Array]:
    """All tensors and numbers that a script gives, in order; ``kinds`` as `arguments` has them.

    Raises one of `FAILURES`.
    """
    inputs = [
        torch.from_numpy(np.array(array, order="C")) if kind is None else kind(array)
        for array, kind in zip(arrays, kinds, strict=True)
    ]
    with torch.inference_mode():
        return [_array(value) for value in _flat(module(*inputs))]


class _Threads:
    """Torch at work with so many threads; engines with other counts wait, and the caller's own count comes back."""

    def __init__(self, torch: Any, count: int) -> None:
        self._torch = torch
        self._count = count
        self._before = count

    def __enter__(self) -> None:
        _TORCH_TURN.acquire()
        self._before = self._torch.get_num_threads()
        if self._before != self._count:
            self._torch.set_num_threads(self._count)

    def __exit__(self, *exc: object) -> None:
        if self._before != self._count:
            self._torch.set_num_threads(self._before)
        _TORCH_TURN.release()


def _check_arguments(model: Model, module: Any) -> list[type | None]:
    """What Python type each input is given as, None for a tensor; the script says how many and which kinds."""
    taken = arguments(module)
    needed = sum(not argument.has_default_value() for argument in module.forward.schema.arguments[1:])
    specs = model.manifest.inputs
    if not needed <= len(specs) <= len(taken):
        ours, theirs = [spec.name for spec in specs], [name for name, _ in taken]
        raise ModelError(f"{model.path}: the manifest declares inputs {ours}, but the script takes {theirs}")
    for spec in (*specs, *model.manifest.outputs):
        if spec.dtype in _UNFED:
            raise UnsupportedError(f"torch shares no {spec.dtype} tensors with numpy: {spec.name!r} is one")
    kinds = [kind for _, kind in taken[: len(specs)]]
    for spec, kind in zip(specs, kinds, strict=True):
        if kind is not None and spec.shape:
            raise ModelError(
                f"{model.path}: the script takes one {kind.__name__} as {spec.name!r}, not {list(spec.shape)}"
            )
    return kinds


def _keeps_state(module: Any) -> bool:
    """Whether a frozen module has attributes left: freezing makes constants of all that are never written."""
    graph = module.inlined_graph
    return any(graph.findAllNodes(kind) for kind in ("prim::SetAttr", "prim::GetAttr"))


def _check_results(model: Model, results: Mapping[str, Array]) -> None:
    for spec in model.manifest.outputs:
        found = results[spec.name]
        same = len(found.shape) == len(spec.shape) and all(
            isinstance(size, str) or size == real for size, real in zip(spec.shape, found.shape, strict=True)
        )
        if not same or found.dtype.name != spec.dtype:
            raise ModelError(
                f"{model.path}: the manifest declares {spec.name!r} {spec.dtype} {list(spec.shape)}, "
                f"but the script gives {found.dtype.name} {list(found.shape)}"
            )


def _flat(result: Any) -> Iterator[Any]:
    """The tensors and numbers of a result, in order; None is left out."""
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, list | tuple):
        for part in result:
            yield from _flat(part)
    elif result is not None:
        yield result


def _array(value: Any) -> Array:
    """A copy in numpy; numbers are arrays without axes."""
    if isinstance(value, bool | int | float):
        return np.array(value)
    array: Array = value.numpy().copy()
    return array


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def last_line(error: Exception) -> str:
    """What went wrong: torch quotes the script first."""
    return next(
        (line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__
    )
