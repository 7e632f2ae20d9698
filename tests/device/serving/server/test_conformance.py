"""NVIDIA's own client talks to our server: what it understands is the protocol."""

from __future__ import annotations

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
triton: Any = pytest.importorskip("tritonclient.http")


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[Any]:
    with (
        running(settings_for(models, management=True)) as one,
        triton.InferenceServerClient(f"127.0.0.1:{one.port}", network_timeout=30) as asking,
    ):
        yield asking


def inputs_of(arrays: dict[str, Any], binary: bool) -> list[Any]:
    found = []
    for name, array in arrays.items():
        one = triton.InferInput(name, array.shape, DATATYPES[name])
        one.set_data_from_numpy(array, binary_data=binary)
        found.append(one)
    return found


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_every_type_there_and_back(client: Any, binary_in: bool, binary_out: bool | None) -> None:
    arrays = {dtype: sample(dtype) for dtype in TYPES if binary_in or dtype != "float16"}
    if not binary_in:  # the client itself sends no FP16 as JSON
        inputs = [*inputs_of(arrays, False), *inputs_of({"float16": sample("float16")}, True)]
        arrays["float16"] = sample("float16")
    else:
        inputs = inputs_of(arrays, True)
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput(f"{name}_out", binary_data=binary_out) for name in arrays]
    answer = client.infer("mirror", inputs, outputs=outputs, request_id="seven")
    assert answer.get_response()["id"] == "seven"
    for name, array in arrays.items():
        found = answer.as_numpy(f"{name}_out")
        if name == "str":
            found = np.array([t.decode() if isinstance(t, bytes) else t for t in found.ravel()], object)
            found = found.reshape(array.shape)
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype


def test_versions_parameters_and_selected_outputs(client: Any, models: Path) -> None:
    x = np.ones((2, 4), np.float32)
    for version in ("1", "3", ""):
        with open_engine(Model.open(models / "net" / (version or "3"))) as engine:
            expected = engine.run({"x": x})["y"]
        one = triton.InferInput("x", x.shape, "FP32").set_data_from_numpy(x)
        answer = client.infer("net", [one], version, priority=1, timeout=5_000_000)
        assert answer.get_response()["model_version"] == version or not version
        np.testing.assert_array_equal(answer.as_numpy("y"), expected)


def test_many_at_once(client: Any) -> None:
    x = np.ones((1, 4), np.float32)
    one = triton.InferInput("x", x.shape, "FP32").set_data_from_numpy(x)
    asked = [client.async_infer("net", [one], request_id=str(i)) for i in range(20)]
    assert [one.get_result().get_response()["id"] for one in asked] == [str(i) for i in range(20)]


def test_what_the_server_says_of_itself(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("net")
    assert client.is_model_ready("net", "1")
    assert not client.is_model_ready("net", "2")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    said = client.get_model_metadata("net")
    assert said["versions"] == ["1", "3"]
    assert said["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert {one["datatype"] for one in client.get_model_metadata("mirror")["inputs"]} >= {
        "BYTES",
        "FP16",
        "BOOL",
    }


def test_repository(client: Any) -> None:
    index = client.get_model_repository_index()
    assert [(one["name"], one["version"], one["state"]) for one in index] == [
        ("mirror", "1", "READY"),
        ("net", "1", "READY"),
        ("net", "3", "READY"),
    ]
    client.unload_model("mirror", unload_dependents=True)
    assert not client.is_model_ready("mirror")
    client.load_model("mirror")
    assert client.is_model_ready("mirror")
    with pytest.raises(triton.InferenceServerException, match="what lies on the disk"):
        client.load_model("net", config="{}")
    with pytest.raises(triton.InferenceServerException, match="no model 'other' lies where"):
        client.load_model("other")


def test_statistics(client: Any) -> None:
    x = np.ones((3, 4), np.float32)
    before = client.get_inference_statistics("net", "1")["model_stats"][0]
    one = triton.InferInput("x", x.shape, "FP32").set_data_from_numpy(x)
    for _ in range(4):
        client.infer("net", [one], "1")
    after = client.get_inference_statistics("net", "1")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 12
    assert after["execution_count"] - before["execution_count"] == 4
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert after["inference_stats"][part]["count"] - before["inference_stats"][part]["count"] == 4
        assert after["inference_stats"][part]["ns"] > before["inference_stats"][part]["ns"]
    assert {one["name"] for one in client.get_inference_statistics()["model_stats"]} == {"net", "mirror"}


def test_errors_reach_the_client(client: Any) -> None:
    x = np.ones((5, 4), np.float32)
    one = triton.InferInput("x", x.shape, "FP32").set_data_from_numpy(x)
    with pytest.raises(triton.InferenceServerException, match="5 samples, but a batch 4 at most") as caught:
        client.infer("net", [one])
    assert caught.value.status() == "400"
    with pytest.raises(triton.InferenceServerException, match="no model 'nte'"):
        client.infer("nte", [one])
    with pytest.raises(triton.InferenceServerException, match="classification is not offered"):
        client.infer("net", [one], outputs=[triton.InferRequestedOutput("y", class_count=2)])
