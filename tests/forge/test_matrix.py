"""Portability: engines against one another, refusals by operator, and engines that crash or hang."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from farthing import plugins
from farthing.anatomy import Cell, Matrix
from farthing.errors import ConfigError, ModelError, PluginError
from farthing.forge import apart, nets
from farthing.forge.apply import build
from farthing.forge.convert import convert
from farthing.forge.matrix import TOLERANCES, difference, lacking, matrix, precision
from farthing.model import Manifest, Model, Quantization, TensorSpec, checked
from farthing.recipe import Step
from farthing.target import Target
from farthing.task import Split, Task
from farthing.testing import fake_model


@pytest.fixture(scope="module")
def digits() -> Model:
    torch.manual_seed(0)
    return convert(nets.digits_cnn(), name="digits", example="1x1x28x28").model


def only(found: Matrix) -> Cell:
    assert len(found.cells) == 1
    return found.cells[0]


def test_the_models_own_engine_is_the_source(digits: Model) -> None:
    cell = only(matrix([digits], ["onnxruntime"]))
    assert (cell.verdict, cell.via, cell.precision, cell.detail) == ("source", "", "float32", "")
    assert cell.version


def test_another_engine_is_equal_or_not_installed(digits: Model) -> None:
    found = matrix([digits], ["onnxruntime", "openvino"])
    cell = found.cell("digits", "openvino")
    if cell.verdict == "not installed":
        assert "farthing[openvino]" in cell.detail
        return
    assert (cell.verdict, cell.tolerance) == ("equal", TOLERANCES["float32"])
    assert 0 <= (cell.relative or 0.0) < 1e-5
    assert msgspec.json.decode(msgspec.json.encode(found), type=Matrix) == found


def test_real_samples_of_a_task(digits: Model) -> None:
    generator = np.random.default_rng(0)
    split = Split({"": generator.random((20, 1, 28, 28), np.float32)}, generator.integers(0, 10, 20))
    found = matrix([digits], ["onnxruntime"], Task("made-up", {"validation": split}, "top1"))
    assert "8 validation samples of made-up" in found.inputs
    assert found.cells[0].verdict == "source"


def test_several_models_and_streams() -> None:
    plain, stateful = fake_model(), fake_model(decay=0.5)
    found = matrix([plain, stateful, plain], ["fake"])
    assert len(set(found.models)) == 3
    assert [cell.verdict for cell in found.cells] == ["source"] * 3


def test_no_way_from_one_format_to_another() -> None:
    found = matrix([fake_model()], ["onnxruntime", "fake"])
    cell = found.cell("fake", "onnxruntime")
    assert cell.verdict == "no way"
    assert "from fake" in cell.detail


def test_no_way_from_a_format_that_is_not_exported(digits: Model) -> None:
    """An export is made from ONNX alone: that another format has none is nothing the engine lacks."""
    pytest.importorskip("openvino")
    found = matrix([convert_to(digits, "openvino")], ["openvino", "litert", "onnxruntime"])
    assert found.cells[0].verdict == "source"
    assert {cell.verdict for cell in found.cells[1:]} <= {"no way", "not installed"}


def convert_to(model: Model, name: str) -> Model:
    made, _ = build(Step(use=f"export.{name}.v1"), Target.detect())
    nothing = Task("none", {"validation": Split({"": np.zeros((1, 1), np.float32)})}, "cosine")
    result = made(model, Target.detect(), nothing)
    assert isinstance(result, Model)
    return result


def test_an_input_without_axes_stays_one() -> None:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scaled",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("factor", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    specs = [
        TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in (("x", (1, 4)), ("factor", ()))
    ]
    manifest = Manifest(
        name="scaled",
        format="onnx",
        inputs=tuple(specs),
        outputs=(msgspec.structs.replace(specs[0], name="y"),),
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = matrix(
        [Model.create(manifest, {"model.onnx": proto.SerializeToString()})], ["onnxruntime", "openvino"]
    )
    assert found.cells[0].verdict == "source", found.cells[0].detail
    assert found.cells[1].verdict in {"equal", "not installed"}


def test_a_model_of_open_sizes_is_a_row_that_says_so(digits: Model) -> None:
    (free,) = digits.manifest.inputs
    free = msgspec.structs.replace(free, shape=("batch", 1, "height", 28))
    model = Model(digits.path, checked(digits.manifest, inputs=(free,)))
    found = matrix([model, digits], ["onnxruntime"])
    assert [cell.verdict for cell in found.cells] == ["failed", "source"]
    assert "free axes height" in found.cells[0].detail


def unknown_operator() -> Model:
    """A model with an operator of a domain that no engine has, under a name that no engine knows."""
    graph = helper.make_graph(
        [helper.make_node("Whirl", ["x"], ["y"], domain="com.microsoft")],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 4))
    manifest = Manifest(
        name="odd", format="onnx", inputs=(spec,), outputs=(msgspec.structs.replace(spec, name="y"),)
    )
    return Model.create(manifest, {"model.onnx": proto.SerializeToString()})


def test_a_refusal_names_the_operator() -> None:
    found = matrix([unknown_operator()], ["onnxruntime", "openvino"])
    first = found.cells[0]
    assert (first.verdict, first.operator) == ("refused", "com.microsoft:Whirl")
    assert "/" not in first.detail.partition("model.onnx")[0]
    assert found.cells[1].verdict in {"failed", "not installed"}


@pytest.mark.parametrize(
    ("message", "operator"),
    [
        ("operator Resize (node 'up') cannot be written as TFLite: mode cubic", "Resize"),
        ("Could not find an implementation for NonZero(13) node with name 'n'", "NonZero"),
        ("com.acme.Whirl(-1) is not a registered function/op", "com.acme.Whirl"),
        ("Encountered unresolved custom op: TFL_NMS.See instructions", "TFL_NMS"),
        ("No conversion rule found for operations: ai.onnx.contrib.Thing", "ai.onnx.contrib.Thing"),
        ("Unknown builtin op: torchvision::nms.", "torchvision::nms"),
        ("it is too large", ""),
    ],
)  # fmt: skip
def test_operators_in_what_engines_say(message: str, operator: str) -> None:
    assert lacking(message) == operator


@pytest.fixture
def broken_engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the fake engine of child processes another ``run``: it is the process that is under test."""

    def put(name: str) -> None:
        monkeypatch.setitem(plugins.BUILTIN["engine"], "broken", "farthing.engines.fake:FakeEngine")
        program = (
            "import os, time, signal; "
            "from farthing import plugins; from farthing.engines.fake import FakeEngine; "
            "plugins.BUILTIN['engine']['broken'] = 'farthing.engines.fake:FakeEngine'; "
            f"FakeEngine.run = lambda self, feeds: {name}; "
        )
        monkeypatch.setattr(apart, "PROGRAM", program + apart.PROGRAM)

    return put


