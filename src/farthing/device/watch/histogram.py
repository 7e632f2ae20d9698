"""Histograms that add up: counts below fixed bounds, as Prometheus takes them."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from farthing.config import Section
from farthing.errors import MeasurementError

DURATIONS = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Bounds for what takes time, in seconds."""

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Bounds for sizes of batches."""


class Counts(Section, frozen=True, kw_only=True):
    """How many values lay below which bound. Those of several processes add up with ``+``.

    Attributes:
        bounds: ascending; a value belongs to the first bound that is not below it.
        counts: one for each bound, and one more for values above the last.
        total: the sum of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float = 0.0

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.bounds) + 1:
            raise ValueError(
                f"{len(self.bounds)} bounds have {len(self.bounds) + 1} counts, not {len(self.counts)}"
            )

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def cumulative(self) -> list[int]:
        """How many values lay at or below each bound, and at last how many there were."""
        return list(accumulate(self.counts))

    def __add__(self, other: Counts) -> Counts:
        """The counts of both.

        Raises:
            MeasurementError: their bounds differ.
        """
        if self.bounds != other.bounds:
            raise MeasurementError(
                "histograms with different bounds do not add up: take both with the same bounds"
            )
        return Counts(
            bounds=self.bounds,
            counts=tuple(map(sum, zip(self.counts, other.counts, strict=True))),
            total=self.total + other.total,
        )


class Histogram:
    """Counts values from any thread, in about half a microsecond each.

    Args:
        bounds: ascending, without the infinite one.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self._counts, self._total = tuple(bounds), [0] * (len(bounds) + 1), 0.0
        self._lock = threading.Lock()

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, or several equal ones."""
        place = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[place] += times
            self._total += value * times

    def snapshot(self) -> Counts:
        """What was counted up to now."""
        with self._lock:
            return Counts(bounds=self._bounds, counts=tuple(self._counts), total=self._total)
