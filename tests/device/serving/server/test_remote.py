"""The engine ``oip`` asks our own server: tensors, threads, tokens, overload, and a server in between."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_server import GatedEngine, X, gated, running, settings_for

from farthing.device.serving.server.settings import Limits, Settings
from farthing.engines.base import open_engine
from farthing.engines.oip import remote_model
from farthing.errors import RemoteError
from farthing.model import Model

IMPATIENT: dict[str, Any] = {"retry": {"attempts": 1}}


def url_of(client: Any, name: str = "net") -> str:
    return f"http://127.0.0.1:{client.port}/v2/models/{name}"


def test_it_computes_what_the_model_computes_here(model: Model) -> None:
    def ask(seed: int) -> bool:
        x = np.random.default_rng(seed).standard_normal((1 + seed % 5, 4)).astype(np.float32)
        return np.allclose(remote.run({"x": x})["y"], local.run({"x": x})["y"], rtol=1e-5, atol=1e-6)

    with running(settings_for(model.path)) as client:
        described = remote_model(url_of(client))
        assert described.manifest.inputs[0].shape == ("batch", 4)
        with open_engine(described) as remote, open_engine(model) as local, ThreadPoolExecutor(8) as pool:
            assert remote.version.startswith("farthing ")
            assert all(pool.map(ask, range(200)))
            stats = remote.stats()  # type: ignore[attr-defined]
    assert (stats.failed, stats.retries) == (0, 0)


def test_it_gives_the_token(model: Model) -> None:
    token = "t" * 20
    with running(settings_for(model.path), token=token) as client:
        with pytest.raises(RemoteError, match=r"HTTP 401.*give the token"):
            remote_model(url_of(client))
        assert remote_model(url_of(client), token=token).manifest.outputs[0].name == "y"


def test_a_server_without_room_says_when_to_come_again(model: Model, gate: type[GatedEngine]) -> None:
    settings = Settings(models=(gated(model.path),), port=0, limits=Limits(in_flight=1))
    with (
        running(settings) as client,
        ThreadPoolExecutor(1) as pool,
        open_engine(remote_model(url_of(client), **IMPATIENT)) as engine,
    ):
        gate.gate.clear()
        first = pool.submit(engine.run, {"x": X})
        assert gate.waiting.acquire(timeout=30)
        with pytest.raises(RemoteError, match="HTTP 429") as caught:
            engine.run({"x": X})
        assert (caught.value.again, caught.value.retry_after) == (True, 1)
        gate.gate.set()
        assert first.result(30)["y"].shape == (1, 3)


def test_a_server_in_between_says_that_it_is_not_its_own_fault(model: Model, tmp_path: Path) -> None:
    with ExitStack() as stack:
        behind = stack.enter_context(running(settings_for(model.path)))
        far = {**IMPATIENT, "breaker": {"failures": 2}}
        remote_model(url_of(behind), path=tmp_path / "far", name="far", **far)
        with running(settings_for(tmp_path / "far")) as front:
            described = remote_model(url_of(front, "far"), **IMPATIENT)
            with open_engine(described) as engine, open_engine(model) as local:
                np.testing.assert_allclose(engine.run({"x": X})["y"], local.run({"x": X})["y"], rtol=1e-5)
                stack.close()
                found = []
                for _ in range(4):
                    with pytest.raises(RemoteError, match=r"HTTP 50[23]: ") as caught:
                        engine.run({"x": X})
                    found.append("is not asked for another" in str(caught.value))
        assert found == [False, False, True, True], "its own breaker opens"
