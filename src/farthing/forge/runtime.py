"""Runtime: an engine of one version and the way it is used; with a model's digest, what decides outputs and times."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from farthing import plugins
from farthing.bench.machine import Machine
from farthing.config import Section
from farthing.engines.base import Engine
from farthing.errors import NotInstalled, PluginError, TargetError, UnsupportedError
from farthing.forge.ladder import target_format
from farthing.model import Model
from farthing.options import EngineOptions, Precision
from farthing.target import Target


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

    def computing(self, precision: Precision) -> Runtime:
        """The same with another arithmetic of float operators."""
        return replace(self, options=replace(self.options, precision=precision))

    def load(self, model: Model, machine: Machine) -> tuple[Engine, float]:
        """The model loaded on a machine, and the milliseconds that took, as `Machine.load`."""
        return machine.load(model, self.engine, self.options)


def find_runtimes(
    model: Model, engines: Sequence[str], target: Target, machine: Machine
) -> tuple[Runtime, dict[str, Runtime]]:
    """What runs the model as given, and what may run candidates, by name.

    Args:
        engines: wanted ones; all that the machine has and the target allows if empty.

    Raises:
        TargetError: the target runs none of them.
        UnsupportedError: nothing makes from an ONNX model what one of them runs.
        FarthingError: one that was asked for by name is not there, or does not run what can be made for it.
    """
    versions = {name: machine.version(name) for name in engines} if engines else _present(machine)
    allowed = [name for name in versions if not target.engines or name in target.engines]
    if not allowed:
        able = ", ".join(target.engines) or "no engine that is installed"
        raise TargetError(f"target {target.name} runs {able}, not {', '.join(versions) or 'any'}")
    for name in allowed:
        if model.manifest.format not in _formats(name):
            target_format(name)
    native = next((name for name in allowed if model.manifest.format in _formats(name)), "")
    return Runtime.of(model, native, machine), {
        name: Runtime(engine=name, version=versions[name]) for name in allowed
    }


def _present(machine: Machine) -> dict[str, str]:
    """Engines that a machine has, and that run what candidates are made of, with their versions; ours first."""
    found = {}
    for name in dict.fromkeys([*plugins.BUILTIN["engine"], *plugins.names("engine")]):
        try:
            target_format(name)
            found[name] = machine.version(name)
        except (NotInstalled, PluginError, UnsupportedError):
            continue
    return found


def _formats(name: str) -> frozenset[str]:
    return frozenset(plugins.get("engine", name).formats)
