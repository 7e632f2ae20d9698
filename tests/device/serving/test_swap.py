from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from farthing.device.serving.batch import Batched
from farthing.device.serving.service import Request
from farthing.device.serving.swap import Swapped
from farthing.engines.base import open_engine
from farthing.errors import ClosedError, ModelError
from farthing.testing import fake_model

X = {"x": np.ones((1, 4), np.float32)}


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


def test_other_tensors_are_refused_and_nothing_changes() -> None:
    with Swapped(service()) as swapped, service(1, features=5) as other:
        with pytest.raises(ModelError, match=r"net1 takes .*5.* but net0 takes .*4.*refused"):
            swapped.swap(other)
        assert swapped.answer(X).source == "net0"
