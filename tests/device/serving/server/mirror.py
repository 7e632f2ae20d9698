"""A model that gives back what it is fed, of every type that the protocol has; and a repository it lies in."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from farthing.engines.base import check_feeds
from farthing.engines.fake import FakeEngine
from farthing.engines.openinference import DTYPES
from farthing.model import Manifest, Model, TensorSpec
from farthing.testing import fake_model

TYPES = list(DTYPES.values())


class Mirror(FakeEngine):
    """Gives back what it is fed."""

    name: ClassVar[str] = "mirror"
    formats: ClassVar[frozenset[str]] = frozenset({"mirror"})

    def __init__(self, model: Model, options: object) -> None:
        self.inputs, self.outputs = model.manifest.inputs, model.manifest.outputs
        self.stateful, self._turn = False, threading.Lock()

    def run(self, feeds: Any) -> dict[str, Any]:
        check_feeds(self.inputs, feeds)
        return {f"{name}_out": np.array(array) for name, array in feeds.items()}

    def close(self) -> None: ...


def mirror_manifest() -> Manifest:
    def specs(end: str) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name=f"{dtype}{end}", dtype=dtype, shape=("batch", 3), batch_axis=0) for dtype in TYPES
        )

    return Manifest(name="mirror", format="mirror", inputs=specs(""), outputs=specs("_out"))


def sample(dtype: str, rows: int = 2) -> Any:
    generator = np.random.default_rng(0)
    if dtype == "str":
        words = ["", "ü", "two words", "\n", "x" * 300, "y"]
        return np.array(words[: 3 * rows], object).reshape(rows, 3)
    if dtype == "bool":
        return generator.random((rows, 3)) > 0.5
    if dtype.startswith("float"):
        return generator.standard_normal((rows, 3)).astype(dtype)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, (rows, 3), dtype, endpoint=True)


def repository(place: Path) -> Path:
    """A repository with the mirror, and two versions of a net."""
    for version in ("1", "3"):
        fake_model(name="net", seed=int(version)).save(place / "net" / version)
    Model.create(mirror_manifest(), {"nothing": b""}, place / "mirror")
    (place / "net" / "config.pbtxt").write_text('name: "net" max_batch_size: 4 version_policy { all { } }')
    return place
