"""Int8 by NNCF: accurate, repeatable, silent, and judged by the task's metric where it is asked for."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from farthing.errors import ConfigError, TaskError, UnsupportedError
from farthing.forge.apply import build, read_by
from farthing.forge.openvino.export import ExportOpenvino
from farthing.model import Model
from farthing.recipe import Step
from farthing.target import Target
from farthing.task import Split, Task

pytest.importorskip("openvino")
pytest.importorskip("nncf")
from farthing.engines.base import open_engine
from farthing.forge.quantize.nncf import NncfInt8

VNNI = Target(name="vnni", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"))
OLD = Target(name="old", arch="x86_64", isa=("avx2",))


def right(model: Model, task: Task) -> float:
    split = task.split("test")
    with open_engine(model, "openvino") as engine:
        return float((engine.run({"image": split.inputs[""]})["logits"].argmax(1) == split.labels).mean())


@pytest.fixture(scope="module")
def quantized(cnn: Model, digits_task: Task) -> Model:
    return NncfInt8(samples=60)(cnn, VNNI, digits_task)


def test_accuracy_is_kept_and_weights_are_8_bits(cnn: Model, quantized: Model, digits_task: Task) -> None:
    floating = ExportOpenvino()(cnn, VNNI, digits_task)
    assert right(quantized, digits_task) > right(floating, digits_task) - 0.01
    sizes = [(model.path / "model.bin").stat().st_size for model in (quantized, floating)]
    assert sizes[0] < 0.35 * sizes[1]
    assert quantized.manifest.requires == ("vnni",)
    assert quantized.manifest.quantization is not None
    assert quantized.manifest.quantization.calibrator == "nncf performance"
    assert quantized.manifest.inputs == cnn.manifest.inputs


def test_the_same_file_twice_and_from_an_openvino_model(
    cnn: Model, quantized: Model, digits_task: Task
) -> None:
    assert NncfInt8(samples=60)(cnn, VNNI, digits_task).digest == quantized.digest
    exported = ExportOpenvino()(cnn, VNNI, digits_task)
    again = NncfInt8(samples=60)(exported, VNNI, digits_task)
    assert again.size_bytes == pytest.approx(quantized.size_bytes, rel=0.02)
    assert right(again, digits_task) == pytest.approx(right(quantized, digits_task), abs=0.01)


def test_weights_keep_7_bits_without_vnni(cnn: Model, digits_task: Task) -> None:
    narrow = NncfInt8(samples=20)(cnn, OLD, digits_task)
    assert narrow.manifest.requires == ()
    assert narrow.manifest.quantization is not None
    assert narrow.manifest.quantization.reduce_range


def test_it_says_nothing_and_leaves_logging_as_it_was(
    cnn: Model, digits_task: Task, capfd: pytest.CaptureFixture[str]
) -> None:
    kind, logger = logging.getLoggerClass(), logging.getLogger("nncf")
    before = list(logger.filters)
    NncfInt8(samples=20)(cnn, VNNI, digits_task)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert logging.getLoggerClass() is kind
    assert logger.filters == before


def test_operators_go_back_to_float_until_the_metric_is_kept(scaled: Model, digits_task: Task) -> None:
    """A net that suffers in 8 bits, and no drop allowed on the calibration samples that are not used to calibrate."""
    few = digits_task.split("calibration").subset(range(32))
    task = Task("digits", {**digits_task.splits, "calibration": few}, "agreement")
    kept = NncfInt8(max_drop=0.0)(scaled, VNNI, task)
    plain = NncfInt8()(scaled, VNNI, task)
    assert right(kept, digits_task) >= right(plain, digits_task) - 0.005


def test_what_the_metric_is_counts_for_the_cache(digits_task: Task) -> None:
    """The same data under another metric may give another model, so it is another key."""
    others = [
        Task("digits", digits_task.splits, name, labels=digits_task.labels) for name in ("top1", "top5")
    ]
    assert read_by("quantize.nncf.v1", others[0]) != read_by("quantize.nncf.v1", others[1])
    assert read_by("quantize.static.v1", others[0]) == read_by("quantize.static.v1", others[1])


def test_wrong_options_and_data_are_refused(cnn: Model, digits: Any) -> None:
    with pytest.raises(ConfigError, match="preset"):
        build(Step(use="quantize.nncf.v1", options={"preset": "fast"}), VNNI)
    wrong = Task(
        "wide", {"calibration": Split({"": np.zeros((4, 1, 9, 9), np.float32)}, np.arange(4))}, "top1"
    )
    with pytest.raises(TaskError, match="do not fit input 'image'"):
        NncfInt8()(cnn, VNNI, wrong)


def test_a_net_with_nothing_to_quantize_says_so(make_model: Any, digits_task: Task) -> None:
    from onnx import helper

    value = helper.make_tensor_value_info
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Flatten", ["image"], ["logits"])],
            "g",
            [value("image", 1, ["batch", 1, 8, 8])],
            [value("logits", 1, ["batch", 64])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    with pytest.raises(UnsupportedError, match="no operator that NNCF quantizes"):
        NncfInt8(samples=8)(make_model(proto), VNNI, digits_task)
