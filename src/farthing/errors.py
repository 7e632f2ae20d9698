"""Every error Farthing raises on purpose, in one tree.

    FarthingError                      exit code 2
    ├── ConfigError                    a setting, budget, recipe or file of settings that cannot be understood
    ├── PluginError                    no engine, pass, task or metric of that name
    ├── NotInstalled                   an optional package is missing; the message names the extra
    ├── ModelError                     not a model, damaged, or not what its manifest says
    │   ├── UnsupportedError           an operator, opset or feature that this part cannot handle
    │   └── ConversionError            the converted model does not compute what its source computes
    ├── TaskError                      data set or metric unusable: empty, NaN, labels out of range, wrong shapes
    ├── TargetError                    no target of that name, or one that cannot be used
    │   └── LinkError                  the connection to a target could not be made, or broke
    ├── EngineError                    an engine could not load or run a model
    │   ├── FeedError                  tensors given to run() do not fit the model's inputs
    │   ├── RaceError                  an entrant of a race could not be loaded or failed; it says which
    │   └── RemoteError                a server that computes for us cannot be reached, is late, or answers nonsense
    │       └── CircuitOpenError       it failed several times in a row, and is left alone for a while
    ├── ServiceError                   a service did not answer a request
    │   ├── DeadlineError              the deadline passed first
    │   ├── OverloadError              no room for it; the same request may be answered later
    │   ├── ProtocolError              its bytes do not follow the protocol they came by
    │   ├── UnknownModelError          it is for a model, or a version of one, that is not served
    │   └── ClosedError                the service was closed first
    ├── AssetError                     a file out of a package could not be fetched, or is not the pinned one
    ├── StorageError                   a directory is busy, read-only, full, or an archive is unsafe
    ├── MeasurementError               a measurement could not be taken
    └── TrainingError                  a training failed: its loss or its weights are no longer numbers

A message says what was wrong, where, and what to do next.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

__all__ = [
    "AssetError",
    "CircuitOpenError",
    "ClosedError",
    "ConfigError",
    "ConversionError",
    "DeadlineError",
    "EngineError",
    "FarthingError",
    "FeedError",
    "LinkError",
    "MeasurementError",
    "ModelError",
    "NotInstalled",
    "OverloadError",
    "PluginError",
    "ProtocolError",
    "RaceError",
    "RemoteError",
    "ServiceError",
    "StorageError",
    "TargetError",
    "TaskError",
    "TrainingError",
    "UnknownModelError",
    "UnsupportedError",
    "absent",
    "nearest",
    "require",
    "suggestion",
]


class FarthingError(Exception):
    """Root of the tree: catch this to catch everything Farthing raises on purpose."""


class ConfigError(FarthingError, ValueError):
    """A setting, budget, recipe or configuration file cannot be understood.

    It is a ValueError as well, and so keeps its place in a file when it is raised while that is read.
    """


class PluginError(FarthingError):
    """No plugin of that kind and name is known, or it failed with an error of its own."""


class NotInstalled(FarthingError):
    """An optional package is missing; the message names the extra that brings it."""


class ModelError(FarthingError):
    """Not a model, a damaged one, or one that is not what its manifest says."""


class UnsupportedError(ModelError):
    """An operator, opset or feature that this part of Farthing cannot handle."""


class ConversionError(ModelError):
    """A converted model does not compute what its source computes."""


class TaskError(FarthingError):
    """A data set or metric cannot be used: empty, NaN, labels out of range, shapes that do not fit."""


class TargetError(FarthingError):
    """No target of that name, or one that cannot be used."""


class LinkError(TargetError):
    """The connection to a target could not be made, or broke; the same request may succeed later."""


class EngineError(FarthingError):
    """An engine could not load or run a model."""


class FeedError(EngineError):
    """Tensors given to ``run`` do not fit the model's inputs."""


class RaceError(EngineError):
    """An entrant of a race could not be loaded, or failed; the race may succeed without it.

    Attributes:
        entrant: its place among the entrants, from 0.
    """

    def __init__(self, message: str, entrant: int) -> None:
        super().__init__(message)
        self.entrant = entrant


class RemoteError(EngineError):
    """A server that computes for us cannot be reached, did not answer in time, refused, or answered nonsense.

    Attributes:
        again: whether the server did not take the request, or gave it back: it may be asked again, there or elsewhere.
        retry_after: seconds after which the server wants to be asked again; None if it did not say.
    """

    def __init__(self, message: str, again: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.again = again
        self.retry_after = retry_after


class CircuitOpenError(RemoteError):
    """A server failed several times in a row: it is left alone for a while, and requests fail at once.

    Attributes:
        until: the moment by the engine's clock (`time.monotonic` unless told otherwise) from which it is asked again.
    """

    def __init__(self, message: str, until: float, retry_after: float) -> None:
        super().__init__(message, again=True, retry_after=retry_after)
        self.until = until


class ServiceError(FarthingError):
    """A service did not answer a request."""


class DeadlineError(ServiceError):
    """The deadline of a request passed before its answer was there."""


class OverloadError(ServiceError):
    """A service has no room for a request; the same request may be answered later.

    Attributes:
        retry_after: seconds after which there should be room; None if nobody can tell.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ProtocolError(ServiceError):
    """Bytes do not follow the protocol they came by: a header, a size, a type or a number in them is wrong."""


class UnknownModelError(ServiceError):
    """No model of that name, or no version of it, is served."""


class ClosedError(ServiceError):
    """A service was closed before it answered."""


class AssetError(FarthingError):
    """A file out of a package could not be fetched, or is not the pinned one."""


class StorageError(FarthingError):
    """A directory is busy, read-only or full, or an archive is unsafe."""


class MeasurementError(FarthingError):
    """A measurement could not be taken."""


class TrainingError(FarthingError):
    """A training failed: its loss or its weights became NaN or infinite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence for an error message: the nearest right name, and all of them.

    >>> nearest("acuracy_drop", ["accuracy_drop", "size_mb"])
    "did you mean 'accuracy_drop'? Known: accuracy_drop, size_mb"
    """
    names = sorted(known)
    meant = suggestion(name, names)
    return f"{meant}{' ' if meant else ''}Known: {', '.join(names) or 'none'}"


def suggestion(name: str, known: Iterable[str], alike: float = 0.5) -> str:
    """The nearest right name alone, where all of them are too many to list; empty if none is ``alike`` (0 to 1) enough.

    >>> suggestion("tsaks", ["json", "tasks"])
    "did you mean 'tasks'?"
    """
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=alike)
    return f"did you mean {close[0]!r}?" if close else ""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Raises:
        NotInstalled: the module, or one it needs, is not installed, or is installed but does not load.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            raise NotInstalled(
                f"{error.name or module!r} is installed but does not load: {error}; install it again"
            ) from error
        raise absent(error, extra, module) from error


def absent(error: ModuleNotFoundError, extra: str, module: str = "") -> FarthingError:
    """What to raise for a module that was not found: NotInstalled, which names the extra that brings it.

    Raises:
        ModuleNotFoundError: the module is one of Farthing's own: a mistake of ours, not the user's.
    """
    name = error.name or module
    if name.partition(".")[0] in {"", "farthing"}:
        raise error
    return NotInstalled(
        f"this needs the Python package {name!r}, which is not installed: pip install 'farthing[{extra}]'"
    )
