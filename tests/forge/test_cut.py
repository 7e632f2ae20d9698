"""Cutting: parts one after another give what the whole gives; where to cut is found by time, memory or name."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from farthing.bundle import Bundle, Exits
from farthing.engines.base import open_engine
from farthing.errors import ConfigError, ConversionError, MeasurementError, ModelError, UnsupportedError
from farthing.forge import nets
from farthing.forge.convert import convert
from farthing.forge.cut import Cut, cut
from farthing.forge.cut.flow import Flow
from farthing.forge.cut.plan import Scale, balanced, fewest
from farthing.forge.fuse import Fuse
from farthing.forge.quantize.static import StaticInt8
from farthing.model import Manifest, Model, TensorSpec
from farthing.target import Target
from farthing.task import Split, Task

Array = NDArray[Any]
FLOAT = TensorProto.FLOAT
VNNI = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))


def run(bundle: Bundle, feeds: dict[str, Array]) -> dict[str, Array]:
    """All tensors that parts make one after another."""
    tensors = dict(feeds)
    for model in bundle.models.values():
        with open_engine(model) as engine:
            tensors |= engine.run({spec.name: tensors[spec.name] for spec in engine.inputs})
    return tensors


def same(model: Model, bundle: Bundle, feeds: dict[str, Array]) -> None:
    with open_engine(model) as engine:
        expected = engine.run(feeds)
    found = run(bundle, feeds)
    assert list(bundle.manifest.outputs) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, strict=True)


def random(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def int8(model: Model, shape: tuple[int, ...]) -> Model:
    data = Split({"": random((8, *shape))}, np.zeros(8, np.int64))
    task = Task("noise", {"calibration": data}, "top1", labels=[str(i) for i in range(10)])
    return StaticInt8()(Fuse()(model, VNNI, task), VNNI, task)


@pytest.fixture(scope="module")
def resnet() -> Model:
    torch.manual_seed(0)
    net = nets.resnet8(3).eval()
    nets.settle(net, (4, 3, 32, 32))
    return convert(net, name="resnet8", example="1x3x32x32").model


@pytest.fixture(scope="module")
def mobile() -> Model:
    """EfficientNet-lite0 at 64 pixels, untrained: inverted residuals, depthwise convolutions, clips."""
    torch.manual_seed(0)
    net = nets.efficientnet_lite0(10).eval()
    nets.settle(net, (4, 3, 64, 64))
    return convert(net, name="lite0", example="1x3x64x64").model


def model_of(nodes: list[Any], outputs: dict[str, tuple[Any, ...]], **given: Any) -> Model:
    """A model of hand-made nodes with the input x (batch, 4), float32."""
    inputs = {"x": ("batch", 4), **given.get("inputs", {})}
    stored = [numpy_helper.from_array(value, name) for name, value in given.get("stored", {}).items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        stored,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(proto, full_check=True)

    def specs(named: dict[str, tuple[Any, ...]]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name=n, dtype="float32", shape=s, batch_axis=0 if s[:1] == ("batch",) else None)
            for n, s in named.items()
        )

    manifest = Manifest(name="made", format="onnx", inputs=specs(inputs), outputs=specs(outputs))
    return Model.create(manifest, {"model.onnx": proto.SerializeToString()})


# --- real networks


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("quantized", [False, True])
def test_parts_of_a_resnet_answer_as_the_whole_to_the_last_bit(
    resnet: Model, tmp_path: Path, parts: int, quantized: bool
) -> None:
    model = int8(resnet, (3, 32, 32)) if quantized else resnet
    made = cut(model, tmp_path / "b", parts=parts, exact=True)
    assert made.difference == 0.0
    assert len(made.parts) == len(made.bundle.models) == parts
    for batch in (1, 5):
        same(model, Bundle.open(tmp_path / "b"), {"input": random((batch, 3, 32, 32), seed=batch)})


def test_parts_of_a_mobile_net_answer_as_the_whole(mobile: Model, tmp_path: Path) -> None:
    quantized = int8(mobile, (3, 64, 64))
    made = cut(quantized, tmp_path / "b", parts=2)
    assert made.difference == 0
    same(quantized, made.bundle, {"input": random((3, 3, 64, 64))})
    whole = cut(mobile, tmp_path / "c", parts=3)
    assert whole.difference < 1e-5
    assert sum(part.stored_bytes for part in whole.parts) >= 13e6, "every weight is in some part"


@pytest.mark.slow
def test_parts_of_efficientnet_with_its_weights_answer_as_the_whole(tmp_path: Path) -> None:
    from farthing.forge.pretrained import efficientnet_lite0

    model = efficientnet_lite0()
    made = cut(model, tmp_path / "b", parts=2, exact=True)
    same(model, made.bundle, {"input": random((2, 3, 224, 224))})


def test_a_quantized_net_is_cut_where_integers_cross(resnet: Model, tmp_path: Path) -> None:
    made = cut(int8(resnet, (3, 32, 32)), tmp_path / "b", parts=2)
    crossing = made.bundle.models["part2"].manifest.inputs
    assert {spec.dtype for spec in crossing} == {"uint8"}
    assert all(spec.scale is not None and spec.batch_axis == 0 for spec in crossing)
    assert made.difference == 0.0


def test_the_first_part_knows_pictures_and_the_last_one_answers(
    cnn: Model, digits: Any, tmp_path: Path
) -> None:
    made = cut(cnn, tmp_path / "b", parts=2, feeds={"image": digits[0][:4]})
    first, last = made.bundle.models.values()
    assert first.manifest.inputs == cnn.manifest.inputs
    assert (first.manifest.labels, first.manifest.decode) == ((), "")
    assert (last.manifest.labels, last.manifest.decode) == (cnn.manifest.labels, "logits")
    assert last.manifest.outputs == cnn.manifest.outputs
    assert last.manifest.inputs == first.manifest.outputs
    assert first.manifest.outputs[0].shape[0] == "batch", "the batch stays free"
    assert last.manifest.lineage[-1] == "part 2 of 2"
    same(cnn, made.bundle, {"image": digits[0][:7]})


def test_the_model_itself_is_left_alone(cnn: Model, tmp_path: Path) -> None:
    before = cnn.digest, cnn.file.read_bytes()
    cut(cnn, tmp_path / "b", parts=2)
    assert (cnn.digest, cnn.file.read_bytes()) == before


def test_a_fixed_batch_stays_fixed(mlp_net: torch.nn.Module, make_model: Any, tmp_path: Path) -> None:
    model = make_model(mlp_net, batch=4)
    made = cut(model, tmp_path / "b", parts=2)
    assert made.bundle.models["part2"].manifest.inputs[0].shape[0] == 4
    same(model, made.bundle, {"image": random((4, 1, 8, 8))})


# --- by name, and what may cross

W = {"w": np.eye(4, dtype=np.float32) * 2, "unused": np.ones(3, np.float32)}
WIDE = ("batch", 4)


def chain() -> Model:
    """x -> a -> b -> y with one weight for all, and a second input that only the end reads."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("Add", ["c", "a"], ["d"]),
        helper.make_node("Add", ["d", "z"], ["y"]),
    ]
    return model_of(nodes, {"y": WIDE, "b": WIDE}, stored=W, inputs={"z": WIDE, "spare": (2,)})


