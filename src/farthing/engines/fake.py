"""A small engine of our own for tests and bare machines: an affine layer read from JSON, computed by numpy.

The file holds ``weights`` (features x outputs), ``bias`` (outputs) and optionally ``decay``: with it the
model keeps a state, ``state = decay * state + x @ weights + bias``, which is also its output.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.config import Section
from farthing.engines.base import EngineOptions, Tensors, check_feeds
from farthing.errors import EngineError, ModelError
from farthing.model import Model, TensorSpec


class Affine(Section, frozen=True, kw_only=True):
    """Content of a ``fake`` model file."""

    weights: list[list[float]]
    bias: list[float]
    decay: float | None = None


class FakeEngine:
    """Runs a ``fake`` model: one data input of shape (batch, features), one output of shape (batch, outputs)."""

    name: ClassVar[str] = "fake"
    formats: ClassVar[frozenset[str]] = frozenset({"fake"})
    concurrency: ClassVar[Literal["threads", "serial"]] = "serial"
    version = "1"

    def __init__(self, model: Model, options: EngineOptions) -> None:
        if options.threads != 1 or options.providers:
            raise EngineError("the fake engine computes in the caller's thread: threads=1, no providers")
        try:
            self._affine: Affine | None = msgspec.json.decode(model.file.read_bytes(), type=Affine)
        except (msgspec.MsgspecError, OSError) as error:
            raise ModelError(f"{model.file} is not a fake model: {error}") from error
        self._weights = np.asarray(self._affine.weights, np.float32)
        self._bias = np.asarray(self._affine.bias, np.float32)
        _check(model, self._weights, self._bias)
        self.inputs: Sequence[TensorSpec] = model.manifest.data_inputs
        self.outputs: Sequence[TensorSpec] = model.manifest.outputs
        self.stateful = self._affine.decay is not None
        self._state: Any = np.float32(0)
        self._turn = threading.Lock()

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        check_feeds(self.inputs, feeds)
        with self._turn:
            if self._affine is None:
                raise EngineError("this engine is closed: open the model again")
            result = feeds[self.inputs[0].name] @ self._weights + self._bias
            if self._affine.decay is not None:
                result = np.float32(self._affine.decay) * self._state + result
                self._state = result
            return {self.outputs[0].name: result}

    def session(self) -> Self:
        """A stream of its own, its state at zero."""
        if self._affine is None:
            raise EngineError("this engine is closed: open the model again")
        stream = object.__new__(type(self))
        stream.__dict__.update(self.__dict__, _state=np.float32(0), _turn=threading.Lock())
        return stream

    def close(self) -> None:
        self._affine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _check(model: Model, weights: NDArray[Any], bias: NDArray[Any]) -> None:
    manifest = model.manifest
    if len(manifest.data_inputs) != 1 or len(manifest.outputs) != 1 or weights.ndim != 2:
        raise ModelError(f"{model.path}: a fake model has one input, one output and a matrix of weights")
    features, outputs = manifest.data_inputs[0].shape[-1], manifest.outputs[0].shape[-1]
    if weights.shape != (features, outputs) or bias.shape != (outputs,):
        raise ModelError(f"{model.path}: weights {list(weights.shape)} do not fit the manifest ({features}, {outputs})")
