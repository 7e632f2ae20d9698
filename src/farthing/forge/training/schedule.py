"""How a training goes, as plain data. Needs no PyTorch, so that recipes are read without it."""

from __future__ import annotations

import functools
import math
from typing import Literal

from farthing.config import Section
from farthing.errors import ConfigError
from farthing.target import Target

Augment = Literal["none", "affine", "flip", "jitter"]
LOWEST = 25.0  # the first learning rate of a one-cycle is the highest over this
LAST = 1e4  # and the last one is the first over this
LIGHT, HEAVY = 0.85, 0.95
STEADY = 0.9
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


@functools.cache
def has_bf16() -> bool:
    """Whether this machine's processor multiplies bfloat16."""
    return bool(BF16 & {*Target.detect().isa})


class Schedule(Section, frozen=True, kw_only=True):
    """A training's options; the defaults train a small network from nothing.

    The learning rate follows one cycle (Smith and Topin 2019, https://arxiv.org/abs/1708.07120): it rises over the
    share ``warmup`` of all steps from a 25th of ``lr`` to ``lr`` along half a cosine, and falls to nearly nothing
    along another, while momentum falls from 0.95 to 0.85 and rises again. ``cosine`` rises in a line and falls along a
    cosine, ``constant`` rises in a line and stays; with both momentum is 0.9.

    Attributes:
        epochs: passes over the data.
        batch: most samples a step; the batches of an epoch are of one size, but for one sample.
        lr: highest learning rate.
        optimizer: ``adamw`` (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) or ``sgd``, with Nesterov's
            momentum.
        course: of the learning rate: ``one-cycle``, ``cosine`` or ``constant``.
        warmup: share of the steps in which the learning rate rises, 0..1.
        weight_decay: of the optimizer.
        clip: largest norm of all gradients together; None leaves them as they are.
        augment: how each sample is changed anew in each epoch: ``affine`` turns, scales, shears and shifts pictures,
            ``flip`` mirrors half of them, ``jitter`` scales signals and adds noise; see
            `farthing.forge.training.augment`.
        bf16: compute in bfloat16 where autocast allows; ``auto`` does where the processor has instructions for it.
        threads: threads torch may use meanwhile.
        seed: of the order of samples, of augmentation and of dropout, from 0.

    The same schedule, module and data give the same weights on the same machine.
    """

    epochs: int = 10
    batch: int = 128
    lr: float = 3e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    course: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup: float = 0.2
    weight_decay: float = 0.01
    clip: float | None = None
    augment: Augment = "none"
    bf16: Literal["auto"] | bool = "auto"
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is a whole number from 1, not {getattr(self, name)}")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed is a whole number from 0, not {self.seed}")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} is above 0, not {value}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay is from 0, not {self.weight_decay}")
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"warmup is a share of the steps from 0 to 1, not {self.warmup}")

    @property
    def in_bf16(self) -> bool:
        """Whether it computes in bfloat16, ``auto`` settled for this machine."""
        return has_bf16() if self.bf16 == "auto" else self.bf16

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, which counts from 0."""
        rising, place = self._place(step, steps)
        if self.course == "one-cycle":
            first = self.lr / LOWEST
            return _between(first, self.lr, place) if rising else _between(self.lr, first / LAST, place)
        if rising:
            return self.lr * (step + 1) / (self.warmup * steps)
        return _between(self.lr, 0.0, place) if self.course == "cosine" else self.lr

    def momentum(self, step: int, steps: int) -> float:
        """The momentum of a step: the first beta of AdamW, the momentum of SGD."""
        if self.course != "one-cycle":
            return STEADY
        rising, place = self._place(step, steps)
        return _between(HEAVY, LIGHT, place) if rising else _between(LIGHT, HEAVY, place)

    def _place(self, step: int, steps: int) -> tuple[bool, float]:
        """Whether the learning rate still rises, and how far it is on its way up or down, 0..1."""
        top = max(self.warmup * steps - 1, 0.0)
        if step < top:
            return True, step / top
        return False, (step - top) / max(steps - 1 - top, 1.0)


def _between(start: float, end: float, place: float) -> float:
    """A value on half a cosine from ``start`` to ``end``."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * place))
