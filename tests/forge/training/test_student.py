"""A student of another architecture takes a model's place: smaller, taught, and in all facts the same from outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from msgspec.structs import replace
from torch import nn

import farthing
from farthing.config import read, to_yaml
from farthing.errors import ConfigError, UnsupportedError
from farthing.forge.apply import apply, build
from farthing.forge.cache import Cache
from farthing.forge.families import Architecture, Stage
from farthing.forge.training import standin
from farthing.forge.training.distill import SMALL, Student
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.model import Manifest, Model, TensorSpec, checked
from farthing.recipe import Progress, Step
from farthing.target import Target
from farthing.task import Split, Task

TARGET = Target.find("this")
STUDENT = "distill.student.v1"
SLIM = Architecture(
    family="plain", stages=(Stage(width=8, pool=(2, 2)), Stage(width=16, pool=(2, 2))), pooling="flatten"
)
QUICK = Schedule(epochs=12, batch=50, lr=0.01, bf16=False)


def score(model: Model, task: Task, split: Any = "validation") -> float:
    return farthing.evaluate(model, task, split)[0].value


def test_a_student_takes_the_models_place(cnn: Model, digits_task: Task) -> None:
    made = Student(architecture=SLIM, schedule=QUICK)(cnn, TARGET, digits_task)
    assert made.size_bytes < cnn.size_bytes / 4
    assert score(made, digits_task) > 0.93
    kept = ("name", "preprocess", "labels", "decode", "task", "licence", "version")
    assert [getattr(made.manifest, name) for name in kept] == [getattr(cnn.manifest, name) for name in kept]
    for ours, theirs in (
        (made.manifest.inputs, cnn.manifest.inputs),
        (made.manifest.outputs, cnn.manifest.outputs),
    ):
        assert [(one.name, one.layout, one.batch_axis) for one in ours] == [
            (one.name, one.layout, one.batch_axis) for one in theirs
        ]
    graph = onnx.load(made.file).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["image", "logits"]


def test_the_teacher_helps_where_labels_are_few(cnn: Model, digits_task: Task) -> None:
    """A hundred labels in all, and nine hundred pictures that only the teacher knows an answer to."""
    train = digits_task.split("train")
    task = Task(
        "digits", {**digits_task.splits, "train": train.subset(range(100))}, "top1", labels="0123456789"
    )
    alone = Student(architecture=SLIM, schedule=QUICK, teacher="")(cnn, TARGET, task)
    bare = {name: Split(split.inputs) for name, split in digits_task.splits.items()}
    taught = Student(architecture=SLIM, schedule=QUICK)(cnn, TARGET, Task("digits", bare, "agreement"))
    assert score(taught, digits_task) > score(alone, digits_task) + 0.01


def test_in_a_recipe_it_resumes_and_gives_the_same_twice(
    cnn: Model, digits_task: Task, tmp_path: Path
) -> None:
    options = {
        "architecture": {"family": "dscnn", "stages": [{"width": 8}, {"width": 16, "stride": 2}]},
        "schedule": {"epochs": 2, "batch": 100, "bf16": False},
    }
    step = Step(use=STUDENT, options=options)

    def stop(event: Progress) -> None:
        if event.text.startswith("epoch 1/2") and event.done == 10:
            raise KeyboardInterrupt

    cache = Cache(tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        apply([step], cnn, TARGET, digits_task, cache, Workshop(listener=stop))
    made, done = apply([step], cnn, TARGET, digits_task, cache)
    again, _ = apply(done, cnn, TARGET, digits_task, Cache(tmp_path / "two"))
    assert made.digest == again.digest
    (tmp_path / "step.yaml").write_text(to_yaml(done[0]))
    assert read(tmp_path / "step.yaml", Step) == done[0]
    assert build(done[0], TARGET)[1] == done[0]


def test_an_inner_tensor_gets_out_of_the_way(make_model: Callable[..., Model], digits_task: Task) -> None:
    """The model's input and output are called as torch's exporter calls tensors inside."""
    torch.manual_seed(0)
    probe = Student(schedule=Schedule(epochs=1, batch=500, bf16=False))
    model = make_model(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    plain = probe(model, TARGET, digits_task)
    names = [node.output[0] for node in onnx.load(plain.file).graph.node][:2]
    proto = onnx.load(model.file)
    standin._rename(proto, {"image": names[0], "logits": names[1]})
    old = model.manifest
    ends = [replace(spec, name=name) for spec, name in zip((*old.inputs, *old.outputs), names, strict=True)]
    manifest = checked(old, inputs=(ends[0],), outputs=(ends[1],))
    odd = Model.create(manifest, {"model.onnx": proto.SerializeToString()})
    made = probe(odd, TARGET, digits_task)
    assert [made.manifest.inputs[0].name, made.manifest.outputs[0].name] == names
    assert score(made, digits_task) == score(plain, digits_task)


@pytest.mark.parametrize(
    ("shape", "layout", "decode"),
    [((1, 8, 8), "NCHW", ""), ((8, 8, 1), "NHWC", "probabilities"), ((6, 40), "", "logits")],
    ids=["picture", "channels last", "signal"],
)
def test_networks_for_what_goes_in(shape: tuple[int, ...], layout: str, decode: str) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("n", *shape), batch_axis=0, layout=layout)
    out = TensorSpec(name="y", dtype="float32", shape=("n", 3), batch_axis=0)
    manifest = Manifest(name="m", format="onnx", inputs=(spec,), outputs=(out,), decode=decode)
    x = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32)
    samples = Samples(Task("t", {"train": Split({"": x})}, "agreement"), manifest)
    module = standin.network(SMALL, samples).eval()
    given = module(torch.from_numpy(x)).detach()
    assert given.shape == (5, 3)
    assert bool(torch.allclose(given.sum(1), torch.ones(5))) is (decode == "probabilities")
    again = standin.network(SMALL, samples).eval()(torch.from_numpy(x)).detach()
    assert torch.equal(given, again)
    model = Model.create(manifest, {"model.onnx": b"never read"})
    made = standin.exported(module, model.manifest, samples)
    with farthing.open_engine(made) as engine:
        np.testing.assert_allclose(engine.run({"x": x})["y"], given, rtol=1e-3, atol=1e-4)


def test_models_whose_place_no_student_can_take(digits_task: Task) -> None:
    x = digits_task.split("train").inputs[""]
    task = Task("t", {"train": Split({"x": x})}, "agreement")
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 1, 8, 8), batch_axis=0)
    maps = TensorSpec(name="y", dtype="float32", shape=("n", 3, 8, 8), batch_axis=0)
    for outputs in ((maps,), (checked_vector(), maps)):
        manifest = Manifest(name="m", format="onnx", inputs=(spec,), outputs=outputs)
        with pytest.raises(UnsupportedError, match=r"gives \(batch, numbers\); m has x float32"):
            standin.network(SMALL, Samples(task, manifest))


def checked_vector() -> TensorSpec:
    return TensorSpec(name="z", dtype="float32", shape=("n", 3), batch_axis=0)


def test_samples_that_are_too_small_for_the_architecture(cnn: Model, digits_task: Task) -> None:
    deep = Architecture(family="plain", stages=(Stage(width=4, depth=1, pool=(2, 2)),) * 5)
    with pytest.raises(ConfigError, match="does not fit into"):
        Student(architecture=deep)(cnn, TARGET, digits_task)


def test_features_of_a_student_that_is_made_anew(cnn: Model, digits_task: Task) -> None:
    from farthing.forge.training.distillation import Distillation, Feature

    options = Distillation(features=(Feature(student="a", teacher="b"),))
    with pytest.raises(UnsupportedError, match=r"train the finished student on with train\.finetune\.v1"):
        Student(schedule=QUICK, distillation=options)(cnn, TARGET, digits_task)
