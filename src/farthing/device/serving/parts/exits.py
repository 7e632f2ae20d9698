"""EarlyExit: a network that answers as soon as it is sure enough, sample by sample."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from farthing.bundle import Bundle, Exits, HasEnds, as_bundle, wire
from farthing.device.serving.parts.shard import WAITING, Run, Sharded, ShardStats, open_parts
from farthing.device.serving.service import Answer, Clock, Listener, Request, Service
from farthing.engines.base import Engine
from farthing.errors import EngineError, ModelError
from farthing.model import TensorSpec
from farthing.ops.scale import real
from farthing.ops.sureness import sureness
from farthing.options import EngineOptions

Array = NDArray[Any]


class ExitStats(ShardStats, frozen=True, kw_only=True):
    """What a network with exits has done so far.

    Attributes:
        exits: samples that each exit answered.
        computed: samples that each part computed.
    """

    exits: tuple[int, ...] = ()
    computed: tuple[int, ...] = ()


class _Leaving(Run):
    """A request whose samples leave one by one.

    Attributes:
        inside: rows of the request that the tensors still hold.
        open: which of these have no answer yet.
        scores: of all rows, as far as they are answered; likewise by which exit, and how sure it was.
    """

    __slots__ = ("by", "inside", "open", "scores", "sure")

    def __init__(self, request: Request, came: float) -> None:
        super().__init__(request, came)
        self.inside: Array = np.empty(0, np.int64)
        self.open: Array = np.empty(0, bool)
        self.scores: Array = np.empty(0)
        self.by: Array = np.empty(0, np.int64)
        self.sure: Array = np.empty(0)

    def begin(self, scores: Array) -> None:
        """Make room for the answers, now that the first scores say how many samples there are."""
        self.inside, self.open = np.arange(len(scores)), np.ones(len(scores), bool)
        self.scores, self.by = np.empty_like(scores), np.zeros(len(scores), np.int64)
        self.sure = np.zeros(len(scores))


class EarlyExit(Sharded):
    """Parts that each give the scores of an exit, and the features that the next part takes.

    A sample leaves at the first exit that is sure enough of it (see `farthing.bundle.Exits`), at the last one in any
    case; those that leave early leave the batch, and the rest goes on. An answer has the scores under the name that
    the last exit gives them, rows in the order they were asked; its confidence is that of the least sure sample, and
    its reason says which exit answered. Scores that are not numbers are never sure.

    Args:
        parts: open engines or services, in order; closed by `close`.
        exits: thresholds and what they are held against; None takes the defaults.
        scores: name of the scores that each part gives; empty: what it makes and no later part takes.
        name, pipeline, depth, waiting, clock, listener: as `Sharded` takes them.

    Raises:
        ModelError: the tensors of the parts do not fit together, a part has no scores or several, those of the exits
            differ in form, or there is not a threshold for each exit but the last.
        EngineError: a part keeps a state between calls.
    """

    def __init__(
        self,
        parts: Sequence[Engine | Service],
        exits: Exits | None = None,
        *,
        scores: Sequence[str] = (),
        name: str = "",
        pipeline: bool = False,
        depth: int | None = None,
        waiting: int = WAITING,
        clock: Clock = time.monotonic,
        listener: Listener | None = None,
    ) -> None:
        self._exits = exits or Exits()
        self._thresholds = self._exits.resolved(len(parts))
        self._scores = _scores(parts, scores)
        super().__init__(
            parts,
            name=name,
            outputs=[spec.name for spec in self._scores],
            pipeline=pipeline,
            depth=depth,
            waiting=waiting,
            clock=clock,
            listener=listener,
        )
        self.outputs = self._scores[-1:]
        self._axes = _batch_axes(parts)
        self._sureness = sureness(self._exits.measure, self._exits.scores)
        self._left, self._computed = [0] * len(parts), [0] * len(parts)

    def stats(self) -> ExitStats:
        """What it has done so far."""
        with self._lock:
            chain = self._tally.stats(len(self._line), len(self._inside))
            return ExitStats(
                requests=chain.requests,
                answered=chain.answered,
                failed=chain.failed,
                waiting=chain.waiting,
                running=chain.running,
                exits=tuple(self._left),
                computed=tuple(self._computed),
            )

    def _begun(self, request: Request) -> Run:
        return _Leaving(request, self._clock())

    def _advance(self, run: Run, number: int) -> None:
        """Let the samples go that the exit is sure of."""
        leaving = cast(_Leaving, run)
        if wrong := self._misfit(leaving, number):
            self._finish(run, EngineError(f"part {number + 1} of {self.name} gave {wrong}: make it again"))
        else:
            self._let_go(leaving, number)

    def _misfit(self, run: _Leaving, number: int) -> str:
        """What a part gave that is not what it says it gives, or for another number of samples; empty if all fits."""
        spec, axes = self._scores[number], self._axes or {}
        given: object = run.tensors[spec.name]  # what a service of somebody else's gave
        scores = given if isinstance(given, np.ndarray) else np.empty(0, object)
        if scores.dtype.name != spec.dtype:
            return f"{spec.name!r}, which is no array of {spec.dtype}"
        form = run.scores.shape[-1:] if number else scores.shape[-1:]
        if scores.ndim != len(spec.shape) or scores.shape[-1:] != form or form[0] < 2:
            return f"{spec.name!r} as {list(scores.shape)}, which it declares as {list(spec.shape)}"
        rows = len(scores) if scores.ndim > 1 else 1
        expected = len(run.open) if number else rows
        sizes = {
            name: array.shape[axis : axis + 1]
            for name, array in run.tensors.items()
            if (axis := axes.get(name)) is not None
        }
        for name, size in {spec.name: (rows,), **sizes}.items():
            if size != (expected,):
                return f"{name!r} of {size[0] if size else 'no'} samples beside {expected}"
        return ""

    def _let_go(self, run: _Leaving, number: int) -> None:
        spec = self._scores[number]
        scores = run.tensors[spec.name]
        scores = scores[None] if scores.ndim == 1 else scores
        if not number:
            run.begin(scores)
        sure = self._sureness(real(scores, spec))
        leaving = (
            run.open.copy()
            if number == len(self._thresholds)
            else run.open & (sure >= self._thresholds[number])
        )
        rows = run.inside[leaving]
        run.scores[rows], run.by[rows], run.sure[rows] = scores[leaving], number, sure[leaving]
        run.open = run.open & ~leaving
        with self._lock:
            self._computed[number] += len(scores)
            self._left[number] += int(leaving.sum())
        if not run.open.any():
            self._finish(run, self._answer(run))
            return
        self._shrink(run)
        for name in self._wiring.spent[number]:
            run.tensors.pop(name, None)
        self._step(run, number + 1)

    def _shrink(self, run: _Leaving) -> None:
        """Take the samples that left out of the tensors, if these can do without them."""
        if self._axes is None or run.open.all():
            return
        keep = np.flatnonzero(run.open)
        run.inside, run.open = run.inside[keep], run.open[keep]
        for name, array in run.tensors.items():
            axis = self._axes.get(name)
            if axis is not None:
                run.tensors[name] = np.ascontiguousarray(np.take(array, keep, axis=axis))

    def _answer(self, run: _Leaving) -> Answer:
        spec = self._scores[-1]
        outputs = {
            spec.name: run.scores if spec.batch_axis is not None or len(spec.shape) > 1 else run.scores[0]
        }
        least = float(run.sure.min(initial=1.0))
        return Answer(outputs, self.name, least, self._clock() - run.came, self._reason(run))

    def _reason(self, run: _Leaving) -> str:
        total = len(self._scores)
        if len(run.by) != 1:
            counts = np.bincount(run.by, minlength=total)
            return ", ".join(f"exit {i} of {total}: {n} samples" for i, n in enumerate(counts, 1) if n)
        number, sure = int(run.by[0]), float(run.sure[0])
        word = "confidence" if self._exits.measure == "confidence" else "1 - entropy"
        why = ", the last" if number == len(self._thresholds) else f" >= {self._thresholds[number]:g}"
        return f"exit {number + 1} of {total}: {word} {_shown(sure, number, self._thresholds)}{why}"


def _shown(sure: float, number: int, thresholds: Sequence[float]) -> str:
    """Two digits, cut rather than rounded, so that 0.949 does not read as the 0.95 it missed; all if that hides it."""
    text = f"{math.floor(sure * 100) / 100:.2f}" if math.isfinite(sure) else str(sure)
    hidden = number < len(thresholds) and float(text) < thresholds[number]
    return f"{sure:.6g}" if hidden else text


def _scores(parts: Sequence[HasEnds], names: Sequence[str]) -> tuple[TensorSpec, ...]:
    """The scores of each exit."""
    wiring = wire(parts, names)
    given = {spec.name for spec in wiring.outputs}
    found = []
    for number, part in enumerate(parts, 1):
        own = [spec for spec in part.outputs if spec.name in given]
        if len(own) != 1:
            made = ", ".join(spec.name for spec in own) or "none"
            raise ModelError(f"part {number} must have the scores of one exit, not {made}: name them")
        found.append(own[0])
    last = found[-1]
    for number, spec in enumerate(found, 1):
        alike = (spec.dtype, spec.shape[-1:], len(spec.shape), spec.scale, spec.zero_point, spec.batch_axis)
        if alike != (
            last.dtype,
            last.shape[-1:],
            len(last.shape),
            last.scale,
            last.zero_point,
            last.batch_axis,
        ):
            raise ModelError(
                f"the scores of exit {number}, {spec.dtype} {list(spec.shape)}, differ in form from those of the last, "
                f"{last.dtype} {list(last.shape)}"
            )
    if len(last.shape) not in {1, 2} or last.batch_axis not in {None, 0} or last.shape[-1] in {0, 1}:
        raise ModelError(f"the scores {last.name!r} are {list(last.shape)}: an exit gives (samples, classes)")
    return tuple(found)


def _batch_axes(parts: Sequence[HasEnds]) -> dict[str, int] | None:
    """Tensor -> its batch axis, or None if samples cannot be taken out of the tensors on their way.

    A tensor that a part makes without such an axis may hold the size of the batch, and a fixed batch stays as it is.
    """
    made = {spec.name for part in parts for spec in part.outputs}
    axes: dict[str, int] = {}
    for part in parts:
        for spec in part.inputs:
            if spec.fixed_batch is not None or (spec.batch_axis is None and spec.name in made):
                return None
            if spec.batch_axis is not None:
                axes[spec.name] = spec.batch_axis
    return axes


def open_exits(
    bundle: Bundle | Path | str,
    *,
    exits: Exits | None = None,
    pipeline: bool = False,
    engine: str = "",
    options: EngineOptions | None = None,
    listener: Listener | None = None,
) -> EarlyExit:
    """A bundle of exits as a service.

    Args:
        bundle: with the role ``exits``, or its path.
        exits: other thresholds than its own.
        pipeline: give each part a thread of its own.
        engine, options: what runs every part, as `open_engine` takes them.
        listener: as `Sharded` takes it.

    Raises:
        ModelError: not a bundle, or its tensors do not fit together.
        ConfigError: a bundle of another role.
        FarthingError: as `open_engine`; what was opened is closed again.
    """
    opened = as_bundle(bundle, "exits")
    manifest = opened.manifest
    settings = exits or manifest.exits

    def make(engines: Sequence[Engine]) -> EarlyExit:
        return EarlyExit(
            engines,
            settings,
            scores=manifest.outputs,
            name=manifest.name,
            pipeline=pipeline,
            listener=listener,
        )

    return open_parts(opened, make, engine, options)
