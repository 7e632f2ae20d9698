"""The servers that ours is measured against, each in an environment of its own, configured as its makers advise."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from farthing.errors import MeasurementError
from harness.traffic import Body, Server

HERE = Path(__file__).parent.parent / "rivals"
BATCH = "8"
ORT = "onnxruntime==1.31.1"


class Rival(NamedTuple):
    """How a rival is installed, started, and spoken to."""

    packages: tuple[str, ...]
    start: Callable[[Path, Path, Path], Server]  # its environment, the ONNX file, a directory to write in
    body: Callable[[np.ndarray[Any, Any]], Body]


def binary(path: str, x: np.ndarray[Any, Any], name: str = "x", answer: bool = True) -> Body:
    """A request of the Open Inference Protocol with its tensor in binary."""
    header: dict[str, Any] = {
        "inputs": [
            {
                "name": name,
                "shape": list(x.shape),
                "datatype": "FP32",
                "parameters": {"binary_data_size": x.nbytes},
            }
        ]
    }
    if answer:
        header["parameters"] = {"binary_data_output": True}
    text = json.dumps(header).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    return Body(path=path, content=text + x.tobytes(), headers=headers)


def _raw(x: np.ndarray[Any, Any]) -> Body:
    return Body(path="/infer", content=x.tobytes(), headers={"Content-Type": "application/octet-stream"})


def _json(path: str, data: Mapping[str, Any]) -> Body:
    return Body(path=path, content=json.dumps(data).encode(), headers={"Content-Type": "application/json"})


def _v2_json(x: np.ndarray[Any, Any]) -> Body:
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    return _json("/v2/models/net/infer", {"inputs": [tensor]})


def _script(name: str, ready: str) -> Callable[[Path, Path, Path], Server]:
    def start(environment: Path, model: Path, scratch: Path) -> Server:
        command = [str(environment / "bin/python"), str(HERE / f"with_{name}.py")]
        return Server(name, command, ready, {"MODEL": str(model), "BATCH": BATCH, **_libraries(environment)})

    return start


def _libraries(environment: Path) -> dict[str, str]:
    """Triton's Python stub needs the interpreter's shared library."""
    asked = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    found = subprocess.run(
        [environment / "bin/python", "-c", asked], capture_output=True, text=True, check=False
    )
    return {"LD_LIBRARY_PATH": found.stdout.strip()}


def _bentoml(environment: Path, model: Path, scratch: Path) -> Server:
    command = [str(environment / "bin/bentoml"), "serve", "with_bentoml:Net", "--host", "127.0.0.1"]
    variables = {
        "MODEL": str(model),
        "BATCH": BATCH,
        "BENTOML_HOME": str(scratch / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONPATH": str(HERE),
    }
    return Server("bentoml", [*command, "--port", "{port}", "--working-dir", str(HERE)], "/readyz", variables)


def _mlserver(environment: Path, model: Path, scratch: Path) -> Server:
    place = scratch / "mlserver"
    (place / "net").mkdir(parents=True, exist_ok=True)
    settings = {
        "name": "net",
        "implementation": "with_mlserver.Net",
        "max_batch_size": int(BATCH),
        "max_batch_time": 0.001,
    }
    (place / "net/model-settings.json").write_text(json.dumps(settings))
    (place / "settings.json").write_text(json.dumps({"parallel_workers": 0, "debug": False}))
    command = [str(environment / "bin/python"), str(HERE / "start_mlserver.py"), str(place)]
    variables = {"MODEL": str(model), "PYTHONPATH": str(HERE)}
    return Server("mlserver", command, "/v2/models/net/ready", variables)


RIVALS: dict[str, Rival] = {
    "fastapi": Rival(
        ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop", "httptools", ORT),
        _script("fastapi", "/ready"),
        _raw,
    ),
    "litserve": Rival(
        ("litserve==0.2.19", ORT),
        _script("litserve", "/health"),
        lambda x: _json("/predict", {"x": base64.b64encode(x.tobytes()).decode()}),
    ),
    "bentoml": Rival(("bentoml==1.4.39", ORT), _bentoml, lambda x: _json("/infer", {"x": x.tolist()})),
    "mlserver": Rival(("mlserver==1.7.1", ORT), _mlserver, _v2_json),
    "pytriton": Rival(
        ("nvidia-pytriton==0.7.0", ORT),
        _script("pytriton", "/v2/models/net/ready"),
        lambda x: binary("/v2/models/net/infer", x),
    ),
}


def install(name: str, place: Path, python: str) -> None:
    """Make an environment with a rival in it.

    Raises:
        MeasurementError: pip failed.
    """
    made = [python, "-m", "venv", str(place / name)]
    fetched = [str(place / name / "bin/pip"), "install", "-q", *RIVALS[name].packages]
    for command in (made, fetched):
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode:
            raise MeasurementError(f"{name} could not be installed: {told.stderr[-500:]}")
