"""Real networks: a residual one operator by operator, and a face detector with its decoder in the graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from farthing.assets import ASSETS, fetch
from farthing.bench import evaluate
from farthing.errors import AssetError
from farthing.forge import graph, nets
from farthing.forge.fuse import Fuse
from farthing.forge.pretrained import centerface
from farthing.forge.quantize import heads
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.sensitivity import PRECISIONS, sensitivity
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task, find_task

VNNI = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))


def test_a_residual_network_in_every_precision(
    make_model: Callable[..., Model], digits_task: Task, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = nets.resnet8()
    nets.settle(net, (32, 1, 8, 8))
    splits = {name: digits_task.split(name) for name in ("calibration", "validation")}
    task = Task("agreeing", {name: split.subset(range(100)) for name, split in splits.items()}, "agreement")
    found = sensitivity(make_model(net.eval()), task, VNNI, scored=1, cache=tmp_path)
    kinds = {one.name: one.kind for one in found.operators}
    assert sorted(kinds.values()) == ["Add"] * 3 + ["Conv"] * 9 + ["Gemm", "GlobalAveragePool"]
    assert sum(one.parameters for one in found.operators) == pytest.approx(78_000, rel=0.03)
    for one in found.operators:
        expected = set(PRECISIONS) if one.kind in {"Conv", "Gemm"} else {"int8", "int8 per tensor", "float16"}
        assert {effect.precision for effect in one.effects} == expected
        ratios = {effect.precision: effect.output_sqnr or -100 for effect in one.effects}
        assert ratios["float16"] > ratios["int8"] > 10
    whole = {one.precision: one.output_sqnr for one in found.whole}
    for name in (name for name in PRECISIONS if name != "float16"):  # the runtime itself drops casts there
        worst = found.worst(name)[0].effect(name)
        assert worst is not None
        assert (worst.output_sqnr or 0) > (whole[name] or 0) - 3, (
            "one operator adds less noise than all of them"
        )


def decoding(model: Model, height: int, width: int) -> Model:
    """CenterFace with its decoder in the graph: boxes in pixels and the score of each place leave in one tensor.

    That is how detectors of the YOLO family are exported. A place is a face where no neighbour is likelier.
    """
    proto = graph.load(model.file)
    heat, size, offset, _ = (value.name for value in proto.graph.output)
    rows, columns = height // 4, width // 4
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))[None].astype(np.float32)
    numbers = {"grid": grid + 0.5, "four": np.array(4, np.float32), "two": np.array(2, np.float32)}
    numbers |= {
        name: np.array(value) for name, value in {"rows5": [0, 5, -1], "one": [1], "axis": [2]}.items()
    }
    numbers |= {f"at{place}": np.array([place]) for place in (0, 1, 2, 4, 5)}
    node = helper.make_node
    decoder = [
        node("MaxPool", [heat], ["peak"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Equal", [heat, "peak"], ["highest"]),
        node("Cast", ["highest"], ["mask"], to=TensorProto.FLOAT),
        node("Mul", [heat, "mask"], ["score"]),
        node("Exp", [size], ["sides"]),
        node("Mul", ["sides", "two"], ["half"]),
        node("Add", [offset, "grid"], ["place"]),
        node("Mul", ["place", "four"], ["middle"]),
        node("Sub", ["middle", "half"], ["low"]),
        node("Add", ["middle", "half"], ["high"]),
        *(
            node("Slice", [end, f"at{i}", f"at{i + 1}", "one"], [f"{end}{i}"])
            for end in ("low", "high")
            for i in (0, 1)
        ),
        node("Concat", ["low1", "low0", "high1", "high0", "score"], ["all"], name="join", axis=1),
        node("Reshape", ["all", "rows5"], ["flat"]),
        node("Transpose", ["flat"], ["found"], perm=[0, 2, 1]),
        node("Slice", ["found", "at0", "at4", "axis"], ["boxes"]),
        node("Slice", ["found", "at4", "at5", "axis"], ["column"]),
        node("Squeeze", ["column", "at2"], ["scores"]),
    ]
    proto.graph.node.extend(decoder)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in numbers.items())
    del proto.graph.output[:]
    for name, shape in (("boxes", [rows * columns, 4]), ("scores", [rows * columns])):
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]))
    outputs = tuple(replace(spec, batch_axis=0) for spec in graph.tensor_specs(proto)[1])
    return Model.create(replace(model.manifest, outputs=outputs), {"model.onnx": graph.save_bytes(proto)})


@pytest.mark.slow
def test_a_face_detector_goes_blind_in_int8_and_sees_again_with_its_head_in_float() -> None:
    try:
        fetch(ASSETS["centerface"])
        whole = find_task("faces")
    except AssetError as error:
        pytest.skip(str(error))
    faces = np.flatnonzero(whole.split("validation").labels[:, 0, 0] >= 0)[::3]  # type: ignore[index]
    splits = {
        "calibration": whole.split("calibration"),
        "validation": whole.split("validation").subset(faces),
    }
    task = Task("faces", splits, whole.metric, form="image")
    plain = centerface()
    fused = Fuse()(plain, VNNI, task)
    assert heads.joins(fused, task, StaticInt8()) == [], "its maps leave one by one: nothing meets"
    model = decoding(fused, 480, 640)
    [join] = heads.joins(model, task, StaticInt8())
    assert join.node == "join"
    assert min(part.values for part in join.parts) == 1
    value = {name: evaluate(made, task, "validation")[0].value for name, made in {
        "float": model,
        "int8": StaticInt8()(model, VNNI, task),
        "mixed": StaticInt8(exclude=join.head)(model, VNNI, task),
    }.items()}  # fmt: skip
    assert value["float"] > 0.9
    assert value["int8"] == 0, "no face is found in any picture"
    assert value["mixed"] > 0.6
