"""A chain of small models that need no runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from farthing.bundle import Bundle
from farthing.device.serving.power.governor import CPUFREQ
from farthing.testing import fake_model


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three affine layers, x -> a -> b -> y; ``a`` is an output of the whole as well."""
    names = {"first": ("x", "a"), "second": ("a", "b"), "third": ("b", "y")}
    parts = {name: fake_model(4, 4, seed=i, ends=ends) for i, (name, ends) in enumerate(names.items())}
    path: Path = tmp_path_factory.mktemp("chain") / "bundle"
    return Bundle.create("chain", "parts", parts, path, outputs=["y", "a"])


@pytest.fixture
def x() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)}


@pytest.fixture
def cpufreq(tmp_path: Path) -> Path:
    """Two clusters, as on an ARM board with big and little cores."""
    for number, (least, most) in enumerate([(400_000, 1_800_000), (600_000, 2_400_000)]):
        policy = tmp_path / CPUFREQ / f"policy{4 * number}"
        policy.mkdir(parents=True)
        for name, content in {
            "scaling_governor": "schedutil",
            "scaling_available_governors": "conservative ondemand powersave performance schedutil",
            "scaling_max_freq": str(most),
            "cpuinfo_min_freq": str(least),
            "cpuinfo_max_freq": str(most),
        }.items():
            (policy / name).write_text(content + "\n")
    return tmp_path
