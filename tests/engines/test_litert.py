"""LiteRT's own: files that are not sound, delegates, sizes, names, quantized state."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rows import BIAS, WEIGHTS, spec
from rows.litert import Graph, affine, inner_state, linear, tflite_model

from farthing.engines.base import open_engine
from farthing.errors import EngineError, FeedError, ModelError, UnsupportedError
from farthing.model import Manifest, Model
from farthing.options import EngineOptions

pytest.importorskip("ai_edge_litert")

X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def spoiled(spoil: Callable[[Graph], None]) -> Model:
    """An affine model whose parts are changed before it is written."""
    sound = affine(1)
    graph = Graph()
    graph.model = graph.s.ModelT.InitFromPackedBuf(sound.file.read_bytes(), 0)
    graph.graph = graph.model.subgraphs[0]
    spoil(graph)
    return Model.create(sound.manifest, {"m.tflite": graph.content()})


def quantize(axis: int, scales: int = 3) -> Callable[[Graph], None]:
    def spoil(graph: Graph) -> None:
        table = graph.s.QuantizationParametersT()
        table.scale, table.zeroPoint, table.quantizedDimension = [0.1] * scales, [0] * scales, axis
        graph.graph.tensors[2].quantization = table

    return spoil


def external(offset: int, size: int) -> Callable[[Graph], None]:
    def spoil(graph: Graph) -> None:
        buffer = graph.model.buffers[1]
        buffer.data, buffer.offset, buffer.size = None, offset, size

    return spoil


def change(path: str, value: object) -> Callable[[Graph], None]:
    """Set a field of the main graph, of its first operator or of the model, as in ``operator.inputs``."""

    def spoil(graph: Graph) -> None:
        part, _, field = path.partition(".")
        owners = {"graph": graph.graph, "model": graph.model, "operator": graph.graph.operators[0]}
        setattr(owners[part] if part != "tensor" else graph.graph.tensors[2], field, value)

    return spoil


def sign(graph: Graph) -> None:
    graph.sign({"x": 99}, {"y": 3})


UNSOUND = {
    "quantized_dimension 99": quantize(99),
    "quantized_dimension -5": quantize(-5),
    "quantized_dimension 0, scales=2": quantize(0, scales=2),
    "external 1 << 20, 48": external(1 << 20, 48),
    "external 1 << 40, 48": external(1 << 40, 48),
    "external 2, 1 << 62": external(2, 1 << 62),
    "model.subgraphs, None": change("model.subgraphs", None),
    "model.subgraphs, []": change("model.subgraphs", []),
    "model.buffers, None": change("model.buffers", None),
    "model.operatorCodes, None": change("model.operatorCodes", None),
    "graph.inputs, [-1]": change("graph.inputs", [-1]),
    "graph.outputs, [99]": change("graph.outputs", [99]),
    "operator.inputs, [0, 99, 2]": change("operator.inputs", [0, 99, 2]),
    "operator.inputs, [0, -1, 2]": change("operator.inputs", [0, -1, 2]),
    "operator.inputs, [0]": change("operator.inputs", [0]),
    "operator.outputs, []": change("operator.outputs", []),
    "operator.opcodeIndex, 7": change("operator.opcodeIndex", 7),
    "tensor.buffer, 77": change("tensor.buffer", 77),
    "tensor.shape, [1 << 30, 1 << 30]": change("tensor.shape", [1 << 30, 1 << 30]),
    "tensor.shape, [-3, 4]": change("tensor.shape", [-3, 4]),
    "signature 99": sign,
}


@pytest.mark.parametrize("name", UNSOUND)
def test_a_file_that_is_not_sound_is_a_model_error(name: str) -> None:
    """Some of these end the process if LiteRT sees them."""
    model = spoiled(UNSOUND[name])
    with pytest.raises(ModelError, match=str(model.path)):
        open_engine(model)


def test_a_bomb_is_refused() -> None:
    """A few bytes that claim the same graph again and again."""
    import flatbuffers

    schema: Any = Graph().s
    sound = affine(1)
    model = schema.ModelT.InitFromPackedBuf(sound.file.read_bytes(), 0)
    builder = flatbuffers.Builder(1024)
    graph = model.subgraphs[0].Pack(builder)
    count = 300_000
    builder.StartVector(4, count, 4)
    for _ in range(count):
        builder.PrependUOffsetTRelative(graph)
    graphs = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, 3)
    schema.ModelAddSubgraphs(builder, graphs)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    with pytest.raises(ModelError):
        open_engine(Model.create(sound.manifest, {"m.tflite": bytes(builder.Output())}))


def test_weights_outside_the_flatbuffer_but_in_the_file() -> None:
    """As ai-edge-quantizer writes large ones; the offset counts from the start of the file."""
    plain = affine(1)
    offset = 1024
    model = spoiled(external(offset, WEIGHTS.nbytes))
    content = model.file.read_bytes().ljust(offset, b"\0") + np.ascontiguousarray(WEIGHTS.T).tobytes()
    with open_engine(Model.create(plain.manifest, {"m.tflite": content})) as engine:
        np.testing.assert_allclose(engine.run({"x": X[:1]})["y"], X[:1] @ WEIGHTS + BIAS, atol=1e-6)


def test_an_operator_nobody_has_is_named() -> None:
    model = affine(1, lambda graph, x, y: graph.operator("telepathy", [x], [y]))
    with pytest.raises(UnsupportedError, match="telepathy"):
        open_engine(model)


# --- names and sizes


def test_tensors_go_by_the_signature_s_names_or_their_own() -> None:
    def build(graph: Graph, x: int, y: int) -> None:
        linear(graph, x, y)
        graph.sign({"sound": x}, {"speech": y})

    model = affine("batch", build)
    for names in (("sound", "speech"), ("x", "y")):
        changes: dict[str, Any] = {
            side: (msgspec.structs.replace(getattr(model.manifest, side)[0], name=name),)
            for side, name in zip(("inputs", "outputs"), names, strict=True)
        }
        named = Model.create(msgspec.structs.replace(model.manifest, **changes), {"m.tflite": model.file})
        with open_engine(named) as engine:
            np.testing.assert_allclose(engine.run({names[0]: X})[names[1]], X @ WEIGHTS + BIAS, atol=1e-6)


def test_many_sizes_by_turns() -> None:
    with open_engine(affine("batch")) as engine:
        for size in (1, 5, 1, 3, 5, 1, 2, 4, 2):
            x = np.repeat(X[:1], size, axis=0)
            np.testing.assert_allclose(engine.run({"x": x})["y"], x @ WEIGHTS + BIAS, atol=1e-6)


def test_a_file_without_free_axes_takes_no_other_batch() -> None:
    fixed = affine(1)
    manifest = Manifest(name="m", format="tflite", inputs=(spec("x", "n", 4),), outputs=(spec("y", "n", 3),))
    with pytest.raises(ModelError, match=r"declares 'x' \['n', 4\], but the file has \[1, 4\]"):
        open_engine(Model.create(manifest, {"m.tflite": fixed.file}))


def test_an_output_may_be_empty() -> None:
    def build(graph: Graph, x: int, y: int) -> None:
        found = graph.tensor("found", ("k", 2), "int64")
        zero = graph.constant(np.zeros(1, np.float32))
        above = graph.tensor("above", ("n", 4), "bool")
        graph.operator("GREATER", [x, zero], [above], "Greater")
        graph.operator("WHERE", [above], [found], "Where")
        graph.operator("CAST", [found], [y], "Cast")

    model = tflite_model(build, [spec("x", "n", 4)], [spec("y", "k", 2, batch_axis=None)])
    with open_engine(model) as engine:
        assert engine.run({"x": np.float32([[1, -1, -1, 2]])})["y"].tolist() == [[0, 0], [0, 3]]
        empty = engine.run({"x": np.full((1, 4), -1, np.float32)})["y"]
        assert (empty.shape, empty.dtype) == ((0, 2), np.float32)
        assert engine.run({"x": np.float32([[-1, 1, -1, -1]])})["y"].tolist() == [[0, 1]]


# --- state


def test_the_state_of_a_quantized_stream_starts_at_its_zero_point() -> None:
    def build(graph: Graph, x: int, h: int, y: int, after: int) -> None:
        table = graph.s.QuantizationParametersT()
        table.scale, table.zeroPoint = [0.5], [-7]
        for number in (h, y, after):
            graph.graph.tensors[number].quantization = table
        shape = graph.constant(np.array([1, 3], np.int32))
        graph.operator("RESHAPE", [h, shape], [y])
        graph.operator("CAST", [x], [after], "Cast")

    model = tflite_model(
        build,
        [spec("x", 1, 3), spec("h", 1, 3, dtype="int8", role="state")],
        [spec("y", 1, 3, dtype="int8"), spec("after", 1, 3, dtype="int8", role="state")],
    )
    with open_engine(model) as engine:
        assert engine.run({"x": np.float32([[1, 2, 3]])})["y"].tolist() == [[-7, -7, -7]]
        assert engine.run({"x": np.float32([[4, 5, 6]])})["y"].tolist() == [[1, 2, 3]]


def test_a_stream_with_variables_starts_anew_in_each_session() -> None:
    x = X[:1]
    with open_engine(inner_state()) as engine:
        first, second = engine.run({"x": x})["y"], engine.run({"x": x})["y"]
        assert np.abs(first - second).max() > 0.01
        np.testing.assert_array_equal(engine.session().run({"x": x})["y"], first)


# --- delegates


@pytest.mark.parametrize("provider", ["xnnpack", "builtin", "reference"])
def test_kernels_can_be_chosen(provider: str) -> None:
    with open_engine(affine("batch"), options=EngineOptions(providers=(provider,))) as engine:
        np.testing.assert_allclose(engine.run({"x": X})["y"], X @ WEIGHTS + BIAS, atol=1e-6)


@pytest.mark.parametrize(
    ("providers", "message"),
    [
        (("libedgetpu-not-here.so.1",), "libedgetpu-not-here.so.1' does not load"),
        (("libm.so.6",), "libm.so.6' is a library, but none of a delegate"),
        (("xnnpack", "reference"), "xnnpack and reference exclude one another"),
    ],
)
def test_a_delegate_that_is_none(providers: tuple[str, ...], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        open_engine(affine("batch"), options=EngineOptions(providers=providers))


DELEGATE = """
#include <stdio.h>
#include <stdint.h>
typedef struct Delegate {
    void *data;
    int (*prepare)(void *context, struct Delegate *delegate);
    void *copy_from, *copy_to, *free_handle;
    int64_t flags;
    void *builder;
} Delegate;
static int prepare(void *context, Delegate *delegate) {
    FILE *log = fopen(LOG, "a");
    fputs("prepared ", log);
    return fclose(log);
}
static Delegate one = {0, prepare, 0, 0, 0, 0, 0};
Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count, void (*report)(const char *)) {
    if (REFUSES) { report("no such device"); return 0; }
    return &one;
}
void tflite_plugin_destroy_delegate(Delegate *delegate) {}
"""


@pytest.mark.parametrize("refuses", [0, 1])
def test_a_delegate_of_one_s_own(tmp_path: Path, refuses: int) -> None:
    """A library that leaves all operators to LiteRT, and one without its device."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    source, library, log = (tmp_path / name for name in ("delegate.c", "libdelegate.so", "log"))
    source.write_text(DELEGATE)
    flags = [f'-DLOG="{log}"', f"-DREFUSES={refuses}", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, str(source), "-o", str(library)], check=True)
    options = EngineOptions(providers=(str(library),))
    if refuses:
        with pytest.raises(EngineError, match="no such device"):
            open_engine(affine(1), options=options)
        return
    with open_engine(affine(1), options=options) as engine:
        np.testing.assert_allclose(engine.run({"x": X[:1]})["y"], X[:1] @ WEIGHTS + BIAS, atol=1e-6)
    assert log.read_text() == "prepared "


def test_a_stream_with_variables_keeps_its_sizes() -> None:
    def build(graph: Graph, x: int, y: int) -> None:
        start = Graph(of=graph)
        handle = start.tensor("handle", (), "resource")
        start.operator("VAR_HANDLE", [], [handle], "VarHandle", container="", sharedName="h")
        start.operator("ASSIGN_VARIABLE", [handle, start.constant(np.zeros(1, np.float32))], [])
        graph.operator("CALL_ONCE", [], [], "CallOnce", initSubgraphIndex=1)
        linear(graph, x, y)

    with open_engine(affine("batch", build)) as engine:
        assert engine.stateful
        engine.run({"x": X})
        with pytest.raises(FeedError, match=r"began with inputs of \[\[5, 4\]\], not \[\[2, 4\]\]"):
            engine.run({"x": X[:2]})
        engine.session().run({"x": X[:2]})
