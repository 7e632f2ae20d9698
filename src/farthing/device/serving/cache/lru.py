"""What a cache of answers keeps, and for how long: the rules alone, without threads or a clock."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from farthing.config import Section
from farthing.errors import ConfigError

# What an entry and each of its outputs take beside the numbers, as tracemalloc counts, rounded up.
ENTRY_BYTES, OUTPUT_BYTES = 600, 250


class CacheRule(Section, frozen=True, kw_only=True):
    """What a cache keeps.

    Attributes:
        entries: answers, at most.
        max_bytes: bytes of all answers with what it takes to keep them, at most.
        ttl_s: seconds for which an answer is good; None for as long as there is room.
        digest: what inputs are told apart by; ``fastest`` tries both when the cache is opened. SHA-256 is the faster
            one where the processor has instructions for it, BLAKE2b elsewhere.
    """

    entries: int = 1024
    max_bytes: int = 64 << 20
    ttl_s: float | None = None
    digest: Literal["fastest", "sha256", "blake2b"] = "fastest"

    def __post_init__(self) -> None:
        if self.entries < 1 or self.max_bytes < 1:
            raise ConfigError(
                f"a cache keeps at least 1 entry and 1 byte, not entries={self.entries}, max_bytes={self.max_bytes}"
            )
        if self.ttl_s is not None and not 0 < self.ttl_s < math.inf:
            raise ConfigError(f"ttl_s is more than 0, or none at all (null), not {self.ttl_s}")


class CacheStats(Section, frozen=True, kw_only=True):
    """What a cache has done; every figure adds up over processes.

    Attributes:
        requests: that came in.
        hits: answered from the cache.
        misses: computed for the first who asked.
        joined: waited for the answer to another request of the same input.
        passed: not told apart by their input (strings, or no arrays at all), and computed.
        late: their deadline had passed, or passed while they waited for another's answer.
        cancelled: taken back before they were answered.
        handed_on: computed for one who waited, as who asked first failed or took the request back.
        stored: answers that were kept.
        too_big: answers that were not, larger than the whole cache or of strings.
        evicted_entries, evicted_bytes: answers that went for lack of entries, of bytes.
        expired: answers that had become too old.
        entries, bytes: kept now.
    """

    requests: int = 0
    hits: int = 0
    misses: int = 0
    joined: int = 0
    passed: int = 0
    late: int = 0
    cancelled: int = 0
    handed_on: int = 0
    stored: int = 0
    too_big: int = 0
    evicted_entries: int = 0
    evicted_bytes: int = 0
    expired: int = 0
    entries: int = 0
    bytes: int = 0


class Kept(NamedTuple):
    """An answer in the cache; nobody can write into its arrays, not even who is given them.

    Attributes:
        size: bytes it takes.
    """

    outputs: Mapping[str, NDArray[Any]]
    source: str
    confidence: float | None
    size: int


def size_of(outputs: Mapping[str, NDArray[Any]]) -> int:
    """Bytes that an answer takes in the cache."""
    return ENTRY_BYTES + sum(OUTPUT_BYTES + value.nbytes for value in outputs.values())


def frozen(outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]] | None:
    """Copies over memory that cannot be made writable; None if there are Python objects in the arrays.

    An array with its flag cleared would not do: whoever gets it, or its base, can set the flag again.
    """
    if any(value.dtype.hasobject for value in outputs.values()):
        return None
    return {name: np.ndarray(value.shape, value.dtype, value.tobytes()) for name, value in outputs.items()}


def views(outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The same numbers in arrays of one's own: their shape and type can be changed even where their numbers cannot."""
    return {name: value.view() for name, value in outputs.items()}


class Lru:
    """Answers by key; when there is no room, the one that was not asked for the longest goes. Not thread-safe.

    Args:
        rule: its bounds. ``now`` of the methods is a moment in seconds.
    """

    def __init__(self, rule: CacheRule) -> None:
        self._rule = rule
        self._ttl = math.inf if rule.ttl_s is None else rule.ttl_s
        self._kept: OrderedDict[bytes, tuple[Kept, float]] = (
            OrderedDict()
        )  # with the moment it becomes too old
        self._bytes = 0
        self._counts: dict[str, int] = dict.fromkeys(
            ("stored", "too_big", "evicted_entries", "evicted_bytes", "expired"), 0
        )

    def counts(self) -> dict[str, int]:
        """Its part of the `CacheStats`."""
        return {**self._counts, "entries": len(self._kept), "bytes": self._bytes}

    def get(self, key: bytes, now: float) -> Kept | None:
        """The answer that was kept under a key, if it is still good."""
        found = self._kept.get(key)
        if found is None:
            return None
        kept, until = found
        if now >= until:
            self._remove(key, "expired")
            return None
        self._kept.move_to_end(key)
        return kept

    def put(self, key: bytes, kept: Kept, now: float) -> None:
        """Keep an answer, instead of others where there is no room; one larger than the cache is not kept."""
        if key in self._kept:
            self._remove(key)
        if kept.size > self._rule.max_bytes:
            self.refuse()
            return
        while len(self._kept) >= self._rule.entries:
            self._remove(next(iter(self._kept)), "evicted_entries")
        while self._bytes + kept.size > self._rule.max_bytes:
            self._remove(next(iter(self._kept)), "evicted_bytes")
        self._kept[key] = kept, now + self._ttl
        self._bytes += kept.size
        self._counts["stored"] += 1

    def refuse(self) -> None:
        """Count an answer that cannot be kept."""
        self._counts["too_big"] += 1

    def clear(self) -> None:
        """Give everything back."""
        self._kept.clear()
        self._bytes = 0

    def _remove(self, key: bytes, why: str = "") -> None:
        kept, _ = self._kept.pop(key)
        self._bytes -= kept.size
        if why:
            self._counts[why] += 1
