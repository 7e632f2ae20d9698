from __future__ import annotations

import numpy as np
import pytest

from farthing.bench import feeding
from farthing.metrics import TOP1
from farthing.task import Split, Task
from farthing.testing import fake_model


def task(features: int, count: int = 100) -> Task:
    split = Split({"": np.zeros((count, features), np.float32)}, np.zeros(count, np.int64))
    return Task("zeros", {"validation": split}, TOP1)


@pytest.mark.parametrize(("features", "wanted", "size"), [(4, 64, 64), (1 << 20, 64, 8), (1 << 24, 64, 1)])
def test_large_samples_are_fed_a_few_at_a_time(features: int, wanted: int, size: int) -> None:
    """Activations are tens of times the input: 64 pictures of 640 x 480 took gigabytes."""
    given = task(features, 2)
    manifest = fake_model(features=4).manifest
    assert feeding.fitting_batch(manifest, wanted, given, given.split("validation")) == size
    assert feeding.offline_batch(manifest, given) == min(size, feeding.OFFLINE_BATCH)
