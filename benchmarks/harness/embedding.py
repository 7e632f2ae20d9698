"""MiniLM's sentence embeddings in 8 and 4 bits, beside what ONNX Runtime's dynamic quantization makes of that file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from onnxruntime import quantization

from farthing import tasks
from farthing.forge import pretrained
from farthing.forge.apply import apply
from farthing.forge.cache import key_of
from farthing.forge.ladder import ladder
from farthing.forge.quantize.calibrate import quiet
from farthing.measure import Interval
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.target import Target
from farthing.task import Task
from harness import compressing, fleet, remeasure
from harness.artefacts import Setting
from harness.table import Bar, Row

ENGINE = "onnxruntime"
DYNAMIC = "quantize_dynamic"
FORMS = {"int8": "int8 products, smoothed", "int4": "int4 blocks"}  # rungs of a search's ladder
SMALLER, COSINE, HARM = 3.5, 0.985, 0.97


class Raced(NamedTuple):
    """Median milliseconds of all entrants of one race, and how many times faster each is than the best float32."""

    milliseconds: dict[str, float]
    faster: dict[str, Interval]
    best: str


def rows(setting: Setting) -> list[Row]:
    """Size, cosine to float and speed of both forms, with those of the peer."""
    task, base = tasks.sentences(setting.assets), _float(setting)
    made = {**_ours(setting, base, task), DYNAMIC: _dynamic(setting, base)}
    reference = fleet.outputs(task, base, ENGINE)
    alike = {
        name: fleet.compared(task.metric, task, reference, fleet.outputs(task, model, ENGINE))
        for name, model in made.items()
    }
    raced = _raced(setting, base, task, made)
    least = compressing.smallest(setting, base, task)
    sized = [_size(form, made, least, raced) for form in FORMS]
    return [*sized, *(_cosine(form, alike) for form in FORMS), _speed(raced)]


def _float(setting: Setting) -> Model:
    key = key_of("benchmark", "minilm", 1)
    return setting.store().model(key, lambda: pretrained.minilm(cache=setting.assets))


def _ours(setting: Setting, base: Model, task: Task) -> dict[str, Model]:
    target = Target.detect()
    rungs = {rung.name: rung for rung in ladder(base, [ENGINE], target)}
    return {
        form: apply(rungs[name].steps, base, target, task, setting.store())[0] for form, name in FORMS.items()
    }


def _dynamic(setting: Setting, base: Model) -> Model:
    """What ``onnxruntime.quantization.quantize_dynamic`` makes of the file with its default options."""

    def make() -> Model:
        with tempfile.TemporaryDirectory() as folder, quiet():
            place = Path(folder) / "model.onnx"
            quantization.quantize_dynamic(str(base.file), str(place))
            return Model.create(base.manifest, {"model.onnx": place})

    return setting.store().model(key_of(DYNAMIC, base.digest, onnxruntime.__version__), make)


def _raced(setting: Setting, base: Model, task: Task, made: Mapping[str, Model]) -> Raced:
    floats = {
        f"{engine} float32": (model, engine)
        for engine, model in compressing.floats(setting, base, task).items()
    }
    entrants = floats | {name: (model, ENGINE) for name, model in made.items()}
    raced = remeasure.race(task, [(*one, EngineOptions()) for one in entrants.values()], setting.rule)
    timed = dict(zip(entrants, raced, strict=True))
    medians = {name: float(np.median(one.calls)) * 1000 for name, one in timed.items()}
    best = min(floats, key=lambda name: medians[name])
    return Raced(medians, {name: one.over(timed[best]) for name, one in timed.items()}, best)


def _size(form: str, made: Mapping[str, Model], least: int, raced: Raced) -> Row:
    ours = made[form].size_bytes
    return Row(
        case=f"minilm {form}: size",
        ours=ours / 1e6,
        unit="MB",
        peers={DYNAMIC: made[DYNAMIC].size_bytes / 1e6},
        ratio=least / ours,
        bar=Bar(figure="ratio", sign=">=", value=SMALLER),
        note=f"{FORMS[form]}; smallest float file {least / 1e6:.4g} MB; in single stream {raced.faster[form]} times "
        f"as fast as {raced.best}",
    )


def _cosine(form: str, alike: Mapping[str, Interval]) -> Row:
    found = alike[form]
    return Row(
        case=f"minilm {form}: mean cosine to float",
        ours=found.value,
        peers={DYNAMIC: alike[DYNAMIC].value},
        low=found.low,
        high=found.high,
        bar=Bar(figure="ours", sign=">=", value=COSINE),
        note="over the sentences of the test split",
    )


def _speed(raced: Raced) -> Row:
    """No bar is set for it but that of all that is returned: no harm."""
    faster = raced.faster["int8"]
    return Row(
        case="minilm int8: single stream",
        ours=raced.milliseconds["int8"],
        unit="ms",
        peers={name: value for name, value in raced.milliseconds.items() if name not in FORMS},
        ratio=faster.value,
        low=faster.low,
        high=faster.high,
        bar=Bar(figure="low", sign=">=", value=HARM),
        note=f"over {raced.best}; {DYNAMIC} {raced.faster[DYNAMIC]}",
    )
