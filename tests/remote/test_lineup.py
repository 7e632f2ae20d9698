"""Which entrant of a race it was: one that kills the worker, one that fails, and what a board may say of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.remote.conftest import QUICK
from tests.remote.test_hostile import FEED, ONE, SHORT, liar

from farthing.bench import Rule, race_models
from farthing.bench.remote import Board, Remote
from farthing.errors import EngineError, RaceError
from farthing.testing import fake_model

MODELS = [fake_model(features=4, outputs=outputs, name=f"net{outputs}") for outputs in (1, 2, 3)]
DEADLY = """
    def _entrant(self, entry):
        engine, feeds = super()._entrant(entry)
        if len(engine.outputs[0].shape) == 2 and engine.outputs[0].shape[1] == 2:
            run, count = engine.run, [0]
            def fail(feeds):
                count[0] += 1
                if count[0] > 100:
                    {deed}
                return run(feeds)
            engine.run = fail
        return engine, feeds
"""


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_one_that_kills_the_worker_twice_is_named(board: Board, tmp_path: Path, place: int) -> None:
    order = [MODELS[(i - place + 1) % 3] for i in range(3)]
    said: list[str] = []
    body = DEADLY.format(deed="os.kill(os.getpid(), 11)")
    with Remote(liar(board, tmp_path, body), said.append, QUICK) as remote:
        with pytest.raises(RaceError, match=r"ended with SIGSEGV.*the turn of net2 in fake") as caught:
            race_models([(model, "", ONE) for model in order], "single_stream", None, 1, SHORT_ENOUGH, remote)
        assert caught.value.entrant == place
        others = [(model, "", ONE) for model in order if model.manifest.name != "net2"]
        assert len(race_models(others, "single_stream", None, 1, SHORT, remote)) == 2  # the run goes on
    assert len(said) == 1


SHORT_ENOUGH = Rule(warmup=2, min_count=500, min_seconds=0.0)


def test_the_one_that_fails_is_named(board: Board, tmp_path: Path) -> None:
    body = DEADLY.format(deed="from farthing.errors import EngineError; raise EngineError('no more')")
    with Remote(liar(board, tmp_path, body), None, QUICK) as remote:
        with pytest.raises(RaceError, match="on liar: no more") as caught:
            race_models(
                [(model, "", ONE) for model in MODELS], "single_stream", None, 1, SHORT_ENOUGH, remote
            )
        assert caught.value.entrant == 1


def test_the_one_that_cannot_be_loaded_is_named(board: Board, tmp_path: Path) -> None:
    body = """
    def _load(self, request, tensors):
        if len(self._engines) == 2:
            os.kill(os.getpid(), 9)
        return super()._load(request, tensors)
"""
    with (
        Remote(liar(board, tmp_path, body), None, QUICK) as remote,
        pytest.raises(RaceError, match="SIGKILL") as caught,
    ):
        race_models([(model, "", ONE) for model in MODELS], "single_stream", None, 1, SHORT, remote)
    assert caught.value.entrant == 2


def test_a_board_cannot_name_one_that_is_not_there(board: Board, tmp_path: Path) -> None:
    place = tmp_path / "place"
    body = f"""
    def _race(self, request, tensors):
        return wire.Failed(kind="RaceError", message="so", entrant=eval(open({str(place)!r}).read()))
"""
    with Remote(liar(board, tmp_path, body), None, QUICK) as remote:
        engine = remote.load(fake_model(features=4), "", ONE)[0]
        for text in ("-1", "2", "10**9"):
            place.write_text(text)
            with pytest.raises(EngineError) as caught:
                remote.race([(engine, [FEED]), (engine, [FEED])], SHORT)
            assert not isinstance(caught.value, RaceError)
        place.write_text("1")
        with pytest.raises(RaceError):
            remote.race([(engine, [FEED]), (engine, [FEED])], SHORT)
    assert np.isfinite(FEED["x"]).all()
