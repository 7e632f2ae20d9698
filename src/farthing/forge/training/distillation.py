"""How a teacher takes part in a training, as plain data. Needs no PyTorch."""

from __future__ import annotations

import math
from typing import Literal

from farthing.config import Section
from farthing.errors import ConfigError


class Feature(Section, frozen=True, kw_only=True):
    """A tensor inside the student that is to come near to one inside the teacher.

    Attributes:
        student: name of an ONNX tensor of the student.
        teacher: name of one of the teacher; the same name if empty.
        how: ``attention``: where in the picture the channels are strong (Zagoruyko and Komodakis 2017,
            https://arxiv.org/abs/1612.03928): half the squared distance between both maps of squared activations,
            summed over channels, flattened and brought to length 1. ``hint``: the mean squared error after a learned
            1 x 1 projection of the student's channels to the teacher's (FitNets, Romero et al. 2015,
            https://arxiv.org/abs/1412.6550). Where places differ in number, the finer ones are averaged.
        axis: along which channels lie in both, from the end if negative: -1 for transformers.
        weight: in the loss.
    """

    student: str
    teacher: str = ""
    how: Literal["attention", "hint"] = "attention"
    axis: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.axis == 0:
            raise ConfigError(
                f"axis of feature {self.student!r} is that of the samples: name that of the channels"
            )
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"weight of feature {self.student!r} is from 0, not {self.weight}")


class Distillation(Section, frozen=True, kw_only=True):
    """What a student learns from its teachers (Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531).

    Attributes:
        temperature: what logits are divided by before they become probabilities; higher is softer. The gradients of the
            soft part shrink with its square, so that part is multiplied by it.
        soft: share of the teachers: of classes the Kullback-Leibler divergence from the mean of their probabilities, of
            other outputs the mean squared error to the mean of theirs.
        hard: share of the task's own loss; with 0, no labels are needed.
        features: what is to be alike inside.
    """

    temperature: float = 3.0
    soft: float = 0.7
    hard: float = 0.3
    features: tuple[Feature, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature is above 0, not {self.temperature}")
        for name in ("soft", "hard"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is a share from 0, not {getattr(self, name)}")
        if not (self.soft or self.hard or self.features):
            raise ConfigError("soft and hard are both 0 and there are no features: there is nothing to learn")
