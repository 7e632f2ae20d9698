"""NVIDIA's own gRPC client talks to our server: what it understands is the protocol."""

from __future__ import annotations

import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mirror import TYPES, sample
from running_server import running, settings_for

from farthing.engines.base import open_engine
from farthing.engines.openinference import DATATYPES
from farthing.model import Model

pytest.importorskip("uvicorn")
pytest.importorskip("grpc")  # without it the client raises no ImportError
triton: Any = pytest.importorskip("tritonclient.grpc")


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[Any]:
    with (
        running(settings_for(models, management=True, grpc_port=0)) as one,
        triton.InferenceServerClient(one.running.grpc.address) as asking,
    ):
        yield asking


def feed(array: Any, name: str = "x", datatype: str = "FP32") -> Any:
    one = triton.InferInput(name, array.shape, datatype)
    one.set_data_from_numpy(array)
    return one


X = np.ones((2, 4), np.float32)


def test_every_type_there_and_back(client: Any) -> None:
    arrays = {dtype: sample(dtype) for dtype in TYPES}
    inputs = [feed(array, dtype, DATATYPES[dtype]) for dtype, array in arrays.items()]
    outputs = [triton.InferRequestedOutput(f"{dtype}_out") for dtype in reversed(TYPES)]
    for wanted in (None, outputs):
        answer = client.infer("mirror", inputs, outputs=wanted, request_id="seven")
        assert answer.get_response().id == "seven"
        if wanted:
            assert [one.name for one in answer.get_response().outputs] == [one.name() for one in outputs]
        for dtype, array in arrays.items():
            found = answer.as_numpy(f"{dtype}_out")
            if dtype == "str":
                found = np.array([text.decode() for text in found.ravel()], object).reshape(array.shape)
            np.testing.assert_array_equal(found, array)
            assert found.dtype == array.dtype


def test_versions_parameters_and_selected_outputs(client: Any, models: Path) -> None:
    for version in ("1", "3", ""):
        with open_engine(Model.open(models / "net" / (version or "3"))) as engine:
            expected = engine.run({"x": X})["y"]
        answer = client.infer("net", [feed(X)], version, priority=1, timeout=5_000_000, client_timeout=30)
        assert answer.get_response().model_version == version or not version
        np.testing.assert_array_equal(answer.as_numpy("y"), expected)


def test_many_at_once(client: Any) -> None:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for i in range(20):
        client.async_infer(
            "net", [feed(X)], lambda result, error: answers.put((result, error)), request_id=str(i)
        )
    found = [answers.get(timeout=30) for _ in range(20)]
    assert {error for _, error in found} == {None}
    assert {answer.get_response().id for answer, _ in found} == {str(i) for i in range(20)}


def test_what_the_server_says_of_itself(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("net")
    assert client.is_model_ready("net", "1")
    assert not client.is_model_ready("net", "2")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata().name == "farthing"
    said = client.get_model_metadata("net", as_json=True)
    assert said["versions"] == ["1", "3"]
    assert said["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    kinds = {one.datatype for one in client.get_model_metadata("mirror").inputs}
    assert kinds == set(DATATYPES.values())


def test_repository(client: Any) -> None:
    def index() -> list[tuple[str, str, str]]:
        return [(one.name, one.version, one.state) for one in client.get_model_repository_index().models]

    there = [("mirror", "1", "READY"), ("net", "1", "READY"), ("net", "3", "READY")]
    assert index() == there
    client.unload_model("mirror", unload_dependents=True)
    assert not client.is_model_ready("mirror")
    assert ("mirror", "", "UNAVAILABLE") in index()
    client.load_model("mirror")
    assert index() == there
    with pytest.raises(triton.InferenceServerException, match="what lies on the disk") as caught:
        client.load_model("net", config="{}")
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(triton.InferenceServerException, match="no model 'other' lies where") as caught:
        client.load_model("other")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_statistics(client: Any) -> None:
    x = np.ones((3, 4), np.float32)
    before = client.get_inference_statistics("net", "1").model_stats[0]
    for _ in range(4):
        client.infer("net", [feed(x)], "1")
    after = client.get_inference_statistics("net", "1").model_stats[0]
    assert after.inference_count - before.inference_count == 12
    assert after.execution_count - before.execution_count == 4
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        now, then = getattr(after.inference_stats, part), getattr(before.inference_stats, part)
        assert now.count - then.count == 4
        assert now.ns > then.ns
    assert 3 in {one.batch_size for one in after.batch_stats}
    assert {one.name for one in client.get_inference_statistics().model_stats} == {"net", "mirror"}


def test_errors_reach_the_client(client: Any) -> None:
    x = np.ones((5, 4), np.float32)
    with pytest.raises(triton.InferenceServerException, match="5 samples, but a batch 4 at most") as caught:
        client.infer("net", [feed(x)])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(triton.InferenceServerException, match="no model 'nte'"):
        client.infer("nte", [feed(X)])
    with pytest.raises(triton.InferenceServerException, match="classification is not offered"):
        client.infer("net", [feed(X)], outputs=[triton.InferRequestedOutput("y", class_count=2)])
    with pytest.raises(triton.InferenceServerException) as caught:
        client.get_model_config("net")
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_the_command_serves_it_and_stops(models: Path) -> None:
    """With the event loop that the command uses, which tests in threads do not."""
    command = [
        sys.executable,
        "-m",
        "farthing",
        "serve",
        "--port",
        "0",
        "--grpc-port",
        "0",
        str(models / "net" / "1"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if "ready: http" in line)
            with triton.InferenceServerClient(line.split("gRPC at ")[1].strip()) as asking:
                assert asking.infer("net", [feed(X)]).as_numpy("y").shape == (2, 3)
                process.terminate()
                said = process.stderr.read()
            assert process.wait(60) == 0
            assert "Traceback" not in said
        finally:
            process.kill()
