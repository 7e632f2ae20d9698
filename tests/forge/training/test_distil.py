"""Teachers answer as their engines do; what a student learns from them is what the papers say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn import functional

from farthing.bench import outputs
from farthing.config import convert
from farthing.engines.base import open_engine
from farthing.errors import ConfigError, TaskError, UnsupportedError
from farthing.forge.trainable import trainable
from farthing.forge.training.distillation import Distillation, Feature
from farthing.forge.training.lesson import lesson
from farthing.forge.training.loop import train
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.forge.training.teacher import Teacher
from farthing.forge.training.transfer import Transfer, tapped
from farthing.model import Model, Preprocess, checked
from farthing.recipe import Progress
from farthing.target import Target
from farthing.task import Split, Task

PICKS = torch.tensor([7, 3, 12, 0, 30])


@pytest.fixture(scope="module")
def few(digits_task: Task) -> Task:
    return Task(
        "digits", {"train": digits_task.split("train").subset(range(40))}, "top1", labels="0123456789"
    )


@pytest.fixture(scope="module")
def samples(few: Task, cnn: Model) -> Samples:
    return Samples(few, cnn.manifest)


def answers(model: Model, task: Task) -> Any:
    with open_engine(model) as engine:
        return outputs(engine, model.manifest, task, task.split("train"))["logits"]


@pytest.mark.parametrize("memory", [0, 1 << 20], ids=["asked each time", "kept"])
@pytest.mark.parametrize("batch", [None, 3], ids=["free", "batches of three"])
def test_a_teacher_answers_as_its_engine(
    memory: int, batch: int | None, cnn_net: nn.Module, make_model: Any, few: Task, samples: Samples
) -> None:
    model = make_model(cnn_net, batch)
    wanted = answers(model, few)
    with Teacher(model, samples, memory=memory) as teacher:
        for picks in (PICKS, PICKS.flip(0)):
            (found,) = teacher.answers(samples.batch(picks))
            np.testing.assert_allclose(found, wanted[picks.numpy()], rtol=1e-5, atol=1e-5)


def test_a_teacher_of_another_format(cnn: Model, few: Task, samples: Samples) -> None:
    """Any engine can teach: here a TFLite file, whose input has its channels last."""
    pytest.importorskip("ai_edge_litert")
    from farthing.forge.fuse import Fuse
    from farthing.forge.tflite.export import ExportTflite

    target = Target.find("this")
    model = ExportTflite()(Fuse()(cnn, target, few), target, few)
    assert model.manifest.format == "tflite"
    with Teacher(model, samples) as teacher:
        np.testing.assert_allclose(
            teacher.answers(samples.batch(PICKS))[0], answers(cnn, few)[PICKS.numpy()], rtol=1e-3, atol=1e-3
        )


def test_a_teacher_sees_what_augmentation_made(cnn: Model, few: Task, samples: Samples) -> None:
    batch = samples.batch(PICKS, "affine", torch.Generator().manual_seed(0))
    with open_engine(cnn) as engine, Teacher(cnn, samples, augmented=True) as teacher:
        wanted = engine.run({"image": batch.inputs[0].numpy()})["logits"]
        np.testing.assert_allclose(teacher.answers(batch)[0], wanted, rtol=1e-5, atol=1e-5)


def test_a_teacher_may_call_its_input_otherwise(cnn: Model, few: Task) -> None:
    own = checked(cnn.manifest, inputs=(replace(cnn.manifest.inputs[0], name="picture"),))
    samples = Samples(few, own)
    with open_engine(cnn) as engine, Teacher(cnn, samples, augmented=True) as teacher:
        for batch in (
            samples.batch(PICKS),
            samples.batch(PICKS, "affine", torch.Generator().manual_seed(0)),
        ):
            wanted = engine.run({"image": batch.inputs[0].numpy()})["logits"]
            np.testing.assert_allclose(teacher.answers(batch)[0], wanted, rtol=1e-5, atol=1e-5)


def test_a_teacher_with_other_inputs_prepares_its_own(cnn: Model, digits: Any) -> None:
    """It takes the pictures as its own manifest says; but what augmentation made, it cannot see."""
    x, y = digits
    pictures = (x[:20, 0] * 255).astype(np.uint8)
    task = Task("digits", {"train": Split({"": pictures}, y[:20])}, "top1", form="image")
    own = checked(cnn.manifest, preprocess=Preprocess(colour="GRAY", scale=1 / 255))
    inverse = checked(cnn.manifest, preprocess=Preprocess(colour="GRAY", scale=1 / 255, mean=(0.5,)))
    teacher_model = Model.create(inverse, {"model.onnx": cnn.file})
    samples = Samples(task, own)
    with open_engine(teacher_model) as engine, Teacher(teacher_model, samples) as teacher:
        wanted = outputs(engine, inverse, task, task.split("train"))["logits"]
        np.testing.assert_allclose(
            teacher.answers(samples.batch(torch.arange(20)))[0], wanted, rtol=1e-5, atol=1e-5
        )
    with pytest.raises(TaskError, match=r"takes other inputs than the student .* `augment: none`"):
        Teacher(teacher_model, samples, augmented=True)


def test_who_waits_for_a_teacher_hears_of_it(cnn: Model, samples: Samples) -> None:
    events: list[Progress] = []
    Teacher(cnn, samples, listener=events.append).__exit__()
    assert [event.text for event in events] == ["asking the teacher digits"]


# --- what is learned


def taught(student: Any, samples: Samples, teachers: list[Model], **options: Any) -> tuple[Tensor, Tensor]:
    """The loss on a batch, and the student's outputs."""
    batch = samples.batch(PICKS)
    with lesson(student, samples, Schedule(), teachers, Distillation(**options)) as (module, loss):
        given = module(*batch.inputs)
        return loss([given] if isinstance(given, Tensor) else given, batch), given


