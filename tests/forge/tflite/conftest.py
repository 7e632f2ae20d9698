"""Small ONNX graphs, written as TFLite and run beside ONNX Runtime in LiteRT's kernels."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from farthing.forge import graph
from farthing.forge.tflite.export import ExportTflite
from farthing.model import Manifest, Model, Preprocess, TensorSpec
from farthing.target import Target
from farthing.task import Split, Task

Array = NDArray[Any]
ANY = Target(name="any", arch="x86_64", isa=("avx2",))
KERNELS = ("AUTO", "BUILTIN_REF", "BUILTIN_WITHOUT_DEFAULT_DELEGATES")
TYPES = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "float64": TensorProto.DOUBLE,
}


class Input(NamedTuple):
    """An input of a graph: its shape, ``n`` at a free batch, and its type."""

    shape: tuple[int | str, ...]
    dtype: str = "float32"


def network(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str] | Input],
    constants: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> onnx.ModelProto:
    """A graph whose outputs declare no shape but the inferred one."""
    given = {name: one if isinstance(one, Input) else Input(tuple(one)) for name, one in inputs.items()}
    made = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, TYPES[one.dtype], one.shape) for name, one in given.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    shaped = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    del proto.graph.output[:]
    proto.graph.output.extend(shaped.graph.output)
    return proto


def model(proto: onnx.ModelProto, picture: bool = False, **fields: Any) -> Model:
    """A Model of a graph; axes called ``n`` are its batch. With ``picture`` its only input is one."""
    inputs, outputs = graph.tensor_specs(proto)

    def batched(spec: TensorSpec, layout: str = "") -> TensorSpec:
        axis = spec.shape.index("n") if "n" in spec.shape else (0 if picture else None)
        return TensorSpec(name=spec.name, dtype=spec.dtype, shape=spec.shape, batch_axis=axis, layout=layout)

    channels = inputs[0].shape[1] if picture else 0
    preprocess = Preprocess(colour="GRAY" if channels == 1 else "RGB", scale=1.0) if picture else None
    manifest = Manifest(
        name="small",
        format="onnx",
        inputs=tuple(batched(spec, "NCHW" if picture else "") for spec in inputs),
        outputs=tuple(batched(spec) for spec in outputs),
        preprocess=preprocess,
        **fields,
    )
    return Model.create(manifest, {"model.onnx": graph.save_bytes(proto)})


def export(source: Model, **options: Any) -> Model:
    """The pass on a model, without data."""
    task = Task(
        "none", {"calibration": Split({"": np.zeros((1, 1), np.float32)}, np.zeros(1, np.int64))}, "top1"
    )
    return ExportTflite(**options)(source, ANY, task)


def codes(made: Model) -> dict[str, int]:
    """How often each operator stands in a file."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    file = schema.ModelT.InitFromPackedBuf(made.file.read_bytes(), 0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    numbers = [file.operatorCodes[op.opcodeIndex].builtinCode for op in file.subgraphs[0].operators or []]
    return dict(collections.Counter(names[number] for number in numbers))


def run(made: Model, feeds: Mapping[str, Array], kernels: str = "AUTO") -> dict[str, Array]:
    """Outputs by name from LiteRT, one thread, resized to the feeds."""
    runtime = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = runtime.Interpreter(
        model_content=made.file.read_bytes(),
        num_threads=1,
        experimental_op_resolver_type=getattr(runtime.OpResolverType, kernels),
    )
    inputs = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
    for name, array in feeds.items():
        interpreter.resize_tensor_input(inputs[name], array.shape)
    interpreter.allocate_tensors()
    for name, array in feeds.items():
        interpreter.set_tensor(inputs[name], np.ascontiguousarray(array))
    interpreter.invoke()
    return {
        detail["name"]: interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()
    }


def laid(made: Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Feeds in ONNX's order of axes as the written model takes them."""
    layouts = {spec.name: spec.layout for spec in made.manifest.inputs}
    return {name: a.transpose(0, 2, 3, 1) if layouts[name] == "NHWC" else a for name, a in feeds.items()}


def random_feeds(source: Model, batch: int = 1, seed: int = 0) -> dict[str, Array]:
    """Standard normal numbers, or whole numbers 0 and 1, for all inputs."""
    generator = np.random.default_rng(seed)
    feeds = {}
    for spec in source.manifest.inputs:
        shape = spec.sized(batch)
        values = (
            generator.standard_normal(shape) if spec.dtype == "float32" else generator.integers(0, 2, shape)
        )
        feeds[spec.name] = values.astype(spec.dtype)
    return feeds


class Lab:
    """What the tests of this directory work with."""

    kernels = KERNELS
    input = Input
    network = staticmethod(network)
    model = staticmethod(model)
    export = staticmethod(export)
    codes = staticmethod(codes)
    run = staticmethod(run)
    laid = staticmethod(laid)
    random_feeds = staticmethod(random_feeds)

    @staticmethod
    def check(
        proto: onnx.ModelProto,
        picture: bool = False,
        tolerance: float = 1e-5,
        kernels: Sequence[str] = KERNELS,
        batches: Sequence[int] = (1, 3),
        **options: Any,
    ) -> dict[str, int]:
        """Write a graph and hold its answers against ONNX Runtime's; the operators that were written.

        Args:
            proto: the graph.
            picture: its input is one.
            tolerance: largest difference, relative to the largest answer (at least 1).
            kernels: which of LiteRT's to run.
            batches: batches to try if the batch is free.
            options: of the pass.
        """
        source = model(proto, picture)
        made = export(source, **options)
        free = any("n" in spec.shape for spec in source.manifest.inputs)
        for batch in batches if free else (1,):
            feeds = random_feeds(source, batch, seed=batch)
            wanted = graph.run(proto, feeds, optimise=False)
            for kind in kernels:
                found = run(made, laid(made, feeds), kind)
                assert list(found) == [spec.name for spec in made.manifest.outputs]
                for name, want in wanted.items():
                    assert found[name].shape == want.shape, (kind, batch)
                    assert found[name].dtype == want.dtype
                    scale = max(1.0, float(np.abs(want).max(initial=0)))
                    np.testing.assert_allclose(
                        found[name], want, rtol=0, atol=tolerance * scale, err_msg=kind
                    )
        return codes(made)


@pytest.fixture(scope="session")
def lab() -> type[Lab]:
    """Small graphs, the pass, and LiteRT; tests are skipped where LiteRT is not installed."""
    pytest.importorskip("ai_edge_litert")
    return Lab
