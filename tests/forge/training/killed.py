"""A training that is killed over and over, each time by itself, and goes on: prints what it gives, undisturbed first.

Run as ``python killed.py DIRECTORY POINT...``; a point is ``NAME:NUMBER``, where the process dies: when the hook of
that name is called for the so-manieth time, or, for ``sync`` and ``replace``, when a checkpoint is written.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from farthing import files
from farthing.forge.training.checkpoint import digest_of
from farthing.forge.training.loop import Hook, Moment, train
from farthing.forge.training.losses import CrossEntropy
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop

HOOKS = ("start", "before_step", "after_backward", "after_step", "after_epoch")


class Killer(Hook):
    """Ends this process when one of its methods is called for the so-manieth time."""

    def __init__(self, name: str, number: int) -> None:
        self.left = number
        if name in HOOKS:
            setattr(self, name, self.count)

    def count(self, *given: Any) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Average(Hook):
    """A running mean of the weights: a state that must survive; and a disturbance that draws numbers."""

    mean: Any = 0.0

    def after_step(self, moment: Moment) -> None:
        with torch.no_grad():
            for parameter in moment.module.parameters():
                parameter += 1e-4 * torch.randn(parameter.shape, generator=moment.random)
        weights = torch.cat([parameter.detach().flatten() for parameter in moment.module.parameters()])
        self.mean = 0.9 * self.mean + 0.1 * weights

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.mean = state["mean"]


def work(state: Path | None, killer: Killer, kind: str) -> str:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(90, 1, 8, 8)).astype(np.float32), generator.integers(0, 3, 90)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 3)
    )
    average = Average()
    schedule = Schedule(epochs=3, batch=30, augment="affine", clip=1.0)
    if kind in {"sync", "replace"}:
        place: Any = files if kind == "sync" else Path
        inner = getattr(place, kind)
        setattr(place, kind, lambda *given: (killer.count(), inner(*given))[1])
    clock = iter(range(0, 100_000, 20))  # a checkpoint after every other step
    history = train(
        net,
        Samples.of_arrays(x, y),
        CrossEntropy(),
        schedule,
        workshop=Workshop(state=state),
        hooks=[average, killer],
        clock=lambda: next(clock),
    )
    return f"{digest_of(net.state_dict())} {digest_of({'mean': average.mean})} {history}"


def main() -> None:
    state = Path(sys.argv[1])
    sys.stdout.write(work(None, Killer("", 0), "") + "\n")
    sys.stdout.flush()  # before a child inherits what is not yet written
    for point in sys.argv[2:]:
        kind, _, number = point.partition(":")
        child = os.fork()
        if not child:
            work(state, Killer(kind, int(number)), kind)
            os._exit(0)
        died = os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        sys.stdout.write(f"{point} {'killed' if died else 'finished'}\n")
        sys.stdout.flush()
    sys.stdout.write(work(state, Killer("", 0), ""))


if __name__ == "__main__":
    main()
