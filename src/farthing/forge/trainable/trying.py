"""What an imported module is tried on, and whether it gives what ONNX Runtime gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from farthing.bench import random_array
from farthing.errors import ConversionError, UnsupportedError
from farthing.forge import graph
from farthing.forge.convert.difference import distance
from farthing.model import Manifest, TensorSpec

Array = NDArray[Any]
BATCHES, FREE = (1, 2), (64, 96)
"""What free axes are set to in the two trials: a batch, and any other."""
TOLERANCE = {"float16": 2e-2}
USUAL = 1e-4
"""Largest difference allowed, relative to the largest output: by element type of the outputs, and of any other."""


def trials(
    manifest: Manifest, feeds: Mapping[str, Array] | None
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Random inputs of two sizes; free axes other than the batch have the sizes of ``feeds``, if there are any.

    Raises:
        UnsupportedError: an input that takes text.
    """
    first, second = ({spec.name: _random(spec, feeds, trial) for spec in manifest.inputs} for trial in (0, 1))
    return first, second


def _random(spec: TensorSpec, feeds: Mapping[str, Array] | None, trial: int) -> Array:
    if spec.dtype == "str":
        raise UnsupportedError(f"input {spec.name!r} takes text: a model of text alone cannot be trained")
    shape = list(spec.sized(BATCHES[trial], FREE[trial]))
    if feeds is not None and spec.name in feeds:
        known = feeds[spec.name].shape
        shape = [
            known[axis] if isinstance(size, str) and axis != _batch(spec) else shape[axis]
            for axis, size in enumerate(spec.shape)
        ]
    if _batch(spec) is not None and isinstance(spec.shape[_batch(spec) or 0], str):
        shape[_batch(spec) or 0] = BATCHES[trial]
    return random_array(tuple(shape), spec.dtype, np.random.default_rng(trial))


def _batch(spec: TensorSpec) -> int | None:
    """The axis of a batch: as the manifest says, else a free first one."""
    if spec.batch_axis is None and spec.shape and isinstance(spec.shape[0], str):
        return 0
    return spec.batch_axis


def tensor(array: Array) -> Tensor:
    """A tensor of its own."""
    return torch.from_numpy(np.array(array))


def outputs_of(module: nn.Module, inputs: Sequence[Tensor]) -> list[Array]:
    """What a module gives in evaluation mode; its mode is as before afterwards."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return [
                np.asarray(value.float() if value.dtype == torch.bfloat16 else value)
                for value in module(*inputs)
            ]
    finally:
        module.train(training)


def compare(
    module: fx.GraphModule,
    names: Mapping[str, fx.Node],
    proto: onnx.ModelProto,
    manifest: Manifest,
    feeds: Mapping[str, Array],
) -> None:
    """Hold a module against ONNX Runtime on some inputs.

    Args:
        module: the module.
        names: ONNX tensor names and what computes them.
        proto: the file's content.
        manifest: its manifest.
        feeds: inputs by name.

    Raises:
        ConversionError: they differ; the first operator whose result does is named.
    """
    inputs = [tensor(feeds[spec.name]) for spec in manifest.inputs]
    wanted = graph.run(proto, {spec.name: feeds[spec.name] for spec in manifest.inputs})
    worst, where = 0.0, ""
    for spec, value in zip(manifest.outputs, outputs_of(module, inputs), strict=True):
        gap = gap_of(wanted[spec.name], value)
        if gap > TOLERANCE.get(wanted[spec.name].dtype.name, USUAL) and gap > worst:
            worst, where = gap, spec.name
    if where:
        size = (
            f"by {worst:.2g} of its largest value" if np.isfinite(worst) else "in shape, or beyond any number"
        )
        raise ConversionError(
            f"as a torch module the model does not compute what ONNX Runtime computes: output {where!r} differs "
            f"{size}; "
            f"{_explained(module, names, proto, inputs, feeds)}"
        )


def gap_of(wanted: Array, found: Array) -> float:
    """Largest difference of two results, relative to the largest number; infinite if their shapes differ."""
    return distance(wanted, found) if wanted.shape == found.shape else float("inf")


def _explained(
    module: fx.GraphModule,
    names: Mapping[str, fx.Node],
    proto: onnx.ModelProto,
    inputs: Sequence[Tensor],
    feeds: Mapping[str, Array],
) -> str:
    """A sentence that names the first operator that differs."""
    seen = Recorder(module)
    with torch.no_grad():
        seen.run(*inputs)
    outputs = {value.name for value in proto.graph.output}
    inner = [
        name
        for name, made in names.items()
        if made in seen.values and name not in outputs and name not in feeds
    ]
    wanted = graph.run(proto, feeds, extra=inner, optimise=False)
    for node in proto.graph.node:
        for name in node.output:
            value = seen.values.get(names[name]) if name in names else None
            if value is None or name not in wanted:
                continue
            if gap_of(wanted[name], np.asarray(value)) > TOLERANCE.get(wanted[name].dtype.name, USUAL):
                return f"the first operator that differs is {node.op_type} (node {node.name!r})"
    return "no single operator differs: rounding adds up, or ONNX Runtime's graph optimisations change the result"


class Recorder(fx.Interpreter):
    """Runs a module and keeps what each of its operators gave.

    Attributes:
        values: tensors by operator.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.values[n] = result.detach()
        return result
