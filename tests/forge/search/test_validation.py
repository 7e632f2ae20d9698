"""Networks that are judged in the middle of their training."""

from __future__ import annotations

import pytest
import torch

from farthing.forge.families import Architecture, Stage
from farthing.forge.search.validation import Validation
from farthing.forge.training import standin
from farthing.forge.training.distillation import Distillation
from farthing.forge.training.loop import Hook, Moment
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.task import Task

NET = Architecture(family="dscnn", stages=(Stage(width=16, stride=2), Stage(width=24, depth=2)))


@pytest.fixture
def samples(cnn: Model, digits_task: Task) -> Samples:
    return Samples(digits_task, cnn.manifest)


def test_a_network_that_learns_is_not_taken_for_one_that_guesses(
    cnn: Model, digits_task: Task, samples: Samples
) -> None:
    """Nine steps an epoch: the running statistics lag far behind the weights."""
    validation = Validation(digits_task, cnn.manifest, cnn, samples)
    seen: list[tuple[float, float]] = []

    class Look(Hook):
        def after_epoch(self, moment: Moment) -> None:
            seen.append((validation.score(moment.module), validation.score(moment.module, done=False)))

    schedule = Schedule(epochs=6, lr=0.02, bf16=False)
    standin.trained(NET, samples, schedule, [], Distillation(), Workshop(), [Look()])
    running, measured = seen[1]
    assert measured > running + 0.2
    assert measured > 0.4


def test_judging_changes_nothing(cnn: Model, digits_task: Task, samples: Samples) -> None:
    module = standin.network(NET, samples).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    Validation(digits_task, cnn.manifest, cnn, samples).score(module, done=False)
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert {part.momentum for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)} == {0.1}
