from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

from hypothesis import given
from hypothesis import strategies as st

from farthing.device.serving.batch.delivery import Delivery, Entry, Verdict
from farthing.device.serving.service import Answer, Request


def entry(stream: str | None, kind: type[Entry] = Entry) -> Entry:
    return kind(Request({}), Future(), None, stream, 0.0)


def answered(one: Entry) -> Verdict:
    return Verdict(one, Answer({}, "net"), "answered")


@given(st.data(), st.lists(st.sampled_from([None, "a", "b"]), max_size=12))
def test_a_stream_is_answered_in_its_order_whatever_order_it_is_computed_in(
    data: st.DataObject, streams: list[str | None]
) -> None:
    delivery, done = Delivery(), []
    entries = [entry(stream) for stream in streams]
    for number, one in enumerate(entries):
        if one.stream is not None:
            delivery.expect(one)
        one.future.add_done_callback(lambda _, number=number: done.append(number))
    computed = data.draw(st.permutations(entries))
    while computed:
        count = data.draw(st.integers(1, len(computed)))
        delivery.give([answered(one) for one in computed[:count]])
        del computed[:count]
    for stream in ("a", "b"):
        mine = [number for number in done if streams[number] == stream]
        assert mine == sorted(mine)
    assert sorted(done) == list(range(len(streams)))


class Slow(Entry):
    """Takes its time to reach its caller."""

    begun, go = threading.Event(), threading.Event()

    def give(self) -> None:
        self.begun.set()
        assert self.go.wait(30)
        super().give()


def test_another_thread_does_not_overtake_a_stream_that_is_being_handed_over() -> None:
    delivery, done = Delivery(), []
    entries = [entry("s", Slow), entry("s"), entry("s")]
    for number, one in enumerate(entries):
        delivery.expect(one)
        one.future.add_done_callback(lambda _, number=number: done.append(number))
    first = threading.Thread(target=delivery.give, args=([answered(entries[0])],))
    first.start()
    assert Slow.begun.wait(30)
    delivery.give([answered(one) for one in entries[:0:-1]])
    assert done == []
    Slow.go.set()
    first.join(30)
    assert done == [0, 1, 2]
    again = entry("s")
    delivery.expect(again)
    delivery.give([answered(again)])
    assert again.future.done()


def test_an_event_loop_gets_its_answers_in_its_own_thread() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        one = Entry(Request({}), loop.create_future(), loop, None, 0.0)
        giver = threading.Thread(target=Delivery().give, args=([answered(one)],))
        giver.start()
        giver.join(30)
        assert not one.future.done()  # until the loop gets round to it
        assert (await one.future).source == "net"

    asyncio.run(main())