def feeds_of(model: Model, batch: int = 3) -> dict[str, Array]:
    return {spec.name: random(spec.sized(batch), seed=i) for i, spec in enumerate(model.manifest.inputs)}


def crossing(made: Cut) -> list[list[str]]:
    return [list(part.inputs) for part in made.parts]


def test_cut_after_named_tensors(tmp_path: Path) -> None:
    model = chain()
    made = cut(model, tmp_path / "b", at=["a", "c"])
    assert crossing(made) == [["x", "spare"], ["a"], ["z", "c", "a"]]
    same(model, made.bundle, feeds_of(model))
    with open_engine(made.bundle.models["part2"]) as engine:
        assert [spec.name for spec in engine.outputs] == ["b", "c"], (
            "an output of the whole leaves where it is made"
        )
    stored = [part.stored_bytes for part in made.parts]
    assert stored == [64, 64, 0], "a weight that two parts read is in both, one that nobody reads in none"
    assert made.parts[1].crossing_bytes == 2 * 16, "a passes by part 2"


def test_one_cut_after_several_tensors(tmp_path: Path) -> None:
    model = chain()
    made = cut(model, tmp_path / "b", at=[("b", "a")])
    assert crossing(made) == [["x", "spare"], ["z", "b", "a"]]
    same(model, made.bundle, feeds_of(model))


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (["e"], "no node makes the tensor 'e'"),
        (["x"], "no node makes the tensor 'x'"),
        (["c", "a"], "nothing is left to compute between"),
        (["a", "a"], "nothing is left to compute between"),
        ([["y", "b"]], "nothing is left to compute after"),
    ],
)
def test_names_that_make_no_cut_are_refused(at: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        cut(chain(), tmp_path / "b", at=at)


def test_constants_are_copied_and_never_cross(tmp_path: Path) -> None:
    """Numbers made real from 8 bits, as in QDQ files, belong to whoever reads them."""
    quantized = {
        "q": np.arange(-2, 2, dtype=np.int8),
        "s": np.array(0.25, np.float32),
        "zero": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "zero"], ["w"]),
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        helper.make_node("Mul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "one"], ["b"]),
        helper.make_node("Mul", ["b", "w"], ["y"]),
        helper.make_node("Identity", ["w"], ["fixed"]),
    ]
    model = model_of(nodes, {"y": WIDE, "fixed": (4,)}, stored=quantized)
    made = cut(model, tmp_path / "b", at=["a", "b"])
    assert crossing(made) == [["x"], ["a"], ["b"]]
    assert [part.stored_bytes for part in made.parts] == [9, 0, 9]
    same(model, made.bundle, feeds_of(model))


