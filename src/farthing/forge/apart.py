"""One model in one engine, in a process of its own: what crashes there takes nothing else along."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.anatomy import Portable
from farthing.bench.memory import signal_name
from farthing.engines.base import open_engine
from farthing.errors import (
    EngineError,
    FarthingError,
    ModelError,
    NotInstalled,
    StorageError,
    UnsupportedError,
)
from farthing.model import Model, TensorSpec
from farthing.options import EngineOptions
from farthing.scratch import Scratch
from farthing.target import Target
from farthing.task import Split, Task

Array = NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
PROGRAM = "from farthing.forge.apart import child; child()"
PICTURE = (0, 2, 3, 1)  # NHWC in terms of NCHW


@dataclass(frozen=True)
class Answer:
    """What a child process said: arrays by name for each feed, or what went wrong."""

    version: str = ""
    via: str = ""
    arrays: tuple[dict[str, Array], ...] = ()
    verdict: Portable = "failed"
    detail: str = ""


def in_child(model: Model, engine: str, version: str, via: str, given: Feeds, seconds: float) -> Answer:
    """An engine that crashes takes only its own process along."""
    scratch = Scratch()
    try:
        np.savez(scratch.path / "feeds.npz", **_flat(given))  # type: ignore[arg-type]
    except OSError as error:
        raise StorageError(f"cannot write to {scratch.path}: {error.strerror or error}") from error
    order = json.dumps([str(model.path), engine, via, str(scratch.path)])
    path = [
        place for place in sys.path if place not in {"", "."}
    ]  # no module comes from where the user stands
    program = f"import sys; sys.path[:] = {path!r}; {PROGRAM}"
    failed = Answer(version=version, via=via)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, order],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _with(failed, "failed", f"it took over {seconds:g} s and was stopped")
    if done.returncode:
        return _with(failed, "failed", _ending(done.returncode, done.stderr))
    return _read(scratch.path, failed)


def _with(answer: Answer, verdict: Portable, detail: str) -> Answer:
    return Answer(version=answer.version, via=answer.via, verdict=verdict, detail=detail)


def _ending(code: int, said: str) -> str:
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")
    if code < 0:
        return f"its process crashed with {signal_name(-code)}" + (f"; it last said: {last}" if last else "")
    return f"its process ended with {code}: {last or 'it said nothing'}"


def _read(place: Path, failed: Answer) -> Answer:
    try:
        verdict, detail = json.loads((place / "verdict.json").read_text())
        if verdict:
            return _with(failed, verdict, detail)
        with np.load(place / "outputs.npz", allow_pickle=False) as kept:
            arrays = _deep({name: kept[name] for name in kept.files})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        return _with(failed, "failed", f"its process left no answer: {error}")
    return Answer(version=failed.version, via=failed.via, arrays=arrays)


def _flat(given: Feeds) -> dict[str, Array]:
    """Feeds as one archive: its keys hold the number of the feed and the name."""
    return {f"{number}:{name}": array for number, feed in enumerate(given) for name, array in feed.items()}


def _deep(kept: Mapping[str, Array]) -> tuple[dict[str, Array], ...]:
    found: dict[int, dict[str, Array]] = {}
    for key, array in kept.items():
        number, _, name = key.partition(":")
        found.setdefault(int(number), {})[name] = array
    return tuple(found[number] for number in sorted(found))


def child() -> None:
    """What the child process does: make the engine's format, run the feeds in turn, leave outputs and a verdict."""
    model_path, engine, via, scratch = json.loads(sys.argv[1])
    place = Path(scratch)
    verdict, detail = "", ""
    try:
        with np.load(place / "feeds.npz", allow_pickle=False) as kept:
            given = _deep({name: kept[name] for name in kept.files})
        np.savez(place / "outputs.npz", **_flat(_run(Model.open(model_path), engine, via, given)))  # type: ignore[arg-type]
    except UnsupportedError as error:
        verdict, detail = "refused", str(error)
    except NotInstalled as error:
        verdict, detail = "not installed", str(error)
    except FarthingError as error:
        verdict, detail = "failed", f"{type(error).__name__}: {error}"
    (place / "verdict.json").write_text(json.dumps([verdict, detail]))


def _run(model: Model, engine: str, via: str, given: Feeds) -> Feeds:
    source, model = model, (_exported(model, via) if via else model)
    answers = []
    with open_engine(model, engine, EngineOptions()) as opened:
        stream = opened.session() if opened.stateful else opened
        for feed in given:
            fitted = {
                spec.name: _fitted(feed[own.name], spec, own)
                for spec, own in _paired(opened.inputs, source.manifest.data_inputs)
            }
            found = stream.run(fitted)
            answers.append({spec.name: _real(found[spec.name], spec) for spec in opened.outputs})
    return answers


def _exported(model: Model, via: str) -> Model:
    """What an exporting pass makes of a model; such passes read no data, so there is none."""
    from farthing.forge.apply import build
    from farthing.recipe import Step

    target = Target.detect()
    nothing = Task("none", {"validation": Split({"": np.zeros((1, 1), np.float32)})}, "cosine")
    made, _ = build(Step(use=via), target)
    result = made(model, target, nothing)
    if not isinstance(result, Model):
        raise ModelError(f"{via} gives a {type(result).__name__}, not a model")
    return result


def _paired(specs: Sequence[TensorSpec], source: Sequence[TensorSpec]) -> list[tuple[TensorSpec, TensorSpec]]:
    """Inputs with those of the source: by name, or by their order where the engine calls them otherwise."""
    if len(specs) != len(source):
        raise EngineError(f"it takes {len(specs)} inputs, the source {len(source)}")
    named = {spec.name: spec for spec in source}
    if all(spec.name in named for spec in specs):
        return [(spec, named[spec.name]) for spec in specs]
    return list(zip(specs, source, strict=True))


def _fitted(array: Array, spec: TensorSpec, source: TensorSpec) -> Array:
    """An input of the source as this form of the model takes it: channels last, or stored in 8 bits."""
    from farthing.ops.scale import stored

    if (source.layout, spec.layout) == ("NCHW", "NHWC"):
        array = array.transpose(PICTURE)
    return np.asarray(array if source.scale else stored(array, spec), order="C")


def _real(array: Array, spec: TensorSpec) -> Array:
    from farthing.ops.scale import real

    return real(array, spec)
