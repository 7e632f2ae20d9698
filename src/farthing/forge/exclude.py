"""Which operators a quantized model suffers from, worst first: the order in which they are given back to float."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from farthing import bench
from farthing.bench import Tick
from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.apply import guarded
from farthing.forge.quantize.calibrate import model_feeds
from farthing.forge.quantize.static import StaticInt8
from farthing.model import Model
from farthing.recipe import Step
from farthing.target import Target
from farthing.task import Task

STEP = Step(use="quantize.static.v1")
SAMPLES = 16


def ranked(
    model: Model, quantize: StaticInt8, target: Target, task: Task, tick: Tick | None = None
) -> list[str]:
    """Names of the operators that int8 would quantize, the most harmful first.

    Harm is the noise-to-signal ratio at the model's outputs if that operator alone, its inputs and its output,
    were quantized, over a few calibration samples. Operators that only pass on what is quantized are left out.

    Args:
        model: the float model.
        quantize: how it is quantized.
        tick: called with (done, total) operators.

    Raises:
        FarthingError: a model could not be made or run.
    """
    count = min(SAMPLES, len(task.split("calibration")))
    feeds = model_feeds(model, task, np.arange(bench.batch_size(model.manifest, count)) % count)
    expected = graph.run(model.file.read_bytes(), feeds)
    proto = graph.load(model.file)
    graph.name_nodes(proto)
    names = [node.name for node in proto.graph.node]
    harm: dict[str, float] = {}
    for number, name in enumerate(names):
        others = tuple(other for other in names if other != name)
        try:
            alone = guarded(replace(quantize, exclude=others), model, target, task, STEP)
        except UnsupportedError:
            continue
        if not isinstance(alone, Model):
            continue
        harm[name] = _noise(expected, graph.run(alone.file.read_bytes(), feeds))
        if tick:
            tick(number + 1, len(names))
    return sorted(harm, key=lambda name: -harm[name])


def _noise(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> float:
    """Mean squared difference over mean squared signal, of the output where it is largest."""
    ratios = [0.0]
    for name, array in expected.items():
        signal = array.astype(np.float64)
        power = float(np.mean(signal**2))
        ratios.append(float(np.mean((signal - found[name]) ** 2)) / max(power, 1e-30))
    return max(ratio if np.isfinite(ratio) else np.inf for ratio in ratios)
