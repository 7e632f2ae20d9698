"""What a store takes in: models and bundles, from directories and zips, copied and checked."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import msgspec

from farthing import files
from farthing.bundle import Bundle
from farthing.config import to_json
from farthing.device.update.layout import CURRENT, MARKER, PREVIOUS, cost
from farthing.errors import ModelError
from farthing.model import BUNDLE, MANIFEST, Model, is_plain, read_manifest

Item = Model | Bundle
"""What has a name and a version, and can be served."""

_LINKS = 8 * 4096  # directories and links of a version


def opened(path: Path) -> Item:
    """The model or bundle in a directory, or that a search put below it; every file checked against its hash.

    Raises:
        ModelError: neither, or damaged.
    """
    return Bundle.open(path) if (path / BUNDLE).is_file() else Model.open(path)


def known(path: Path) -> Item:
    """The model or bundle in a directory whose bytes were checked a moment ago.

    Raises:
        ModelError: it is of another version of Farthing.
    """
    return Bundle.open(path) if (path / BUNDLE).is_file() else Model(path, read_manifest(path))


def need(source: Item | Path) -> int:
    """Bytes on the disk that a copy takes, at most.

    Raises:
        StorageError: a zip that cannot be read.
    """
    if isinstance(source, Path):
        sizes = files.member_sizes(source)
    else:
        sizes = [(source.path / name).stat().st_size for name in _names(source)]
    return sum(map(cost, sizes)) + _LINKS


def fill(fresh: Path, source: Item | Path, name: str, version: str) -> Item:
    """Put a copy into an empty directory: the files that manifests name and no others, readable only.

    Args:
        fresh: the directory.
        source: what to copy; a path is that of a zip.
        name, version: written into the copy's manifest; empty leaves what stands there.

    Returns:
        The copy, checked.

    Raises:
        ModelError: not a model or bundle, damaged, or with a name or version that cannot be that of a directory.
        StorageError: an unsafe zip, or no room.
    """
    if isinstance(source, Path):
        files.unpack(source, fresh, limit=need(source))
        if not any((fresh / marker).is_file() for marker in (MANIFEST, BUNDLE)):
            raise ModelError(f"{source} is a zip, but not of a model: it has no {MANIFEST} at its top")
    else:
        for inner in _names(source):
            (fresh / inner).parent.mkdir(exist_ok=True)
            shutil.copyfile(source.path / inner, fresh / inner)
    item = _named(opened(fresh), name, version)
    _strip(item)
    return item


def _named(item: Item, name: str, version: str) -> Item:
    manifest = msgspec.structs.replace(
        item.manifest, name=name or item.manifest.name, version=version or item.manifest.version
    )
    for what, word in (("name", manifest.name), ("version", manifest.version)):
        if not is_plain(word) or word in {MARKER, CURRENT, PREVIOUS}:
            raise ModelError(
                f"the {what} {word!r} cannot be that of a directory: give another {what} (--{what}) of at most 128 "
                "letters, digits and . _ + -"
            )
    if manifest == item.manifest:
        return item
    place = item.path / (BUNDLE if isinstance(item, Bundle) else MANIFEST)
    place.write_bytes(to_json(manifest))
    return opened(item.path)


def _names(item: Item) -> list[str]:
    """The files of an item, manifests too, relative to its directory."""
    if isinstance(item, Model):
        return [MANIFEST, *item.manifest.files]
    return [BUNDLE, *(f"{part}/{name}" for part, model in item.models.items() for name in _names(model))]


def _strip(item: Item) -> None:
    named = set(_names(item))
    for path in sorted(item.path.rglob("*"), reverse=True):
        if path.is_dir():
            with contextlib.suppress(OSError):  # it holds something
                path.rmdir()
        elif path.relative_to(item.path).as_posix() in named:
            path.chmod(0o444)
        else:
            path.unlink()
