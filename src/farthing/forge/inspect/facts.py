"""What an inspection holds, and what those of every format share: numbers by layer, feeds for one sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from farthing.anatomy import Layer, Placed
from farthing.bench import random_feeds
from farthing.config import Section
from farthing.errors import MeasurementError
from farthing.model import Manifest, TensorSpec
from farthing.options import EngineOptions

Array = NDArray[Any]
RUNS = 5
SHARED = "shared"
WEIGHTS = {"float32", "float16", "int8", "uint8"}
"""Element types in which zeros among weights are counted."""
_SCALES = {"QuantizeLinear", "DequantizeLinear"}


class Weights(Section, frozen=True, kw_only=True):
    """Stored numbers of one element type."""

    dtype: str
    count: int
    bytes: int


class Inspection(Section, frozen=True, kw_only=True):
    """What `inspect` found. None and empty mean not known; ``notes`` say why.

    Attributes:
        name, format, size_bytes: from the manifest and the files.
        inputs, outputs: tensors in the order of the file.
        opset: of the standard operators, ONNX and OpenVINO.
        operators: operator -> how often it occurs in the file, inner graphs included.
        nodes: how many there are in all.
        parameters: stored numbers; ``weights`` has them by element type.
        layers: operators with stored numbers, the most bytes first.
        zeros: share of the weights (stored numbers with two axes or more) that are zero, 0..1.
        zipped_bytes: of its files, each compressed as in a zip (deflate): what zeros save.
        macs: multiply-accumulates for one sample.
        runtime: name and version of the engine that ran it; ``providers`` those it has here.
        placement: nodes as they run after the runtime's own fusions, in order.
        activation_peak_bytes: most memory for activations at any time of one run.
        notes: what could not be found out, and why.
    """

    name: str
    format: str
    size_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int | None = None
    operators: dict[str, int] = {}
    nodes: int = 0
    parameters: int | None = None
    weights: tuple[Weights, ...] = ()
    layers: tuple[Layer, ...] = ()
    zeros: float | None = None
    zipped_bytes: int | None = None
    macs: int | None = None
    runtime: str = ""
    providers: tuple[str, ...] = ()
    placement: tuple[Placed, ...] = ()
    activation_peak_bytes: int | None = None
    notes: tuple[str, ...] = ()


class Subject(NamedTuple):
    """What is looked into.

    Attributes:
        path: the file that an engine opens.
        manifest: if the file has one.
        size_bytes: of all its files.
        feeds: inputs to run it on; None takes random ones.
        run: whether it may be run at all.
        options: how the engine is to run it.
    """

    path: Path
    manifest: Manifest | None
    size_bytes: int
    feeds: Mapping[str, Array] | None
    run: bool
    options: EngineOptions = EngineOptions()

    @property
    def name(self) -> str:
        return self.manifest.name if self.manifest else self.path.stem

    def fed(self, inputs: Sequence[TensorSpec]) -> tuple[dict[str, Array], str]:
        """Inputs to run it on, or why it is not run."""
        if not self.run:
            return {}, "not asked for"
        if self.feeds is not None:
            return dict(self.feeds), ""
        try:
            return random_feeds(inputs, 1, np.random.default_rng(0)), ""
        except MeasurementError as error:
            return {}, str(error)


class Stored(NamedTuple):
    """Stored numbers: how many, their element type, the bytes they take, and how many of them are zero.

    ``zeros`` is None for what is no weight, or cannot be read.
    """

    numbers: int
    dtype: str
    bytes: int
    zeros: int | None = None


def zeros_in(numbers: Array) -> int | None:
    """How many are zero; None for what has fewer than two axes, as biases and scales do."""
    return (
        int(numbers.size - np.count_nonzero(numbers))
        if numbers.ndim > 1 and numbers.dtype.kind in "iuf"
        else None
    )


def share_of_zeros(stored: Iterable[Stored]) -> float | None:
    """Of the weights, 0..1; None if there are none."""
    known = [(part.zeros, part.numbers) for part in stored if part.zeros is not None]
    count = sum(numbers for _, numbers in known)
    return sum(zeros for zeros, _ in known) / count if count else None


class Reader(NamedTuple):
    """An operator of a graph: its name and type, the tensors it reads and makes."""

    name: str
    operator: str
    inputs: Sequence[str]
    outputs: Sequence[str]


def weights(stored: Iterable[Stored]) -> tuple[Weights, ...]:
    """Stored numbers by element type, the most bytes first."""
    totals: dict[str, tuple[int, int]] = {}
    for part in stored:
        count, size = totals.get(part.dtype, (0, 0))
        totals[part.dtype] = (count + part.numbers, size + part.bytes)
    found = [Weights(dtype=name, count=count, bytes=size) for name, (count, size) in totals.items()]
    return tuple(sorted(found, key=lambda part: (-part.bytes, part.dtype)))


def layers(readers: Sequence[Reader], stored: Mapping[str, Stored]) -> tuple[Layer, ...]:
    """Operators with the bytes of the numbers they read, the most first.

    What an operator makes from stored numbers alone (a weight that is converted, or made real from 8 bits) counts for
    whoever reads that. Scales of activations are one line; what several read has one of its own.

    Args:
        readers: the operators, in an order in which numbers are made before they are read.
        stored: tensor -> its numbers.
    """
    origins = {name: {name} for name in stored}  # tensor -> the stored ones it is made of
    users: dict[str, list[Reader]] = {}
    for reader in readers:
        read = [name for name in reader.inputs if name]
        if read and all(name in origins for name in read):
            made = set().union(*(origins[name] for name in read))
            origins |= dict.fromkeys(reader.outputs, made)
            continue
        for origin in set().union(*(origins.get(name, set()) for name in read)):
            users.setdefault(origin, []).append(reader)
    return _summed(users, stored)


def _summed(users: Mapping[str, Sequence[Reader]], stored: Mapping[str, Stored]) -> tuple[Layer, ...]:
    totals: dict[tuple[str, str], Counter[str]] = {}
    for name, part in stored.items():
        readers = users.get(name, ())
        if readers and all(reader.operator in _SCALES for reader in readers):
            key = ("scales of activations", "QuantizeLinear, DequantizeLinear")
        elif len(readers) == 1:
            key = (readers[0].name, readers[0].operator)
        else:
            key = (name, SHARED if readers else "unused")
        totals.setdefault(key, Counter())[part.dtype] += part.bytes
    return ranked(totals)


def ranked(totals: Mapping[tuple[str, str], Counter[str]]) -> tuple[Layer, ...]:
    """Layers from bytes by element type, the most bytes first; what holds none is left out."""
    found = [
        Layer(
            name=name,
            operator=operator,
            bytes=sum(sizes.values()),
            dtype=", ".join(dtype for dtype, _ in sizes.most_common()),
        )
        for (name, operator), sizes in totals.items()
        if sum(sizes.values())
    ]
    return tuple(sorted(found, key=lambda layer: (-layer.bytes, layer.name)))


def batch(inputs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> int:
    """Samples in the feeds."""
    sizes = [
        feeds[s.name].shape[s.batch_axis] for s in inputs if s.batch_axis is not None and s.name in feeds
    ]
    return max(sizes, default=1) or 1
