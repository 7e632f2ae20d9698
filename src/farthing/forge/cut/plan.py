"""Where to cut: places by memory, or by shares of time that somebody else measures. Pure."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from farthing.errors import UnsupportedError
from farthing.forge.cut.flow import Flow

SLACK = 0.1  # of a part's fair share, for which a cut may move to where less crosses


class Weight(NamedTuple):
    """Bytes that a part needs: its stored numbers, and the most that its tensors take at once."""

    stored: int
    peak: int

    @property
    def bytes(self) -> int:
        return self.stored + self.peak


class Scale:
    """Weighs parts of a graph: nodes from one place of its order to another.

    Computed, not measured: stored numbers once, and the largest sum of the tensors that are alive together, for one
    sample; a runtime needs more for its own (packed weights, scratch space, blocks that its allocator keeps).

    Args:
        flow: the graph.
        sizes: tensor -> bytes of one sample.
        stored: stored tensor -> bytes.
    """

    def __init__(self, flow: Flow, sizes: Mapping[str, int], stored: Mapping[str, int]) -> None:
        self._outputs = set(flow.outputs)
        self._spans = [(name, sorted(places), sizes.get(name, 0)) for name, places in flow.spans.items()]
        users: dict[str, list[int]] = {}
        for place, node in enumerate(flow.order):
            for name in flow.weights(node):
                users.setdefault(name, []).append(place)
        self._stored = [(places, stored[name]) for name, places in users.items()]

    def weigh(self, start: int, end: int) -> Weight:
        """The weight of the nodes from ``start`` up to ``end``."""
        change = np.zeros(end - start + 1, np.int64)
        for name, places, size in self._spans:
            if places[0] >= end or places[-1] < start or not _any_in(places, start, end):
                continue
            kept = places[-1] >= end or (name in self._outputs and places[0] >= start)
            change[max(places[0], start) - start] += size
            change[(end if kept else places[-1] + 1) - start] -= size
        stored = sum(size for places, size in self._stored if _any_in(places, start, end))
        return Weight(stored, int(change.cumsum().max(initial=0)))


def _any_in(places: Sequence[int], start: int, end: int) -> bool:
    at = bisect_left(places, start)
    return at < len(places) and places[at] < end


class Fewest(NamedTuple):
    """Cuts from some place on: how many parts they make, and the bytes that cross them."""

    parts: int
    crossing: int
    cuts: tuple[int, ...]


def fewest(
    places: Sequence[int], end: int, limit: int, scale: Scale, crossing: Mapping[int, int]
) -> dict[int, Fewest]:
    """The fewest parts that keep a limit of bytes, and of those the cuts that the fewest bytes cross.

    Args:
        places: where cuts may be, rising.
        end: the end of the order.
        limit: bytes of one part.
        scale: weighs parts.
        crossing: place -> bytes that cross a cut there.

    Returns:
        Start -> the best that can be done from there on; starts from which nothing keeps the limit are left out.
    """
    found = {end: Fewest(0, 0, ())}
    for start in (*reversed(places), 0):
        options = []
        for stop in (place for place in (*places, end) if place > start):
            if scale.weigh(start, stop).bytes > limit:
                break  # longer ones weigh more
            if stop in found:
                rest = found[stop]
                here = (stop,) if stop != end else ()
                options.append(
                    Fewest(rest.parts + 1, rest.crossing + crossing.get(stop, 0), (*here, *rest.cuts))
                )
        if options:
            found[start] = min(options)
    return found


def refuse(
    places: Sequence[int], end: int, limit: int, scale: Scale, name: Callable[[int], str]
) -> UnsupportedError:
    """The error of a limit that no parts keep: it names the piece that weighs most."""
    bounds = [0, *places, end]
    pieces = [(scale.weigh(a, b).bytes, a) for a, b in itertools.pairwise(bounds)]
    most, start = max(pieces)
    return UnsupportedError(
        f"no parts keep {limit / 1e6:g} MB: what begins with {name(start)} takes {most / 1e6:.3g} MB and cannot be cut"
    )


def balanced(
    places: Sequence[int],
    parts: int,
    share: Callable[[int], float],
    price: Callable[[int], tuple[bool, int]],
    allowed: Callable[[int, int, int], bool],
) -> tuple[int, ...]:
    """Cuts after which each part takes about the same time.

    For each cut the place whose share is nearest to the wanted one is found by bisection, so that few places are
    measured; then it moves to the cheapest place nearby.

    Args:
        places: where cuts may be, rising.
        parts: how many parts.
        share: place -> share of the whole's time that what lies before it takes, 0 to 1, rising (up to noise).
        price: place -> what a cut there costs beside time; asked of few places.
        allowed: (start, place, parts left after it) -> whether a part may reach so far, and the rest still be cut.

    Raises:
        UnsupportedError: there are not so many places.
    """
    cuts: list[int] = []
    start = 0
    for number in range(1, parts):
        left = parts - number
        room = [place for place in places if place > start]
        free = [place for place in room[: len(room) - left + 1] if allowed(start, place, left)]
        if not free:
            raise UnsupportedError(
                f"the graph cannot be cut into {parts} such parts: it has {len(places)} places for cuts"
            )
        start = _nearest(free, number / parts, SLACK / parts, share, price)
        cuts.append(start)
    return tuple(cuts)


def _nearest(
    free: Sequence[int],
    wanted: float,
    slack: float,
    share: Callable[[int], float],
    price: Callable[[int], tuple[bool, int]],
) -> int:
    low, high = 0, len(free) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if share(free[middle]) < wanted else (low, middle)
    best = min((low, high), key=lambda at: abs(share(free[at]) - wanted))
    near = [best]
    for step in (-1, 1):
        at = best + step
        while 0 <= at < len(free) and abs(share(free[at]) - wanted) <= slack:
            near.append(at)
            at += step
    return free[min(near, key=lambda at: (*price(free[at]), abs(share(free[at]) - wanted)))]
