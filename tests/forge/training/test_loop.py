"""The training loop: it learns, twice the same, leaves torch as it found it, and says when numbers run out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from farthing.errors import ConfigError, TaskError, TrainingError
from farthing.forge.training import loop
from farthing.forge.training.loop import Hook, Moment, predict, train
from farthing.forge.training.losses import CrossEntropy, absolute_error
from farthing.forge.training.samples import Batch, Samples
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.recipe import Progress


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
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(32, 2),
    )


def weights(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.mark.parametrize(
    "options",
    [
        {"bf16": False},
        {"bf16": True},
        {"augment": "affine"},
        {"augment": "flip"},
        {"augment": "jitter"},
        {"course": "cosine", "clip": 1.0},
        {"optimizer": "sgd", "lr": 0.1, "course": "constant"},
        {"optimizer": "sgd", "lr": 0.1},
    ],
    ids=str,
)
def test_it_learns(options: dict[str, Any]) -> None:
    net = small_net()
    schedule = Schedule(**{"epochs": 6, "batch": 32, "lr": 0.02, **options})
    history = train(net, Samples.of_arrays(*bars(400)), CrossEntropy(), schedule).epochs
    x, y = bars(200, seed=9)
    assert float((predict(net, x).argmax(1) == y).mean()) > 0.95
    assert [epoch.number for epoch in history] == list(range(1, 7))
    assert history[-1].loss < history[0].loss
    assert history[-1].accuracy is not None
    assert history[-1].accuracy > 0.9
    assert not net.training


def test_the_same_seed_gives_the_same_weights() -> None:
    found = []
    for seed in (3, 3, 4):
        net = small_net()
        schedule = Schedule(epochs=2, batch=32, augment="affine", seed=seed)
        train(net, Samples.of_arrays(*bars(100)), CrossEntropy(), schedule)
        found.append(weights(net))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_torch_is_left_as_it_was() -> None:
    net, state, threads = small_net(), torch.get_rng_state(), torch.get_num_threads()
    train(net, Samples.of_arrays(*bars(40)), CrossEntropy(), Schedule(epochs=1, threads=threads + 1))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("n", [1, 31, 33, 64])
def test_no_step_gets_a_lonely_sample(n: int) -> None:
    """Batch normalization cannot train on one; so what is left over is shared among the batches."""
    sizes: list[int] = []

    def loss(outputs: Any, batch: Batch) -> Tensor:
        sizes.append(len(batch))
        return CrossEntropy()(outputs, batch)

    train(small_net(), Samples.of_arrays(*bars(n)), loss, Schedule(epochs=1, batch=32))
    assert sum(sizes) == n
    assert max(sizes) <= 32
    assert max(sizes) - min(sizes) <= 1


def test_frozen_parameters_stay() -> None:
    net = small_net()
    first: Any = next(net.children())
    first.requires_grad_(False)
    before = first.weight.clone()
    train(net, Samples.of_arrays(*bars(40)), CrossEntropy(), Schedule(epochs=1))
    assert torch.equal(first.weight, before)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("course", ["one-cycle", "cosine", "constant"])
def test_learning_rates_are_sane_at_every_length(course: Any, warmup: float, steps: int) -> None:
    schedule = Schedule(course=course, warmup=warmup, lr=0.5)
    rates = [schedule.rate(step, steps) for step in range(steps)]
    assert all(0 <= rate <= 0.5 * (1 + 1e-12) for rate in rates)
    assert max(rates) == pytest.approx(0.5, rel=0.01 if steps > 10 else 0.2)
    assert all(0.85 <= schedule.momentum(step, steps) <= 0.95 for step in range(steps))


def test_one_cycle_is_that_of_torch() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], 3e-3)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=50, pct_start=0.2)
    schedule = Schedule(lr=3e-3)
    for step in range(50):
        assert schedule.rate(step, 50) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        assert schedule.momentum(step, 50) == pytest.approx(optimizer.param_groups[0]["betas"][0], rel=1e-9)
        optimizer.step()
        if step < 49:
            theirs.step()


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch": 0},
        {"threads": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"clip": -1.0},
        {"warmup": 1.5},
        {"weight_decay": -0.1},
        {"seed": -1},
    ],
    ids=str,
)
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Schedule(**wrong)


def test_a_loss_that_runs_away_is_named_with_its_place() -> None:
    """Without bounds: a squared error at a learning rate of a thousand doubles every step."""

    def squared(outputs: Any, batch: Batch) -> Tensor:
        return ((outputs[0].sum(1) - 1) ** 2).mean()

    schedule = Schedule(epochs=300, batch=20, lr=1e3, optimizer="sgd", course="constant", warmup=0.0)
    with pytest.raises(
        TrainingError, match=r"(loss|weight|bias).* no longer .* in epoch \d+ of 300, step \d of 2.*clip: 1"
    ):
        train(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), Samples.of_arrays(*bars(40)), squared, schedule)


def test_a_loss_that_is_not_a_number_is_named() -> None:
    def broken(outputs: Any, batch: Batch) -> Tensor:
        return outputs[0].sum() * (math.nan if counted.step == 3 else 1.0)

    class Counter(Hook):
        step = 0

        def before_step(self, moment: Moment) -> None:
            self.step = moment.step

    counted = Counter()
    with pytest.raises(TrainingError, match="the loss is no longer a number in epoch 2 of 3, step 2 of 2"):
        train(
            small_net(), Samples.of_arrays(*bars(40)), broken, Schedule(epochs=3, batch=20), hooks=[counted]
        )


def test_weights_that_are_not_numbers_are_named() -> None:
    class Breaker(Hook):
        def after_step(self, moment: Moment) -> None:
            with torch.no_grad():
                next(moment.module.parameters())[0] = math.inf

    samples = Samples.of_arrays(*bars(40))
    with pytest.raises(TrainingError, match=r"0.weight is no longer made of numbers in epoch 1 of 2"):
        train(small_net(), samples, CrossEntropy(), Schedule(epochs=2, batch=64), hooks=[Breaker()])


def test_hooks_are_called_in_order_with_the_right_moment() -> None:
    seen: list[tuple[str, int, int]] = []

    class Witness(Hook):
        def start(self, moment: Moment) -> None:
            seen.append(("start", moment.epoch, moment.step))

        def before_step(self, moment: Moment) -> None:
            assert moment.module.training
            seen.append(("before", moment.epoch, moment.step))

        def after_backward(self, moment: Moment) -> None:
            assert all(p.grad is not None for p in moment.module.parameters())
            seen.append(("backward", moment.epoch, moment.step))

        def after_step(self, moment: Moment) -> None:
            seen.append(("after", moment.epoch, moment.step))

        def after_epoch(self, moment: Moment) -> None:
            seen.append(("epoch", moment.epoch, moment.step))

    train(
        small_net(),
        Samples.of_arrays(*bars(40)),
        CrossEntropy(),
        Schedule(epochs=2, batch=20),
        hooks=[Witness()],
    )
    step = ["before", "backward", "after"]
    assert [name for name, _, _ in seen] == ["start", *(step * 2), "epoch", *(step * 2), "epoch"]
    assert seen[-1] == ("epoch", 1, 4)
    assert [number for name, _, number in seen if name == "after"] == [0, 1, 2, 3]


def test_progress_says_how_long_it_will_take() -> None:
    events: list[Progress] = []
    ticks = iter(range(10_000))
    samples = Samples.of_arrays(*bars(64))
    train(
        small_net(),
        samples,
        CrossEntropy(),
        Schedule(epochs=3, batch=16),
        workshop=Workshop(listener=events.append),
        clock=lambda: 30.0 * next(ticks),
    )
    assert {event.stage for event in events} == {"train"}
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert (events[-1].done, events[-1].total) == (12, 12)
    assert "min" in events[0].text
    assert all(event.text.endswith(" left") for event in events[:-1])
    assert "left" not in events[-1].text
    assert "% right" in events[-1].text


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3600 * 5 + 125, "5 h 02 min")]
)
def test_time_left_in_words(seconds: float, words: str) -> None:
    assert loop._duration(seconds) == words


def test_a_loss_may_learn_as_well() -> None:
    """A projection inside the loss is trained with the module."""

    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.projection = nn.Linear(2, 2)

        def forward(self, outputs: Any, batch: Batch) -> Tensor:
            return CrossEntropy()([self.projection(outputs[0])], batch)

    torch.manual_seed(0)
    loss = Projected()
    before = loss.projection.weight.detach().clone()
    history = train(small_net(), Samples.of_arrays(*bars(64)), loss, Schedule(epochs=2, batch=16))
    assert not torch.equal(loss.projection.weight, before)
    assert history.epochs[0].accuracy is None


def test_several_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 2), nn.Linear(64, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.first(x.flatten(1)), self.second(x.flatten(1))

    def both(outputs: Any, batch: Batch) -> Tensor:
        assert batch.labels is not None
        value = CrossEntropy()(outputs[:1], batch)
        return value + absolute_error(outputs[1:], Batch(batch.inputs, batch.labels.float(), batch.picks))

    history = train(Two(), Samples.of_arrays(*bars(128)), both, Schedule(epochs=5, batch=16, lr=0.01)).epochs
    assert history[-1].loss < 0.7 * history[0].loss


@pytest.mark.parametrize(
    "labels", [np.zeros(3, int), np.zeros(40), np.zeros((40, 2), int)], ids=["few", "float", "2-d"]
)
def test_unusable_labels(labels: Any) -> None:
    with pytest.raises(TaskError, match="labels"):
        train(small_net(), Samples.of_arrays(bars(40)[0], labels), CrossEntropy(), Schedule(epochs=1))


def test_no_samples() -> None:
    with pytest.raises(TaskError, match="empty"):
        Samples.of_arrays(np.zeros((0, 1, 8, 8), np.float32), np.zeros(0, int))


def test_a_network_without_weights_is_refused() -> None:
    samples = Samples.of_arrays(np.zeros((8, 3)), np.zeros(8, np.int64))
    with pytest.raises(TrainingError, match="network has no weights that could be trained"):
        train(nn.ReLU(), samples, CrossEntropy(), Schedule(epochs=1))