def net(outputs: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs)).eval()


def test_soft_and_hard_shares_are_those_of_the_paper(cnn: Model, few: Task, samples: Samples) -> None:
    found, given = taught(net(), samples, [cnn], temperature=4.0, soft=0.6, hard=0.4)
    theirs = torch.from_numpy(answers(cnn, few))[PICKS]
    p = functional.softmax(theirs / 4, 1)
    soft = (p * (p.log() - functional.log_softmax(given / 4, 1))).sum(1).mean() * 16
    assert samples.labels is not None
    hard = functional.cross_entropy(given, samples.labels[PICKS])
    torch.testing.assert_close(found, 0.6 * soft + 0.4 * hard, rtol=1e-4, atol=1e-5)


def test_the_defaults_are_those_that_work() -> None:
    plain = Distillation()
    assert (plain.temperature, plain.soft, plain.hard) == (3.0, 0.7, 0.3)


def test_several_teachers_are_one_with_the_mean_of_their_probabilities(
    cnn: Model, mlp: Model, few: Task, samples: Samples
) -> None:
    found, given = taught(net(), samples, [cnn, mlp], hard=0.0, soft=1.0)
    theirs = [functional.softmax(torch.from_numpy(answers(model, few))[PICKS] / 3, 1) for model in (cnn, mlp)]
    p = (theirs[0] + theirs[1]) / 2
    wanted = (p * (p.log() - functional.log_softmax(given / 3, 1))).sum(1).mean() * 9
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_probabilities_teach_as_their_logits(cnn_net: nn.Module, make_model: Any, samples: Samples) -> None:
    """The graph ends in a softmax, which nobody said in the manifest."""
    import copy

    ending = nn.Sequential(*copy.deepcopy(cnn_net), nn.Softmax(1))
    model = make_model(ending)
    model = Model.create(checked(model.manifest, decode=""), {"model.onnx": model.file})
    plain = make_model(cnn_net)
    wanted, _ = taught(net(), samples, [plain], hard=0.0)
    found, _ = taught(net(), samples, [model], hard=0.0)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_values_are_learned_by_their_square(cnn: Model, few: Task) -> None:
    values = Task("v", {"train": few.split("train")}, "cosine")
    samples = Samples(values, cnn.manifest)
    theirs = torch.from_numpy(answers(cnn, few))[PICKS]
    found, given = taught(net(), samples, [cnn], soft=0.5, hard=2.0)
    direction = 1 - functional.cosine_similarity(given, theirs).mean()
    torch.testing.assert_close(found, 0.5 * functional.mse_loss(given, theirs) + 2 * direction)


def test_without_a_hard_share_nothing_is_asked_of_the_task(cnn: Model, few: Task) -> None:
    """No labels, and a metric that no loss is known for: the teacher's outputs are all there is to learn."""
    bare = Task("d", {"train": few.split("train")}, "agreement")
    boxes = Task("m", {"train": Split({"": few.split("train").inputs[""]}, np.zeros((40, 1, 5)))}, "map")
    for task in (bare, boxes):
        assert math.isfinite(taught(net(), Samples(task, cnn.manifest), [cnn], hard=0.0)[0].item())
    with pytest.raises(TaskError, match="no loss is known for metric 'map'"):
        taught(net(), Samples(boxes, cnn.manifest), [cnn])


def test_a_teacher_of_another_question(cnn: Model, samples: Samples) -> None:
    with pytest.raises(TaskError, match=r"gives outputs of shape \[10\], the student \[4\]"):
        taught(net(4), samples, [cnn])


