"""What an imported module is tried on, and whether it gives what ONNX Runtime gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from farthing.bench import random_array
from farthing.engines.base import zero_state
from farthing.errors import ConversionError, FeedError, UnsupportedError
from farthing.forge import graph
from farthing.forge.convert.difference import distance
from farthing.forge.convert.trace import to_numpy
from farthing.model import Manifest, TensorSpec

Array = NDArray[Any]
BATCHES, FREE = (1, 2), (64, 96)
"""What free axes are set to in the two trials: a batch, and any other."""
TOLERANCE = {"float16": 2e-2}
USUAL = 1e-4
"""Largest difference allowed, relative to the largest output: by element type of the outputs, and of any other."""
DIFFERENT = 0.01
"""Share of whole numbers that may differ: where two are nearly the largest, either may be found."""


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
    known = feeds[spec.name].shape if feeds is not None and spec.name in feeds else None
    shape = []
    for axis, size in enumerate(spec.shape):
        free = FREE[trial] if known is None else known[axis]
        shape.append(size if isinstance(size, int) else BATCHES[trial] if axis == _batch(spec) else free)
    return random_array(tuple(shape), spec.dtype, np.random.default_rng(trial))


def _batch(spec: TensorSpec) -> int | None:
    """The axis of a batch: as the manifest says, else a free first one."""
    if spec.batch_axis is None and spec.shape and isinstance(spec.shape[0], str):
        return 0
    return spec.batch_axis


def complete(manifest: Manifest, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All inputs: those given, and zeros for the state that a stream begins with.

    Raises:
        FeedError: an input is missing.
    """
    states = [spec for spec in manifest.inputs if spec.role == "state" and spec.name not in feeds]
    batches = [
        feeds[spec.name].shape[spec.batch_axis]
        for spec in manifest.data_inputs
        if spec.batch_axis is not None and spec.name in feeds
    ]
    whole = {**zero_state(states, max(batches, default=1)), **feeds}
    for spec in manifest.inputs:
        if spec.name not in whole:
            raise FeedError(f"input {spec.name!r} of {manifest.name} is missing among the inputs to check on")
    return {spec.name: whole[spec.name] for spec in manifest.inputs}


def tensor(array: Array) -> Tensor:
    """A tensor of its own."""
    return torch.from_numpy(np.array(array))


def ordered(manifest: Manifest, feeds: Mapping[str, Array]) -> list[Tensor]:
    """Inputs as a module takes them."""
    return [tensor(feeds[spec.name]) for spec in manifest.inputs]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode is as before afterwards."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def compare(
    module: fx.GraphModule,
    names: Mapping[str, fx.Node],
    proto: onnx.ModelProto,
    manifest: Manifest,
    samples: Sequence[Mapping[str, Array]],
) -> None:
    """Hold a module against ONNX Runtime.

    Args:
        module: the module.
        names: ONNX tensor names and what computes them.
        proto: the file's content.
        manifest: its manifest.
        samples: inputs by name, one set after the other.

    Raises:
        ConversionError: they differ; the first operator whose result does is named.
    """
    session = graph.Session(proto)
    for feeds in samples:
        wanted = session.run(feeds)
        with evaluating(module):
            found = [to_numpy(value) for value in module(*ordered(manifest, feeds))]
        pairs = [
            (spec.name, gap(wanted[spec.name], mine))
            for spec, mine in zip(manifest.outputs, found, strict=True)
        ]
        where, worst = max(pairs, key=lambda pair: pair[1])
        if worst > 0:
            size = (
                f"by {worst:.2g} of its largest value"
                if np.isfinite(worst)
                else "in kind, or beyond any number"
            )
            raise ConversionError(
                "as a torch module the model does not compute what ONNX Runtime computes: "
                f"output {where!r} differs {size}; {_explained(module, names, proto, manifest, feeds)}"
            )


def gap(wanted: Array, found: Array) -> float:
    """Largest difference of two results relative to the largest number, 0 if it is small enough, else infinite.

    Numbers of whole types, such as indices of the largest, may be others in one place of a hundred.
    """
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return float("inf")
    if wanted.dtype.kind != "f":
        return 0.0 if wanted.size == 0 or float((wanted != found).mean()) <= DIFFERENT else float("inf")
    size = distance(wanted, found)
    return size if size > TOLERANCE.get(wanted.dtype.name, USUAL) else 0.0


def _explained(
    module: fx.GraphModule,
    names: Mapping[str, fx.Node],
    proto: onnx.ModelProto,
    manifest: Manifest,
    feeds: Mapping[str, Array],
) -> str:
    """A sentence that names the first operator that differs."""
    values = recorded(module, ordered(manifest, feeds))
    fixed = {value.name for value in (*proto.graph.output, *proto.graph.input)}
    inner = [name for name, made in names.items() if made in values and name not in fixed]
    wanted = graph.run(proto, feeds, extra=inner, optimise=False)
    for node in proto.graph.node:
        for name in node.output:
            value = values.get(names[name]) if name in names else None
            if value is not None and name in wanted and gap(wanted[name], to_numpy(value)):
                return f"the first operator that differs is {node.op_type} (node {node.name!r})"
    return "no single operator differs: rounding adds up, or ONNX Runtime's graph optimisations change the result"


def recorded(module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[fx.Node, Tensor]:
    """What each operator of a module gives in evaluation mode."""
    recorder = _Recorder(module)
    with evaluating(module):
        recorder.run(*inputs)
    return recorder.values


class _Recorder(fx.Interpreter):
    """Runs a module and keeps what its operators give."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.values[n] = result
        return result
