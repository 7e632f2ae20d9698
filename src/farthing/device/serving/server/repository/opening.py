"""From what lies on the disk to a service that has answered once: what a server loads, and what it refuses to."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing import files
from farthing.bundle import Bundle
from farthing.config import canonical
from farthing.device.serving.adapt import Adaptive
from farthing.device.serving.batch import Batched, BatchRule
from farthing.device.serving.parts.exits import open_exits
from farthing.device.serving.parts.shard import open_sharded
from farthing.device.serving.server.repository.pbtxt import Declared, TritonConfig
from farthing.device.serving.server.repository.places import PLAIN
from farthing.device.serving.server.repository.served import Facts, Served, Tally
from farthing.device.serving.server.settings import ModelSettings
from farthing.device.serving.service import Service
from farthing.engines.base import Engine, engine_for, open_engine
from farthing.engines.openinference import DATATYPES
from farthing.errors import EngineError, ModelError, UnsupportedError
from farthing.model import BUNDLE, Model, TensorSpec


def open_version(
    path: Path, name: str, version: str, settings: ModelSettings, config: TritonConfig
) -> Served:
    """Open a model, check its files, load it into its engine, warm it, and look at its first answer.

    Args:
        path: model directory, zip, output of a search, or bundle of parts, exits or variants.
        name, version: as clients name it; an empty version takes the manifest's.
        settings: how it is to be served.
        config: its ``config.pbtxt``, for the tensors that it declares.

    Raises:
        ModelError: damaged, not what its manifest says, or not what its configuration declares.
        EngineError: its engine cannot run it, or it keeps a state.
        NotInstalled: its engine is missing.
    """
    with contextlib.ExitStack() as opened:
        tally = Tally()
        if (path / BUNDLE).is_file():
            service, facts = _bundle(path, name, settings, tally)
        else:
            model = Model.open(path)
            version = version or model.manifest.version
            _refuse_declared(path, "input", config.inputs, model.manifest.data_inputs)
            _refuse_declared(path, "output", config.outputs, model.manifest.outputs)
            service = _batched(model, name, settings, tally)
            engine = settings.engine or engine_for(model.manifest.format)
            facts = Facts(f"{engine}_{model.manifest.format}", model.digest, config.ignored)
        opened.callback(service.close)
        _refuse_tensors(path, (*service.inputs, *service.outputs))
        if version and not PLAIN.fullmatch(version):
            raise ModelError(f"{path}: version {version!r} cannot stand in a URL: give it letters and digits")
        opened.pop_all()
    return Served(name, version or "1", service, settings, facts, tally)


def _bundle(path: Path, name: str, settings: ModelSettings, tally: Tally) -> tuple[Service, Facts]:
    """Parts as one service, exits as one that leaves early; of variants, the one that suits the moment."""
    bundle = Bundle.open(path)
    role = bundle.manifest.role
    service: Service
    if role == "parts":
        service = open_sharded(
            bundle, "threads", engine=settings.engine, options=settings.options, listener=tally.ran
        )
    elif role == "exits":
        service = open_exits(
            bundle, pipeline=True, engine=settings.engine, options=settings.options, listener=tally.ran
        )
    elif role == "variants":
        openers = {
            key: partial(_batched, model, f"{name}/{key}", settings, tally)
            for key, model in bundle.models.items()
        }
        service = Adaptive(openers)
    else:
        raise UnsupportedError(f"{path} is a bundle of {role}: serve its models one by one")
    return service, Facts(f"farthing_{role}", files.digest(canonical(bundle.manifest)))


def _batched(model: Model, name: str, settings: ModelSettings, tally: Tally) -> Batched:
    """A model in its engines, tried once, behind a batcher."""
    with contextlib.ExitStack() as opened:
        engines = _engines(model, settings, opened)
        _probe(model.path, engines[0])
        service = Batched(engines, _rule(settings), runners=settings.runners, name=name, listener=tally.ran)
        opened.pop_all()
    return service


def _engines(model: Model, settings: ModelSettings, opened: contextlib.ExitStack) -> list[Engine]:
    """One engine; or, where it takes one caller at a time, one for each runner that is asked for."""
    first = opened.enter_context(open_engine(model, settings.engine, settings.options))
    if first.concurrency == "threads":
        return [first]
    more = [
        opened.enter_context(open_engine(model, settings.engine, settings.options))
        for _ in range((settings.runners or 1) - 1)
    ]
    return [first, *more]


def _rule(settings: ModelSettings) -> BatchRule:
    size = max(1, settings.max_batch_size)
    batching = settings.dynamic_batching
    return BatchRule(
        max_size=size,
        delay_ms=batching.max_queue_delay_microseconds / 1000,
        preferred=tuple(one for one in batching.preferred_batch_size if one <= size),
    )


def _refuse_tensors(path: Path, specs: Sequence[TensorSpec]) -> None:
    for spec in specs:
        if spec.dtype not in DATATYPES:
            raise UnsupportedError(
                f"{path}: tensor {spec.name!r} is {spec.dtype}, which this server does not carry"
            )


def _refuse_declared(
    path: Path, what: str, declared: Sequence[Declared], specs: Sequence[TensorSpec]
) -> None:
    """Hold the tensors that a ``config.pbtxt`` declares against the manifest's; it need not declare all."""
    for one in declared:
        spec = next((spec for spec in specs if spec.name == one.name), None)
        if spec is None:
            names = [spec.name for spec in specs]
            raise ModelError(f"{path}: its configuration declares {what} {one.name!r}, the model has {names}")
        sizes = tuple(-1 if isinstance(size, str) else size for size in spec.shape)
        inner = tuple(size for axis, size in enumerate(sizes) if axis != spec.batch_axis)
        if spec.dtype != one.dtype or one.shape not in {sizes, inner}:
            raise ModelError(
                f"{path}: its configuration declares {what} {one.name!r} {one.dtype} {list(one.shape)}, "
                f"but the model has {spec.dtype} {list(sizes)}"
            )


def _probe(path: Path, engine: Engine) -> None:
    """Run it with zeros, and hold what comes against the manifest. Free axes but the batch make that impossible."""
    if any(spec.free_axes for spec in engine.inputs):
        return
    try:
        outputs = engine.run({spec.name: _zeros(spec) for spec in engine.inputs})
    except EngineError as error:
        raise ModelError(f"{path} does not run: fed with zeros, it fails: {error}") from error
    _refuse_outputs(path, engine.outputs, outputs)


def _zeros(spec: TensorSpec) -> NDArray[Any]:
    return np.full(spec.sized(1), "", object) if spec.dtype == "str" else np.zeros(spec.sized(1), spec.dtype)


def _refuse_outputs(path: Path, specs: Sequence[TensorSpec], outputs: Mapping[str, NDArray[Any]]) -> None:
    for spec in specs:
        found = outputs.get(spec.name)
        if found is None:
            raise ModelError(f"{path}: the manifest promises the output {spec.name!r}, which does not come")
        sizes = zip(spec.shape, found.shape, strict=False)
        same = len(spec.shape) == found.ndim and all(isinstance(a, str) or a == b for a, b in sizes)
        dtype = "str" if found.dtype.kind in "OU" else found.dtype.name
        if not same or dtype != spec.dtype:
            raise ModelError(
                f"{path}: the manifest promises {spec.name!r} {spec.dtype} {list(spec.shape)}, "
                f"but what comes is {dtype} {list(found.shape)}: convert the model again"
            )
