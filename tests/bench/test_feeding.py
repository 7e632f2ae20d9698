from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from farthing.bench import feeding
from farthing.engines.base import open_engine
from farthing.metrics import TOP1
from farthing.model import Manifest, TensorSpec
from farthing.task import Split, Task
from farthing.testing import fake_model


class Counted(Split):
    """Counts the samples that are taken out of it."""

    taken = 0

    def take(self, picks: Any) -> dict[str, Any]:
        self.taken += len(picks)
        return super().take(picks)


def task(features: int, count: int = 100) -> tuple[Task, Counted]:
    split = Counted({"": np.zeros((count, features), np.float32)}, np.zeros(count, np.int64))
    return Task("zeros", {"validation": split}, TOP1), split


def taking(*shape: int | str) -> Manifest:
    spec = TensorSpec(name="x", dtype="float32", shape=shape, batch_axis=0)
    return Manifest(name="x", format="fake", inputs=(spec,), outputs=(spec,))


@pytest.mark.parametrize(("features", "wanted", "size"), [(4, 64, 64), (1 << 20, 64, 8), (1 << 24, 64, 1)])
@pytest.mark.parametrize("is_open", [True, False])
def test_large_samples_are_fed_a_few_at_a_time(features: int, wanted: int, size: int, is_open: bool) -> None:
    """Activations are tens of times the input: 64 pictures of 640 x 480 took gigabytes."""
    given, split = task(features, 2)
    manifest = taking("batch", "n" if is_open else features)
    assert feeding.fitting_batch(manifest, wanted, given, split) == size
    assert feeding.offline_batch(manifest, given) == min(size, feeding.OFFLINE_BATCH)
    assert split.taken == (2 if is_open else 0), (
        "a sample is prepared where the manifest does not say its size"
    )


def test_a_batch_that_the_model_fixes_is_not_measured() -> None:
    given, split = task(4)
    assert feeding.fitting_batch(taking(5, "n"), 64, given, split) == 5
    assert split.taken == 0


def test_each_sample_is_prepared_once_for_its_output() -> None:
    given, split = task(4)
    model = fake_model(features=4)
    with open_engine(model) as engine:
        feeding.outputs(engine, model.manifest, given, split)
    assert split.taken == len(split)
