"""The engine ``oip`` against a real MLServer, which has an environment of its own.

MLSERVER_PYTHON names its interpreter: ``python -m venv DIR && DIR/bin/pip install mlserver==1.7.1``, then
``MLSERVER_PYTHON=DIR/bin/python pytest -m slow tests/engines/remote``.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from rows import spec

from farthing.engines.base import open_engine
from farthing.engines.oip import remote_model
from farthing.errors import ModelError, RemoteError

pytestmark = pytest.mark.slow

RUNTIME = """
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Net(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        by_name = {one.name: NumpyCodec.decode_input(one) for one in payload.inputs}
        y = by_name["x"] * 2 + 1
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                NumpyCodec.encode_output(name="y", payload=y.astype(np.float32)),
                NumpyCodec.encode_output(name="best", payload=y.argmax(1).astype(np.int64)),
            ],
        )
"""
TENSORS = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [
        {"name": "y", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "best", "datatype": "INT64", "shape": [-1]},
    ],
}


@pytest.fixture(scope="module")
def mlserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an MLServer with a model that says what it takes, and one that does not."""
    python = os.environ.get("MLSERVER_PYTHON")
    if not python:
        pytest.skip("MLSERVER_PYTHON names no interpreter that has mlserver")
    place = tmp_path_factory.mktemp("mlserver")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = one.getsockname()[1], two.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as three:
        metrics = three.getsockname()[1]
    settings = {
        "host": "127.0.0.1",
        "http_port": ports[0],
        "grpc_port": ports[1],
        "metrics_port": metrics,
        "parallel_workers": 0,
    }
    (place / "settings.json").write_text(json.dumps(settings))
    for name, tensors in (("told", TENSORS), ("untold", {})):
        folder = place / name
        folder.mkdir()
        (folder / f"{name}_net.py").write_text(RUNTIME)
        described = {
            "name": name,
            "implementation": f"{name}_net.Net",
            "parameters": {"version": "v1"},
            **tensors,
        }
        (folder / "model-settings.json").write_text(json.dumps(described))
    log = place / "log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [str(Path(python).parent / "mlserver"), "start", str(place)], stdout=output, stderr=output
        )
    try:
        yield _ready(f"http://127.0.0.1:{ports[0]}", child, log)
    finally:
        child.terminate()
        child.wait(30)


def _ready(url: str, child: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(600):
        try:
            remote_model(f"{url}/v2/models/told", retry={"attempts": 1})
        except (RemoteError, ModelError):
            assert child.poll() is None, log.read_text()
            time.sleep(0.1)
        else:
            return url
    pytest.fail(log.read_text())


def test_a_model_that_says_what_it_takes(mlserver: str) -> None:
    model = remote_model(f"{mlserver}/v2/models/told/versions/v1")
    assert model.manifest.inputs == (spec("x", "batch", 4),)
    assert [one.name for one in model.manifest.outputs] == ["y", "best"]
    with open_engine(model) as engine, ThreadPoolExecutor(4) as pool:
        assert engine.version.startswith("mlserver 1.")

        def ask(seed: int) -> bool:
            x = np.random.default_rng(seed).standard_normal((1 + seed % 3, 4)).astype(np.float32)
            answer = engine.run({"x": x})
            return bool(
                np.allclose(answer["y"], x * 2 + 1) and (answer["best"] == (x * 2 + 1).argmax(1)).all()
            )

        assert all(pool.map(ask, range(200)))
        assert engine.stats().retries == 0  # type: ignore[attr-defined]


def test_a_model_that_does_not(mlserver: str) -> None:
    with pytest.raises(ModelError, match="does not say which tensors"):
        remote_model(f"{mlserver}/v2/models/untold")
    tensors = {"inputs": [spec("x", "batch", 4)], "outputs": [spec("y", "batch", 4)]}
    with open_engine(remote_model(f"{mlserver}/v2/models/untold", **tensors)) as engine:  # type: ignore[arg-type]
        assert list(engine.run({"x": np.ones((2, 4), np.float32)})) == ["y"]


def test_models_and_versions_there_are_not(mlserver: str) -> None:
    for path in ("nobody", "told/versions/v9"):
        with pytest.raises(RemoteError, match="HTTP 404"):
            remote_model(f"{mlserver}/v2/models/{path}")


def test_what_the_model_does_not_expect_is_its_own_error(mlserver: str) -> None:
    tensors = {"inputs": [spec("wrong", "batch", 4)], "outputs": [spec("y", "batch", 4)]}
    model = remote_model(f"{mlserver}/v2/models/untold", **tensors)  # type: ignore[arg-type]
    with open_engine(model) as engine, pytest.raises(RemoteError, match="HTTP 500"):
        engine.run({"wrong": np.ones((2, 4), np.float32)})
