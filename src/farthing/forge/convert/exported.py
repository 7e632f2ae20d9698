"""From PyTorch to a checked model: export with a free batch, or a fixed one where a free one goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from farthing.config import Section
from farthing.engines.base import BATCH
from farthing.errors import EngineError, ModelError, UnsupportedError
from farthing.forge import graph
from farthing.forge.convert.compare import Trial
from farthing.forge.convert.describe import manifest_of, with_layouts
from farthing.forge.convert.difference import batch_axes
from farthing.forge.convert.example import Example, Pool, example_of, pool_of
from farthing.forge.convert.module import ModuleSource, parameter_dtype
from farthing.forge.convert.program import ProgramSource
from farthing.forge.convert.recognise import load_weights
from farthing.forge.convert.script import ScriptSource
from farthing.forge.convert.source import Source
from farthing.model import Manifest, Model, TensorSpec

Array = NDArray[Any]


class Options(Section, frozen=True, kw_only=True):
    """How to convert; see `farthing.forge.convert.convert`."""

    tolerance: float
    opset: int
    name: str


class Outcome(Section, frozen=True, kw_only=True):
    """What a trial of one export found.

    Attributes:
        batch: size of axis 0, or None for any number of samples.
        samples: whether axis 0 holds samples that do not depend on one another.
        output_axes: axis of the samples of each output, or None where it has none.
        assumptions: what was taken for granted.
    """

    batch: int | None
    samples: bool = True
    output_axes: tuple[int | None, ...]
    assumptions: tuple[str, ...] = ()


def make(
    made: Any,
    weights: Path | str | None,
    given: Any,
    samples: Mapping[str, Array] | None,
    options: Options,
    owner: Manifest | None,
    path: Path | None,
) -> tuple[Model, str, tuple[str, ...]]:
    """Convert a module, script or program. Returns the model, how it was checked, and what was assumed."""
    assumptions = _filled(made, weights)
    source, example = _source(made, given, samples)
    pool = _pool(source, example, samples)
    trial, outcome = _tried(source, example, pool, options)
    inputs, outputs = _specs(trial, outcome, pool)
    inputs, layouts = with_layouts(inputs, owner)
    unused = [name for name in source.names if name not in {spec.name for spec in inputs}]
    if unused:
        assumptions += (f"inputs left out because no output depends on them: {', '.join(unused)}",)
    opset = graph.opset(trial.model)
    lineage = f"convert.{source.kind}.v1 torch {torch.__version__.partition('+')[0]} opset {opset}"
    manifest = manifest_of(options.name, inputs, outputs, lineage, owner)
    checked = (
        f"outputs equal to the source within {trial.worst:.1e} (limit {options.tolerance:g} of the largest output) "
        f"on {pool.words}"
    )
    model = Model.create(manifest, {"model.onnx": graph.save_bytes(trial.model)}, path)
    return model, checked, (*assumptions, *outcome.assumptions, *layouts)


def _filled(made: Any, weights: Path | str | None) -> tuple[str, ...]:
    if weights is None:
        return ()
    if not isinstance(made, torch.nn.Module) or isinstance(made, torch.jit.ScriptModule):
        raise ModelError(
            "weights go with a module or a factory; scripts and exported programs hold their own"
        )
    return load_weights(made, Path(weights))


def _source(made: Any, given: Any, samples: Mapping[str, Array] | None) -> tuple[Source, Example]:
    if isinstance(made, torch.export.ExportedProgram):
        program = ProgramSource(made)
        own = program.example() if given is None else None
        example = Example(own, True) if own is not None else example_of(given, samples, np.float32)
        return program, _ordered(_present(example), program.names)
    if not isinstance(made, torch.nn.Module):
        raise ModelError(
            f"a {type(made).__name__} is no model that can be converted: give a torch.nn.Module or a file"
        )
    example = _present(example_of(given, samples, parameter_dtype(made)))
    count = len(example.arrays)
    source: Source = (
        ScriptSource(made, count) if isinstance(made, torch.jit.ScriptModule) else ModuleSource(made, count)
    )
    return source, _ordered(example, source.names)


def _present(example: Example | None) -> Example:
    if example is None:
        raise ModelError("say what the model takes, as in --example 1x3x224x224, or give --task")
    return example


def _ordered(example: Example, names: Sequence[str]) -> Example:
    """The example in the order of the inputs."""
    if len(example.arrays) != len(names):
        raise ModelError(
            f"the model takes {len(names)} inputs ({', '.join(names)}), the example has {len(example.arrays)}"
        )
    if not example.names:
        return example
    if set(example.names) != set(names):
        raise ModelError(f"the example names the inputs {list(example.names)}, the model has {list(names)}")
    return Example([example.arrays[example.names.index(name)] for name in names], example.real, names)


def _pool(source: Source, example: Example, samples: Mapping[str, Array] | None) -> Pool:
    batches = [len(array) for array in example.arrays if array.ndim]
    return pool_of(example, samples, source.names, max(batches, default=1))


def _tried(source: Source, example: Example, pool: Pool, options: Options) -> tuple[Trial, Outcome]:
    """Export with a free batch; where that fails or gives wrong results, with the example's own."""
    try:
        free = _free(source, example, pool, options)
        if not isinstance(free, str):
            return free
        reason = free
    except UnsupportedError:
        raise
    except (ModelError, EngineError) as error:
        reason = str(error)
    return _fixed(source, example, pool, options, reason)


