"""What a disk holds of models: single ones, versions of them, repositories as Triton's, and stores."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from farthing.bundle import BundleManifest
from farthing.device.serving.server.repository import pbtxt
from farthing.device.serving.server.repository.pbtxt import TritonConfig
from farthing.device.serving.server.settings import Entry, ModelSettings
from farthing.errors import FarthingError, ModelError
from farthing.model import BUNDLE, INNER, MANIFEST, read_manifest, read_section

CURRENT = "current"
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
"""Names of models and versions: they stand in URLs."""
_WRITTEN = (MANIFEST, f"{INNER}/{MANIFEST}", BUNDLE)
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_MAKE = "a file such as model.onnx becomes a model by `farthing convert model.onnx --out DIRECTORY`"
_HOLDS = f"give a model directory, a zip, the output of a search, a repository of models, or a store; {_MAKE}"


class Version(NamedTuple):
    """One version on the disk.

    Attributes:
        name: as clients name it; empty takes the manifest's.
        path: what `Model.open` opens.
        mark: equal as long as the same model lies there.
    """

    name: str
    path: Path
    mark: Hashable


class Place(NamedTuple):
    """Where a model lies.

    Attributes:
        name: of the model.
        path: a model, a directory of versions, or a store.
        settings: how it is to be served.
        config: its ``config.pbtxt``.
        problem: why it cannot be served, where that is known already.
    """

    name: str
    path: Path
    settings: ModelSettings = ModelSettings()
    config: TritonConfig = TritonConfig()
    problem: FarthingError | None = None

    def versions(self) -> list[Version]:
        """The versions to serve, the default one last.

        Raises:
            ModelError: there is none, or one that its policy asks for is missing, or cannot be read.
            FarthingError: the problem it has.
        """
        if self.problem is not None:
            raise self.problem
        with _reading(self.path):
            return self._versions()

    def _versions(self) -> list[Version]:
        if _is_store(self.path):
            return [_version("", (self.path / CURRENT).resolve())]
        if _is_model(self.path):
            return [_version("", self.path)]
        there = {int(path.name): path for path in _numbered(self.path)}
        if not there:
            raise ModelError(f"{self.path} holds no version of a model; {_HOLDS}")
        return [
            _version(str(number), _inside(there[number]))
            for number in self.settings.version_policy.choose(list(there))
        ]


def find(entry: Entry) -> list[Place]:
    """The models that lie where an entry says. What is wrong with one model of a repository is its own problem.

    Raises:
        ModelError: nothing that can be served or read, or a name that cannot stand in a URL.
        ConfigError: a ``config.pbtxt`` that cannot be honoured.
    """
    path = entry.path
    with _reading(path):
        if not path.exists():
            raise ModelError(f"{path} does not exist; {_HOLDS}")
        if _is_single(path):
            return [_place(entry, path, entry.name)]
        inside = [place for one in _listed(path) for place in _members(entry, one)]
    if not inside:
        raise ModelError(f"{path} holds no model; {_HOLDS}")
    if entry.name:
        raise ModelError(
            f"{path} holds {len(inside)} models, which have names of their own: leave out the name"
        )
    return inside


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, up to Python 3.12
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ModelError(f"cannot read {getattr(error, 'filename', None) or path}: {said}") from error


def _members(entry: Entry, path: Path) -> list[Place]:
    """The model of a repository that lies in one of its directories, if one does."""
    try:
        with _reading(path):
            return [_place(entry, path, path.name)] if _is_single(path) else []
    except FarthingError as error:
        unreadable = isinstance(error.__cause__, OSError) and not PLAIN.fullmatch(path.name)
        return [] if unreadable else [Place(path.name, path, problem=error)]  # lost+found is no model


def _place(entry: Entry, path: Path, name: str) -> Place:
    settings = msgspec.convert(
        {field: getattr(entry, field) for field in ModelSettings.__struct_fields__}, ModelSettings
    )
    config = TritonConfig()
    if (path / pbtxt.NAME).is_file():
        config = pbtxt.read(path / pbtxt.NAME)
        settings = _merged(config.settings, settings)
        if name and config.name and config.name != path.name:
            raise ModelError(f"{path / pbtxt.NAME} is of {config.name!r}, but its directory is {path.name!r}")
    name = name or config.name or _own_name(path)
    if not PLAIN.fullmatch(name):
        raise ModelError(f"{path}: {name!r} cannot stand in a URL: name it, as in NAME={path}")
    return Place(name, path, settings, config)


def _merged(file: ModelSettings, given: ModelSettings) -> ModelSettings:
    """Settings of a ``config.pbtxt``, under those that an entry gives otherwise than by default."""
    default = ModelSettings()
    changed = {
        name: getattr(given, name)
        for name in ModelSettings.__struct_fields__
        if getattr(given, name) != getattr(default, name)
    }
    return msgspec.structs.replace(file, **changed)


def _own_name(path: Path) -> str:
    """The name in the manifest; of something that has none to read (a zip, say), that of the file."""
    for place in (path, path / CURRENT):
        if (place / BUNDLE).is_file():
            return read_section(place, BUNDLE, BundleManifest).name
        for home in (place, place / INNER):
            if (home / MANIFEST).is_file():
                return read_manifest(home).name
    return path.resolve().stem if path.is_file() else path.resolve().name


def _is_single(path: Path) -> bool:
    return _is_model(path) or _is_store(path) or bool(_numbered(path))


def _is_model(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".zip"
    return any((path / name).is_file() for name in _WRITTEN)


def _is_store(path: Path) -> bool:
    return (path / CURRENT).is_symlink() or _is_model(path / CURRENT)


def _numbered(path: Path) -> list[Path]:
    return [one for one in _listed(path) if _VERSION.fullmatch(one.name) and one.is_dir()]


def _listed(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(one for one in path.iterdir() if not one.name.startswith("."))


def _inside(path: Path) -> Path:
    """The model of a version: its directory itself, or the one thing in it that is a model."""
    if _is_model(path):
        return path
    models = [one for one in _listed(path) if _is_model(one)]
    if len(models) == 1:
        return models[0]
    what = "no model" if not models else f"{len(models)} models"
    raise ModelError(f"{path} holds {what}: a version is a model directory, or holds one; {_MAKE}")


def _version(name: str, path: Path) -> Version:
    return Version(name, path, (os.path.realpath(path), *(_mark(file) for file in _files(path))))


def _files(path: Path) -> list[Path]:
    """The files of a model: a copy is under way until the last of them is there."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if not file.name.startswith(".") and not file.is_dir())


def _mark(file: Path) -> Hashable:
    facts = file.stat()
    return str(file), facts.st_ino, facts.st_mtime_ns, facts.st_size
