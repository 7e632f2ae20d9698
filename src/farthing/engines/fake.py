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
from farthing.engines.base import Tensors, check_feeds, check_options, refuse_batch, refuse_closed
from farthing.errors import EngineError, ModelError
from farthing.model import Model, TensorSpec
from farthing.options import EngineOptions


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
        check_options("the fake engine", options, spin=True)  # it has no idle threads
        if options.threads != 1 or options.providers:
            raise EngineError("the fake engine computes in the caller's thread: threads=1, no providers")
        try:
            self._affine: Affine | None = msgspec.json.decode(model.file.read_bytes(), type=Affine)
        except (msgspec.MsgspecError, OSError) as error:
            raise ModelError(f"{model.file} is not a fake model: {error}") from error
        self._weights, self._bias = _checked(model, self._affine)
        self.inputs: Sequence[TensorSpec] = model.manifest.data_inputs
        self.outputs: Sequence[TensorSpec] = model.manifest.outputs
        self.stateful = self._affine.decay is not None
        self._state: NDArray[Any] | None = None
        self._turn = threading.Lock()

    @classmethod
    def installed(cls) -> str:
        """See `Engine.installed`: it needs nothing."""
        return cls.version

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        check_feeds(self.inputs, feeds)
        with self._turn:
            if self._affine is None:
                refuse_closed()
            result = feeds[self.inputs[0].name] @ self._weights + self._bias
            if self._affine.decay is not None:
                result = self._remembered(result, self._affine.decay)
            return {self.outputs[0].name: result}

    def _remembered(self, result: NDArray[Any], decay: float) -> NDArray[Any]:
        if self._state is not None:
            if len(self._state) != len(result):
                refuse_batch(len(self._state), len(result))
            result = np.float32(decay) * self._state + result
        self._state = result
        return result.copy()  # the caller may write into what it gets

    def session(self) -> Self:
        """A stream of its own, its state at zero."""
        if self._affine is None:
            refuse_closed()
        stream = object.__new__(type(self))
        stream.__dict__.update(self.__dict__, _state=None, _turn=threading.Lock())
        return stream

    def close(self) -> None:
        self._affine = None
        self._weights = self._bias = np.empty(0, np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _checked(model: Model, affine: Affine) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weights and bias, held against the manifest."""
    manifest = model.manifest
    try:
        weights, bias = np.asarray(affine.weights, np.float32), np.asarray(affine.bias, np.float32)
    except ValueError as error:
        raise ModelError(f"{model.path}: the weights of a fake model are no matrix: {error}") from error
    specs = (*manifest.inputs, *manifest.outputs)
    plain = len(manifest.inputs) == len(manifest.outputs) == 1 and all(
        spec.dtype == "float32" and spec.shape and spec.role == "data" for spec in specs
    )
    if not plain or weights.ndim != 2:
        raise ModelError(f"{model.path}: a fake model has one float32 input and one float32 output")
    features, outputs = specs[0].shape[-1], specs[1].shape[-1]
    if weights.shape != (features, outputs) or bias.shape != (outputs,):
        raise ModelError(
            f"{model.path}: weights {list(weights.shape)} do not fit the manifest ({features}, {outputs})"
        )
    return weights, bias
