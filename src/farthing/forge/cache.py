"""Results of passes and measurements, kept by digest: a search that was stopped goes on, a repeated one is quick."""

from __future__ import annotations

import contextlib
import inspect
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from farthing import files, plugins
from farthing.config import canonical, plain
from farthing.errors import FarthingError, StorageError
from farthing.metrics import Metric
from farthing.model import Model

ValueT = TypeVar("ValueT")
KINDS = ("models", "values", "work")
LEFTOVER_SECONDS = 3600
UNFINISHED_SECONDS = 7 * 24 * 3600


def key_of(*parts: object) -> str:
    """SHA-256 over plain data, sections and text, in order."""
    return files.digest(canonical([plain(part) for part in parts]))


def code_of(part: object) -> str | None:
    """SHA-256 of the code of a class or function: what changed code gives is not answered from the cache.

    None if the code cannot be read, or decides more than its text says (a function that closes over variables, an
    object with a state of its own): what it gives is not kept.
    """
    if not inspect.isclass(part) and (not inspect.isfunction(part) or part.__closure__):
        return None
    for place in (inspect.getmodule(part), part):
        try:
            source = inspect.getsource(place)  # type: ignore[arg-type]
        except (OSError, TypeError):
            continue
        return files.digest(f"{part.__qualname__}\n{source}".encode())
    return None


def metric_code(metric: Metric) -> str | None:
    """What decides a metric beside its name: nothing for one of ours, its code for a user's, None as for `code_of`."""
    if metric.name in plugins.BUILTIN["metric"] and plugins.get("metric", metric.name) is metric:
        return ""
    own = [] if type(metric) is Metric else [type(metric)]
    codes = [code_of(part) for part in (*own, *metric.functions)]
    return None if None in codes else " ".join(map(str, [metric.needs, metric.higher_is_better, *codes]))


def _last_change(path: Path) -> float:
    """When a file, or anything in a directory, was last changed."""
    return max(part.lstat().st_mtime for part in (path, *path.rglob("*")))


class Cache:
    """A directory of models and values named by the digest of what made them.

    Entries are written whole, so any number of processes may share it; a damaged entry is made again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def model(self, key: str, make: Callable[[], Model]) -> Model:
        """The model kept under a key, or the one that ``make`` returns, kept from now on.

        Raises:
            StorageError: it cannot be kept; and whatever ``make`` raises.
        """
        place = self.root / "models" / key[:2] / key
        return self._kept(place) or self._keep(make(), place)

    def resumed(self, key: str, make: Callable[[Path | None], Model]) -> Model:
        """As `model`, for long work: ``make`` gets a directory of its own that it finds again if it is killed.

        It goes when the model is kept. None in its place if another process is at the same work.

        Raises:
            StorageError: the directory cannot be made, or the model cannot be kept; and whatever ``make`` raises.
        """
        place = self.root / "work" / key[:2] / key

        def run() -> Model:
            with files.explained(place):
                place.mkdir(parents=True, exist_ok=True)
            with self._alone(place) as alone:
                return make(place if alone else None)

        made = self.model(key, run)
        if place.exists():
            with self._alone(place) as alone:
                if alone:
                    shutil.rmtree(place, ignore_errors=True)
        return made

    @contextlib.contextmanager
    def _alone(self, place: Path) -> Iterator[bool]:
        """Whether nobody else works in a directory; if so, nobody will for the length of the ``with`` block."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(files.lock(place.with_name(f"{place.name}.lock"), "the work"))
                alone = True
            except StorageError:
                alone = False
            yield alone

    def _kept(self, place: Path) -> Model | None:
        if not place.exists():
            return None
        try:
            return Model.open(place)
        except FarthingError:
            shutil.rmtree(place, ignore_errors=True)
            return None

    def _keep(self, made: Model, place: Path) -> Model:
        """Save beside the place, then take it in one step; whoever comes second uses what the first one kept."""
        with files.explained(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=files.TEMPORARY, dir=place.parent) as folder:
                fresh = made.save(Path(folder) / place.name)
                with contextlib.suppress(OSError):  # another process was quicker, or left something there
                    fresh.path.rename(place)
                return self._kept(place) or fresh.save(place)

    def value(self, key: str, kind: type[ValueT], make: Callable[[], ValueT], again: bool = False) -> ValueT:
        """The value kept under a key, or the one that ``make`` returns; ``again`` makes it in any case.

        Raises:
            StorageError: it cannot be kept; and whatever ``make`` raises.
        """
        known = None if again else self.found(key, kind)
        if known is not None:
            return known
        made = make()
        files.write(self._place_of(key), msgspec.json.encode(plain(made)))
        return made

    def _place_of(self, key: str) -> Path:
        return self.root / "values" / key[:2] / f"{key}.json"

    def found(self, key: str, kind: type[ValueT]) -> ValueT | None:
        """The value kept under a key; None if there is none, or it is damaged."""
        with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return msgspec.json.decode(self._place_of(key).read_bytes(), type=kind)
        return None

    def shared(self, key: str, kind: type[ValueT], make: Callable[[Path], ValueT]) -> ValueT:
        """As `value`, for long work that several processes may do together in a directory that outlives a kill.

        It goes when the value is kept and nobody works there any more.

        Raises:
            StorageError: the directory cannot be made, or the value cannot be kept; and whatever ``make`` raises.
        """
        known = self.found(key, kind)
        if known is not None:
            return known
        place = self.root / "work" / key[:2] / key
        with files.explained(place):
            place.mkdir(parents=True, exist_ok=True)
        with files.hold(place):
            made = self.value(key, kind, lambda: make(place))
        with contextlib.suppress(StorageError), files.claim(place) as free:
            if free:
                shutil.rmtree(place, ignore_errors=True)
        return made

    def sweep(self) -> None:
        """Remove what killed processes left behind; what is younger than an hour may belong to a live one.

        Unfinished work stays a week, so that whoever started it may still go on.
        """
        for left in self.root.glob(f"*/*/{files.TEMPORARY}*"):
            with contextlib.suppress(OSError):  # a live process may be quicker
                if time.time() - left.stat().st_mtime < LEFTOVER_SECONDS:
                    continue
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()
        for left in self.root.glob("work/*/*"):
            with contextlib.suppress(OSError):
                if time.time() - _last_change(left) > UNFINISHED_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
                    left.unlink(missing_ok=True)

    def size_bytes(self) -> int:
        """Bytes of all entries."""
        entries = [path for name in KINDS for path in (self.root / name).rglob("*")]
        return sum(path.stat().st_size for path in entries if path.is_file())

    def clear(self) -> None:
        """Remove every entry."""
        for name in KINDS:
            shutil.rmtree(self.root / name, ignore_errors=True)
