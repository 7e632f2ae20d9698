"""Runtime: an engine of one version and the way it is used; with a model's digest, what decides outputs and times."""

from __future__ import annotations

from msgspec.structs import replace

from farthing.config import Section
from farthing.engines.base import Engine, open_engine
from farthing.model import Model
from farthing.options import EngineOptions


class Runtime(Section, frozen=True, kw_only=True):
    """What runs a model: an engine, its version and its options."""

    engine: str
    version: str
    options: EngineOptions = EngineOptions()

    @classmethod
    def of(cls, model: Model, engine: str) -> Runtime:
        """The engine that is installed here, found able to open a model.

        Raises:
            FarthingError: as `open_engine`.
        """
        with open_engine(model, engine) as opened:
            return cls(engine=opened.name, version=opened.version)

    def threads(self, count: int) -> Runtime:
        """The same with so many threads."""
        return replace(self, options=replace(self.options, threads=count))

    def open(self, model: Model) -> Engine:
        """The model loaded, as `open_engine`."""
        return open_engine(model, self.engine, self.options)
