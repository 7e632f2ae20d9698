"""Chains of passes: refused before anything runs if their order makes no sense; otherwise none fails for its place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from farthing import plugins
from farthing.errors import ConfigError, PluginError, TaskError, UnsupportedError
from farthing.forge.apply import apply
from farthing.forge.cache import Cache
from farthing.forge.order import WORDS, check_order, form_of
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.recipe import Step
from farthing.target import Target
from farthing.task import Split, Task

TARGET = Target.detect()
SHORT = {"epochs": 1, "batch": 32, "bf16": False}
TRAINING = {
    "train.finetune.v1": {"schedule": SHORT},
    "prune.structured.v1": {"schedule": SHORT, "ratio": 0.3, "multiple": 2},
    "prune.unstructured.v1": {"schedule": SHORT},
    "distill.student.v1": {"schedule": SHORT},
    "quantize.qat.v1": {"schedule": SHORT},
    "exits.train.v1": {"schedule": SHORT, "count": 1},
}
PLAIN: dict[str, dict[str, Any]] = {
    "graph.fuse.v1": {},
    "graph.compact.v1": {},
    "quantize.static.v1": {"samples": 16},
    "quantize.dynamic.v1": {},
    "quantize.float16.v1": {},
    "quantize.equalize.v1": {},
    "export.tflite.v1": {},
    "export.openvino.v1": {},
}
OF_THE_NETWORK = ("left no operator", "no two layers", "no layer left to narrow", "batch normali[sz]ation")
"""Refusals that are about the network, wherever the step stands."""


def steps(*uses: str) -> list[Step]:
    return [Step(use=use, options={**PLAIN, **TRAINING}.get(use, {})) for use in uses]


@pytest.fixture(scope="module")
def net(make_model: Callable[..., Model]) -> Model:
    """Two convolutions in a row, a dense layer and a softmax: something for every pass."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()]
    return make_model(nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 10), nn.Softmax(1)))


@pytest.fixture(scope="module")
def few(digits_task: Task) -> Task:
    """Some samples of the digits, to train and to calibrate on."""
    parts = {}
    for name in ("train", "calibration", "validation"):
        split = digits_task.split(name)  # type: ignore[arg-type]
        parts[name] = Split(split.take(range(64)), split.labels[:64])
    return Task("few", parts, "top1", labels="0123456789")


@pytest.mark.parametrize(
    ("uses", "message"),
    [
        (
            ["quantize.static.v1", "prune.structured.v1"],
            "and step 1, quantize.static.v1, gives an int8 ONNX model: put it before that step",
        ),
        (
            ["graph.fuse.v1", "quantize.static.v1", "graph.compact.v1", "quantize.static.v1"],
            "step 4, quantize.static.v1, quantizes what step 2, quantize.static.v1, has quantized already: leave",
        ),
        (["quantize.qat.v1", "quantize.dynamic.v1"], "quantized already"),
        (["quantize.static.v1", "graph.fuse.v1"], "put it before that step"),
        (["quantize.static.v1", "train.finetune.v1"], "put it before that step"),
        (
            ["export.tflite.v1", "graph.compact.v1"],
            "step 2, graph.compact.v1, takes an ONNX model, and step 1, export.tflite.v1, gives a TFLite model: put it",
        ),
        (["export.tflite.v1", "export.openvino.v1"], "gives a TFLite model: leave one of the two out"),
        (["export.openvino.v1", "quantize.qat.v1"], "gives an OpenVINO model: put it before that step"),
        (["quantize.static.v1", "export.openvino.v1", "quantize.nncf.v1"], "quantized already"),
        (
            ["prune.unstructured.v1", "train.finetune.v1"],
            "whose zeros training would fill again: put it before",
        ),
        (
            ["quantize.float16.v1", "quantize.float16.v1"],
            "gives a float16 ONNX model: leave one of the two out",
        ),
    ],
    ids=" ".join,
)
def test_an_order_without_sense_is_refused_before_anything_runs(
    uses: list[str], message: str, net: Model, few: Task, tmp_path: Path
) -> None:
    told: list[object] = []
    with pytest.raises(ConfigError) as refusal:
        apply(steps(*uses), net, TARGET, few, Cache(tmp_path), Workshop(listener=told.append))
    assert message in str(refusal.value)
    assert not told
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "uses",
    [
        ["graph.fuse.v1", "quantize.equalize.v1", "quantize.static.v1", "graph.compact.v1"],
        [
            "distill.student.v1",
            "prune.structured.v1",
            "train.finetune.v1",
            "prune.unstructured.v1",
            "quantize.static.v1",
        ],
        ["train.finetune.v1", "graph.fuse.v1", "quantize.qat.v1", "export.tflite.v1"],
        ["quantize.static.v1", "quantize.float16.v1", "graph.compact.v1"],
        ["export.openvino.v1", "quantize.nncf.v1"],
    ],
    ids=" ".join,
)
def test_an_order_with_sense_is_none_of_ours_to_refuse(uses: list[str], net: Model) -> None:
    check_order(steps(*uses), net)


