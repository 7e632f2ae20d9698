"""Workshop: what a pass may use beside the model, the target and the task it is given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from farthing.bench.machine import Here, Machine
from farthing.forge.cache import Cache
from farthing.model import Model
from farthing.recipe import Listener, ignore


@dataclass(frozen=True)
class Workshop:
    """What surrounds a piece of work. But for ``given`` nothing in it may change what comes out of the work.

    Attributes:
        listener: hears of progress.
        state: a directory that outlives a kill, of this very piece of work: whoever does the same work again finds it
            as it was left. It goes when the work is done. None if nothing is to be kept.
        machine: where models are run and timed.
        cache: where results are kept; None if they are not.
        given: the model that the recipe begins with; None if there is no recipe.
    """

    listener: Listener = ignore
    state: Path | None = None
    machine: Machine = field(default_factory=Here)
    cache: Cache | None = None
    given: Model | None = None

    def part(self, name: str) -> Workshop:
        """The same for one part of the work, with a directory of its own; ``name`` is that of a file."""
        return dataclasses.replace(self, state=None if self.state is None else self.state / name)
