"""Row: an engine and the models the conformance suite tries it with; one file for each engine gives its ROW."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.engines.base import Engine, open_engine
from farthing.model import Model, TensorSpec
from farthing.options import EngineOptions

Array = NDArray[Any]
GENERATOR = np.random.default_rng(7)
WEIGHTS = GENERATOR.standard_normal((4, 3)).astype(np.float32)
BIAS = GENERATOR.standard_normal(3).astype(np.float32)
DECAY = 0.5


@dataclass(frozen=True)
class Row:
    """An engine and the models it is tried with. What it cannot express stays None; nothing else may be left out.

    All computations are ``x @ WEIGHTS + BIAS`` in float32 unless a builder says otherwise.

    Attributes:
        engine: its name; ``package`` the Python package it needs, empty if none; ``environment`` variables that
            must be set before that package is imported.
        threads: thread counts it honours, each meaning so many threads at work, the caller's included.
        pool: its threads belong to a pool of the runtime's, which outlives an engine.
        affine: input ``x`` (batch, 4), output ``y`` (batch, 3); the argument is the batch, a size or a name.
        large: an affine model of 512 -> 512 with a megabyte of weights, batch free.
        damaged: contents that are no model of this format, beside those no engine reads.
        stateful: output ``y = DECAY * last y + x @ WEIGHTS + BIAS``, batch free, the first y from a state of zero.
        fixed_state: the same with a batch of 2 that is fixed.
        inner_state: the same with a batch of 1 and no state tensors: the file keeps variables of its own.
        identity: output ``y`` equal to input ``x`` (batch, 2) of a dtype; ``dtypes`` lists those it knows.
        free: input ``x`` (batch, time, 4), output ``y`` (batch, time, 3), both leading axes free.
        two: inputs ``a`` and ``b`` (batch, 4), output ``y = a - b``.
        parameter: input ``x`` (batch, 4), a scalar ``gain`` with role parameter, output ``y = gain * x``.
        suppress: non-maximum suppression: ``boxes`` (n, 4) corners and ``scores`` (n,) -> ``kept`` (k,), numbers of
            boxes by falling score; overlaps above 0.5 of the union and scores up to 0.1 go.
        unsupported: files of the right format that need an operator or opset nobody has.
        named: whether a file of this format names its tensors.
    """

    engine: str
    affine: Callable[[int | str], Model]
    large: Callable[[], Model]
    package: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    threads: tuple[int, ...] = (1,)
    pool: bool = False
    damaged: tuple[bytes, ...] = ()
    stateful: Callable[[], Model] | None = None
    fixed_state: Callable[[], Model] | None = None
    inner_state: Callable[[], Model] | None = None
    identity: Callable[[str], Model] | None = None
    dtypes: tuple[str, ...] = ()
    free: Callable[[], Model] | None = None
    two: Callable[[], Model] | None = None
    parameter: Callable[[], Model] | None = None
    suppress: Callable[[], Model] | None = None
    unsupported: tuple[Callable[[], Model], ...] = ()
    named: bool = True

    def open(self, model: Model, **options: Any) -> Engine:
        return open_engine(model, self.engine, EngineOptions(**options))


def spec(
    name: str, *shape: int | str, dtype: str = "float32", batch_axis: int | None = 0, **more: Any
) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, batch_axis=batch_axis, **more)
