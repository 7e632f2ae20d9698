"""How a float network becomes the file that an engine runs: the steps that every candidate of a search goes through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from farthing.config import Section
from farthing.errors import UnsupportedError, nearest
from farthing.forge.apply import build
from farthing.forge.ladder import COMPACT, FUSE, OPENVINO, TFLITE, int8, target_format
from farthing.model import Model
from farthing.recipe import Step
from farthing.target import Target
from farthing.task import Task

Number = Literal["int8", "float32"]
_EXPORT = {"onnx": COMPACT, "openvino": Step(use=OPENVINO), "tflite": Step(use=TFLITE)}


class Deployment(Section, frozen=True, kw_only=True):
    """An engine, and the numbers it computes with.

    Attributes:
        engine: its name.
        number: ``int8`` (weights and activations, static) or ``float32``.
    """

    engine: str = "onnxruntime"
    number: Number = "int8"

    @property
    def steps(self) -> tuple[Step, ...]:
        """The passes from an ONNX model as trained to the file that is deployed.

        Raises:
            UnsupportedError: no exporter makes what the engine runs.
            PluginError, NotInstalled: as `farthing.plugins.get`.
        """
        form = target_format(self.engine)
        if form not in _EXPORT:
            raise UnsupportedError(f"nothing is known to deploy as {form}; {nearest(form, _EXPORT)}")
        middle = (int8("minmax"),) if self.number == "int8" else ()
        return (FUSE, *middle, _EXPORT[form])

    def of(self, model: Model, target: Target, task: Task) -> Model:
        """Make the file, keeping nothing of it in a cache.

        Raises:
            FarthingError: what one of the passes raises.
        """
        return made(self.steps, model, target, task)


def made(steps: Sequence[Step], model: Model, target: Target, task: Task) -> Model:
    """A model after some passes, none of them cached."""
    for step in steps:
        result = build(step, target)[0](model, target, task)
        if not isinstance(result, Model):
            raise UnsupportedError(f"{step.use} gives several models: a network that is measured is one")
        model = result
    return model
