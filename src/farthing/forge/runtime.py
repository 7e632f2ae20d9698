"""Runtime: an engine of one version and the way it is used; with a model's digest, what decides outputs and times."""

from __future__ import annotations

from msgspec.structs import replace

from farthing.bench.machine import Machine
from farthing.config import Section
from farthing.engines.base import Engine
from farthing.model import Model
from farthing.options import EngineOptions


class Runtime(Section, frozen=True, kw_only=True):
    """What runs a model: an engine, its version and its options."""

    engine: str
    version: str
    options: EngineOptions = EngineOptions()

    @classmethod
    def of(cls, model: Model, engine: str, machine: Machine) -> Runtime:
        """The engine that a machine has, found able to open a model.

        Raises:
            FarthingError: as `Machine.load`.
        """
        with machine.load(model, engine, EngineOptions())[0] as opened:
            return cls(engine=opened.name, version=opened.version)

    def threads(self, count: int) -> Runtime:
        """The same with so many threads."""
        return replace(self, options=replace(self.options, threads=count))

    def load(self, model: Model, machine: Machine) -> tuple[Engine, float]:
        """The model loaded on a machine, and the milliseconds that took, as `Machine.load`."""
        return machine.load(model, self.engine, self.options)
