from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.device.serving.batch.gather import Batch, BatchRule, Line, Waiting
from farthing.errors import ConfigError


def one(
    size: int = 1, arrived: float = 0.0, deadline: float = math.inf, priority: int = 0, key: object = ()
) -> Waiting:
    item = Waiting()
    item.size, item.arrived, item.deadline, item.priority, item.key = size, arrived, deadline, priority, key
    return item


def line(*items: Waiting, **rule: object) -> Line[Waiting]:
    made: Line[Waiting] = Line(BatchRule(**rule))  # type: ignore[arg-type]
    for item in items:
        made.add(item)
    return made


def sizes(batch: Batch[Waiting]) -> tuple[int, str]:
    return sum(item.size for item in batch.items), batch.why


def test_without_delay_all_that_waits_is_the_next_batch() -> None:
    waiting = line(*[one() for _ in range(11)])
    assert waiting.due(0.0) == 0
    assert [sizes(waiting.take(0.0)), sizes(waiting.take(0.0))] == [(8, "full"), (3, "delay")]
    assert waiting.due(0.0) == math.inf
    assert not waiting
    with pytest.raises(LookupError):
        waiting.take(0.0)


def test_the_oldest_waits_for_company_no_longer_than_the_delay() -> None:
    waiting = line(one(arrived=1.0), one(arrived=1.03), delay_ms=50)
    assert waiting.due(1.04) == pytest.approx(0.01)
    assert waiting.due(1.05) == 0
    assert sizes(waiting.take(1.05)) == (2, "delay")


def test_a_full_batch_goes_at_once() -> None:
    waiting = line(*[one() for _ in range(7)], delay_ms=50)
    assert waiting.due(0.0) == pytest.approx(0.05)
    waiting.add(one())
    assert waiting.due(0.0) == 0
    assert sizes(waiting.take(0.0)) == (8, "full")


def test_a_preferred_size_goes_at_once_and_the_largest_of_them() -> None:
    waiting = line(*[one() for _ in range(3)], delay_ms=50, preferred=(4, 6))
    assert waiting.due(0.0) > 0
    for _ in range(4):
        waiting.add(one())
    assert waiting.due(0.0) == 0
    assert sizes(waiting.take(0.0)) == (6, "preferred")
    assert waiting.samples == 1
    assert sizes(waiting.take(0.05)) == (1, "delay")


def test_a_deadline_closes_the_batch_while_there_is_time_to_compute_it() -> None:
    waiting = line(one(arrived=0.0), one(arrived=0.0, deadline=0.02), delay_ms=50)
    assert waiting.due(0.0, ahead=0.005) == pytest.approx(0.015)
    assert sizes(waiting.take(0.015, ahead=0.005)) == (2, "deadline")


def test_what_is_late_is_not_computed_and_takes_no_room() -> None:
    waiting = line(one(deadline=1.0), *[one() for _ in range(8)])
    batch = waiting.take(1.0)
    assert len(batch.late) == 1
    assert sizes(batch) == (8, "full")


def test_a_request_that_does_not_fit_waits_for_the_next_batch() -> None:
    waiting = line(one(size=5), one(size=5), one(size=1))
    assert sizes(waiting.take(0.0)) == (5, "full")
    assert sizes(waiting.take(0.0)) == (6, "delay")


def test_only_requests_of_one_key_share_a_batch_and_the_first_comes_first() -> None:
    waiting = line(one(key="b", arrived=0.0), one(key="a", arrived=1.0), one(key="b", arrived=2.0))
    assert [item.key for item in waiting.take(3.0).items] == ["b", "b"]
    assert [item.key for item in waiting.take(3.0).items] == ["a"]


def test_a_full_batch_of_one_key_does_not_wait_for_the_delay_of_another() -> None:
    waiting = line(one(key="a", arrived=0.0), *[one(key="b", arrived=0.01) for _ in range(8)], delay_ms=50)
    assert waiting.due(0.01) == 0
    assert {item.key for item in waiting.take(0.01).items} == {"b"}


def test_smaller_priorities_go_first() -> None:
    items = [one(priority=p, arrived=float(i)) for i, p in enumerate([1, 0, 2, 0, 1])]
    taken = line(*items, max_size=8).take(9.0).items
    assert [items.index(item) for item in taken] == [1, 3, 0, 4, 2]
    waiting = line(*items, max_size=8, delay_ms=1000)
    assert waiting.due(0.5) == pytest.approx(0.5)  # the oldest is not the first


def test_at_the_end_nobody_waits_for_company() -> None:
    assert sizes(line(one(), delay_ms=50).take(0.0, closing=True)) == (1, "closing")


@pytest.mark.parametrize(
    "rule",
    [
        {"max_size": 0},
        {"capacity": 7},
        {"delay_ms": -1.0},
        {"delay_ms": math.inf},
        {"delay_ms": math.nan},
        {"preferred": (9,)},
        {"preferred": (0,)},
    ],
)
def test_rules_that_mean_nothing_are_refused(rule: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        BatchRule(**rule)  # type: ignore[arg-type]


requests = st.builds(
    one,
    size=st.integers(1, 8),
    arrived=st.integers(0, 20).map(float),
    deadline=st.one_of(st.just(math.inf), st.integers(0, 40).map(float)),
    priority=st.integers(0, 2),
    key=st.sampled_from("ab"),
)


@given(
    st.lists(requests, max_size=40),
    st.integers(8, 12),
    st.sampled_from([0.0, 3000.0]),
    st.sampled_from([(), (4,), (2, 6)]),
)
def test_everyone_is_taken_once_in_batches_that_keep_the_rule(
    items: list[Waiting], most: int, delay: float, preferred: tuple[int, ...]
) -> None:
    waiting = line(
        *sorted(items, key=lambda item: item.arrived), max_size=most, delay_ms=delay, preferred=preferred
    )
    now, seen = 20.0, []
    while waiting:
        now += waiting.due(now)
        assert waiting.due(now) == pytest.approx(0, abs=1e-9)
        batch = waiting.take(now)
        assert batch.items or batch.late
        assert sum(item.size for item in batch.items) <= most
        assert len({item.key for item in (*batch.items, *batch.late)}) == 1
        assert all(item.deadline <= now for item in batch.late)
        assert all(item.deadline > now for item in batch.items)
        ranks = [(item.priority, item.arrived) for item in batch.items]
        assert ranks == sorted(ranks)
        seen += [*batch.items, *batch.late]
    assert waiting.samples == 0
    assert sorted(map(id, seen)) == sorted(map(id, items))
    assert now <= 20.0 + delay / 1000