def test_a_crash_takes_only_its_cell(broken_engine: Any) -> None:
    broken_engine("os.kill(os.getpid(), signal.SIGSEGV)")
    cell = only(matrix([fake_model()], ["fake"]))
    assert cell.verdict == "failed"
    assert "crashed with SIGSEGV" in cell.detail


def test_what_hangs_is_stopped(broken_engine: Any) -> None:
    broken_engine("time.sleep(60)")
    cell = only(matrix([fake_model()], ["fake"], seconds=2.0))
    assert cell.verdict == "failed"
    assert "over 2 s" in cell.detail


def test_an_engine_that_leaves_without_a_word(broken_engine: Any) -> None:
    broken_engine("os._exit(3)")
    assert "ended with 3" in only(matrix([fake_model()], ["fake"])).detail


def test_a_source_that_does_not_run_is_said_so(broken_engine: Any) -> None:
    broken_engine("os._exit(3)")
    found = matrix([fake_model()], ["broken", "fake"])
    assert "the source itself does not run" in found.cell("fake", "broken").detail


def test_unknown_engines_and_no_models() -> None:
    with pytest.raises(PluginError, match="onnxruntime"):
        matrix([fake_model()], ["onnxruntim"])
    with pytest.raises(ConfigError, match="at least one"):
        matrix([])


def test_differences_are_over_the_largest_value() -> None:
    one = [{"y": np.array([1.0, -4.0]), "n": np.array([3])}]
    assert difference(one, one) == (0.0, 0.0)
    other = [{"y": np.array([1.0, -3.0]), "n": np.array([3])}]
    assert difference(one, other) == (1.0, 0.25)
    assert difference([{"y": np.zeros(2)}], [{"y": np.array([0.0, 1e-9])}]) == (1e-9, 1.0)
    assert difference([{"y": np.array([1.0])}], [{"z": np.array([1.0])}]) == (0.0, 0.0), "by their order"
    nan = [{"y": np.array([np.nan, 2.0])}]
    assert difference(nan, nan) == (0.0, 0.0)
    with pytest.raises(ModelError, match="NaN"):
        difference(nan, [{"y": np.array([1.0, 2.0])}])
    with pytest.raises(ModelError, match="shape"):
        difference(one, [{"y": np.zeros(3), "n": np.array([3])}])
    with pytest.raises(ModelError, match="outputs"):
        difference(one, [{"y": np.zeros(2)}])
    assert difference([{"s": np.array(["a"])}], [{"s": np.array(["b"])}]) == (1.0, 1.0)


def test_the_tolerance_goes_by_the_precision(digits: Model) -> None:
    assert precision(digits) == "float32"
    half = Quantization(scheme="float16", weights="float16", activations="float16")
    int8 = Quantization(scheme="static", weights="int8", activations="uint8")
    for scheme, expected in ((half, "float16"), (int8, "int8")):
        data = {"model.onnx": digits.file}
        assert precision(Model.create(checked(digits.manifest, quantization=scheme), data)) == expected
    assert precision(fake_model()) == "float32"


def test_pictures_go_channels_last_where_the_form_wants_it() -> None:
    first = TensorSpec(name="x", dtype="float32", shape=(1, 3, 4, 5), layout="NCHW")
    last = msgspec.structs.replace(first, shape=(1, 4, 5, 3), layout="NHWC")
    array = np.random.default_rng(0).random((1, 3, 4, 5), np.float32)
    assert apart._fitted(array, last, first).shape == (1, 4, 5, 3)
    assert np.array_equal(apart._fitted(array, first, first), array)
