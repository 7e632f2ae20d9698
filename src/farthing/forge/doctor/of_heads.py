"""Model and task together: whether int8 would break a detector's head."""

from __future__ import annotations

from collections.abc import Iterator

from farthing.errors import FarthingError
from farthing.forge.doctor.finding import Finding, warning
from farthing.model import Model
from farthing.task import Task

SAMPLES = 16
OF_HEAD = (
    "a search leaves it in float by itself; in a recipe name in `exclude` what `farthing sensitivity` lists"
)
INSIDE = "`farthing sensitivity` shows what that costs, and which operators should stay in float"


def of_heads(model: Model, task: Task) -> Iterator[Finding]:
    """A warning for each operator under which int8 would lose a range, by the ranges of a few calibration samples.

    A model that cannot be looked at has findings of its own.
    """
    if model.manifest.format != "onnx" or model.manifest.quantization is not None:
        return
    try:
        from farthing.forge.quantize import heads
        from farthing.forge.quantize.static import StaticInt8

        found = heads.joins(model, task, StaticInt8(samples=SAMPLES))
    except (ImportError, FarthingError):
        return
    for join in found:
        yield warning("model", "int8", str(join), OF_HEAD if join.head else INSIDE)
