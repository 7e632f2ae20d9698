"""Bundle: several models with one role, in one directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from farthing import files
from farthing.config import Section, plain
from farthing.errors import ModelError
from farthing.model import BUNDLE, Model, is_plain, read_section, refuse_foreign

Role = Literal["parts", "exits", "variants", "head_tail"]


class BundleManifest(Section, frozen=True, kw_only=True):
    """What models are to each other: parts run in order, exits of one network, variants of one model, head and tail."""

    name: str
    role: Role
    models: dict[str, str]  # name -> digest, in order


class Bundle:
    """Several models with one role, in sub-directories named after them, under a ``bundle.json``."""

    def __init__(self, path: Path, manifest: BundleManifest, models: Mapping[str, Model]) -> None:
        self.path = path
        self.manifest = manifest
        self.models = dict(models)

    @classmethod
    def create(cls, name: str, role: Role, models: Mapping[str, Model], path: Path) -> Bundle:
        """Write a bundle directory, whole or not at all.

        Raises:
            ModelError: no models, or a name that is not a plain directory name.
            StorageError: it cannot be written there.
        """
        if not models:
            raise ModelError(f"the bundle {name} has no models")
        for part in models:
            if not is_plain(part):
                raise ModelError(f"{part!r} is not a plain name for a model in a bundle")
        refuse_foreign(path, BUNDLE)
        manifest = BundleManifest(
            name=name, role=role, models={key: model.digest for key, model in models.items()}
        )

        def fill(fresh: Path) -> None:
            for key, model in models.items():
                model.save(fresh / key)
            (fresh / BUNDLE).write_bytes(msgspec.json.format(msgspec.json.encode(plain(manifest))) + b"\n")

        files.write_directory(path, fill)
        return cls(path, manifest, {key: Model.open(path / key) for key in models})

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Open a bundle directory and check every model in it.

        Raises:
            ModelError: no ``bundle.json``, a model is missing, damaged or not the one that was bundled.
        """
        path = Path(path)
        manifest = read_section(path, BUNDLE, BundleManifest)
        if not manifest.models:
            raise ModelError(f"{path / BUNDLE} names no models: the bundle is empty")
        models = {}
        for key, sha in manifest.models.items():
            if not is_plain(key):
                raise ModelError(f"{path / BUNDLE} holds the unsafe name {key!r}: refused")
            models[key] = Model.open(path / key)
            if models[key].digest != sha:
                raise ModelError(f"{path / key} is not the model that was bundled: copy the bundle again")
        return cls(path, manifest, models)
