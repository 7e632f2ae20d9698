"""Limits that nobody gave: those of the model and of the target."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from farthing.forge import graph, macs
from farthing.forge.search.bounds import bounded
from farthing.forge.search.estimate import Limits
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

HERE, CHIP = Target.detect(), Target.find("nrf52840")


def test_a_network_does_no_more_work_than_the_model_it_takes_the_place_of(
    cnn: Model, digits_task: Task
) -> None:
    found = bounded(Limits(size_kb=10), cnn, HERE, digits_task)
    work, _ = macs.count(graph.load(cnn.file), {"image": np.zeros((1, 1, 8, 8), np.float32)})
    assert found == Limits(size_kb=10, macs=work)


def test_activations_fit_into_a_microcontroller(cnn: Model, digits_task: Task) -> None:
    assert bounded(Limits(), None, CHIP, digits_task).activation_kb == pytest.approx(262.144)
    assert bounded(Limits(), None, replace(CHIP, arch="aarch64", isa=()), digits_task) == Limits()


def test_what_is_given_stays(cnn: Model, digits_task: Task) -> None:
    given = Limits(macs=1e9, activation_kb=1e6)
    assert bounded(given, cnn, CHIP, digits_task) == given
