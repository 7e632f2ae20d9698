"""Line: nobody is lost on the way through parts whose processes die, and nobody is answered twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.device.serving.parts.line import AHEAD, Line, Send


class World:
    """Processes as they might behave: each has the tokens it was sent, in order."""

    def __init__(self, parts: int, slots: int, restarts: int) -> None:
        self.line: Line[int] = Line(
            parts, slots, restarts=restarts, within=10.0, patience=5.0, loading=5.0, now=0.0
        )
        self.inboxes: list[list[int]] = [[] for _ in range(parts)]
        self.alive = [False] * parts
        self.now = 0.0
        self.done: list[int] = []
        self.lost: list[int] = []
        self.broken = False
        self.begun: list[list[int]] = [[] for _ in range(parts)]

    def send(self, sends: list[Send]) -> None:
        for part, slot in sends:
            assert self.alive[part], "no token goes to a process that is not ready"
            self.inboxes[part].append(slot)
            assert len(self.inboxes[part]) <= AHEAD
            self.begun[part].append(self.line.owners[slot])

    def come(self, key: int) -> None:
        slot = self.line.come(key)
        if slot is not None:
            self.send(self.line.enter(slot, 0, self.now))

    def leave(self, slot: int) -> None:
        following = self.line.leave(slot)
        if following is not None:
            self.send(self.line.enter(slot, 0, self.now))

    def finish(self, part: int) -> None:
        if not self.inboxes[part]:
            return
        slot = self.inboxes[part].pop(0)
        self.send(self.line.returned(part, slot, self.now))
        if part + 1 < len(self.inboxes):
            self.send(self.line.enter(slot, part + 1, self.now))
        else:
            self.done.append(self.line.owners[slot])
            self.leave(slot)

    def wake(self, part: int) -> None:
        if not self.alive[part]:
            self.alive[part] = True
            self.send(self.line.up(part, self.now))

    def die(self, part: int) -> None:
        computing = self.inboxes[part][:1] if self.alive[part] else []
        self.alive[part], self.inboxes[part] = False, []
        death = self.line.died(part, self.now)
        assert ([] if death.victim is None else [death.victim]) == computing
        self.broken = not death.again
        for slot in computing:
            self.lost.append(self.line.owners[slot])
            self.leave(slot)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["come", "finish", "wake", "die", "wait"]), st.integers(0, 2)), max_size=120
)


@given(EVENTS, st.integers(1, 3), st.integers(1, 5))
def test_every_request_is_answered_or_lost_with_a_process(
    events: list[tuple[str, int]], parts: int, slots: int
) -> None:
    world = World(parts, slots, restarts=3)
    came = 0
    for kind, part in events:
        part %= parts
        if kind == "come":
            world.come(came)
            came += 1
        elif kind == "wait":
            world.now += 4.0
        else:
            {"finish": world.finish, "wake": world.wake, "die": world.die}[kind](part)
        if world.broken:
            return
        assert len(world.line.owners) <= slots
    for part in range(parts):
        world.wake(part)
    for _ in range(came * parts + 1):
        for part in range(parts):
            world.finish(part)
    assert sorted(world.done + world.lost) == list(range(came))
    assert world.done == sorted(world.done), "in the order they came"
    assert not world.line.owners
    assert not world.line.waiting


def test_a_part_is_started_anew_only_so_often_within_a_while() -> None:
    line: Line[int] = Line(1, 1, restarts=2, within=10.0, patience=5.0, loading=5.0, now=0.0)
    assert [line.died(0, now).again for now in (0.0, 1.0)] == [True, True]
    assert line.died(0, 11.5).again, "the first two are long ago"
    assert line.died(0, 12.0).again
    assert not line.died(0, 13.0).again
    assert line.restarted == [4]


def test_a_part_that_keeps_a_request_too_long_is_overdue() -> None:
    line: Line[str] = Line(2, 2, restarts=1, within=10.0, patience=5.0, loading=7.0, now=0.0)
    assert line.overdue(6.0) == []
    assert line.overdue(7.1) == [0, 1], "neither got ready"
    line.up(0, 8.0)
    line.up(1, 8.0)
    assert line.overdue(60.0) == [], "who has nothing to do is never late"
    slots = [line.come("a"), line.come("b")]
    assert line.come("c") is None
    for slot in slots:
        assert slot is not None
        line.enter(slot, 0, 60.0)
    assert line.overdue(65.0) == []
    assert line.overdue(65.1) == [0]
    assert slots[0] is not None
    line.returned(0, slots[0], 65.0)
    assert line.overdue(69.0) == [], "the second began only now"
    with pytest.raises(ValueError, match=r"not in|remove"):
        line.returned(0, slots[0], 65.0)
