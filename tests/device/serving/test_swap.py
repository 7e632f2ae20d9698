from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from farthing.device.serving.batch import Batched
from farthing.device.serving.service import Direct, Request
from farthing.device.serving.swap import Swapped
from farthing.engines.base import open_engine
from farthing.errors import ClosedError, ModelError
from farthing.testing import fake_model

X, WIDE = ({"x": np.ones((1, width), np.float32)} for width in (4, 5))


def service(seed: int = 0, runners: int = 1, **model: int) -> Batched:
    return Batched(open_engine(fake_model(seed=seed, **model)), runners=runners, name=f"net{seed}")


@pytest.mark.parametrize("runners", [0, 1])
def test_no_request_is_lost_over_swaps(runners: int) -> None:
    """Threads and coroutines ask all the time, while what answers is exchanged over and over."""
    swapped = Swapped(service(runners=runners))
    over = threading.Event()
    wrong: list[BaseException | None] = []

    def call() -> None:
        while not over.is_set():
            wrong.append(swapped.submit(Request(X)).exception(30))

    async def ask() -> None:
        while not over.is_set():
            wrong.extend(
                error
                for error in await asyncio.gather(swapped.ask(Request(X)), return_exceptions=True)
                if isinstance(error, Exception)
            )

    async def all_ask() -> None:
        await asyncio.gather(*[ask() for _ in range(4)])

    threads = [threading.Thread(target=call) for _ in range(4)] + [
        threading.Thread(target=lambda: asyncio.run(all_ask()))
    ]
    for thread in threads:
        thread.start()
    for seed in range(1, 60):
        swapped.swap(service(seed, runners=runners))
    over.set()
    for thread in threads:
        thread.join(30)
    assert len(wrong) > 60
    assert set(wrong) == {None}
    assert swapped.name == "net59"
    assert swapped.answer(X).source == "net59"
    swapped.close()
    assert isinstance(swapped.submit(Request(X)).exception(0), ClosedError)


def test_the_one_before_is_closed() -> None:
    before = service()
    swapped = Swapped(before)
    swapped.swap(service(1)).join(30)
    assert isinstance(before.submit(Request(X)).exception(0), ClosedError)
    swapped.close()


def test_what_does_not_fit_is_refused_and_closed_and_nothing_changes() -> None:
    stateful = Direct(open_engine(fake_model(decay=0.5)), "melody")
    with Swapped(service()) as swapped:
        for other, x, message in (
            (service(1, features=5), WIDE, r"net1 takes .*5.* but net0 takes .*4.*refused"),
            (stateful, X, "melody keeps a state .* net0 does not"),
        ):
            with pytest.raises(ModelError, match=message):
                swapped.swap(other)
            assert "closed" in str(other.submit(Request(x)).exception(0))
        assert swapped.answer(X).source == "net0"


def test_nothing_takes_the_place_of_a_service_that_is_closed() -> None:
    swapped, late = Swapped(service()), service(1)
    swapped.close()
    with pytest.raises(ClosedError, match="net0 is closed"):
        swapped.swap(late)
    assert isinstance(swapped.submit(Request(X)).exception(0), ClosedError)
    assert isinstance(late.submit(Request(X)).exception(0), ClosedError)


def test_it_keeps_a_state_if_what_is_inside_does() -> None:
    with Swapped(Direct(open_engine(fake_model(decay=0.5)))) as swapped:
        assert swapped.stateful
    with Swapped(service()) as swapped:
        assert not swapped.stateful