def test_what_is_wrong_in_a_later_step_is_said_before_the_first_one_runs(
    net: Model, few: Task, tmp_path: Path
) -> None:
    bare = Task("bare", {"validation": few.split("validation")}, "top1", labels="0123456789")
    for wrong, task, error, message in (
        (Step(use="prune.structurd.v1"), few, PluginError, "did you mean 'prune.structured.v1'"),
        (Step(use="quantize.static.v1", options={"sample": 3}), few, ConfigError, "did you mean 'samples'"),
        (
            Step(use="train.finetune.v1"),
            bare,
            TaskError,
            "step 2, train.finetune.v1, trains, and task bare has no train",
        ),
    ):
        with pytest.raises(error, match=message):
            apply([*steps("graph.fuse.v1"), wrong], net, TARGET, task, Cache(tmp_path))
    assert not (tmp_path / "models").exists()


def test_a_model_that_was_quantized_before_is_told_from_a_float_one(
    net: Model, few: Task, tmp_path: Path
) -> None:
    cache = Cache(tmp_path)
    assert form_of(net) == "float"
    for uses, form in (
        (["quantize.static.v1"], "reduced"),
        (["quantize.float16.v1"], "reduced"),
        (["quantize.static.v1", "export.openvino.v1"], "openvino-int8"),
        (["export.tflite.v1"], "tflite"),
    ):
        made, _ = apply(steps(*uses), net, TARGET, few, cache)
        assert form_of(made) == form
        with pytest.raises(
            ConfigError, match=r"the model as given is .*: give the float model that it was made from"
        ):
            check_order(steps("quantize.static.v1"), made, cache)


def test_passes_that_say_nothing_may_stand_anywhere(
    net: Model, few: Task, tmp_path: Path, registry: None
) -> None:
    def mine(model: Model, target: Target, task: Task) -> Model:
        return model

    plugins.register("pass", "mine.anywhere.v1", mine)
    uses = ["quantize.static.v1", "mine.anywhere.v1", "export.tflite.v1", "mine.anywhere.v1"]
    made, _ = apply(steps(*uses), net, TARGET, few, Cache(tmp_path))
    assert made.manifest.format == "tflite"
    with pytest.raises(
        ConfigError, match=r"step 3, graph\.compact\.v1, takes an ONNX model, and step 2, export\.tflite\.v1"
    ):
        check_order(steps("mine.anywhere.v1", "export.tflite.v1", "graph.compact.v1"), net)


def test_every_pass_says_what_it_takes_and_gives_in_forms_that_exist() -> None:
    for name in plugins.BUILTIN["pass"]:
        forms = plugins.get("pass", name).forms
        assert forms, name
        assert {*forms, *forms.values()} <= {*WORDS}, name


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """One cache for all chains: what they have in common is made once."""
    return Cache(tmp_path_factory.mktemp("shelf"))


@settings(max_examples=40)
@given(st.lists(st.sampled_from([*PLAIN, *TRAINING]), min_size=2, max_size=4))
def test_a_chain_is_refused_up_front_or_none_of_its_steps_fails_for_its_place(
    net: Model, few: Task, shelf: Cache, uses: list[str]
) -> None:
    try:
        check_order(steps(*uses), net, shelf)
    except ConfigError:
        return
    try:
        made, done = apply(steps(*uses), net, TARGET, few, shelf)
    except UnsupportedError as error:
        if not any(re.search(words, str(error)) for words in OF_THE_NETWORK):
            raise
        return
    assert [step.use for step in done] == uses
    assert made.manifest.labels == net.manifest.labels
