"""OpenVINO's own: the file beside the file, devices, sizes that a manifest fixes, memory that is shared."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rows import BIAS, WEIGHTS, spec
from rows.onnxruntime import onnx_affine, onnx_model
from rows.openvino import affine, identity, ir_model, large

from farthing.engines.base import Engine, open_engine
from farthing.engines.openvino import SHARED_BYTES
from farthing.errors import EngineError, ModelError, UnsupportedError
from farthing.forge.inspect import inspect
from farthing.model import Model
from farthing.options import EngineOptions

if not importlib.util.find_spec("openvino"):  # importing it would call out: the engine does so with care
    pytest.skip("openvino is not installed", allow_module_level=True)

X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def runs(engine: Engine) -> None:
    np.testing.assert_allclose(engine.run({"x": X})["y"], X @ WEIGHTS + BIAS, atol=1e-6)


def test_weights_that_the_manifest_does_not_name_are_not_read(tmp_path: Path) -> None:
    """OpenVINO would take ``m.bin`` because it lies beside ``m.xml``."""
    model = affine("batch")
    alone = Model.create(model.manifest, {"m.xml": model.file}, tmp_path / "m")
    (alone.path / "m.bin").write_bytes((model.path / "m.bin").read_bytes())
    with pytest.raises(ModelError, match="its manifest names no file of weights"):
        open_engine(alone)


def test_weights_that_are_missing_short_or_changed() -> None:
    model = affine("batch")
    weights = model.path / "m.bin"
    content = weights.read_bytes()
    for wrong in (content[:-1], b""):
        weights.write_bytes(wrong)
        with pytest.raises(ModelError, match=r"m\.xml: Incorrect weights"):
            open_engine(model)
    weights.write_bytes(content[::-1])
    with pytest.raises(ModelError, match="SHA-256"):
        Model.open(model.path)
    weights.unlink()
    with pytest.raises(ModelError, match=r"m\.xml"):
        open_engine(model)


def test_other_names_of_the_two_files() -> None:
    model = affine("batch")
    content: dict[str, bytes | Path] = {"graph": model.file, "numbers": model.path / "m.bin"}
    with open_engine(Model.create(model.manifest, content)) as engine:
        runs(engine)


def test_an_onnx_file_as_it_is() -> None:
    model = onnx_affine("batch")
    renamed = Model.create(model.manifest, {"net": model.file})
    for one in (model, renamed):
        with open_engine(one, "openvino") as engine:
            runs(engine)


def test_an_onnx_file_with_weights_elsewhere() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx_affine("batch")
    proto = onnx.load(str(model.file))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    content = {"model.onnx": proto.SerializeToString(), "weights": WEIGHTS.tobytes()}
    with open_engine(Model.create(model.manifest, content), "openvino") as engine:
        runs(engine)
    del content["weights"]
    with pytest.raises(ModelError, match="keeps weights in 'weights', which its manifest does not name"):
        open_engine(Model.create(model.manifest, content), "openvino")


def test_operators_nobody_has_are_named() -> None:
    unknown = onnx_model([("Telepathy", ["x"], ["y"])], [spec("x", 1, 4)], [spec("y", 1, 4)])
    for model in (unknown, affine(1, MatMul=b"Telepathy")):
        with pytest.raises(UnsupportedError, match="Telepathy"):
            open_engine(model, "openvino")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"providers": ("TPU",)}, "no device .*'TPU'.*Known: AUTO, CPU"),
        ({"providers": ("CPU", "AUTO")}, "AUTO chooses a device itself"),
        ({"threads": 1024}, r"at most \d+ threads"),
    ],
)
def test_what_this_machine_lacks_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        open_engine(affine("batch"), options=EngineOptions(**options))


@pytest.mark.parametrize("provider", ["CPU", "AUTO"])
def test_devices_by_name(provider: str) -> None:
    with open_engine(affine("batch"), options=EngineOptions(providers=(provider,))) as engine:
        runs(engine)


def test_sizes_that_only_the_manifest_fixes() -> None:
    model = affine("batch")
    manifest = msgspec.structs.replace(model.manifest, inputs=(spec("x", 5, 4),), outputs=(spec("y", 5, 3),))
    fixed = Model.create(manifest, {name: model.path / name for name in model.manifest.files})
    with open_engine(fixed) as engine:
        runs(engine)


def test_large_inputs_are_read_where_they_lie_and_left_alone() -> None:
    rows = SHARED_BYTES // (512 * 4)
    first, second = (np.random.default_rng(i).standard_normal((rows, 512)).astype(np.float32) for i in (0, 1))
    kept = first.copy()
    with open_engine(large()) as engine:
        one = engine.run({"x": first})["y"]
        engine.run({"x": second[: rows // 2]})
        engine.run({"x": np.asfortranarray(second)})
        engine.run({"x": second})
        first[:] = 0
    np.testing.assert_allclose(one, kept, atol=1e-5)
    np.testing.assert_array_equal(first, 0)


def test_a_result_is_a_copy_even_of_the_input() -> None:
    x = np.arange(SHARED_BYTES // 2, dtype=np.float32).reshape(-1, 2)
    with open_engine(identity("float32")) as engine:
        result = engine.run({"x": x})["y"]
        assert not np.shares_memory(result, x)
        x[:] = 0
        assert result[-1, -1] == SHARED_BYTES // 2 - 1


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    model = affine("batch")
    file = model.file.read_bytes()
    assert file.count(b'names="x"')
    for name in model.manifest.files:
        (tmp_path / name).write_bytes((model.path / name).read_bytes())
    (tmp_path / model.file.name).write_bytes(file.replace(b'names="x"', b'names="\xff"'))
    content = {name: tmp_path / name for name in model.manifest.files}
    with pytest.raises(ModelError, match="is no text"):
        open_engine(Model.create(model.manifest, content))
    with pytest.raises(ModelError, match=r"names that are no text|cannot read"):
        inspect(tmp_path / model.file.name)


def test_text_is_refused() -> None:
    model = onnx_model([("Identity", ["x"], ["y"])], [spec("x", 1, dtype="str")], [spec("y", 1, dtype="str")])
    with pytest.raises(UnsupportedError, match="no str tensors"):
        open_engine(model, "openvino")


def test_weights_in_half_precision_are_still_computed_in_float32() -> None:
    """``float32`` says how it computes; how the file stores its numbers is the file's affair."""
    half = WEIGHTS.astype(np.float16)
    model = ir_model(
        lambda ops, x: [
            ops.add(
                ops.matmul(x, ops.convert(ops.constant(half), np.float32), False, False), ops.constant(BIAS)
            )
        ],
        [spec("x", "batch", 4)],
        [spec("y", "batch", 3)],
    )
    with open_engine(model) as engine:
        np.testing.assert_allclose(engine.run({"x": X})["y"], X @ half.astype(np.float32) + BIAS, atol=1e-6)
