"""The space of a search: what may vary about a network, and how a choice of it becomes an architecture."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

from farthing.config import Section
from farthing.errors import ConfigError
from farthing.forge.families import FAMILIES, Architecture, Family, Shape, Stage

OptionT = TypeVar("OptionT")
Pooling = Literal["average", "flatten"]


class Choose(Protocol):
    """Picks one of several options for a trait of the network, which goes by a name."""

    def __call__(self, name: str, options: Sequence[OptionT]) -> OptionT: ...


class Space(Section, frozen=True, kw_only=True):
    """Small convolutional networks for the edge.

    A network begins ``widths`` wide; each stage is as wide as the one before, times one of ``growths``, rounded to a
    multiple of 8 (of 4 below 16), which is what vector units and microcontrollers' kernels fill. All families but
    ``plain`` have a convolution as their stem.

    Attributes:
        families: which of them.
        widths: channels at the start.
        growths: factors from stage to stage.
        stages: how many.
        depths: blocks in a stage.
        kernels: sides of windows.
        strides: of stages.
        expansions: of inverted residuals.
        poolings: ahead of the classifier; see `Architecture`.
    """

    families: tuple[Family, ...] = FAMILIES
    widths: tuple[int, ...] = (4, 8, 12, 16, 24, 32)
    growths: tuple[float, ...] = (1.0, 1.5, 2.0)
    stages: tuple[int, ...] = (2, 3, 4)
    depths: tuple[int, ...] = (1, 2)
    kernels: tuple[int, ...] = (3, 5)
    strides: tuple[int, ...] = (1, 2)
    expansions: tuple[int, ...] = (2, 4, 6)
    poolings: tuple[Pooling, ...] = ("average", "flatten")

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not getattr(self, name):
                raise ConfigError(f"{name} of a search space is empty: give it a value at least")

    @classmethod
    def of(cls, shape: Shape, families: Sequence[Family] = ()) -> Space:
        """The space for samples of a shape: signals get longer windows and strides than pictures."""
        chosen = tuple(families) or FAMILIES
        if len(shape) == 2:
            return cls(families=chosen, kernels=(3, 5, 9), strides=(1, 2, 4))
        return cls(families=chosen)

    def draw(self, choose: Choose) -> Architecture:
        """An architecture from a choice of every trait that it has."""
        family = choose("family", self.families)
        width = choose("width", self.widths)
        stem = None
        if family != "plain":
            kernel, stride = choose("stem kernel", self.kernels), choose("stem stride", self.strides)
            stem = Stage(width=width, kernel=kernel, stride=stride)
        stages: list[Stage] = []
        for number in range(1, choose("stages", self.stages) + 1):
            if stem or stages:
                width = rounded(width * choose(f"growth {number}", self.growths))
            stages.append(
                Stage(
                    width=width,
                    depth=choose(f"depth {number}", self.depths),
                    kernel=choose(f"kernel {number}", self.kernels),
                    stride=choose(f"stride {number}", self.strides),
                    expansion=choose(f"expansion {number}", self.expansions) if family == "mobilenet" else 1,
                )
            )
        pooling = choose("pooling", self.poolings)
        return Architecture(family=family, stem=stem, stages=tuple(stages), pooling=pooling)

    def random(self, seed: int) -> Architecture:
        """An architecture drawn at random."""
        generator = random.Random(seed)  # noqa: S311  # no secret depends on it

        def choose(name: str, options: Sequence[OptionT]) -> OptionT:
            return generator.choice(options)

        return self.draw(choose)


def rounded(width: float) -> int:
    """The nearest multiple of 8, of 4 below 16."""
    step = 8 if width >= 16 else 4
    return max(step, int(width / step + 0.5) * step)
