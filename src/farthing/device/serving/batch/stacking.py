"""Requests of several callers as one feed, and its outputs as their answers."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.engines.base import Engine, Tensors, check_feeds
from farthing.errors import EngineError, FarthingError
from farthing.model import TensorSpec

Array = NDArray[Any]
_TRIALS = 5  # batches of one size that are timed, and
_TRIAL = 0.05  # seconds after which two are enough


class Stack:
    """An engine with room for a batch in front of it. One thread may use ``run`` at a time.

    Attributes:
        stackable: whether requests can share a run: every output, and an input at least, has a batch axis, and the
            model leaves its size free. Inputs without one, such as a threshold, must be equal.
        limit: samples in a batch, at most; 1 where requests cannot share a run.

    Args:
        engine: the open engine.
        limit: samples in a batch, at most.
    """

    def __init__(self, engine: Engine, limit: int) -> None:
        self._engine = engine
        self._inputs, self._outputs = engine.inputs, engine.outputs
        batched = [spec for spec in engine.inputs if spec.batch_axis is not None]
        self.stackable = bool(batched) and all(
            spec.batch_axis is not None and spec.fixed_batch is None for spec in (*batched, *engine.outputs)
        )
        self.limit = limit if self.stackable else 1
        self._first = batched[0] if self.stackable else None
        self._plain = _plain(self._first) if len(engine.inputs) == 1 else None
        self._room: dict[tuple[str, tuple[int, ...]], Array] = {}

    def measure(self, feeds: Tensors) -> tuple[int, Hashable]:
        """Check feeds; how many samples they hold, and a key that is equal for feeds that fit into one batch.

        Raises:
            FeedError: as `check_feeds` does.
        """
        plain = self._plain
        if plain is not None and len(feeds) == 1:  # the usual case, at a third of the cost
            name, dtype, shape = plain
            array = feeds.get(name)
            if type(array) is np.ndarray and array.dtype is dtype and array.shape[1:] == shape and array.ndim:
                return array.shape[0], ()
        check_feeds(self._inputs, feeds)
        if self._first is None:
            return 1, ()
        size = feeds[self._first.name].shape[self._first.batch_axis or 0]
        return size, tuple(_signature(spec, feeds[spec.name]) for spec in self._inputs)

    def run(self, requests: Sequence[tuple[Tensors, int]]) -> list[Mapping[str, Array]]:
        """Compute requests together.

        Args:
            requests: feeds of one key, and how many samples each holds.

        Returns:
            The outputs of each request; they share memory with one another, and with nothing else.

        Raises:
            EngineError: the runtime failed, or an output holds another number of samples than were fed.
        """
        if len(requests) == 1:
            feeds, size = requests[0]
            outputs = self._engine.run(feeds)
            self._check(outputs, size)
            return [outputs]
        sizes = [size for _, size in requests]
        total = sum(sizes)
        stacked = {spec.name: self._stacked(spec, requests, total) for spec in self._inputs}
        outputs = self._engine.run(stacked)
        self._check(outputs, total)
        rooms = list(stacked.values())
        own = {name: _own(array, rooms) for name, array in outputs.items()}
        return _split(self._outputs, own, sizes)

    def warm(self, pays: float) -> tuple[int, float]:
        """Run batches of zeros, each twice as large as the last while that saves a share ``pays`` for each sample.

        Args:
            pays: 0 runs full batches only.

        Returns:
            Samples in the largest batch that pays, and the least seconds one took; the limit and inf if zeros are no
            input for the model.
        """
        if any(spec.free_axes for spec in self._inputs):
            return self.limit, math.inf  # nobody knows the sizes yet
        size = 1 if pays else self.limit
        try:
            seconds = self._timed(size)
            while size < self.limit:
                larger = min(2 * size, self.limit)
                took = self._timed(larger)
                if took / larger > seconds / size * (1 - pays):
                    break
                size, seconds = larger, took
        except (FarthingError, TypeError):
            return self.limit, math.inf
        return size, seconds

    def _timed(self, size: int) -> float:
        """The least seconds a batch of zeros takes, of a few."""
        feeds = {spec.name: np.zeros(spec.sized(size), spec.dtype) for spec in self._inputs}
        until, seconds = time.perf_counter() + _TRIAL, list[float]()
        while len(seconds) < _TRIALS and (len(seconds) < 2 or time.perf_counter() < until):
            began = time.perf_counter()
            self._engine.run(feeds)
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    def _stacked(self, spec: TensorSpec, requests: Sequence[tuple[Tensors, int]], total: int) -> Array:
        """The feeds of one input, behind one another along its batch axis, in memory kept for it."""
        name, axis = spec.name, spec.batch_axis
        first = requests[0][0][name]
        if axis is None:
            return first
        if axis or spec.dtype == "str":  # strings have no one width
            return np.concatenate([feeds[name] for feeds, _ in requests], axis)
        place = name, first.shape[1:]
        room = self._room.get(place)
        if room is None:
            if len(self._room) >= 4 * len(self._inputs):
                self._room.clear()  # many shapes: keep the latest
            room = self._room[place] = np.empty((max(self.limit, total), *first.shape[1:]), first.dtype)
        at = 0
        for feeds, size in requests:
            room[at : at + size] = feeds[name]
            at += size
        return room[:total]

    def _check(self, outputs: Mapping[str, Array], total: int) -> None:
        if not self.stackable:
            return
        for spec in self._outputs:
            got = outputs[spec.name].shape
            if len(got) <= (spec.batch_axis or 0) or got[spec.batch_axis or 0] != total:
                raise EngineError(
                    f"output {spec.name!r} is {list(got)} for {total} samples, but its manifest declares "
                    f"{list(spec.shape)}: convert the model again"
                )


def _plain(spec: TensorSpec | None) -> tuple[str, np.dtype[Any], tuple[int | str, ...]] | None:
    """Name, type and shape of a sample, for an input whose batch axis is the first, and the only free one."""
    if spec is None or spec.batch_axis != 0 or spec.free_axes or spec.dtype in {"str", "bfloat16"}:
        return None
    return spec.name, np.dtype(spec.dtype), spec.shape[1:]


def _signature(spec: TensorSpec, array: Array) -> Hashable:
    """What must be equal in one batch: the other axes, or, without a batch axis, the whole tensor."""
    if spec.batch_axis is None:
        return array.shape, array.tobytes()
    return (*array.shape[: spec.batch_axis], *array.shape[spec.batch_axis + 1 :])


def _own(array: Array, rooms: Sequence[Array]) -> Array:
    """An output that does not lie in the memory of an input: the next batch would overwrite it."""
    return array.copy() if any(np.may_share_memory(array, room) for room in rooms) else array


def _split(
    specs: Sequence[TensorSpec], outputs: Mapping[str, Array], sizes: Sequence[int]
) -> list[Mapping[str, Array]]:
    shares: list[dict[str, Array]] = [{} for _ in sizes]
    for spec in specs:
        array, axis = outputs[spec.name], spec.batch_axis or 0
        if axis:
            array = np.moveaxis(array, axis, 0)
        at = 0
        for share, size in zip(shares, sizes, strict=True):
            part = array[at : at + size]
            share[spec.name] = np.moveaxis(part, 0, axis) if axis else part
            at += size
    return list(shares)