def _free(source: Source, example: Example, pool: Pool, options: Options) -> tuple[Trial, Outcome] | str:
    """The trial with a free batch, or why it cannot be kept."""
    if pool.size < 2:
        return "its inputs have no axes"
    model, assumptions = source.export(pool.take(0, 2), options.opset, dynamic=True)
    trial = Trial(source, model, pool, options.tolerance)
    if not trial.compare(1, pool.size):
        return "with a free batch the outputs for single samples differ"
    singles, worst = trial.answers, trial.worst
    if not trial.compare(pool.size, 1):
        return f"for a batch of {pool.size} the outputs differ by {trial.worst:.2g} of the largest"
    axes = batch_axes(singles, trial.answers[0], max(options.tolerance, 10 * worst))
    if axes is None:
        return trial, _bound(example, trial.outputs(example.arrays), assumptions)
    return trial, Outcome(batch=None, output_axes=tuple(axes), assumptions=assumptions)


def _bound(example: Example, outputs: Sequence[Array], assumptions: tuple[str, ...]) -> Outcome:
    """The outcome where a batch is not answered as its samples are: one sample a call, or no samples at all."""
    size = next((len(array) for array in example.arrays if array.ndim), 1)
    reason = "a batch is not answered as its samples are one by one"
    if size == 1:
        axes = tuple(0 if array.ndim and len(array) == 1 else None for array in outputs)
        return Outcome(batch=1, output_axes=axes, assumptions=(*assumptions, f"batch fixed at 1: {reason}"))
    told = f"axis 0 kept at {size} and not taken as a batch axis: {reason}"
    nowhere = (None,) * len(outputs)
    return Outcome(batch=size, samples=False, output_axes=nowhere, assumptions=(*assumptions, told))


def _fixed(
    source: Source, example: Example, pool: Pool, options: Options, reason: str
) -> tuple[Trial, Outcome]:
    """The trial with the example's batch; raises where that is wrong as well."""
    batch = next((len(array) for array in example.arrays if array.ndim), 1)
    own = getattr(source, "batch", None)
    batch = own if isinstance(own, int) else batch
    model, assumptions = source.export(pool.take(0, batch), options.opset, dynamic=False)
    trial = Trial(source, model, pool, options.tolerance)
    if not trial.compare(batch, max(1, pool.size // batch)):
        raise trial.failure(assumptions)
    outputs = trial.outputs(pool.take(0, batch))
    axes = tuple(0 if array.ndim and len(array) == batch and pool.batched else None for array in outputs)
    told = (
        f"batch fixed at {batch}, axis 0 taken as the batch axis: {reason}"
        if pool.batched
        else f"no batch axis: {reason}"
    )
    return trial, Outcome(batch=batch, output_axes=axes, assumptions=(*assumptions, told))


def _specs(trial: Trial, outcome: Outcome, pool: Pool) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Tensor specs as seen: shapes of the inputs fed and of the outputs that came back."""
    batch = BATCH if outcome.batch is None else outcome.batch
    count = outcome.batch or 1
    fed = trial.feeds(pool.take(0, count))
    results = trial.outputs(pool.take(0, count))
    inputs, outputs = graph.tensor_specs(trial.model)
    first = 0 if outcome.samples else None
    seen = [
        _seen(spec, fed[spec.name].shape, first if fed[spec.name].ndim else None, batch) for spec in inputs
    ]
    answers = [
        _seen(spec, array.shape, axis, batch)
        for spec, array, axis in zip(outputs, results, outcome.output_axes, strict=True)
    ]
    return seen, answers


def _seen(spec: TensorSpec, shape: tuple[int, ...], axis: int | None, batch: int | str) -> TensorSpec:
    sizes = tuple(batch if place == axis else size for place, size in enumerate(shape))
    return msgspec.structs.replace(spec, shape=sizes, batch_axis=axis)
