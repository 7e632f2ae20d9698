from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mirror import Mirror, repository
from running_server import GatedEngine, LyingEngine

from farthing import plugins
from farthing.model import Model
from farthing.testing import fake_model

plugins.register("engine", "gated", GatedEngine)
plugins.register("engine", "lying", LyingEngine)
plugins.register("engine", "mirror", Mirror)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository, see `mirror.repository`."""
    return repository(tmp_path_factory.mktemp("models"))


@pytest.fixture
def gate() -> Iterator[type[GatedEngine]]:
    """The gate of the engine ``gated``, open at first and in the end."""
    GatedEngine.gate.set()
    GatedEngine.waiting = threading.Semaphore(0)
    yield GatedEngine
    GatedEngine.gate.set()


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return fake_model(name="net").save(tmp_path / "net")
