"""Saved programs, TorchScript and ONNX files: told by content, checked, and refused where they could do harm."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from farthing.engines.archive import checked_script
from farthing.engines.base import open_engine
from farthing.errors import ConversionError, ModelError, UnsupportedError
from farthing.forge.convert import convert
from farthing.forge.convert.archive import checked_program
from farthing.forge.graph import run
from farthing.forge.inspect import inspect
from farthing.model import Manifest, TensorSpec
from farthing.testing import fake_model


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    ).eval()


class Ways(nn.Module):
    """A script that keeps both of its ways."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            x = x * 3
        out: torch.Tensor = self.head(x)
        return out


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one small net saved in every way."""
    root = tmp_path_factory.mktemp("programs")
    example = torch.randn(2, 1, 8, 8)
    free = {"input": {0: torch.export.Dim("batch", min=1, max=1024)}}
    torch.export.save(torch.export.export(net(), (example,), dynamic_shapes=free), root / "free.pt2")
    torch.export.save(torch.export.export(net(), (example,)), root / "fixed.pt2")
    torch.jit.trace(net(), example).save(root / "traced.pt")  # type: ignore[no-untyped-call]
    torch.jit.script(Ways()).save(root / "ways.pt")
    return root


def test_a_saved_program(programs: Path) -> None:
    made = convert(programs / "free.pt2")
    assert made.model.manifest.inputs[0].shape == ("batch", 1, 8, 8)
    assert made.model.manifest.outputs[0].shape == ("batch", 3)
    assert made.model.manifest.lineage[0].startswith("convert.torch.export.v1 torch 2.")
    assert any("opset 18" in sentence for sentence in made.assumptions)
    x = torch.randn(3, 1, 8, 8)
    got = run(onnx.load(made.model.file), {"input": x.numpy()})
    np.testing.assert_allclose(next(iter(got.values())), net()(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert str(Path(__file__).parent).encode() not in made.model.file.read_bytes()


def test_a_program_for_one_batch(programs: Path) -> None:
    made = convert(programs / "fixed.pt2")
    assert made.model.manifest.inputs[0].fixed_batch == 2
    assert any("exported for a batch of 2" in sentence for sentence in made.assumptions)


def test_a_program_from_python() -> None:
    program = torch.export.export(net(), (torch.randn(2, 1, 8, 8),))
    assert (
        "on 8 real samples" in convert(program, samples={"input": np.ones((8, 1, 8, 8), np.float32)}).checked
    )


class Gelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(x)


def test_a_wrong_translation_in_a_program_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from farthing.forge.convert.program import ProgramSource

    right = ProgramSource.export

    def wrong(self: ProgramSource, inputs: Any, opset: int, dynamic: bool) -> Any:
        model, said = right(self, inputs, opset, dynamic)
        for node in model.graph.node:
            if node.op_type == "Relu":
                node.op_type = "Sigmoid"
        return model, said

    monkeypatch.setattr(ProgramSource, "export", wrong)
    program = torch.export.export(net(), (torch.randn(2, 1, 8, 8),))
    with pytest.raises(ConversionError, match=r"aten\.relu of module '2' \(ReLU\), node 'relu'"):
        convert(program)


def test_a_traced_script(programs: Path) -> None:
    made = convert(programs / "traced.pt", example="1x1x8x8")
    assert made.model.manifest.inputs[0].shape == ("batch", 1, 8, 8)
    assert made.model.manifest.lineage[0].startswith("convert.torchscript.v1")


def test_a_script_keeps_its_ways(programs: Path) -> None:
    made = convert(programs / "ways.pt", example="1x4")
    assert made.model.manifest.inputs[0].fixed_batch == 1  # its condition is on the whole batch
    for x in (np.ones((1, 4), np.float32), -np.ones((1, 4), np.float32)):
        (got,) = run(onnx.load(made.model.file), {"x": x}).values()
        np.testing.assert_allclose(got, Ways()(torch.from_numpy(x)).detach().numpy(), rtol=1e-5)


def test_a_wrong_translation_in_a_script_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from farthing.forge.convert.script import ScriptSource

    right = ScriptSource.export

    def wrong(self: ScriptSource, inputs: Any, opset: int, dynamic: bool) -> Any:
        model, said = right(self, inputs, opset, dynamic)
        for tensor in model.graph.initializer:
            if tensor.name == "4.weight":
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
        return model, said

    monkeypatch.setattr(ScriptSource, "export", wrong)
    script = torch.jit.trace(net(), torch.randn(2, 1, 8, 8))  # type: ignore[no-untyped-call]
    with pytest.raises(ConversionError, match=r"operator aten\.linear of module '4'"):
        convert(script, example="1x1x8x8")


# Files are told by their content.


@pytest.mark.parametrize("name", ["free.pt2", "traced.pt"])
def test_the_suffix_does_not_matter(programs: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "model.onnx").write_bytes((programs / name).read_bytes())
    assert convert(tmp_path / "model.onnx", example="2x1x8x8").checked


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", ModelError, "empty"),
        (pickle.dumps([1]), ModelError, "refused, never unpickled"),
        (b"\x1c\x00\x00\x00ET12 and more", UnsupportedError, "ET12"),
        (b"\x1c\x00\x00\x00TFL3 and more", ModelError, "damaged or not sound"),
        (b"\x89HDF\r\n\x1a\n", ModelError, "not a whole model that Keras"),
        (b"words", ModelError, "not ONNX"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, content: bytes, error: type[Exception], message: str) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(error, match=message):
        convert(tmp_path / "model.onnx", example="1x4")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        convert(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a directory"):
        convert(tmp_path)


@pytest.mark.parametrize("look", [convert, inspect])
def test_a_directory_of_a_zip_that_is_damaged(tmp_path: Path, look: Any) -> None:
    place = tmp_path / "m.pt"
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(place))  # type: ignore[no-untyped-call]
    whole = place.read_bytes()
    start = whole.rindex(b"PK\x01\x02")
    length = int.from_bytes(whole[start + 28 : start + 30], "little")
    flags = (int.from_bytes(whole[start + 8 : start + 10], "little") | 0x800).to_bytes(2, "little")
    name = start + 46
    no_text = (
        whole[: start + 8] + flags + whole[start + 10 : name] + b"\xff" * length + whole[name + length :]
    )
    for spoiled in (no_text, whole[:start] + b"PK\0\0" + whole[start + 4 :]):
        place.write_bytes(spoiled)
        with pytest.raises(ModelError, match=f"{place} is a damaged archive"):
            look(place)


def test_the_zip_of_a_model_is_not_converted_again(tmp_path: Path) -> None:
    fake_model().pack(tmp_path / "m.zip")
    with pytest.raises(ModelError, match="is the zip of a model already"):
        convert(tmp_path / "m.zip")
    assert inspect(tmp_path / "m.zip").format == "fake"


def test_a_plain_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ModelError, match="not one that torch writes"):
        convert(tmp_path / "m.zip")


@pytest.mark.parametrize("name", ["free.pt2", "traced.pt"])
def test_truncated_archives(programs: Path, tmp_path: Path, name: str) -> None:
    data = (programs / name).read_bytes()
    for size in (len(data) // 2, len(data) - 10):
        (tmp_path / name).write_bytes(data[:size])
        with pytest.raises(ModelError, match="is an archive that is cut short or damaged"):
            convert(tmp_path / name, example="1x1x8x8")


# Attacks: nothing in a file may run.


def rebuilt(source: Path, place: Path, change: Callable[[str, bytes], bytes], more: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(place, "w") as fresh:
        top = archive.namelist()[0].split("/", 1)[0]
        for name in archive.namelist():
            fresh.writestr(name, change(name.split("/", 1)[1], archive.read(name)))
        for name, content in more.items():
            fresh.writestr(f"{top}/{name}", content)
    return place


class Trap:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def saved_trap(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save((Trap(path),), buffer)
    return buffer.getvalue()


def edited(key: str, value: Any) -> Callable[[Any], None]:
    """A function that sets the first ``key`` anywhere in a document."""

    def edit(content: Any) -> bool:
        if isinstance(content, dict):
            if key in content:
                content[key] = value
                return True
            return any(edit(item) for item in content.values())
        return isinstance(content, list) and any(edit(item) for item in content)

    def check(content: Any) -> None:
        assert edit(content), f"no {key} in the archive"

    return check


@pytest.mark.parametrize(
    "attack", ["inputs", "weights", "object", "library", "operator", "expression", "name", "tree"]
)
def test_attacks_on_programs_are_refused(programs: Path, tmp_path: Path, attack: str) -> None:
    sprung = tmp_path / "sprung"
    run_this = f"__import__('pathlib').Path({str(sprung)!r}).touch()"
    edits = {
        "operator": ("models/model.json", edited("target", "torch.os.system")),
        "expression": ("models/model.json", edited("expr_str", run_this)),
        "name": ("models/model.json", edited("name", f"x:{run_this}")),
        "tree": (
            "models/model.json",
            edited("in_spec", '[1, {"type": "enum", "context": "{\\"fqn\\": \\"antigravity:x\\"}"}]'),
        ),
        "weights": ("data/weights/model_weights_config.json", edited("use_pickle", True)),
    }
    where, edit = edits.get(attack, ("", lambda content: None))

    def change(name: str, content: bytes) -> bytes:
        if name == "data/sample_inputs/model.pt" and attack == "inputs":
            return saved_trap(sprung)
        if name != where:
            return content
        document = json.loads(content)
        edit(document)
        return json.dumps(document).encode()

    more = {
        "object": {"data/constants/custom_obj_0": pickle.dumps(Trap(sprung))},
        "library": {"data/aotinductor/model/model.so": b"\x7fELF"},
    }
    path = rebuilt(programs / "free.pt2", tmp_path / "attack.pt2", change, more.get(attack, {}))
    with pytest.raises(ModelError, match="refused"):
        convert(path)
    assert not sprung.exists()


def test_a_member_given_twice_is_refused(programs: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        path = rebuilt(
            programs / "free.pt2", tmp_path / "m.pt2", lambda _, c: c, {"models/model.json": b"{}"}
        )
    with pytest.raises(ModelError, match="twice"):
        convert(path)


class Writes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "stolen")
        return x


def test_a_script_that_reaches_files_is_refused(tmp_path: Path) -> None:
    torch.jit.script(Writes()).save(tmp_path / "writes.pt")
    with pytest.raises(ModelError, match="'save', which reaches files: refused"):
        convert(tmp_path / "writes.pt", example="1x4")


@pytest.mark.parametrize("name", ["traced.pt", "free.pt2"])
def test_an_archive_that_unpacks_to_much_more_than_itself_is_refused(
    programs: Path, tmp_path: Path, name: str
) -> None:
    """A gigabyte of zeros in one megabyte; and one that says it is small."""
    shutil.copy(programs / name, tmp_path / name)
    with zipfile.ZipFile(tmp_path / name, "a", zipfile.ZIP_DEFLATED) as archive:
        top = archive.namelist()[0].split("/", 1)[0]
        with archive.open(f"{top}/extra/zeros", "w", force_zip64=True) as member:
            for _ in range(300):
                member.write(bytes(1 << 20))
        before = archive.getinfo(f"{top}/extra/zeros").file_size
    assert (tmp_path / name).stat().st_size < before / 200
    with pytest.raises(ModelError, match="would unpack to more than 256 MiB: refused"):
        convert(tmp_path / name, example="1x1x8x8")
    with zipfile.ZipFile(tmp_path / name, "a") as archive:
        archive.getinfo(f"{top}/extra/zeros").file_size = 10
        archive.writestr(f"{top}/extra/more", "")  # makes it write its directory anew
    data = (tmp_path / name).read_bytes()
    tracemalloc.start()
    with pytest.raises(ModelError, match="damaged archive"):
        checked_program(tmp_path / name, data) if name == "free.pt2" else checked_script(
            tmp_path / name, data
        )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_archives_of_too_many_or_oddly_packed_members(programs: Path, tmp_path: Path) -> None:
    for packing in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        place = tmp_path / "odd.pt"
        shutil.copy(programs / "traced.pt", place)
        with zipfile.ZipFile(place, "a", packing) as archive:
            archive.writestr("traced/extra/x", b"x")
        with pytest.raises(ModelError, match="other than deflate"):
            checked_script(place, place.read_bytes())
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as archive:
        for k in range(10_001):
            archive.writestr(str(k), b"")
    with pytest.raises(ModelError, match="more than 10000 members"):
        checked_script(tmp_path / "many.pt", many.getvalue())


# ONNX as it is.


def product(
    tmp_path: Path, shape: list[Any], nodes: list[onnx.NodeProto] | None = None, out: list[Any] | None = None
) -> Path:
    """y = x @ w over the last axis of 4, or the nodes given."""
    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    graph = helper.make_graph(
        nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out or [*shape[:-1], 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "product.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_onnx_is_taken_as_it_is(tmp_path: Path) -> None:
    path = product(tmp_path, ["n", 4])
    made = convert(path, path=tmp_path / "out")
    manifest = made.model.manifest
    assert made.model.file.read_bytes() == path.read_bytes()
    assert manifest.name == "product"
    assert (manifest.inputs[0].shape, manifest.inputs[0].batch_axis) == (("batch", 4), 0)
    assert (manifest.outputs[0].shape, manifest.outputs[0].batch_axis) == (("batch", 3), 0)
    assert manifest.lineage == ("convert.onnx.v1 opset 17",)
    assert manifest.preprocess is None
    assert made.assumptions == ("axis 0 of 'x' taken as the batch axis",)
    assert "runs it, its outputs are finite on 8 random inputs" in made.checked
    assert "a batch of 8 equal to single samples" in made.checked


def test_onnx_keeps_its_opset(tmp_path: Path) -> None:
    path = product(tmp_path, ["n", 4])
    assert convert(path, opset=17).model.manifest.lineage == ("convert.onnx.v1 opset 17",)
    with pytest.raises(UnsupportedError, match="has opset 17 and is taken as it is: leave the opset out"):
        convert(path, opset=13)


def scaled(tmp_path: Path, x: list[Any], s: list[Any], out: list[Any]) -> Path:
    """y = x * s."""
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, sh) for n, sh in (("x", x), ("s", s))]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "s"], ["y"])],
        "scaled",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "scaled.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "scaled.onnx"


@pytest.mark.parametrize("first", ["n", 1])
def test_onnx_with_a_scalar_input(tmp_path: Path, first: str | int) -> None:
    made = convert(scaled(tmp_path, [first, 4], [], [first, 4]))
    x, s = made.model.manifest.inputs
    assert (x.batch_axis, s.shape, s.batch_axis) == (0, (), None)
    with open_engine(made.model) as engine:
        fed = {"x": np.ones((1, 4), np.float32), "s": np.array(3, np.float32)}
        assert engine.run(fed)["y"].tolist() == [[3] * 4]


def test_onnx_of_nothing_but_scalars(tmp_path: Path) -> None:
    made = convert(scaled(tmp_path, [], [], []))
    assert [spec.batch_axis for spec in (*made.model.manifest.inputs, *made.model.manifest.outputs)] == [
        None
    ] * 3
    assert "finite on 1 random input (" in made.checked
    assert made.assumptions == ()


def test_onnx_with_a_long_input_beside_the_batch(tmp_path: Path) -> None:
    """An input without a batch may be longer than the samples it is tried on."""
    made = convert(scaled(tmp_path, ["n", 40], [40], ["n", 40]))
    assert [spec.batch_axis for spec in made.model.manifest.inputs] == [0, None]
    root = np.full((3, 40), -1, np.float32)
    real = {"x": np.ones((5, 40), np.float32), "s": root}
    assert "5 real samples" in convert(tmp_path / "scaled.onnx", samples=real).checked


def test_onnx_with_a_fixed_batch(tmp_path: Path) -> None:
    made = convert(product(tmp_path, [3, 4]))
    assert made.model.manifest.inputs[0].fixed_batch == 3
    assert made.assumptions == ("axis 0 of 'x' taken as the batch axis, which the file fixes at 3",)


def test_onnx_whose_free_axis_is_no_batch(tmp_path: Path) -> None:
    total = helper.make_node("ReduceSum", ["x"], ["s"], keepdims=1)
    made = convert(product(tmp_path, ["n", 4], [total, helper.make_node("Add", ["x", "s"], ["y"])], ["n", 4]))
    assert made.model.manifest.inputs[0].fixed_batch == 1
    assert any("not answered as its samples are one by one" in sentence for sentence in made.assumptions)


def test_onnx_whose_free_axis_the_example_fixes(tmp_path: Path) -> None:
    total = helper.make_node("CumSum", ["x", "zero"], ["y"])
    zero = helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0)))
    made = convert(product(tmp_path, ["steps", 4], [zero, total], ["steps", 4]), example="5x4")
    assert (made.model.manifest.inputs[0].shape, made.model.manifest.inputs[0].batch_axis) == ((5, 4), None)
    assert made.model.manifest.outputs[0].shape == (5, 4)
    assert any("axis 0 kept at 5" in sentence for sentence in made.assumptions)


def test_onnx_that_only_runs_single_samples(tmp_path: Path) -> None:
    shape = helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array([1, 4])))
    made = convert(
        product(tmp_path, ["n", 4], [shape, helper.make_node("Reshape", ["x", "shape"], ["y"])], ["n", 4])
    )
    assert made.model.manifest.inputs[0].fixed_batch == 1
    assert any("fails on a batch of 8" in sentence for sentence in made.assumptions)


def test_onnx_with_other_free_axes_needs_an_example(tmp_path: Path) -> None:
    path = product(tmp_path, ["n", "rows", 4])
    with pytest.raises(ModelError, match="free axes rows"):
        convert(path)
    made = convert(path, example="1x5x4")
    assert made.model.manifest.inputs[0].shape == ("batch", "rows", 4)
    assert made.model.manifest.outputs[0].shape == ("batch", "rows", 3)
    assert "8 real samples" in convert(path, samples={"": np.ones((9, 2, 4), np.float32)}).checked


@pytest.mark.parametrize("example", ["1x5", "1x4,1x4", "4"])
def test_onnx_and_an_example_that_does_not_fit(tmp_path: Path, example: str) -> None:
    with pytest.raises(ModelError, match="example"):
        convert(product(tmp_path, ["n", 4]), example=example)


def test_onnx_that_gives_nan(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'y' holds NaN"):
        convert(product(tmp_path, ["n", 4], [helper.make_node("Log", ["x"], ["y"])], ["n", 4]))


def test_onnx_layouts_are_said(tmp_path: Path) -> None:
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    for shape, layout in ([["n", 3, 8, 8], "NCHW"], [["n", 8, 8, 3], "NHWC"], [["n", 8, 8, 8], ""]):
        made = convert(product(tmp_path, shape, relu, shape))
        assert made.model.manifest.inputs[0].layout == layout
        assert bool(layout) == any(layout in sentence for sentence in made.assumptions[1:])


def test_onnx_with_a_state(tmp_path: Path) -> None:
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Add", ["x", "before"], ["after"]),
                helper.make_node("Identity", ["after"], ["y"]),
            ],
            "sum",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "before")],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("y", "after")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    (tmp_path / "sum.onnx").write_bytes(model.SerializeToString())
    told = Manifest(
        name="sum",
        format="onnx",
        inputs=(TensorSpec(name="before", dtype="float32", shape=(), role="state"),),
        outputs=(TensorSpec(name="after", dtype="float32", shape=(), role="state"),),
    )
    made = convert(tmp_path / "sum.onnx", manifest=told)
    assert [spec.role for spec in made.model.manifest.inputs] == ["data", "state"]
    assert [spec.role for spec in made.model.manifest.outputs] == ["data", "state"]
    assert any("keeps a state" in sentence for sentence in made.assumptions)


def test_onnx_with_weights_outside_becomes_one_file(tmp_path: Path) -> None:
    model = onnx.load(product(tmp_path, ["n", 4]))
    onnx.save(
        model, tmp_path / "outside.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    made = convert(tmp_path / "outside.onnx")
    assert run(onnx.load(made.model.file), {"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[18, 22, 26]]
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"'w\.bin', which is missing"):
        convert(tmp_path / "outside.onnx")


def test_weights_do_not_go_with_a_file(programs: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="weights"):
        convert(product(tmp_path, ["n", 4]), weights="w.pt")
    with pytest.raises(ModelError, match="weights"):
        convert(programs / "traced.pt", weights="w.pt", example="1x1x8x8")
