"""Where models are measured: this machine, or (see `farthing.bench.remote`) a board that is reached over a network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from farthing import plugins
from farthing.bench.memory import peak_memory
from farthing.bench.racing import Rule, Tick, Timed, metered, race
from farthing.bench.server import Served, serve
from farthing.engines.base import Engine, Tensors, engine_for, open_engine
from farthing.measure import machine_name
from farthing.meter import find_meter, temperature
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.target import Target

Entrant = tuple[Engine, Sequence[Tensors]]
"""An engine that `Machine.load` gave, and the feeds it runs on in turn."""


class Machine(Protocol):
    """A place where models run and are timed.

    Attributes:
        target: what the machine is; measurements are kept under it.
        description: the same in one line, for people.
        meter: what reads energy there, for people; empty where nothing does.
    """

    @property
    def target(self) -> Target: ...
    @property
    def description(self) -> str: ...
    @property
    def meter(self) -> str: ...

    def version(self, engine: str) -> str:
        """The version of an engine's runtime there.

        Raises:
            NotInstalled: that machine does not have it.
            PluginError: no engine of that name.
        """
        ...

    def load(self, model: Model, engine: str, options: EngineOptions) -> tuple[Engine, float]:
        """The model in an engine of that machine, and the milliseconds it took to load.

        Raises:
            FarthingError: as `farthing.engines.base.open_engine`.
        """
        ...

    def race(self, entrants: Sequence[Entrant], rule: Rule, tick: Tick | None = None) -> list[Timed]:
        """Time engines of that machine interleaved, as `farthing.bench.race`."""
        ...

    def metered(
        self, entrant: Entrant, batch: int, rule: Rule, tick: Tick | None = None
    ) -> tuple[Timed, float | None]:
        """Time one engine, and the energy of one sample, as `farthing.bench.metered`."""
        ...

    def serve(
        self, entrant: Entrant, rate: float, rule: Rule, workers: int = 1, tick: Tick | None = None
    ) -> Served:
        """Answer queries that arrive at random, as `farthing.bench.serve`."""
        ...

    def peak_memory(self, model: Model, engine: str, options: EngineOptions) -> tuple[float, float]:
        """Peak memory of a process there, as `farthing.bench.peak_memory`."""
        ...

    def temperature(self) -> float | None:
        """The hottest sensor there, degrees Celsius; None where there is none."""
        ...


class Here:
    """This machine.

    Args:
        root: where ``/proc`` and ``/sys`` are.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.target = Target.detect(root)
        self._root = root
        self._meter = find_meter(root)

    @property
    def description(self) -> str:
        return machine_name(self.target.cpu, self.target.cores)

    @property
    def meter(self) -> str:
        return self._meter.source if self._meter else ""

    def version(self, engine: str) -> str:
        """See `Machine.version`."""
        return str(plugins.get("engine", engine).installed())

    def load(self, model: Model, engine: str, options: EngineOptions) -> tuple[Engine, float]:
        """See `Machine.load`."""
        name = engine or engine_for(model.manifest.format)
        plugins.get("engine", name).installed()  # importing the runtime is not loading the model
        begin = time.perf_counter()
        opened = open_engine(model, name, options)
        return opened, (time.perf_counter() - begin) * 1000

    def race(self, entrants: Sequence[Entrant], rule: Rule, tick: Tick | None = None) -> list[Timed]:
        """See `Machine.race`."""
        return race(entrants, rule, tick)

    def metered(
        self, entrant: Entrant, batch: int, rule: Rule, tick: Tick | None = None
    ) -> tuple[Timed, float | None]:
        """See `Machine.metered`."""
        return metered(*entrant, batch, rule, self._meter, tick)

    def serve(
        self, entrant: Entrant, rate: float, rule: Rule, workers: int = 1, tick: Tick | None = None
    ) -> Served:
        """See `Machine.serve`."""
        return serve(*entrant, rate, rule, workers, tick)

    def peak_memory(self, model: Model, engine: str, options: EngineOptions) -> tuple[float, float]:
        """See `Machine.peak_memory`."""
        return peak_memory(model, engine, options)

    def temperature(self) -> float | None:
        """See `Machine.temperature`."""
        return temperature(self._root)
