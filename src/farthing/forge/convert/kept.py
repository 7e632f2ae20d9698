"""TFLite, OpenVINO and TorchScript files taken as they are: described from the file itself, run, nothing changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.engines import openvino, tflite, torchscript
from farthing.engines.base import Engine, open_engine, spec_of
from farthing.errors import ModelError
from farthing.forge.convert.asis import Trial, example_for, pool_for, with_role
from farthing.forge.convert.describe import manifest_of, with_layouts
from farthing.forge.convert.example import example_of
from farthing.model import Manifest, Model, TensorSpec

Array = NDArray[Any]
ENGINES = {"tflite": "litert", "openvino": "openvino", "torchscript": "torchscript"}
_STORED = frozenset({"int8", "uint8", "int16"})  # types in which TFLite stores real numbers
_SCALARS = {"int": "int64", "float": "float64", "bool": "bool"}


class Wanted(NamedTuple):
    """What a caller of `farthing.convert` asks for; the kind is that of the file."""

    kind: str
    example: Any
    weights: Path | str | None
    samples: Mapping[str, Array] | None
    tolerance: float
    name: str
    owner: Manifest | None
    out: Path | None


class _Found(NamedTuple):
    """What a file says of itself."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    notes: list[str]


def take(path: Path, wanted: Wanted) -> tuple[Model, str, tuple[str, ...]]:
    """Take a file over. Returns the model, how it was checked, and what was assumed."""
    content, notes = _content(path, wanted)
    draft = Model.create(Manifest(name=wanted.name, format=wanted.kind, inputs=(), outputs=()), content)
    try:
        found = _DESCRIBED[wanted.kind](draft, wanted)
    except ModelError as error:
        raise type(error)(str(error).replace(str(draft.file), str(path))) from error
    inputs = [with_role(spec, wanted.owner) for spec in found.inputs]
    example = example_for(inputs, wanted.example, wanted.samples)
    pool = pool_for(inputs, example, wanted.samples)
    plain = msgspec.structs.replace(draft.manifest, inputs=tuple(found.inputs), outputs=tuple(found.outputs))
    with open_engine(Model(draft.path, plain), ENGINES[wanted.kind]) as engine:
        trial = Trial(_Anew(engine), inputs, found.outputs, pool, wanted.tolerance, example)
        checked = f"{engine.name} {engine.version} runs it, {trial.checked}"
        if engine.stateful:
            notes = [*notes, "the file keeps a state between calls: each stream takes a session() of its own"]
    fed, answered = trial.specs()
    fed, layouts = with_layouts(fed, wanted.owner)
    lineage = f"convert.{wanted.kind}.v1"
    made = manifest_of(wanted.name, fed, answered, lineage, wanted.owner, wanted.kind)
    model = Model.create(made, {name: draft.path / name for name in draft.manifest.files}, wanted.out)
    return model, checked, (*notes, *found.notes, *trial.assumptions, *layouts)


class _Anew:
    """Runs each call in a stream of its own if the file keeps a state: the trial compares calls with one another."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def run(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        if not self._engine.stateful:
            return self._engine.run(feeds)
        with self._engine.session() as stream:
            return stream.run(feeds)


def _content(path: Path, wanted: Wanted) -> tuple[dict[str, bytes | Path], list[str]]:
    """Name in the model -> file, and what was assumed about them."""
    if wanted.kind != "openvino":
        if wanted.weights is not None:
            raise ModelError(f"weights were given with {path}, which holds its own: leave them out")
        return {"model.tflite" if wanted.kind == "tflite" else "model.pt": path}, []
    beside = path.with_suffix(".bin")
    if wanted.weights is not None:
        return {"model.xml": path, "model.bin": Path(wanted.weights)}, []
    if beside.is_file():
        return {"model.xml": path, "model.bin": beside}, [f"weights taken from {beside.name} beside it"]
    return {"model.xml": path}, []


def _tflite(draft: Model, wanted: Wanted) -> _Found:
    content = tflite.read(draft.file.read_bytes(), draft.file)
    inputs, outputs = ([_scaled(one) for one in side] for side in (content.inputs, content.outputs))
    notes = [
        f"{spec.name} is quantized: real value = {spec.scale:g} * ({spec.dtype} number - {spec.zero_point})"
        for spec in (*inputs, *outputs)
        if spec.scale
    ]
    return _Found(inputs, outputs, notes)


def _scaled(one: tflite.FileTensor) -> TensorSpec:
    """A tensor with its scale, if it has one for all its integers."""
    spec = spec_of(one.names[0], one.dtype, one.shape)
    if spec.dtype not in _STORED or not len(one.scales) == len(one.zero_points) == 1:
        return spec
    scale, zero = one.scales[0], one.zero_points[0]
    limits = np.iinfo(spec.dtype)
    if not (0 < scale < np.inf and limits.min <= zero <= limits.max):
        raise ModelError(
            f"this file cannot be described: {spec.name} has scale {scale:g} and zero point {zero}, which no "
            f"{spec.dtype} tensor can have"
        )
    return msgspec.structs.replace(spec, scale=scale, zero_point=zero)


def _openvino(draft: Model, wanted: Wanted) -> _Found:
    sides = []
    for side in openvino.describe(draft):
        if any(one.shape is None for one in side):
            raise ModelError(f"{draft.file} leaves even the number of axes open: convert it again with sizes")
        sides.append([spec_of(one.name, one.dtype, one.shape or ()) for one in side])
    return _Found(sides[0], sides[1], [])


def _torchscript(draft: Model, wanted: Wanted) -> _Found:
    """The file names its inputs; sizes and types are those of the example, and outputs are seen by running it."""
    module = torchscript.load(draft)
    given = example_of(wanted.example, wanted.samples, np.float32)
    if given is None:
        raise ModelError(
            f"{draft.file} does not say what it takes: say it when you convert it, as in --example 1x3x224x224, or "
            "give --task"
        )
    arguments = torchscript.arguments(module)
    if len(given.arrays) > len(arguments):
        taken = ", ".join(name for name, _ in arguments)
        raise ModelError(
            f"the script takes {len(arguments)} inputs ({taken}), the example has {len(given.arrays)}"
        )
    called = list(zip(arguments, given.arrays, strict=False))
    kinds = [kind for (_, kind), _ in called]
    arrays = [
        array if kind is None else array.reshape(()).astype(_SCALARS[kind.__name__])
        for (_, kind), array in called
    ]
    try:
        results = torchscript.compute(torchscript.runtime(), module, kinds, arrays)
    except torchscript.FAILURES as error:
        raise ModelError(f"{draft.file} fails on the example: {torchscript.last_line(error)}") from error
    inputs = [
        _seen(name, array, kind is None) for (name, kind), array in zip(arguments, arrays, strict=False)
    ]
    names = ["output"] if len(results) == 1 else [f"output_{i}" for i in range(len(results))]
    rows = {len(array) for array in arrays if array.ndim}
    follows = [bool(array.ndim) and rows == {len(array)} for array in results]
    outputs = [
        _seen(name, array, follow) for name, array, follow in zip(names, results, follows, strict=True)
    ]
    return _Found(inputs, outputs, [])


def _seen(name: str, array: Array, batched: bool) -> TensorSpec:
    free: tuple[int | None, ...] = (None, *array.shape[1:]) if batched and array.ndim else array.shape
    spec = spec_of(name, array.dtype.name, free)
    return spec if array.ndim else msgspec.structs.replace(spec, role="parameter")


_DESCRIBED = {"tflite": _tflite, "openvino": _openvino, "torchscript": _torchscript}
