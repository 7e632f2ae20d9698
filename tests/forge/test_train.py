"""Training: it learns, twice the same, and leaves torch as it found it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from farthing.errors import TaskError
from farthing.forge import train


def bars(n: int, seed: int = 0) -> tuple[Any, Any]:
    """Noisy 1 x 8 x 8 pictures with a bar that stands (label 1) or lies (label 0)."""
    generator = np.random.default_rng(seed)
    x = generator.normal(0, 0.3, (n, 1, 8, 8)).astype(np.float32)
    y = generator.integers(0, 2, n)
    for picture, label, place in zip(x, y, generator.integers(2, 6, n), strict=True):
        (picture[0].T if label else picture[0])[place] += 1.0
    return x, y


def small_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(32, 2)
    )


@pytest.mark.parametrize(("augment", "bf16"), [(False, False), (True, False), (False, True)])
def test_it_learns(augment: bool, bf16: bool) -> None:
    net, epochs = small_net(), []
    train.fit(
        net, *bars(400), epochs=6, batch=32, lr=0.02, augment=augment, bf16=bf16, on_epoch=epochs.append
    )
    x, y = bars(200, seed=9)
    assert float((train.predict(net, x).argmax(1) == y).mean()) > 0.95
    assert [epoch.number for epoch in epochs] == list(range(1, 7))
    assert epochs[-1].loss < epochs[0].loss
    assert epochs[-1].accuracy > 0.9
    assert not net.training


def test_the_same_seed_gives_the_same_weights() -> None:
    found = []
    for seed in (3, 3, 4):
        net = small_net()
        train.fit(net, *bars(100), epochs=2, batch=32, augment=True, seed=seed)
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_torch_is_left_as_it_was() -> None:
    net, state, threads = small_net(), torch.get_rng_state(), torch.get_num_threads()
    train.fit(net, *bars(40), epochs=1, threads=1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_affine_moves_each_picture_its_own_way() -> None:
    picture = torch.zeros(1, 1, 16, 16)
    picture[..., 6:10, 6:10] = 1
    moved = train.affine(picture.repeat(8, 1, 1, 1), torch.Generator().manual_seed(0))
    assert moved.shape == (8, 1, 16, 16)
    assert not torch.allclose(moved[0], moved[1])
    assert float(moved.min()) >= 0
    assert bool((moved.sum((1, 2, 3)) > 8).all())


@pytest.mark.parametrize(
    "labels", [np.zeros(3, int), np.zeros(40), np.zeros((40, 2), int)], ids=["few", "float", "2-d"]
)
def test_unusable_labels(labels: Any) -> None:
    with pytest.raises(TaskError, match="label"):
        train.fit(small_net(), bars(40)[0], labels, epochs=1)


def test_no_samples() -> None:
    with pytest.raises(TaskError, match="samples"):
        train.fit(small_net(), np.zeros((0, 1, 8, 8), np.float32), np.zeros(0, int), epochs=1)
