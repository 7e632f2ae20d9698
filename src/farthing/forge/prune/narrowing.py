"""How wide each layer stays, decided by the time it takes on the machine that will run it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from farthing import bench
from farthing.bench import Rule, Timed
from farthing.errors import UnsupportedError
from farthing.forge.prune.channels import Channels, Coupling
from farthing.forge.workshop import Workshop
from farthing.measure import Measurement
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.recipe import Progress

Array = NDArray[Any]
RULE = Rule(warmup=3, min_count=30, min_seconds=0.4, max_seconds=10.0)
SLICES = 6  # steps in which the time is brought down
PART = 4  # a layer is tried a quarter narrower
LOOKS = 4 * SLICES  # after which it stops in any case
SLOWER = 0.05  # a loss of less of the time is none that narrower layers are refused for
NOISE = 0.002  # a saving of less of the whole is none


class Wanted(NamedTuple):
    """What is asked for.

    Attributes:
        share: of the time of the network as given, 0..1.
        engine: what runs it; empty takes the first that opens it.
        multiple: widths stay multiples of this.
    """

    share: float
    engine: str
    multiple: int


def narrowed(
    channels: Channels,
    scores: Mapping[str, Array],
    floors: Mapping[str, int],
    wanted: Wanted,
    workshop: Workshop,
) -> dict[str, int]:
    """Widths with which a network takes a share of its time, at the least loss of importance for the time saved.

    In each step every layer is timed a quarter narrower, the others as they are, all interleaved; then those that lose
    the least importance for a millisecond are narrowed, until a slice of the way is done. After NetAdapt (Yang et al.
    2018, https://arxiv.org/abs/1804.03230), which narrows one layer a step and asks for its accuracy instead.

    Args:
        channels: the network.
        scores: importance of each unit of its couplings.
        floors: the least widths.

    Returns:
        A width for each coupling. If all are at their least before the share is reached, these.

    Raises:
        UnsupportedError: narrower layers save no time on this machine; the message has the figures.
    """
    return _Narrowing(channels, scores, floors, wanted, workshop).run()


def check_time(
    channels: Channels,
    scores: Mapping[str, Array],
    widths: Mapping[str, int],
    engine: str,
    workshop: Workshop,
) -> None:
    """Time a network beside itself with narrower layers, and refuse these if it is slower for them.

    Raises:
        UnsupportedError: it is; the message has the figures.
    """
    name = channels.model.manifest.name
    both = [channels.model, channels.without(widths, scores)[0]]
    (before, wide), (after, narrow) = _raced(both, engine, workshop)
    gain = narrow.over(wide)
    figures = f"{before.p50_ms:.3g} ms before, {after.p50_ms:.3g} ms with narrower layers in {after.engine}"
    workshop.listener(Progress(stage="train", text=f"timed {name}, a sample: {figures}"))
    if gain.high < 1 - SLOWER:
        raise UnsupportedError(
            f"narrower layers make {name} slower, {gain} times as fast as it was ({figures}): choose another ratio or "
            "multiple, or prune by `latency`, which leaves layers that save no time as they are"
        )


def _raced(models: Sequence[Model], engine: str, workshop: Workshop) -> Sequence[tuple[Measurement, Timed]]:
    """Models timed interleaved, one sample at a time."""
    entrants = [(model, engine, EngineOptions()) for model in models]
    return bench.race_models(entrants, "single_stream", None, 1, RULE, workshop.machine)


def unit(one: Coupling, multiple: int) -> int:
    """The steps in which a width may change: channels of a grouped convolution go group by group."""
    return math.lcm(one.step, multiple)


class _Narrowing:
    def __init__(
        self,
        channels: Channels,
        scores: Mapping[str, Array],
        floors: Mapping[str, int],
        wanted: Wanted,
        workshop: Workshop,
    ) -> None:
        self.channels, self.known, self.model = channels, channels.couplings, channels.model
        self.scores = scores
        self.sorted = {name: np.sort(one) for name, one in scores.items()}
        self.floors, self.wanted, self.workshop = floors, wanted, workshop

    def run(self) -> dict[str, int]:
        widths = {name: one.width for name, one in self.known.items()}
        left, looks = 1.0, 0
        while left > self.wanted.share and looks < LOOKS:
            tried = {name: self._narrower(name, width) for name, width in widths.items()}
            tried = {name: width for name, width in tried.items() if width < widths[name]}
            if not tried:
                break
            self._say(left, looks)
            whole, now, *each = self._times([{}, widths, *({**widths, n: w} for n, w in tried.items())])
            left, looks = now / whole, looks + 1
            if left <= self.wanted.share:
                break
            saved = {name: (now - seconds) / whole for name, seconds in zip(tried, each, strict=True)}
            chosen = self._chosen(widths, tried, saved)
            if not chosen:
                break
            widths |= chosen
        if all(width == self.known[name].width for name, width in widths.items()):
            raise UnsupportedError(
                f"narrower layers save {self.model.manifest.name} no time in this engine "
                f"({left:.2f} of it is left after the attempt): prune by `ratio` for size, or leave it"
            )
        return widths

    def _narrower(self, name: str, width: int) -> int:
        """A quarter fewer channels, a multiple, but not below the floor."""
        one = self.known[name]
        each = unit(one, self.wanted.multiple)
        part = max(each, one.width // PART // each * each)
        aligned = -(-(width - part) // each) * each if width % each else width - part
        return max(self.floors[name], aligned)

    def _chosen(
        self, widths: Mapping[str, int], tried: Mapping[str, int], saved: Mapping[str, float]
    ) -> dict[str, int]:
        """The cheapest ones that save a slice of the way together."""
        paying = [name for name in tried if saved[name] > NOISE]
        order = sorted(paying, key=lambda name: self._lost(name, widths[name], tried[name]) / saved[name])
        chosen: dict[str, int] = {}
        goal, gained = (1 - self.wanted.share) / SLICES, 0.0
        for name in order:
            if gained >= goal:
                break
            chosen[name] = tried[name]
            gained += saved[name]
        return chosen

    def _lost(self, name: str, before: int, after: int) -> float:
        """The importance of the channels that would go."""
        scores, one = self.sorted[name], self.known[name]
        return float(scores[(one.width - before) // one.step : (one.width - after) // one.step].sum())

    def _times(self, every: Sequence[Mapping[str, int]]) -> list[float]:
        """Median seconds of a single sample for each choice of widths, timed interleaved."""
        models = [self._narrow(widths) for widths in every]
        raced = _raced(models, self.wanted.engine, self.workshop)
        return [float(np.median(times.calls)) for _, times in raced]

    def _narrow(self, widths: Mapping[str, int]) -> Model:
        """The network with those widths, not trained: only its time is asked for."""
        return self.channels.without(widths, self.scores)[0] if widths else self.model

    def _say(self, left: float, looks: int) -> None:
        name = self.model.manifest.name
        text = (
            f"timing narrower layers of {name}: {left:.0%} of its time left, {self.wanted.share:.0%} wanted"
        )
        self.workshop.listener(Progress(stage="train", text=text, done=looks, total=0))
