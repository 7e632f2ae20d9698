"""How long an epoch takes: a few steps of it, timed."""

from __future__ import annotations

import time

import numpy as np
import torch

from farthing.forge.trainable import trainable
from farthing.forge.training.lesson import lesson
from farthing.forge.training.loop import alone
from farthing.forge.training.losses import understood
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.model import Model
from farthing.task import Task

STEPS = 4


def pace(model: Model, task: Task, schedule: Schedule) -> float:
    """Seconds of an epoch in which a model teaches itself, from the median of a few steps.

    Raises:
        TaskError: data that do not serve to train on, or no loss for the task's metric.
        UnsupportedError: an operator that cannot be trained.
    """
    samples = Samples(task, understood(model))
    made = trainable(model)
    picks = torch.arange(min(schedule.batch, len(samples)))
    seconds = []
    with alone(schedule.threads), lesson(made, samples, schedule, [model]) as (module, loss):
        for _ in range(STEPS):
            began = time.perf_counter()
            batch = samples.batch(picks, schedule.augment, torch.Generator().manual_seed(0))
            with torch.autocast("cpu", torch.bfloat16, enabled=schedule.in_bf16):
                outputs = module(*batch.inputs)
            torch.autograd.backward(loss([part.float() for part in outputs], batch))
            seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:])) * len(samples) / len(picks)