def test_of_several_teachers_each_must_answer_the_same(cnn: Model, digits: Any, samples: Samples) -> None:
    from farthing.forge.convert import convert

    other = convert(net(4), name="other", example=digits[0][:2]).model
    unlabelled = Task("digits", {"train": Split(samples.split.inputs)}, "agreement")
    samples = Samples(unlabelled, samples.manifest)
    with pytest.raises(TaskError, match=r"gives outputs of shape \[4\], the student \[10\]"):
        taught(net(), samples, [cnn, other])


def test_pixels_are_taught_alike_with_classes_first_or_last(digits: Any) -> None:
    from farthing.forge.convert import convert

    class Last(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.inner(x)
            return found.movedim(1, 3)

    x, _ = digits
    task = Task("pixels", {"train": Split({"": x[:20]}, (x[:20, 0] > 0.5).astype(np.int64))}, "miou")
    torch.manual_seed(0)
    teacher, student = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(1, 3, 1)
    losses = []
    for ending in (nn.Sequential, Last):
        model = convert(ending(teacher), name="t", example=x[:2]).model
        pixels = Samples(task, model.manifest)
        batch = pixels.batch(torch.arange(20))
        with lesson(ending(student), pixels, Schedule(), [model], Distillation(hard=0.0)) as (module, loss):
            losses.append(loss([module(*batch.inputs)], batch))
    torch.testing.assert_close(losses[0], losses[1])


def test_a_lesson_without_teachers_is_the_tasks_own_loss(samples: Samples) -> None:
    batch = samples.batch(PICKS)
    module = net()
    with lesson(module, samples, Schedule()) as (same, loss):
        assert same is module
        assert batch.labels is not None
        given = module(*batch.inputs)
        torch.testing.assert_close(loss([given], batch), functional.cross_entropy(given, batch.labels))


def test_a_student_learns_from_a_teacher_alone(cnn: Model, digits_task: Task) -> None:
    """Without one label, the student agrees with its teacher on pictures neither has seen."""
    task = Task("digits", {"train": digits_task.split("train")}, "agreement")
    samples = Samples(task, cnn.manifest)
    student, schedule = net(), Schedule(epochs=8, batch=64, lr=0.02, bf16=False)
    with lesson(student, samples, schedule, [cnn]) as (module, loss):
        history = train(module, samples, loss, schedule)
    assert history.epochs[-1].accuracy is not None
    assert history.epochs[-1].accuracy > 0.9
    x = digits_task.split("validation").inputs[""]
    with open_engine(cnn) as engine:
        theirs = engine.run({"image": x})["logits"].argmax(1)
    own = student(torch.from_numpy(x)).argmax(1).numpy()
    assert float((own == theirs).mean()) > 0.85


# --- features


def test_attention_looks_at_places_not_at_strength() -> None:
    own = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    measure = Transfer(Feature(student="a"), own, own)
    assert measure(own, 3 * own).item() == pytest.approx(0, abs=1e-6)
    assert measure(own, own.flip(3)).item() > 0.01
    left, right = torch.zeros(1, 1, 1, 2), torch.zeros(1, 5, 1, 2)
    left[..., 0], right[..., 1] = 1, 1
    assert measure(left, right).item() == pytest.approx(1.0), (
        "half the squared distance of two orthogonal maps"
    )


def test_a_hint_is_reached_by_projecting() -> None:
    own = torch.randn(16, 3, 5, generator=torch.Generator().manual_seed(0))
    mixed = torch.einsum("oc,ncl->nol", torch.tensor([[1.0, 2, 0], [0, 1, -1], [1, 0, 0], [0, 0, 1]]), own)
    measure = Transfer(Feature(student="a", how="hint"), own, mixed)
    before = measure(own, mixed).item()
    descent = torch.optim.Adam(measure.parameters(), 0.05)
    for _ in range(300):
        descent.zero_grad()
        error = measure(own, mixed)
        torch.autograd.backward(error)
        descent.step()
    assert measure(own, mixed).item() < 1e-4 < before


@pytest.mark.parametrize("how", ["attention", "hint"])
def test_channels_may_lie_last(how: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(4, 6, 5, generator=generator), torch.randn(4, 9, 5, generator=generator)
    torch.manual_seed(0)
    first = Transfer(Feature(student="a", how=how), own, other)
    torch.manual_seed(0)
    last = Transfer(Feature(student="a", how=how, axis=-1), own.movedim(1, 2), other.movedim(1, 2))
    torch.testing.assert_close(last(own.movedim(1, 2), other.movedim(1, 2)), first(own, other))
    with pytest.raises(TaskError, match="name other tensors"):
        Transfer(Feature(student="a", how=how, axis=3), own, other)


@pytest.mark.parametrize("how", ["attention", "hint"])
def test_where_places_differ_in_number_the_finer_are_averaged(how: Any) -> None:
    coarse = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    measure = Transfer(Feature(student="a", how=how), coarse, coarse)
    torch.testing.assert_close(measure(coarse, fine), measure(coarse, coarse))
    torch.testing.assert_close(measure(fine, coarse), measure(coarse, coarse))


def test_features_without_places_or_of_another_kind() -> None:
    flat = torch.zeros(2, 8)
    with pytest.raises(TaskError, match="attention needs places to look at"):
        Transfer(Feature(student="a"), flat, flat)
    with pytest.raises(TaskError, match="hint needs channels"):
        Transfer(Feature(student="a", how="hint"), flat, torch.zeros(2, 8, 4))
    assert (
        Transfer(Feature(student="a", how="hint"), flat, torch.zeros(2, 5))(flat, torch.zeros(2, 5)).item()
        == 0
    )


def names(model: Model, kind: str) -> list[str]:
    import onnx

    return [node.output[0] for node in onnx.load(model.file).graph.node if node.op_type == kind]


def test_tapped_layers_are_the_students_own(cnn_net: nn.Module, make_model: Any, samples: Samples) -> None:
    from farthing.forge import graph

    model = make_model(cnn_net)
    student = trainable(model)
    relus, batch = names(model, "Relu"), samples.batch(PICKS)
    module = tapped(student, relus[:2])
    logits, *inner = module(*batch.inputs)
    wanted = graph.run(graph.load(model.file), {"image": batch.inputs[0].numpy()}, extra=relus[:2])
    for found, name in zip([logits, *inner], ["logits", *relus[:2]], strict=True):
        np.testing.assert_allclose(found.detach(), wanted[name], rtol=1e-3, atol=1e-4)
    assert {id(p) for p in module.parameters()} == {id(p) for p in student.module.parameters()}
    convolutions = names(model, "Conv")
    student.insert_norms([batch.inputs])
    (raw,) = tapped(student, convolutions[:1])(*batch.inputs)[1:]
    with torch.no_grad():
        student.module.get_submodule(next(iter(student.norms.values()))).bias += 1
    (moved,) = tapped(student, convolutions[:1])(*batch.inputs)[1:]
    torch.testing.assert_close(moved, raw + 1)  # what a convolution gives is taken behind its norm


@pytest.mark.parametrize("how", ["attention", "hint"])
def test_features_come_near_to_the_teachers(
    how: Any, cnn_net: nn.Module, make_model: Any, samples: Samples
) -> None:
    teacher = make_model(cnn_net)
    torch.manual_seed(5)
    small = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(24, 10)
    )
    student = trainable(make_model(small))
    pair = Feature(student=names(student.model, "Relu")[0], teacher=names(teacher, "Relu")[1], how=how)
    options = Distillation(soft=0, hard=0, features=(pair,))
    schedule = Schedule(epochs=15, batch=20, lr=0.02, bf16=False)
    with lesson(student, samples, schedule, [teacher], options) as (module, loss):
        history = train(module, samples, loss, schedule).epochs
    assert history[-1].loss < 0.7 * history[0].loss
    assert student.to_model().digest != student.model.digest


def test_features_that_are_not_there(cnn: Model, mlp: Model, samples: Samples) -> None:
    student = trainable(cnn)
    there = names(cnn, "Relu")[0]
    with pytest.raises(UnsupportedError, match=f"the student digits has no tensor .*did you mean '{there}'"):
        taught(student, samples, [cnn], features=(Feature(student=f"{there}x", teacher=there),))
    with pytest.raises(UnsupportedError, match=f"the teacher digits has no tensor .*did you mean '{there}'"):
        taught(student, samples, [cnn], features=(Feature(student=there, teacher=f"{there}x"),))
    with pytest.raises(TaskError, match="those of one teacher, and there are 2"):
        taught(student, samples, [cnn, mlp], features=(Feature(student=there),))


def test_features_of_what_is_no_onnx_file(cnn: Model, samples: Samples) -> None:
    other = Model.create(checked(cnn.manifest, format="tflite"), {"model.tflite": cnn.file})
    with pytest.raises(UnsupportedError, match="features are taken from ONNX models"):
        Teacher(other, samples, features=("x",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is above 0"),
        ({"soft": -0.1}, "soft is a share"),
        ({"soft": 0.0, "hard": 0.0}, "nothing to learn"),
        ({"features": [{"student": "a", "weight": -1.0}]}, "weight of feature 'a'"),
        ({"features": [{"student": "a", "axis": 0}]}, "axis of feature 'a' is that of the samples"),
        ({"features": [{"student": "a", "how": "hints"}]}, "did you mean 'hint'"),
    ],
    ids=str,
)
def test_impossible_distillation(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(options, Distillation, "recipe")
