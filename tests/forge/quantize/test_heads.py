"""Detection heads that 8 bits break: found by the ranges that meet in them, named, and left in float."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from farthing.bench import Rule, evaluate
from farthing.forge import graph
from farthing.forge.doctor.of_heads import of_heads
from farthing.forge.fuse import Fuse
from farthing.forge.ladder import rounds
from farthing.forge.quantize import heads
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.study import study
from farthing.model import Manifest, Model, TensorSpec
from farthing.recipe import Candidate, Progress
from farthing.target import Target
from farthing.task import Split, Task
from farthing.tasks.portraits import FACES

Array = NDArray[Any]
VNNI = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))
CANVAS, CELLS, PIXELS = 16, 8, 640
EPOCHS = 24
DIGIT = 8 * PIXELS / CANVAS


class Detector(nn.Module):
    """Finds a digit on a canvas, one anchor a cell; boxes and score leave in one tensor, as those of YOLO do.

    The boxes are in pixels of the camera's picture, of which the canvas is a small copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 3, 1),
        )
        cells = torch.arange(CELLS, dtype=torch.float32) + 0.5
        self.register_buffer(
            "grid", torch.stack(torch.meshgrid(cells, cells, indexing="xy")).flatten(1)[None]
        )

    def forward(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raw = self.body(picture).flatten(2)
        middle = (raw[:, 1:] + self.grid) * (PIXELS / CELLS)
        boxes = [middle - DIGIT / 2, middle + DIGIT / 2]
        found = torch.cat([*boxes, torch.sigmoid(raw[:, :1])], 1).transpose(1, 2)
        return found[..., :4], found[..., 4]


class Stretching(Detector):
    """The same with another decoder: boxes in shares of the picture, beside the score; then all times a vector."""

    def forward(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raw = self.body(picture).flatten(2)
        middle = (raw[:, 1:] + self.grid) / CELLS
        half = DIGIT / PIXELS / 2
        found = torch.cat([middle - half, middle + half, torch.sigmoid(raw[:, :1])], 1).transpose(1, 2)
        found = found * torch.tensor([PIXELS] * 4 + [1.0])
        return found[..., :4], found[..., 4]


def scenes(digits: Array, seed: int) -> tuple[Array, Array]:
    """Canvases (n, 1, 16, 16) with a digit each, and where its upper left corner is (n, 2), x first."""
    corners = np.random.default_rng(seed).integers(0, CANVAS - 8, size=(len(digits), 2))
    canvases = np.zeros((len(digits), 1, CANVAS, CANVAS), np.float32)
    for canvas, (x, y), digit in zip(canvases, corners, digits, strict=True):
        canvas[0, y : y + 8, x : x + 8] = digit[0]
    return canvases, corners


def trained(canvases: Array, corners: Array) -> Detector:
    torch.manual_seed(0)
    net = Detector()
    pictures = torch.from_numpy(canvases)
    middles = torch.from_numpy((corners + 4) * CELLS / CANVAS)
    cell = middles.long().clamp(max=CELLS - 1)
    place = cell[:, 1] * CELLS + cell[:, 0]
    offset = (middles - cell - 0.5).float()
    optimiser = torch.optim.Adam(net.parameters(), 4e-3)
    for _ in range(EPOCHS):
        for picks in torch.randperm(len(pictures)).split(50):
            raw = net.body(pictures[picks]).flatten(2)
            rows = torch.arange(len(picks))
            score = torch.zeros_like(raw[:, 0])
            score[rows, place[picks]] = 1.0
            loss = functional.binary_cross_entropy_with_logits(raw[:, 0], score, reduction="sum") / 50
            loss = loss + functional.l1_loss(raw[rows, 1:, place[picks]], offset[picks])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


@pytest.fixture(scope="module")
def scenes_task(digits: tuple[Array, Array]) -> Task:
    cut = {"train": (0, 1000), "calibration": (0, 64), "validation": (1000, 1400), "test": (1400, 1797)}
    splits = {}
    for seed, (name, (first, last)) in enumerate(cut.items()):
        canvases, corners = scenes(digits[0][first:last], seed)
        boxes = np.concatenate([corners, corners + 8], 1) * (PIXELS / CANVAS)
        splits[name] = Split({"": canvases}, np.insert(boxes, 0, 0, 1)[:, None].astype(np.float32))
    return Task("scenes", splits, FACES)


@pytest.fixture(scope="module")
def net(digits: tuple[Array, Array]) -> Detector:
    return trained(*scenes(digits[0][:1000], 9))


@pytest.fixture(scope="module")
def detector(net: Detector, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return exported(net, tmp_path_factory.mktemp("d") / "m")


@pytest.fixture(scope="module")
def stretching(net: Detector, tmp_path_factory: pytest.TempPathFactory) -> Model:
    other = Stretching()
    other.load_state_dict(net.state_dict())
    return exported(other.eval(), tmp_path_factory.mktemp("s") / "m")


def exported(net: Detector, place: Path) -> Model:
    buffer = io.BytesIO()
    axes = {name: {0: "batch"} for name in ("picture", "boxes", "scores")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.zeros(2, 1, CANVAS, CANVAS),),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["picture"],
            output_names=["boxes", "scores"],
            dynamic_axes=axes,
        )
    anchors = CELLS * CELLS

    def spec(name: str, *shape: int) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=("batch", *shape), batch_axis=0)

    manifest = Manifest(
        name="detector",
        format="onnx",
        inputs=(spec("picture", 1, CANVAS, CANVAS),),
        outputs=(spec("boxes", anchors, 4), spec("scores", anchors)),
    )
    return Model.create(manifest, {"model.onnx": buffer.getvalue()}, place)


def scored(model: Model, task: Task) -> float:
    return evaluate(model, task, "validation")[0].value


def test_boxes_beside_scores_are_found_named_and_left_in_float(detector: Model, scenes_task: Task) -> None:
    model = Fuse()(detector, VNNI, scenes_task)
    float32 = scored(model, scenes_task)
    int8 = StaticInt8()(model, VNNI, scenes_task)
    assert float32 > 0.9
    assert scored(int8, scenes_task) == 0, "no score is left that could reach a half"
    [join] = heads.joins(model, scenes_task, StaticInt8())
    kinds = {node.name: node.op_type for node in graph.load(model.file).graph.node}
    assert kinds[join.node] == "Concat"
    least = min(join.parts, key=lambda part: part.values)
    assert (
        kinds[next(n.name for n in graph.load(model.file).graph.node if least.tensor in n.output)]
        == "Sigmoid"
    )
    assert least.values == 1
    assert 0.9 < least.high <= 1
    assert join.parts[0].high > 300
    words = f"int8 has one scale for both, steps of {join.step:.3g}, and would leave 1 of 256 values for {least.tensor}"
    assert str(join).startswith(f"Concat {join.node} joins the ranges ")
    assert str(join).endswith(words)
    assert "Conv" not in {kinds[name] for name in join.head}
    assert {"Sigmoid", "Concat", "Transpose", "Slice"} <= {kinds[name] for name in join.head}
    mixed = StaticInt8(exclude=join.head)(model, VNNI, scenes_task)
    assert scored(mixed, scenes_task) > float32 - 0.03
    assert sum(node.op_type == "Conv" for node in graph.load(mixed.file).graph.node) == 4
    assert mixed.size_bytes < 0.6 * model.size_bytes
    assert heads.joins(model, scenes_task, StaticInt8(exclude=join.head)) == []


def test_a_decoder_that_stretches_some_columns_is_found_named_and_left_in_float(
    stretching: Model, scenes_task: Task
) -> None:
    """What meets in its Concat is alike: boxes from 0 to 1 beside scores from 0 to 1."""
    model = Fuse()(stretching, VNNI, scenes_task)
    float32 = scored(model, scenes_task)
    assert scored(StaticInt8()(model, VNNI, scenes_task), scenes_task) == 0 < float32
    [join] = heads.joins(model, scenes_task, StaticInt8())
    kinds = {node.name: node.op_type for node in graph.load(model.file).graph.node}
    assert kinds[join.node] == join.kind == "Mul"
    assert str(join).startswith(f"Mul {join.node} joins the ranges ")
    assert [part.tensor.rsplit(" * ")[1] for part in join.parts] == ["640", "1"]
    assert [part.values for part in join.parts][1] == 1
    assert join.parts[0].high > 300
    assert 0.9 < join.parts[1].high <= 1
    assert {"Sigmoid", "Concat", "Mul", "Slice"} <= {kinds[name] for name in join.head}
    assert "Conv" not in {kinds[name] for name in join.head}
    mixed = StaticInt8(exclude=join.head)(model, VNNI, scenes_task)
    assert scored(mixed, scenes_task) > float32 - 0.03
    assert heads.joins(model, scenes_task, StaticInt8(exclude=join.head)) == []
    [warning] = of_heads(stretching, scenes_task)
    assert warning.found.startswith("Mul ")


def test_a_search_leaves_such_a_decoder_in_float(stretching: Model, scenes_task: Task, search: Any) -> None:
    result = search(stretching, scenes_task, budget="accuracy_drop<=0.03", allow_slower=True)
    [mixed] = [one for one in result.candidates if one.name.endswith("head float")]
    assert mixed.status in {"accepted", "winner"}, mixed.verdict
    assert [note for note in result.summary.notes if note.startswith("Mul ") and "left in float" in note]


@given(
    st.lists(st.floats(0.01, 1000), min_size=2, max_size=4),
    st.lists(st.floats(-1000, 1000).filter(lambda by: abs(by) > 0.01), min_size=2, max_size=4),
    st.booleans(),
)
def test_columns_are_lost_by_a_scaling_as_rounding_loses_them(
    widths: list[float], factors: list[float], divide: bool
) -> None:
    """Held against rounding itself: what had 16 values before and has not afterwards."""
    count = min(len(widths), len(factors))
    by = np.array(factors[:count], np.float32)
    data = np.linspace(-1, 1, 999)[:, None].astype(np.float32) * np.array(widths[:count], np.float32)
    value = helper.make_tensor_value_info
    x, out = value("x", TensorProto.FLOAT, [999, count]), value("out", TensorProto.FLOAT, [count, 999])
    nodes = [
        helper.make_node("Div" if divide else "Mul", ["x", "by"], ["y"], name="stretch"),
        helper.make_node("Transpose", ["y"], ["out"], name="turn"),
    ]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [x], [out], [numpy_helper.from_array(by, "by")]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    found = [*heads.stretched(proto, dict.fromkeys(("x", "y", "out"), (0.0, 0.0)), {"x": data})]
    before, after = (left(array) for array in (data, data / by if divide else data * by))
    near = ((before >= 17) & (after <= 14)).any()
    far = ((before < 15) | (after > 17)).all()
    assert len(found) == near or not (near or far)
    for join in found:
        assert join.parts[1].values < 16
        assert abs(join.parts[1].values - after).min() <= 1
        assert join.parts[0].values == max(part.values for part in join.parts)


def left(data: Array) -> Array:
    """How many values each column has in 8 bits, one scale for all."""
    whole = np.round(data / (np.ptp(data) / 255))
    return np.array([len(np.unique(column)) for column in whole.T])


def test_factors_of_a_network_that_goes_on_are_no_decoder(
    make_model: Callable[..., Model], digits_task: Task
) -> None:
    """A normalisation has such factors; the layer after it makes up for them."""
    factors = numpy_helper.from_array(np.geomspace(0.001, 1000, 64).astype(np.float32), "factor")
    proto = graph.load(joined(make_model, 1.0).file)
    del proto.graph.initializer[1]
    proto.graph.initializer.append(factors)
    model = make_model(proto)
    assert not [join for join in heads.joins(model, digits_task, StaticInt8()) if join.kind == "Mul"]


def test_a_search_leaves_the_head_in_float_before_it_ranks_anything(
    detector: Model, scenes_task: Task, search: Any
) -> None:
    heard: list[Progress] = []
    result = search(
        detector, scenes_task, budget="accuracy_drop<=0.03", allow_slower=True, listener=heard.append
    )
    [mixed] = [one for one in result.candidates if one.name.endswith("head float")]
    assert mixed.status in {"accepted", "winner"}, mixed.verdict
    assert not [event for event in heard if event.text.startswith("ranking")]
    assert not [one for one in result.candidates if "operators float" in one.name]
    [note] = [note for note in result.summary.notes if note.startswith("Concat ")]
    assert note.endswith("; its head was left in float.")
    assert "would leave 1 of 256 values for" in note


def test_a_head_in_float_that_is_not_enough_stays_there_while_the_rest_is_ranked(
    detector: Model, scenes_task: Task, search: Any
) -> None:
    """Nothing may be lost at all, and rounding the backbone loses something."""
    result = search(detector, scenes_task, budget="accuracy_drop<=0.0", allow_slower=True)
    [head] = [one for one in result.candidates if one.name.endswith("head float")]
    if head.status == "rejected":
        others = [one for one in result.candidates if "head float, " in one.name]
        assert others
        for one in others:
            assert set(excluded(one)) >= set(excluded(head))


def excluded(candidate: Candidate) -> list[str]:
    [names] = [step.options["exclude"] for step in candidate.steps if "exclude" in step.options]
    return list(names)


def test_a_study_measures_the_head_in_float_beside_the_others(
    detector: Model, scenes_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "SPRINT", Rule(warmup=1, min_count=5, min_seconds=0.02))
    found = study(detector, scenes_task, VNNI, engines=["onnxruntime"], widths=[8], subset=64, cache=tmp_path)
    drops = {one.name: one.drop.value for one in found.methods if one.drop}
    [head] = [name for name in drops if name.endswith("head float")]
    assert drops[head] < 0.05
    others = {name: drop for name, drop in drops.items() if name != "int8 weights"}
    int8 = [drop for name, drop in others.items() if name.startswith("int8") and "float" not in name]
    assert min(int8) > 0.9
    assert [note for note in found.notes if note.startswith("Concat ")]
    both = next(width for width in found.widths if width.rounded == "both")
    assert both.drop is not None
    assert both.drop.value > 0.9, "rounding the joined tensor is what does it"


def test_networks_whose_concats_join_like_ranges_are_left_alone(
    make_model: Callable[..., Model], cnn: Model, digits_task: Task
) -> None:
    assert heads.joins(cnn, digits_task, StaticInt8()) == []
    assert heads.joins(Fuse()(joined(make_model, 1.0), VNNI, digits_task), digits_task, StaticInt8()) == []


def test_unlike_ranges_inside_a_network_are_named_but_are_no_head(
    make_model: Callable[..., Model], digits_task: Task
) -> None:
    [join] = heads.joins(joined(make_model, 1000.0), digits_task, StaticInt8())
    assert join.node == "join"
    assert [part.tensor for part in join.parts] == ["loud", "flat"]
    assert join.head == (), "a product follows"


def test_the_doctor_warns_of_a_head_before_anything_is_tried(
    detector: Model, scenes_task: Task, cnn: Model, digits_task: Task, make_model: Callable[..., Model]
) -> None:
    [warning] = of_heads(detector, scenes_task)
    assert (warning.area, warning.name, warning.status) == ("model", "int8", "warning")
    assert "would leave 1 of 256 values" in warning.found
    assert warning.mend.startswith("a search leaves it in float by itself")
    [inside] = of_heads(joined(make_model, 1000.0), digits_task)
    assert inside.mend.startswith("`farthing sensitivity` shows what that costs")
    assert [*of_heads(cnn, digits_task)] == []
    int8 = StaticInt8()(Fuse()(detector, VNNI, scenes_task), VNNI, scenes_task)
    assert [*of_heads(int8, scenes_task)] == []


def joined(make_model: Callable[..., Model], factor: float) -> Model:
    """Digits beside a multiple of them, both read by a product."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], name="flat"),
        helper.make_node("Mul", ["flat", "factor"], ["loud"], name="loud"),
        helper.make_node("Concat", ["flat", "loud"], ["both"], name="join", axis=1),
        helper.make_node("MatMul", ["both", "w"], ["logits"], name="product"),
    ]
    w = np.random.default_rng(0).normal(size=(128, 10)).astype(np.float32)
    stored = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.float32(factor), "factor")]
    value = helper.make_tensor_value_info
    image, logits = (
        value("image", TensorProto.FLOAT, ["batch", 1, 8, 8]),
        value("logits", TensorProto.FLOAT, ["batch", 10]),
    )
    return make_model(
        helper.make_model(
            helper.make_graph(nodes, "g", [image], [logits], stored),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
    )


def test_what_others_need_too_is_no_part_of_a_head() -> None:
    """A residual stream that a layer reads as well, and a tensor that never changes, which has no range to lose."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Add", ["a", "x"], ["sum"], name="sum"),
        helper.make_node("Relu", ["sum"], ["boxes"], name="boxes"),
        helper.make_node("Conv", ["sum", "w"], ["b"], name="other"),
        helper.make_node("Sigmoid", ["b"], ["scores"], name="scores"),
        helper.make_node("Concat", ["boxes", "scores", "still"], ["all"], name="join", axis=1),
        helper.make_node("Exp", ["all"], ["out"], name="exp"),
    ]
    w = numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "w")
    x, out = value("x", TensorProto.FLOAT, [1, 1, 4, 4]), value("out", TensorProto.FLOAT, None)
    proto = helper.make_model(helper.make_graph(nodes, "g", [x], [out], [w]))
    known = {
        "boxes": (0.0, 640.0),
        "scores": (0.0, 1.0),
        "still": (0.0, 0.0),
        "sum": (0.0, 640.0),
        "all": (0.0, 640.0),
    }
    [join] = heads.unlike(proto, known)
    assert join.head == ("boxes", "scores", "join")
    assert [part.tensor for part in join.parts] == ["boxes", "scores"]
    assert [*heads.unlike(proto, known | {"scores": (0.0, 100.0)})] == []


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=5))
def test_values_are_what_rounding_to_the_common_scale_leaves(ends: list[tuple[float, float]]) -> None:
    """Held against rounding itself, on a dense sample of each range."""
    parts = {f"t{number}": (min(pair), max(pair)) for number, pair in enumerate(ends)}
    names = [*parts]
    value = helper.make_tensor_value_info
    inputs = [value(name, TensorProto.FLOAT, [1, 4]) for name in names]
    node = helper.make_node("Concat", names, ["all"], name="join", axis=1)
    out = value("all", TensorProto.FLOAT, None)
    for join in heads.unlike(helper.make_model(helper.make_graph([node], "g", inputs, [out])), parts):
        for part in join.parts:
            seen = np.unique(np.round(np.linspace(part.low, part.high, 5001) / join.step))
            assert abs(len(seen) - part.values) <= 1
        assert min(part.values for part in join.parts) < 16
        assert join.parts[0].high - join.parts[0].low == max(part.high - part.low for part in join.parts)
