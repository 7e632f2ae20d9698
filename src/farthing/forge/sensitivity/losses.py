"""How much each operator loses in a precision: measured on calibration samples, one operator at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from farthing.bench import Tick
from farthing.config import Section
from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.cache import key_of
from farthing.forge.quantize.calibrate import chunk, model_feeds
from farthing.forge.sensitivity.alone import HIGHEST, Arrays, Form, Source, sqnr
from farthing.forge.sensitivity.precisions import Place, Precision, about, form_of, source_of
from farthing.forge.sensitivity.result import severity
from farthing.model import Model
from farthing.task import Task

SAMPLES = 16


class Loss(Section, frozen=True, kw_only=True):
    """Signal-to-quantization-noise ratios, dB: of an operator's own result, and of the model's outputs."""

    own: float | None
    outputs: float | None


def losses(
    model: Model, precision: Precision, place: Place, samples: int = SAMPLES, tick: Tick | None = None
) -> dict[str, Loss]:
    """What each operator that a precision changes loses if it alone is changed.

    The model is run once in float; for each operator only what follows it is run again.

    Args:
        model: a float model, fused if it is to be quantized so.
        samples: most calibration samples to run.
        tick: called with (done, total) operators.

    Raises:
        UnsupportedError: the precision changes nothing in it, or it passes on what is no tensor.
        FarthingError: a model could not be made or run.
    """
    key = key_of("losses", model.digest, *about(precision, place), samples)
    return place.cache.value(key, dict[str, Loss], lambda: _losses(model, precision, place, samples, tick))


def ranked(found: Mapping[str, Loss]) -> list[str]:
    """Names of operators, the most harmful first."""
    return sorted(found, key=lambda name: severity(found[name].outputs, found[name].own))


def whole_loss(model: Model, changed: Model, place: Place, samples: int = SAMPLES) -> float | None:
    """The ratio at the outputs of a model that another one stands for, of the output that suffers most, dB."""
    feeds = calibration(model, place.task, samples)
    expected, found = (graph.run(graph.load(one.file), feeds) for one in (model, changed))
    return _least([sqnr(expected[name], found[name]) for name in found])


def calibration(model: Model, task: Task, samples: int) -> Arrays:
    """Feeds of the first calibration samples, fewer if they are large."""
    count = min(samples, len(task.split("calibration")))
    return model_feeds(model, task, np.arange(chunk(model, task, count)) % count)


def _losses(
    model: Model, precision: Precision, place: Place, samples: int, tick: Tick | None
) -> dict[str, Loss]:
    source = source_of(model)
    form = form_of(source, model, precision, place)
    names = form.operators()
    feeds = calibration(model, place.task, samples)
    between = source.between(names)
    known = {**feeds, **graph.run(source.proto, feeds, between)}
    if lost := set(between) - set(known):
        raise UnsupportedError(
            f"{model.manifest.name} passes on what is no tensor ({', '.join(sorted(lost))})"
        )
    found: dict[str, Loss] = {}
    for number, name in enumerate(names):
        found[name] = _loss(source, name, form, known)
        if tick:
            tick(number + 1, len(names))
    return found


def _loss(source: Source, name: str, form: Form, known: Arrays) -> Loss:
    alone = source.alone(name, form, known)
    found = graph.run(alone, {value.name: known[value.name] for value in alone.graph.input})
    ratios = {tensor: sqnr(known[tensor], array) for tensor, array in found.items()}
    return Loss(
        own=ratios[source.own(name)],
        outputs=_least([ratio for tensor, ratio in ratios.items() if tensor in source.outputs]),
    )


def _least(ratios: list[float | None]) -> float | None:
    """The worst of several, none of them none at all; None, of what is not finite, is worse than any number."""
    known = [ratio for ratio in ratios if ratio is not None]
    return min([HIGHEST, *known]) if len(known) == len(ratios) else None


def fewest(total: int, enough: Callable[[int], bool], low: int = 0) -> int:
    """The least number of operators whose return to float is enough, by bisection, small numbers first.

    Args:
        total: all of them, which is taken to be enough.
        enough: tries a number.
        low: a number that is known to be too small.
    """
    known, high = low, total
    while high - low > 1:
        first = known + max(1, min((high - known) // 2, 4))
        middle = first if low == known else (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
