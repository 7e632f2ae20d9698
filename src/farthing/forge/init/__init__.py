"""A task file and a complete manifest from data and a model: found out where possible, asked where not."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from farthing import files
from farthing.bench import evaluate
from farthing.config import to_yaml
from farthing.errors import ConfigError, ModelError
from farthing.forge.convert import convert
from farthing.forge.convert.describe import layout_of
from farthing.forge.init.data import DataSet, look, relative
from farthing.forge.init.describe import Form, ask_source, ask_splits
from farthing.forge.init.labels import ask_classes, ask_metric, labels_of, values_a_sample
from farthing.forge.init.pictures import PROBE_SAMPLES, Probe, Sample, ask_preprocess
from farthing.forge.init.question import Ask, Interview, Question, take_defaults
from farthing.model import MANIFEST, Model, TensorSpec, checked
from farthing.task import ImageFiles, Split, SplitName, Task
from farthing.taskfile import TaskFile, read_task

__all__ = ["Ask", "Proposal", "Question", "propose", "take_defaults"]

TASK = "task.yaml"
MODEL = "model"
TRIED: tuple[SplitName, ...] = ("calibration", "validation", "train")


class Proposal:
    """What `propose` wrote.

    Attributes:
        task_path, model_path: the files.
        task, model: both, loaded from them.
        found: what was found out, a sentence each.
        assumed: what rests on a default or a guess, a sentence each; also at the top of the task file.
        answers: key of each question -> answer.
    """

    def __init__(self, task_path: Path, model: Model, task: Task, interview: Interview) -> None:
        self.task_path = task_path
        self.model_path = model.path
        self.task = task
        self.model = model
        self.found = tuple(interview.found)
        self.assumed = tuple(interview.assumed)
        self.answers = dict(interview.answers)

    def __repr__(self) -> str:
        return f"Proposal({str(self.task_path)!r}, {self.task!r})"


def propose(
    data: Path | str,
    model: Model | Path | str,
    out: Path | str,
    *,
    ask: Ask,
    name: str = "",
    force: bool = False,
) -> Proposal:
    """Write ``out/task.yaml`` and ``out/model`` for a data set and a model.

    Both are loaded and held against one another before anything is written, so that a wrong answer shows at once.

    Args:
        data: a folder of pictures (a sub-folder a class), or an npz, CSV or Parquet file.
        model: a model, its directory, or an ONNX, TorchScript or torch.export file.
        out: directory for both.
        ask: asks a person; an empty answer takes the default, which is listed as assumed. `take_defaults` asks nobody.
        name: of the task; by default that of the data.
        force: replace what is there.

    Raises:
        ConfigError: something is there already, or an answer cannot be used.
        TaskError: the data cannot be used, or does not fit the model.
        ModelError: not a model.
        StorageError: ``out`` cannot be written.
    """
    out, interview = Path(out), Interview(ask)
    for place in (out / TASK, out / MODEL):
        if place.exists() and not force:
            raise ConfigError(f"{place} exists: give another directory, or replace it with --force")
    found = look(Path(data))
    opened = _opened(model, interview)
    described = _described(interview, found, opened, name or Path(data).resolve().stem, out)
    with _scratch(out, described) as place:
        task = read_task(place)
        complete = _completed(interview, opened, task)
        _judge(interview, complete, task)
    kept = complete.save(out / MODEL)
    files.write(out / TASK, _text(interview, described))
    return Proposal(out / TASK, kept, task, interview)


def _opened(model: Model | Path | str, interview: Interview) -> Model:
    if isinstance(model, Model):
        return model
    place = Path(model)
    try:
        packed = place.is_file() and _holds_manifest(place)
    except OSError as error:
        raise ModelError(f"cannot read {place}: {error.strerror or error}") from error
    if place.is_dir() or packed:
        return Model.open(place)
    try:
        made = convert(place)
    except ModelError as error:
        if "--example" not in str(error):
            raise
        hint = f"farthing convert {place} --example SHAPE --out DIR"
        raise ModelError(f"{error}; here, bring it in first with `{hint}`, and give DIR") from error
    interview.assumed.extend(made.assumptions)
    return made.model


def _holds_manifest(place: Path) -> bool:
    import zipfile

    return zipfile.is_zipfile(place) and MANIFEST in zipfile.ZipFile(place).namelist()


def _described(interview: Interview, found: DataSet, model: Model, name: str, out: Path) -> TaskFile:
    source, form = ask_source(interview, found, model.manifest)
    kind = labels_of(found, source.labels)
    labels = ask_classes(interview, kind, model.manifest)
    metric = ask_metric(interview, kind, model.manifest)
    return TaskFile(
        name=name,
        source=type(source)(
            format=source.format,
            path=relative(found.source_path, out),
            inputs=source.inputs,
            labels=source.labels,
            shape=source.shape,
        ),
        metric=metric,
        splits=ask_splits(interview, found),
        labels=labels,
        form=form,
    )


@contextlib.contextmanager
def _scratch(out: Path, described: TaskFile) -> Iterator[Path]:
    """The task file under a hidden name where it will be, because its paths are relative; gone afterwards."""
    fresh = not out.exists()
    with files.explained(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", suffix=".yaml", prefix=files.TEMPORARY, dir=out, delete=False
        ) as file:
            file.write(to_yaml(described))
    try:
        yield Path(file.name)
    except BaseException:
        Path(file.name).unlink(missing_ok=True)
        if fresh:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise
    Path(file.name).unlink(missing_ok=True)


def _completed(interview: Interview, model: Model, task: Task) -> Model:
    """The model with all that its manifest lacks for this task."""
    manifest = model.manifest
    changes: dict[str, object] = {"task": manifest.task or task.name}
    if not manifest.labels and values_a_sample(manifest) != 1:  # one output is no list of classes
        changes["labels"] = task.labels
    probe = None
    if task.form == "image" and manifest.preprocess is None:
        spec = _picture_input(interview, manifest.data_inputs)
        changes["inputs"] = tuple(spec if own.name == spec.name else own for own in manifest.inputs)
        sample = _sample(task)
        probe = Probe(model, spec, sample)
        changes["preprocess"] = ask_preprocess(interview, spec, sample, probe)
    elif manifest.preprocess is not None:
        interview.found.append("how pictures are preprocessed stands in the model's manifest")
    complete = Model.create(checked(manifest, **changes), {n: model.path / n for n in manifest.files})
    task.check(complete.manifest)
    if manifest.decode or task.metric.name not in {"top1", "top5", "macro_f1", "auc", "agreement"}:
        return complete
    decode = _decode(complete, task)
    interview.found.append(f"outputs are {decode}" if decode else "what the outputs mean is left open")
    return Model.create(
        checked(complete.manifest, decode=decode), {n: complete.path / n for n in manifest.files}
    )


def _picture_input(interview: Interview, inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    if len(inputs) != 1:
        raise ConfigError(
            f"pictures go into one input, this model has {len(inputs)}: write its manifest by hand"
        )
    spec = inputs[0]
    layout = spec.layout or layout_of(spec)
    if not layout and len(spec.shape) == 4:
        layout = interview(
            "layout", f"What are the axes of input {spec.name!r} {list(spec.shape)}?", ("NCHW", "NHWC")
        )
    if layout not in {"NCHW", "NHWC"}:
        raise ModelError(
            f"input {spec.name!r} {list(spec.shape)} takes no pictures: use data of its own shape"
        )
    axis = 0 if spec.batch_axis is None else spec.batch_axis
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=spec.shape, batch_axis=axis, layout=layout)


def _labelled(task: Task) -> SplitName | Literal[""]:
    """The split to try things on, never the test split: one with labels if there is one; empty if there is none."""
    keys: list[SplitName] = [key for key in TRIED if key in task.splits]
    for key in keys:
        if task.splits[key].labels is not None:
            return key
    return keys[0] if keys else ""


def _sample(task: Task) -> Sample:
    """Some pictures of the calibration or validation split, never of the test split."""
    split = task.splits.get(_labelled(task)) or next(iter(task.splits.values()))
    picks = np.unique(np.linspace(0, len(split) - 1, min(PROBE_SAMPLES, len(split))).astype(int))
    images = next(iter(split.take(picks).values()))
    return Sample(list(images), None if split.labels is None else split.labels[picks])


def _decode(model: Model, task: Task) -> str:
    """``probabilities`` if rows of real answers sum to one, else ``logits``; nothing for other shapes."""
    from farthing.bench import outputs
    from farthing.engines.base import open_engine

    split: Split | ImageFiles = task.splits.get("calibration") or next(iter(task.splits.values()))
    with open_engine(model) as engine:
        answers = outputs(engine, model.manifest, task, split, np.arange(min(16, len(split))))
    rows = next(iter(answers.values()))
    if rows.dtype.kind != "f" or rows.ndim != 2 or rows.shape[1] < 2:
        return ""
    sums_to_one = bool(np.allclose(rows.sum(1), 1, atol=1e-3)) and float(rows.min()) >= 0
    return "probabilities" if sums_to_one else "logits"


def _judge(interview: Interview, model: Model, task: Task) -> None:
    """Score a few samples, so that a wrong answer is seen at once."""
    split = _labelled(task)
    if not split or task.metric.name not in {"top1", "auc", "error"}:
        return
    data = task.splits[split]
    picks = np.unique(np.linspace(0, len(data) - 1, min(PROBE_SAMPLES, len(data))).astype(int))
    few = data.subset(picks)
    classes = 0 if few.labels is None else len(np.unique(few.labels))
    if task.metric.name == "auc" and classes < 2:
        return
    form: Form = "image" if task.form == "image" else "tensor"
    sample = Task(task.name, {"validation": few}, task.metric, labels=task.labels, form=form)
    score = evaluate(model, sample, "validation")[0].value
    _remark(interview, task.metric.name, score, classes, f"{len(picks)} samples of the {split} split")


def _remark(interview: Interview, metric: str, score: float, classes: int, where: str) -> None:
    """Note a score on a few samples, and what is odd about it."""
    if metric == "error":
        interview.found.append(f"mean absolute error on {where}: {score:.3g}")
    elif metric == "auc":
        interview.found.append(f"area under the ROC curve on {where}: {score:.0%}")
        if score < 0.5:
            interview.assumed.append(
                f"samples of class 0 score higher than those of class 1 ({score:.0%} on {where}): "
                "the classes may be the other way round, or the preprocessing wrong"
            )
    else:
        interview.found.append(f"right of {where}, prepared so: {score:.0%}")
        chance = 1 / max(2, classes)
        if score < 2 * chance:
            interview.assumed.append(
                f"only {score:.0%} of {where} are right, chance is {chance:.0%}: "
                "the preprocessing or the order of the labels may be wrong"
            )


def _text(interview: Interview, described: TaskFile) -> str:
    head = ["# Written by farthing init."]
    if interview.assumed:
        head += ["# Assumed, not known; correct here or in the model's manifest what is wrong:"]
        head += [f"# - {' '.join(sentence.splitlines())}" for sentence in interview.assumed]
    return "\n".join([*head, to_yaml(described)])
