"""What must work with the base dependencies alone; run by the interpreter under test, away from the checkout.

Run it where everything is installed as well: there it shows that the device side does not import what it could.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

# Packages of the workstation and the server; their commands (cli) import them only when called.
ELSEWHERE = {"apps", "cli", "forge", "hub"}
TOO_BIG = {
    "cv2",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "pandas",
    "PIL",
    "pyarrow",
    "rich",
    "scipy",
    "sklearn",
    "starlette",
    "torch",
    "uvicorn",
}


def device_side() -> list[str]:
    """Every module of the package but those of the workstation and the server."""
    import farthing

    found = []
    for part in pkgutil.iter_modules(farthing.__path__, "farthing."):
        if part.name.removeprefix("farthing.") in ELSEWHERE:
            continue
        found.append(part.name)
        if part.ispkg:
            package = importlib.import_module(part.name)
            found += [inner.name for inner in pkgutil.walk_packages(package.__path__, f"{part.name}.")]
    return found


def unwanted() -> list[str]:
    """Top-level packages now imported that the device side must do without."""
    return sorted(TOO_BIG & {name.partition(".")[0] for name in sys.modules})


def written(kind: str, content: bytes) -> Path:
    """A model directory of that format: three numbers in, two out."""
    from farthing.model import Manifest, Model, TensorSpec

    x = TensorSpec(name="x", dtype="float32", shape=("batch", 3), batch_axis=0)
    y = TensorSpec(name="y", dtype="float32", shape=("batch", 2), batch_axis=0)
    manifest = Manifest(name="bare", version="1", format=kind, inputs=(x,), outputs=(y,))
    return Model.create(manifest, {"model.bin": content}, Path(f"bare-{kind}")).path


def small_job() -> None:
    """A model is written, read, run, compared with plain numpy, and its engine closed."""
    import numpy as np

    from farthing.engines.base import open_engine
    from farthing.model import Model

    weights = np.arange(6, dtype=np.float32).reshape(3, 2)
    path = written("fake", json.dumps({"weights": weights.tolist(), "bias": [0.5, -0.5]}).encode())
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    with open_engine(Model.open(path)) as engine:
        y = engine.run({"x": x})["y"]
    np.testing.assert_allclose(y, x @ weights + np.array([0.5, -0.5], np.float32), rtol=1e-6)


def missing_engines() -> None:
    """Without its package an engine is listed all the same, and opening it names the extra."""
    from farthing import plugins
    from farthing.engines.base import open_engine
    from farthing.errors import NotInstalled
    from farthing.model import Model

    for name in sorted(set(plugins.names("engine")) - {"fake", "oip"}):  # these two need none
        model = Model.open(written(min(plugins.get("engine", name).formats), b"anything"))
        try:
            open_engine(model, name)
        except NotInstalled as error:
            if f"farthing[{name}]" in str(error):
                continue
        raise SystemExit(
            f"bare: opening the engine {name} must raise NotInstalled and name the extra farthing[{name}]"
        )


def main() -> None:
    """Import, run, and look at what came along."""
    modules = device_side()
    for name in modules:
        importlib.import_module(name)
    small_job()
    if unwanted():
        raise SystemExit(f"bare: the device side imports {', '.join(unwanted())}")
    if importlib.util.find_spec("onnxruntime") is None:
        missing_engines()
    command = Path(sys.executable).parent / "farthing"
    shown = subprocess.run(
        [command, "--help"], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if "usage" not in shown.stdout.lower():
        raise SystemExit("bare: `farthing --help` shows no usage")
    print(
        f"bare: {len(modules)} modules of the device side, one job and `farthing --help` work ({sys.prefix})"
    )


if __name__ == "__main__":
    main()
