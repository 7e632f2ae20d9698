from __future__ import annotations

import asyncio
from concurrent.futures import Future

import numpy as np
import pytest

from farthing.device.serving.service import Answer, Direct, Request, Service, as_service, settle
from farthing.engines.base import open_engine
from farthing.errors import DeadlineError, EngineError, FeedError
from farthing.testing import FakeClock, fake_model

X = {"x": np.ones((2, 4), np.float32)}


@pytest.fixture
def direct() -> Direct:
    return Direct(open_engine(fake_model()), "net", FakeClock(10.0))


def test_an_engine_answers_with_what_it_computes(direct: Direct) -> None:
    with open_engine(fake_model()) as engine:
        expected = engine.run(X)["y"]
    answer = direct.submit(Request(X)).result(0)
    np.testing.assert_array_equal(answer.outputs["y"], expected)
    assert answer.source == "net"
    assert direct.answer(X).outputs["y"].shape == (2, 3)


def test_what_goes_wrong_is_in_the_future(direct: Direct) -> None:
    assert isinstance(direct.submit(Request({})).exception(0), FeedError)
    error = direct.submit(Request(X, deadline=9.5, id="a")).exception(0)
    assert isinstance(error, DeadlineError)
    assert "deadline of request 'a' passed 500.0 ms ago" in str(error)
    direct.close()
    direct.close()
    assert isinstance(direct.submit(Request(X)).exception(0), EngineError)


def test_coroutines_ask(direct: Direct) -> None:
    async def ask() -> Answer:
        return await direct.ask(Request(X))

    assert asyncio.run(ask()).source == "net"


class _Silent(Service):
    """Never answers."""

    name = "silent"

    def __init__(self) -> None:
        self.asked: list[Future[Answer]] = []

    def submit(self, request: Request) -> Future[Answer]:
        self.asked.append(Future())
        return self.asked[-1]

    def close(self, grace: float = 0.0) -> None: ...


def test_who_waits_too_long_gets_an_error_and_takes_the_request_back() -> None:
    silent = _Silent()
    with pytest.raises(DeadlineError, match=r"silent did not answer within 0\.01 s"):
        silent.answer(X, timeout=0.01)
    assert silent.asked[0].cancelled()
    settle(silent.asked[0], Answer({}, "late"))  # nobody minds
    assert as_service(silent) is silent


def test_a_cancelled_coroutine_takes_its_request_back() -> None:
    silent = _Silent()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(silent.ask(Request(X)), 0.01)

    asyncio.run(give_up())
    assert silent.asked[0].cancelled()


def test_a_bug_of_an_engine_is_in_the_future_too(direct: Direct, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_engine", object())
    error = direct.submit(Request(X)).exception(0)
    assert isinstance(error, EngineError)
    assert str(error) == "net failed: AttributeError: 'object' object has no attribute 'run'"
