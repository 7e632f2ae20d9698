"""Unstructured pruning: weights are set to zero little by little while the network trains, and stay zero."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Literal

from farthing.errors import ConfigError
from farthing.forge.training.passes import TrainingPass
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task


class UnstructuredPrune(TrainingPass, frozen=True, kw_only=True):
    """Set the smallest weights to zero, more and more of them while training goes on (Zhu and Gupta 2017, "To prune, or
    not to prune", https://arxiv.org/abs/1710.01878).

    Zeros compress: a zip of the file, or a delta of an update, gets smaller. The file itself does not, and an engine
    without sparse kernels is no faster for them; a search measures that and says so. For speed take channels out with
    ``prune.structured.v1``.

    From step ``begin`` to ``end`` the share of zeros rises from ``initial`` to ``final`` as
    ``final + (initial - final) * (1 - progress) ** power``, every ``frequency`` steps.

    Attributes:
        initial, final: shares of the weights that are zero, 0..1.
        begin: the step at which it starts.
        end: the step at which ``final`` is reached; None at three quarters of all steps.
        frequency: steps from one look at the weights to the next; None looks some fifty times.
        power: of the polynomial.
        pattern: empty: any weight may go; ``2:4`` and the like: of every four neighbours along the inputs of a channel
            two are left (Mishra et al. 2021, https://arxiv.org/abs/2104.08378), and ``final`` follows from it;
            ``4x1`` and the like: blocks of so many outputs by so many inputs go together, by their mean magnitude.
        ranking: ``global`` ranks the weights of all layers together, ``layer`` those of each, which keeps all layers
            equally dense.
        skip: nodes whose weights all stay.
        norms: train with batch normalization where the file has none, folded away again afterwards.
    """

    forms: ClassVar[Mapping[str, str]] = {"float": "sparse", "sparse": "sparse"}

    schedule: Schedule = Schedule(epochs=10, lr=2e-3)
    initial: float = 0.0
    final: float = 0.5
    begin: int = 0
    end: int | None = None
    frequency: int | None = None
    power: float = 3.0
    pattern: str = ""
    ranking: Literal["global", "layer"] = "layer"
    skip: tuple[str, ...] = ()
    norms: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.final < 1:
            raise ConfigError(
                f"initial and final are shares with 0 <= initial <= final < 1, not {self.initial} and {self.final}"
            )
        if self.begin < 0 or (self.end is not None and self.end < self.begin):
            raise ConfigError(f"begin is a step from 0 and end one after it, not {self.begin} and {self.end}")
        if self.frequency is not None and self.frequency < 1:
            raise ConfigError(f"frequency is a number of steps from 1, not {self.frequency}")
        if not self.power > 0:
            raise ConfigError(f"power is above 0, not {self.power}")
        if self.pattern and self.neighbours is None and self.block is None:
            raise ConfigError(
                f"pattern is empty, N:M with 0 < N < M as in '2:4', or a block as in '4x1', not {self.pattern!r}"
            )

    @property
    def neighbours(self) -> tuple[int, int] | None:
        """N and M of a pattern N:M."""
        found = re.fullmatch(r"(\d+):(\d+)", self.pattern)
        left, of = (int(part) for part in found.groups()) if found else (0, 0)
        return (left, of) if 0 < left < of else None

    @property
    def block(self) -> tuple[int, int] | None:
        """Outputs and inputs of a block."""
        found = re.fullmatch(r"(\d+)x(\d+)", self.pattern)
        outs, ins = (int(part) for part in found.groups()) if found else (0, 0)
        return (outs, ins) if outs and ins else None

    def work(self, model: Model, target: Target, task: Task, workshop: Workshop) -> Model:
        """Raises TaskError without training data, UnsupportedError where there are no weights to prune."""
        from farthing.forge.prune.zeroing import zeroed

        return zeroed(self, model, task, workshop)
