"""The check of a conversion: source and ONNX file run on the same inputs, one by one and in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from farthing.errors import ConversionError, FarthingError, ModelError
from farthing.forge import graph
from farthing.forge.convert.difference import distance
from farthing.forge.convert.example import Pool
from farthing.forge.convert.recognise import FORWARD_ERRORS
from farthing.forge.convert.source import Source
from farthing.forge.convert.trace import explain

Array = NDArray[Any]


class Trial:
    """An exported graph beside its source.

    Args:
        source: the source.
        model: what it was exported to.
        pool: inputs.
        tolerance: largest difference allowed, relative to the largest output of the source.

    Attributes:
        worst: largest relative difference seen so far.
        answers: what the ONNX graph gave in the last comparison, one list of outputs a call.
    """

    def __init__(self, source: Source, model: onnx.ModelProto, pool: Pool, tolerance: float) -> None:
        self.model = model
        self.worst = 0.0
        self.answers: list[list[Array]] = []
        self._source = source
        self._pool = pool
        self._tolerance = tolerance
        self._session = graph.Session(model)
        self._inputs = {value.name for value in model.graph.input}
        self._names = [value.name for value in model.graph.output]
        self._worst_inputs: list[Array] = []

    def compare(self, batch: int, calls: int) -> bool:
        """Run ``calls`` batches through both; whether every difference keeps the tolerance.

        Raises:
            ModelError: the source fails, or gives NaN or infinity.
            EngineError: ONNX Runtime fails.
        """
        self.answers = []
        for call in range(calls):
            inputs = self._pool.take(call * batch, batch)
            wanted, got = self._source.run(inputs), self.outputs(inputs)
            self.answers.append(got)
            gap = _gap(wanted, got)
            if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in wanted):
                raise ModelError(
                    f"the source gives NaN or infinity on {self._pool.words}: its conversion cannot be checked"
                )
            if gap > self.worst or not self._worst_inputs:
                self.worst, self._worst_inputs = max(gap, self.worst), inputs
        return self.worst <= self._tolerance

    def outputs(self, inputs: Sequence[Array]) -> list[Array]:
        """What the ONNX graph gives."""
        results = self._session.run(self.feeds(inputs))
        return [results[name] for name in self._names]

    def feeds(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """Inputs by name, without those the exporter left out because nothing depends on them."""
        return {name: a for name, a in zip(self._source.names, inputs, strict=True) if name in self._inputs}

    def failure(self, remarks: Sequence[str] = ()) -> ConversionError:
        """The error that names the first differing operator, for the inputs that differ most.

        Args:
            remarks: what the exporter had to say, which is often the reason.
        """
        inputs = self._worst_inputs
        first, second = self._source.run(inputs), self._source.run(inputs)
        size = (
            f"{self.worst:.2g} of the largest output"
            if np.isfinite(self.worst)
            else "in shape, or beyond any number"
        )
        start = f"the converted model does not compute what its source computes: outputs differ by {size}"
        if _gap(first, second) > self._tolerance:
            why = "the source gives other outputs each time it runs: switch its randomness off"
        else:
            try:
                steps = self._source.steps(inputs)
                why = explain(steps, first, self.model, self.feeds(inputs), self._tolerance)
            except (FarthingError, *FORWARD_ERRORS) as error:
                why = f"the first differing operator could not be found ({error})"
        said = f"; while exporting: {'; '.join(remarks)}" if remarks else ""
        return ConversionError(f"{start} (limit {self._tolerance:g}, on {self._pool.words}); {why}{said}")


def _gap(wanted: Sequence[Array], got: Sequence[Array]) -> float:
    if len(wanted) != len(got) or any(a.shape != b.shape for a, b in zip(wanted, got, strict=True)):
        return float("inf")
    return max((distance(a, b) for a, b in zip(wanted, got, strict=True)), default=0.0)
