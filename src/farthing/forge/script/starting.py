"""Lines of a stand-alone script that load a model and run it, for each format of model file."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from farthing.options import EngineOptions

OPENVINO_PRECISION = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class Start(NamedTuple):
    """What a script needs for one format.

    Attributes:
        package: as pip knows it.
        before: lines before numpy is imported.
        imports: lines after that.
        load: lines that load the file at ``path``.
        run: an expression: the outputs of those names, the first or all in order, for the input ``x`` of that name.
    """

    package: str
    before: tuple[str, ...]
    imports: tuple[str, ...]
    load: Callable[[EngineOptions], list[str]]
    run: Callable[[list[str], str], str]


def _onnx(options: EngineOptions) -> list[str]:
    return [
        "options = ort.SessionOptions()",
        f"options.intra_op_num_threads = {options.threads}",
        'session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])',
    ]


def _tflite(options: EngineOptions) -> list[str]:
    """By the order of the file's tensors, which a manifest keeps: not every file names them in a signature."""
    return [
        f"model = Interpreter(path, num_threads={options.threads})",
        "",
        "",
        "def run(x):",
        '    place = model.get_input_details()[0]["index"]',
        "    model.resize_tensor_input(place, x.shape)",
        "    model.allocate_tensors()",
        "    model.set_tensor(place, x)",
        "    model.invoke()",
        '    return [model.get_tensor(output["index"]) for output in model.get_output_details()]',
    ]


def _openvino(options: EngineOptions) -> list[str]:
    return [
        "settings = {",
        f'    "INFERENCE_PRECISION_HINT": {OPENVINO_PRECISION[options.precision]!r},',
        f'    "INFERENCE_NUM_THREADS": {options.threads},',
        '    "NUM_STREAMS": 1,',
        "}",
        'model = ov.Core().compile_model(path, "CPU", settings)',
    ]


STARTS = {
    "onnx": Start(
        package="onnxruntime",
        before=("import os", 'os.environ["ORT_DISABLE_TELEMETRY"] = "1"'),
        imports=("import onnxruntime as ort",),
        load=_onnx,
        run=lambda names, name: f"session.run({names!r}, {{{name!r}: x}})",
    ),
    "openvino": Start(
        package="openvino",
        before=(),
        imports=("import openvino as ov",),
        load=_openvino,
        run=lambda names, name: f"list(map(model({{{name!r}: x}}).__getitem__, {names!r}))",
    ),
    "tflite": Start(
        package="ai-edge-litert",
        before=(),
        imports=("from ai_edge_litert.interpreter import Interpreter",),
        load=_tflite,
        run=lambda names, name: "run(x)",
    ),
}
