from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from farthing.device.serving.cache.lru import CacheRule, Kept, Lru, frozen, size_of, views
from farthing.errors import ConfigError


@pytest.mark.parametrize(
    "wrong",
    [{"entries": 0}, {"max_bytes": 0}, {"ttl_s": 0.0}, {"ttl_s": math.inf}, {"ttl_s": math.nan}],
)
def test_rules_that_cannot_be_meant_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CacheRule(**wrong)  # type: ignore[arg-type]


KEYS = st.sampled_from([b"", b"a", b"b", b"c", b"d"])


class AgainstAList(RuleBasedStateMachine):
    """The cache against a list of (key, value, size, moment it is too old), the least recently used first."""

    @initialize(
        entries=st.integers(1, 4), max_bytes=st.integers(8, 30), ttl=st.one_of(st.none(), st.integers(1, 5))
    )
    def begin(self, entries: int, max_bytes: int, ttl: int | None) -> None:
        self.rule = CacheRule(entries=entries, max_bytes=max_bytes, ttl_s=ttl)
        self.real = Lru(self.rule)
        self.model: list[tuple[bytes, Kept, float]] = []
        self.now = 0.0
        self.stored = self.gone = 0

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(key=KEYS, size=st.integers(0, 10), source=st.text(max_size=2))
    def put(self, key: bytes, size: int, source: str) -> None:
        kept = Kept({}, source, None, size)
        self.real.put(key, kept, self.now)
        before = len(self.model)
        self.model = [one for one in self.model if one[0] != key]
        self.gone += before - len(self.model)
        if size > self.rule.max_bytes:
            return
        while len(self.model) >= self.rule.entries or self.size() + size > self.rule.max_bytes:
            self.model.pop(0)
            self.gone += 1
        self.model.append((key, kept, self.now + (self.rule.ttl_s or math.inf)))
        self.stored += 1

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        found = next((one for one in self.model if one[0] == key), None)
        if found is not None:
            self.model.remove(found)
            if found[2] > self.now:
                self.model.append(found)
            else:
                found = None
                self.gone += 1
        assert self.real.get(key, self.now) is (found[1] if found else None)

    def size(self) -> int:
        return sum(kept.size for _, kept, _ in self.model)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "real"):
            return
        counts = self.real.counts()
        assert (counts["entries"], counts["bytes"]) == (len(self.model), self.size())
        assert counts["entries"] <= self.rule.entries
        assert counts["bytes"] <= self.rule.max_bytes
        assert counts["stored"] == self.stored
        assert self.stored - self.gone == len(self.model)


TestAgainstAList = AgainstAList.TestCase
TestAgainstAList.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def test_the_one_that_was_not_asked_for_the_longest_goes() -> None:
    lru, kept = Lru(CacheRule(entries=2)), Kept({}, "", None, 1)
    lru.put(b"a", kept, 0.0)
    lru.put(b"b", kept, 0.0)
    assert lru.get(b"a", 0.0) is kept
    lru.put(b"c", kept, 0.0)
    assert [lru.get(key, 0.0) is kept for key in (b"a", b"b", b"c")] == [True, False, True]


def test_reasons_are_counted() -> None:
    lru = Lru(CacheRule(entries=2, max_bytes=10, ttl_s=5.0))
    for key, size in ((b"a", 4), (b"b", 4), (b"c", 4), (b"d", 8), (b"e", 11)):
        lru.put(key, Kept({}, "", None, size), 0.0)
    assert lru.get(b"d", 5.0) is None
    counts = lru.counts()
    assert {
        name: counts[name] for name in ("stored", "too_big", "evicted_entries", "evicted_bytes", "expired")
    } == {
        "stored": 4,
        "too_big": 1,
        "evicted_entries": 2,
        "evicted_bytes": 1,
        "expired": 1,
    }


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bool", "U3", ">i2"])
def test_nobody_can_write_into_what_is_kept(shape: tuple[int, ...], dtype: str) -> None:
    source = np.zeros(shape, dtype)
    outputs = frozen({"y": source})
    assert outputs is not None
    expected = source.copy()
    source[...] = 1
    for _ in range(2):
        mine = views(outputs)["y"]
        np.testing.assert_array_equal(mine, expected)
        assert (mine.dtype, mine.shape) == (expected.dtype, shape)
        with pytest.raises(ValueError, match="read-only"):
            mine[...] = 1
        for array in (mine, mine.base):
            if isinstance(array, np.ndarray):
                with pytest.raises(ValueError, match="WRITEABLE"):
                    array.flags.writeable = True
        mine.shape = (1, *shape)  # of this view alone
    assert frozen({"y": np.array(["a"], object)}) is None


def test_sizes_are_no_less_than_what_an_entry_takes() -> None:
    for outputs, numbers in ((1, 10), (3, 1), (1, 5000)):
        lru = Lru(CacheRule(entries=10_000, max_bytes=1 << 30))
        values = {f"y{k}": np.zeros(numbers, np.float32) for k in range(outputs)}
        tracemalloc.start()
        for k in range(500):
            copies = frozen(values)
            assert copies is not None
            lru.put(k.to_bytes(32, "big"), Kept(copies, "net", None, size_of(copies)), 0.0)
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 0.6 * lru.counts()["bytes"] < taken <= lru.counts()["bytes"]
