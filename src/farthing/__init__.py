"""Farthing takes a trained network to a fleet of small devices and runs it there well.

Everything below is imported when it is first used: ``import farthing`` costs a few milliseconds and needs
nothing but the standard library, whatever is installed.
"""

from __future__ import annotations

__version__ = "0.1.0"
TYPE_CHECKING = (
    False  # type checkers know the name; importing `typing` for it would double the time of this import
)

if TYPE_CHECKING:
    from farthing.bench import bench as benchmark
    from farthing.bench import evaluate
    from farthing.bundle import Bundle
    from farthing.device.predict import Predictor, load
    from farthing.engines.base import Engine, open_engine
    from farthing.errors import FarthingError
    from farthing.forge.convert import convert
    from farthing.forge.inspect import inspect
    from farthing.forge.optimize import optimize
    from farthing.forge.replay import replay
    from farthing.measure import Measurement
    from farthing.metrics import Metric
    from farthing.model import Manifest, Model, Preprocess, Resize, TensorSpec
    from farthing.ops.decode import Prediction
    from farthing.options import EngineOptions
    from farthing.plugins import register
    from farthing.recipe import Recipe, Result, Step
    from farthing.target import Budget, Target
    from farthing.task import Split, Task, find_task

_PLACES = {
    "benchmark": "farthing.bench:bench",
    "evaluate": "farthing.bench:evaluate",
    "Predictor": "farthing.device.predict:Predictor",
    "load": "farthing.device.predict:load",
    "Engine": "farthing.engines.base:Engine",
    "EngineOptions": "farthing.options:EngineOptions",
    "open_engine": "farthing.engines.base:open_engine",
    "FarthingError": "farthing.errors:FarthingError",
    "replay": "farthing.forge.replay:replay",
    "convert": "farthing.forge.convert:convert",
    "inspect": "farthing.forge.inspect:inspect",
    "optimize": "farthing.forge.optimize:optimize",
    "Measurement": "farthing.measure:Measurement",
    "Metric": "farthing.metrics:Metric",
    "Bundle": "farthing.bundle:Bundle",
    "Manifest": "farthing.model:Manifest",
    "Model": "farthing.model:Model",
    "Preprocess": "farthing.model:Preprocess",
    "Resize": "farthing.model:Resize",
    "TensorSpec": "farthing.model:TensorSpec",
    "Prediction": "farthing.ops.decode:Prediction",
    "register": "farthing.plugins:register",
    "Recipe": "farthing.recipe:Recipe",
    "Result": "farthing.recipe:Result",
    "Step": "farthing.recipe:Step",
    "Budget": "farthing.target:Budget",
    "Target": "farthing.target:Target",
    "Split": "farthing.task:Split",
    "Task": "farthing.task:Task",
    "find_task": "farthing.task:find_task",
}
__all__ = [
    "Budget",
    "Bundle",
    "Engine",
    "EngineOptions",
    "FarthingError",
    "Manifest",
    "Measurement",
    "Metric",
    "Model",
    "Prediction",
    "Predictor",
    "Preprocess",
    "Recipe",
    "Resize",
    "Result",
    "Split",
    "Step",
    "Target",
    "Task",
    "TensorSpec",
    "benchmark",
    "convert",
    "evaluate",
    "find_task",
    "inspect",
    "load",
    "open_engine",
    "optimize",
    "register",
    "replay",
]

if not TYPE_CHECKING:  # hidden from type checkers, or they would accept any misspelt name

    def __getattr__(name: str) -> object:
        if name not in _PLACES:
            raise AttributeError(f"module 'farthing' has no attribute {name!r}")
        from importlib import import_module

        from farthing.errors import absent

        module, _, attribute = _PLACES[name].partition(":")
        try:
            value = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise absent(error, "forge") from error
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
