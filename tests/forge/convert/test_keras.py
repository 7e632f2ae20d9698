"""Keras files: rebuilt without their code, exported with a free batch, equal to what Keras answers."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farthing.engines.base import open_engine
from farthing.errors import ModelError
from farthing.forge.convert import convert

if importlib.util.find_spec("keras") is None:
    pytest.skip("keras is not installed", allow_module_level=True)

from farthing.forge.convert.keras import keras  # the backend is chosen before Keras is imported

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
LIB = keras()
L = LIB.layers


def saved(model: Any, path: Path) -> Path:
    model.save(path)
    return path


def classifier() -> Any:
    image = LIB.Input((16, 16, 3), name="picture")
    x = L.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    x = L.ReLU(6.0)(L.BatchNormalization()(x))
    x = L.SeparableConv2D(8, 3, padding="same", activation="relu")(x)
    x = L.GlobalAveragePooling2D()(x)
    return LIB.Model(image, L.Dense(4, activation="softmax")(x))


def two_inputs() -> Any:
    series, facts = LIB.Input((32, 3), name="series"), LIB.Input((4,), name="facts")
    x = L.MaxPooling1D(2)(L.Conv1D(8, 5, padding="same", activation="relu")(series))
    return LIB.Model([series, facts], L.Dense(3)(L.Concatenate()([L.LSTM(6)(x), facts])))


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("make", [classifier, two_inputs])
def test_a_keras_file_answers_as_keras_does(tmp_path: Path, make: Any, suffix: str) -> None:
    LIB.utils.set_random_seed(0)
    net = make()
    model = convert(saved(net, tmp_path / f"net.{suffix}")).model
    assert [spec.name for spec in model.manifest.inputs] == [tensor.name for tensor in net.inputs]
    assert all(spec.batch_axis == 0 and isinstance(spec.shape[0], str) for spec in model.manifest.inputs)
    generator = np.random.default_rng(1)
    feeds = {
        tensor.name: generator.standard_normal((5, *tensor.shape[1:])).astype(np.float32)
        for tensor in net.inputs
    }
    wanted = net(list(feeds.values()) if len(feeds) > 1 else feeds["picture"], training=False)
    with open_engine(model) as engine:
        found = next(iter(engine.run(feeds).values()))
    np.testing.assert_allclose(found, LIB.ops.convert_to_numpy(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_depthwise_convolution_as_keras_2_wrote_it(tmp_path: Path, groups: int) -> None:
    """Keras 2 stated the groups of the layer it derived this one from: always 1, and Keras 3 does not know the word."""
    import h5py

    picture = LIB.Input((8, 8, 3), name="picture")
    net = LIB.Model(picture, L.Dense(2)(L.Flatten()(L.DepthwiseConv2D(3)(picture))))
    path = saved(net, tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        settings = file.attrs["model_config"]
        assert '"depth_multiplier": 1' in settings
        file.attrs["model_config"] = settings.replace(
            '"depth_multiplier": 1', f'"groups": {groups}, "depth_multiplier": 1'
        )
    if groups > 1:
        with pytest.raises(ModelError, match="groups"):
            convert(path)
        return
    feed = np.random.default_rng(0).standard_normal((3, 8, 8, 3)).astype(np.float32)
    with open_engine(convert(path).model) as engine:
        found = next(iter(engine.run({"picture": feed}).values()))
    np.testing.assert_allclose(found, LIB.ops.convert_to_numpy(net(feed)), rtol=1e-4, atol=1e-5)


def test_no_settings_are_left_in_the_home_directory() -> None:
    assert not Path(os.environ["KERAS_HOME"]).exists()
    assert LIB.config.backend() == "torch"


def test_open_sizes_come_from_the_example(tmp_path: Path) -> None:
    image = LIB.Input((None, None, 3), name="picture")
    path = saved(LIB.Model(image, L.GlobalMaxPooling2D()(L.Conv2D(4, 3)(image))), tmp_path / "open.keras")
    with pytest.raises(ModelError, match=r"takes \?x\?x\?x3: say the open sizes"):
        convert(path)
    assert convert(path, example="1x20x24x3").model.manifest.inputs[0].shape[1:] == (20, 24, 3)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_code_in_a_file_is_never_run(tmp_path: Path, suffix: str) -> None:
    flag = tmp_path / "ran"

    place = str(flag)
    attack = L.Lambda(lambda x: (open(place, "w").close(), x)[1], output_shape=(8,))
    net = LIB.Sequential([LIB.Input((8,)), attack, L.Dense(2)])
    path = saved(net, tmp_path / f"attack.{suffix}")
    flag.unlink(missing_ok=True)
    with pytest.raises(ModelError, match="code of a Lambda layer: refused, never run"):
        convert(path)
    assert not flag.exists()


def test_what_is_no_whole_model_is_refused(tmp_path: Path) -> None:
    net = classifier()
    net.save_weights(tmp_path / "only.weights.h5")
    whole = saved(net, tmp_path / "net.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    packed = saved(net, tmp_path / "net.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(packed[: len(packed) // 2])
    for name in ("only.weights.h5", "cut.h5", "cut.keras"):
        with pytest.raises(ModelError, match=name):
            convert(tmp_path / name)