def branching() -> Model:
    """An If whose branches read tensors from outside, and a Loop that sums."""
    then = helper.make_graph(
        [helper.make_node("Add", ["a", "w"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Mul", ["a", "a"], ["o"])],
        "other",
        [],
        [helper.make_tensor_value_info("o", FLOAT, None)],
    )
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["sum", "a"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "none"], ["cond"]),
        helper.make_node("If", ["cond"], ["b"], then_branch=then, else_branch=other),
        helper.make_node("Loop", ["three", "", "b"], ["y"], body=body),
    ]
    stored = {"w": np.ones(4, np.float32), "none": np.array(0, np.float32), "three": np.array(3, np.int64)}
    return model_of(nodes, {"y": WIDE}, stored=stored)


def test_what_branches_and_loops_read_from_outside_crosses_too(tmp_path: Path) -> None:
    model = branching()
    made = cut(model, tmp_path / "b", at=["cond", "b"])
    assert crossing(made) == [["x"], ["x", "cond"], ["b", "a"]]
    for sign in (1, -1):
        same(model, made.bundle, {"x": sign * np.abs(random((3, 4)))})


def test_what_is_no_tensor_does_not_cross(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["s"]),
        helper.make_node("ConcatFromSequence", ["s"], ["c"], axis=1),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    model = model_of(nodes, {"y": ("batch", 8)})
    with pytest.raises(UnsupportedError, match="'s' would cross the cut, and is no tensor"):
        cut(model, tmp_path / "a", at=["s"])
    made = cut(model, tmp_path / "b", parts=2)
    assert crossing(made) == [["x"], ["c"]]


def test_sizes_that_depend_on_the_data_are_left_open(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("NonZero", ["r"], ["where"]),
        helper.make_node("Cast", ["where"], ["places"], to=FLOAT),
        helper.make_node("ReduceSum", ["places"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    model = model_of(nodes, {"y": WIDE})
    made = cut(model, tmp_path / "b", at=["places"])
    assert all(isinstance(size, str) for size in made.bundle.models["part1"].manifest.outputs[0].shape)
    for seed in range(3):
        same(model, made.bundle, {"x": random((3, 4), seed)})


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({}, ConfigError, "say where to cut"),
        ({"parts": 1}, ConfigError, "two are the fewest"),
        ({"parts": 2, "at": ["a"]}, ConfigError, "either the tensors"),
        ({"memory_mb": 0.0}, ConfigError, "keeps no part"),
        ({"memory_mb": float("nan")}, ConfigError, "keeps no part"),
        ({"memory_mb": float("inf")}, ConfigError, "a limit of inf MB"),
        ({"memory_mb": 1.0}, ConfigError, "keeps 1 MB as a whole"),
        ({"memory_mb": 1e-5}, UnsupportedError, r"what begins with \w+ '\w+' takes .* cannot be cut"),
        ({"parts": 9}, UnsupportedError, "cannot be cut into 9 such parts: it has 3 places"),
        ({"parts": 2, "exits": Exits()}, ConfigError, "name all but one"),
        ({"at": ["z"], "exits": Exits()}, ConfigError, "'z' is no output"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(
    options: dict[str, Any], kind: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=said):
        cut(chain(), tmp_path / "b", **options)
    assert not (tmp_path / "b").exists()


def test_parts_that_would_answer_otherwise_wherever_it_is_cut_are_refused_with_how_far(
    tmp_path: Path,
) -> None:
    """The whole holds a node that nobody needs, and so ONNX Runtime does not take the other one for one of integers."""
    stored = {
        "w": np.random.default_rng(0).integers(-100, 100, (4, 4)).astype(np.int8),
        "s": np.float32(0.05),
    }
    nodes = [helper.make_node("Relu", ["x"], ["a"])]
    for weights, product in (("w1", "y"), ("w2", "nobody_s")):
        nodes += [
            helper.make_node("DequantizeLinear", ["w", "s"], [weights]),
            helper.make_node("MatMul", ["a", weights], [product]),
        ]
    model = model_of(nodes, {"y": WIDE}, stored=stored)
    with pytest.raises(ConversionError, match=r"differ from the whole by 0\.0"):
        cut(model, tmp_path / "b", parts=2)
    with pytest.raises(UnsupportedError, match=r"wherever made is cut, .* not every bit of the answer stays"):
        cut(model, tmp_path / "b", parts=2, exact=True)
    assert not (tmp_path / "b").exists()


def test_models_that_cannot_be_cut_are_refused_by_name(tmp_path: Path) -> None:
    from farthing.testing import fake_model

    with pytest.raises(UnsupportedError, match="fake is fake: only ONNX"):
        cut(fake_model(), tmp_path / "b", parts=2)
    kept = {"dtype": "float32", "shape": (1, 4), "role": "state"}
    stateful = Manifest(
        name="gru",
        format="onnx",
        inputs=(TensorSpec(name="h", **kept),),
        outputs=(TensorSpec(name="h2", **kept),),
    )
    with pytest.raises(UnsupportedError, match="gru keeps the state 'h'"):
        cut(Model.create(stateful, {"model.onnx": b"x"}), tmp_path / "b", parts=2)
    free = model_of([helper.make_node("Relu", ["x"], ["y"])], {"y": WIDE}, inputs={"z": ("n", "m")})
    with pytest.raises(MeasurementError, match="free axes m: give a task"):
        cut(free, tmp_path / "b", parts=2)


def test_exits_are_cut_at_their_scores(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["f"]),
        helper.make_node("Neg", ["f"], ["early"]),
        helper.make_node("Relu", ["f"], ["g"]),
        helper.make_node("MatMul", ["g", "w"], ["late"]),
    ]
    model = model_of(nodes, {"late": WIDE, "early": WIDE}, stored=W)
    made = cut(model, tmp_path / "b", at=["early"], exits=Exits(thresholds=(0.7,)))
    assert made.bundle.manifest.role == "exits"
    assert made.bundle.manifest.outputs == ("early", "late")
    assert made.bundle.manifest.exits == Exits(thresholds=(0.7,))
    assert crossing(made) == [["x"], ["f"]]


# --- any graph

UNARY, BINARY = ("Relu", "Neg", "Abs", "Sigmoid"), ("Add", "Mul", "Sub")


@st.composite
def graphs(draw: st.DrawFn) -> Model:
    """A random net of elementwise operators with one or two outputs."""
    known, nodes = ["x", "k"], []
    for number in range(draw(st.integers(2, 10))):
        if draw(st.booleans()):
            takes, kind = [draw(st.sampled_from(known))], draw(st.sampled_from(UNARY))
        else:
            takes, kind = [draw(st.sampled_from(known)) for _ in "ab"], draw(st.sampled_from(BINARY))
        nodes.append(helper.make_node(kind, takes, [f"t{number}"]))
        known.append(f"t{number}")
    nodes.append(helper.make_node("Sum", [*known[:2], *known[-3:]], ["y"]))
    outputs = {"y": WIDE}
    extra = draw(st.sampled_from(known[2:]))
    flow_from_x = Flow(
        helper.make_model(
            helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", FLOAT, None)], [])
        )
    )
    if draw(st.booleans()) and extra in flow_from_x.maker:
        outputs[extra] = WIDE
    return model_of(nodes, outputs, stored={"k": np.arange(4, dtype=np.float32)})


@settings(max_examples=25)
@given(graphs(), st.data())
def test_any_cut_of_any_graph_gives_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, model: Model, data: st.DataObject
) -> None:
    from farthing.forge.cut import extract, observe

    proto = onnx.load(model.file)
    flow = Flow(proto)
    tensors, _ = observe(proto, flow, model.manifest.inputs, None)
    places = sorted(
        data.draw(st.sets(st.integers(1, len(flow.order) - 1), max_size=3)) if len(flow.order) > 1 else []
    )
    group = flow.prefixes(places)
    assert {name for place in places for name in flow.crossing(place)} <= set(tensors)
    feeds = {"x": random((3, 4))}
    found = dict(feeds)
    for number in range(len(places) + 1):
        part = Model.create(*_saved(extract(flow, group, number, tensors, model.manifest)))
        with open_engine(part) as engine:
            found |= engine.run({spec.name: found[spec.name] for spec in engine.inputs})
    with open_engine(model) as engine:
        for name, value in engine.run(feeds).items():
            np.testing.assert_array_equal(found[name], value)


def _saved(part: tuple[onnx.ModelProto, Manifest]) -> tuple[Manifest, dict[str, bytes]]:
    return part[1], {"model.onnx": part[0].SerializeToString()}


# --- where to cut


def line(sizes: list[int], weights: list[int]) -> Flow:
    """A chain of nodes; each makes a tensor of its own, and some have a weight."""
    names = ["x", *(f"t{i}" for i in range(len(sizes)))]
    nodes = [
        helper.make_node("Add", [names[i], f"w{i}"] if weights[i] else [names[i], names[0]], [names[i + 1]])
        for i in range(len(sizes))
    ]
    stored = [numpy_helper.from_array(np.zeros(1, np.float32), f"w{i}") for i, w in enumerate(weights) if w]
    x, y = (helper.make_tensor_value_info(name, FLOAT, None) for name in (names[0], names[-1]))
    return Flow(helper.make_model(helper.make_graph(nodes, "g", [x], [y], stored)))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=2, max_size=7), st.data())
def test_the_fewest_parts_that_keep_a_limit(layers: list[tuple[int, int]], data: st.DataObject) -> None:
    sizes, weights = [list(column) for column in zip(*layers, strict=True)]
    flow = line(sizes, weights)
    bytes_of = {"x": 2, **{f"t{i}": size for i, size in enumerate(sizes)}}
    scale = Scale(flow, bytes_of, {f"w{i}": w for i, w in enumerate(weights) if w})
    end = len(sizes)
    places = list(range(1, end))
    crosses = {place: sum(bytes_of[name] for name in flow.crossing(place)) for place in places}
    limit = data.draw(st.integers(1, scale.weigh(0, end).bytes))
    whole = scale.weigh(0, end)
    assert whole.stored == sum(weights)
    plans = []
    for mask in range(2 ** len(places)):
        cuts = [place for i, place in enumerate(places) if mask >> i & 1]
        bounds = [0, *cuts, end]
        pieces = [scale.weigh(a, b) for a, b in itertools.pairwise(bounds)]
        assert max(piece.peak for piece in pieces) <= whole.peak, "a part never takes more than the whole"
        if all(piece.bytes <= limit for piece in pieces):
            plans.append((len(pieces), sum(crosses[cut] for cut in cuts)))
    found = fewest(places, end, limit, scale, crosses)
    assert (found[0][:2] if 0 in found else None) == (min(plans) if plans else None)


@given(st.lists(st.floats(0.01, 10), min_size=4, max_size=40), st.integers(2, 4))
def test_cuts_lie_where_the_shares_of_time_are_even(times: list[float], parts: int) -> None:
    total = sum(times)
    asked: list[int] = []

    def share(place: int) -> float:
        asked.append(place)
        return sum(times[:place]) / total

    places = range(1, len(times))
    cuts = balanced(places, parts, share, lambda place: (False, 0), lambda *_: True)
    assert list(cuts) == sorted(set(cuts))
    if parts == 2:
        assert share(cuts[0]) == min((share(place) for place in places), key=lambda value: abs(value - 0.5))


def test_near_an_even_cut_the_cheapest_is_taken() -> None:
    def price(place: int) -> tuple[bool, int]:
        return place == 50, abs(place - 48)

    cuts = balanced(range(1, 100), 2, lambda place: place / 100, price, lambda *_: True)
    assert cuts == (48,)
    far = balanced(
        range(1, 128), 2, lambda place: place / 128, lambda place: (False, -place), lambda *_: True
    )
    assert far == (70,), "but no further than a tenth of a part"


def test_memory_and_parts_together(resnet: Model, tmp_path: Path) -> None:
    alone = cut(resnet, tmp_path / "a", memory_mb=0.4)
    both = cut(resnet, tmp_path / "b", memory_mb=0.4, parts=3)
    for made in (alone, both):
        assert all(part.stored_bytes + part.peak_bytes <= 0.4e6 for part in made.parts)
        with open_engine(resnet) as engine:
            feeds = {"input": random((2, 3, 32, 32))}
            np.testing.assert_allclose(
                run(made.bundle, feeds)["output"], engine.run(feeds)["output"], rtol=1e-4, atol=1e-5
            )
    assert len(alone.parts) == 2
    assert len(both.parts) == 3
