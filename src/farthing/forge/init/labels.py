"""What the labels are: where they stand, which classes there are in which order, and so what accuracy means."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from farthing import plugins
from farthing.arrayfile import as_text, as_whole, read_csv, read_npz
from farthing.config import Section
from farthing.errors import ConfigError, TaskError, nearest, require
from farthing.forge.init.data import Column, DataSet
from farthing.forge.init.question import Interview
from farthing.model import Manifest, TensorSpec

Array = NDArray[Any]
LABEL_WORDS = ("label", "labels", "y", "target", "targets", "class", "classes", "species")
NONE = "none"


class Labels(Section, frozen=True, kw_only=True):
    """What the labels are.

    Attributes:
        kind: ``none``; ``words``; ``binary``, the numbers 0 and 1; ``two`` other whole numbers; more ``whole`` numbers;
            or ``measured``, any others.
        words: the different words, sorted, if they are words.
        size: numbers a sample.
    """

    kind: Literal["none", "words", "binary", "two", "whole", "measured"] = "none"
    words: tuple[str, ...] = ()
    size: int = 1


def named_like_labels(column: Column) -> bool:
    """Whether a column is called as labels usually are."""
    return column.name.lower() in LABEL_WORDS


def inner(spec: TensorSpec) -> tuple[int | str, ...]:
    """The shape of one sample."""
    axis = 0 if spec.batch_axis is None and spec.shape and isinstance(spec.shape[0], str) else spec.batch_axis
    return tuple(size for place, size in enumerate(spec.shape) if place != axis)


def values_a_sample(manifest: Manifest) -> int | None:
    """How many numbers the first output holds for a sample; None if that varies."""
    sizes = inner(manifest.outputs[0]) if manifest.outputs else ()
    fixed = [size for size in sizes if isinstance(size, int)]
    return math.prod(fixed) if manifest.outputs and len(fixed) == len(sizes) else None


def ask_label(interview: Interview, data: DataSet, manifest: Manifest) -> str:
    """Which array or column holds the labels; empty if none does.

    Raises:
        TaskError: one is called so, but has a type or shape that no metric here takes.
    """
    answered = inner(manifest.outputs[0]) if manifest.outputs else ()
    fits = [c for c in data.columns if c.kind in "iuUbf" and c.shape in {(), (1,)}]
    fits += [c for c in data.columns if named_like_labels(c) and c not in fits and c.shape == answered]
    likely = [c.name for word in LABEL_WORDS for c in fits if c.name.lower() == word]
    other = next((c for c in data.columns if named_like_labels(c) and c not in fits), None)
    if other is not None and not likely:
        raise TaskError(
            f"{data.path}: the labels {other.name!r} are {other.dtype} {list(other.shape)} a sample, but should be a "
            f"number or word, or {list(answered)} numbers as the model gives: save them so, or describe them in a "
            "task file of your own"
        )
    if not fits:
        interview.found.append("no array or column can be labels")
        return ""
    default = likely[0] if likely else NONE
    why = "named like labels" if likely else "none is named like labels"
    if not likely and (words := _column_of_words(data, fits, manifest)):
        default, why = words, "the only text, with as many different words as the model has outputs"
    choices = [*(column.name for column in fits), NONE]
    answer = interview("labels", "Which array or column holds the labels?", choices, default, why)
    return "" if answer == NONE else answer


def _column_of_words(data: DataSet, fits: list[Column], manifest: Manifest) -> str:
    """The one array or column of text, if it has a word for each output of the model; empty if not."""
    texts = [column.name for column in fits if column.kind == "U"]
    if len(texts) != 1:
        return ""
    different = {str(word) for word in as_text(_values(data, texts[0])).reshape(-1).tolist()}
    return texts[0] if len(different) == values_a_sample(manifest) else ""


def labels_of(data: DataSet, name: str) -> Labels:
    """What the column of the labels holds, or what the folders of the classes say.

    Raises:
        TaskError: they are one-hot rows, all of one class, missing for a sample, or cannot be read.
    """
    if data.format == "folder":
        return Labels(kind="words", words=data.classes) if data.classes else Labels()
    if not name:
        return Labels()
    values = _values(data, name)
    if data.format == "csv":
        with contextlib.suppress(ValueError):
            values = values.astype(np.float64)
    if values.dtype.kind in "USO":
        return _words(data, name, as_text(values).reshape(-1).tolist())
    rows = as_whole(values.astype(np.int64) if values.dtype.kind == "b" else values).reshape(len(values), -1)
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        place = int(np.argwhere(~np.isfinite(rows).all(1))[0, 0])
        raise TaskError(
            f"{data.path}: {name!r} of sample {place} is NaN or infinite: label it, or leave it out"
        )
    zero_or_one = bool(((rows == 0) | (rows == 1)).all())
    if rows.shape[1] > 1 and zero_or_one and (rows.sum(1) == 1).all():
        raise TaskError(
            f"{data.path}: {name!r} holds one-hot rows: save the numbers of the classes, as in y.argmax(1)"
        )
    if rows.shape[1] > 1 or rows.dtype.kind == "f":
        return Labels(kind="measured", size=rows.shape[1])
    different = len(np.unique(rows))
    _refuse_one_class(data, name, different)
    return Labels(kind="binary" if zero_or_one else "two" if different == 2 else "whole")


def _words(data: DataSet, name: str, texts: list[str | None]) -> Labels:
    missing = next((place for place, text in enumerate(texts) if not text), None)
    if missing is not None:
        raise TaskError(f"{data.path}: sample {missing} has no {name!r}: label it, or leave it out")
    words = tuple(sorted({str(text) for text in texts}))
    _refuse_one_class(data, name, len(words))
    return Labels(kind="words", words=words)


def _refuse_one_class(data: DataSet, name: str, different: int) -> None:
    if different < 2:
        raise TaskError(
            f"{data.path}: {name!r} is the same for all samples: samples of one class show no accuracy"
        )


def _values(data: DataSet, name: str) -> Array:
    if data.format == "csv":
        return read_csv(data.path)[name]
    if data.format == "npz":
        return read_npz(data.path, [name])[name]
    table = require("pyarrow.parquet", "parquet").read_table(data.path, columns=[name])
    return np.asarray(table[name].to_numpy())


def ask_classes(interview: Interview, labels: Labels, manifest: Manifest) -> tuple[str, ...]:
    """Class names in the order of the model's output; empty if labels are numbers without names.

    Raises:
        ConfigError: no answer that names every class once.
        TaskError: the data have classes the model does not know.
    """
    words, outputs = labels.words, values_a_sample(manifest)
    if manifest.labels:
        unknown = sorted(set(words) - set(manifest.labels))
        if unknown:
            raise TaskError(f"the data have the class {unknown[0]!r}; {nearest(unknown[0], manifest.labels)}")
        interview.found.append("the order of the classes stands in the model's manifest")
        return manifest.labels
    if not words:
        return ()
    text = "In which order does the output list the classes? (all of them, parted by commas, or @FILE, one a line)"
    if outputs == 1 and len(words) > 2:
        raise TaskError(
            f"the model gives one number a sample, which tells two classes apart, but the data have {len(words)}: "
            f"{', '.join(words[:5])}"
        )
    if outputs == 1:
        text = "Which class is 0, and which is 1, the one a high output stands for? (both, parted by a comma)"
        outputs = 2
    same = outputs is None or outputs == len(words)
    why = (
        "tools such as torchvision number class folders alphabetically"
        if same
        else f"the model has {outputs} outputs, the data have {len(words)} classes, so all {outputs} must be named"
    )

    def order(answer: str) -> tuple[str, ...]:
        named = words if answer == "alphabetical" else _list(answer)
        _check_order(named, words, outputs)
        return named

    return order(interview("classes", text, default="alphabetical" if same else "", why=why, check=order))


def _check_order(order: tuple[str, ...], words: tuple[str, ...], outputs: int | None) -> None:
    missing = sorted(set(words) - set(order))
    if missing or len(set(order)) != len(order):
        wrong = f"lacks {missing[0]!r}; {nearest(missing[0], order)}" if missing else "names a class twice"
        raise ConfigError(f"classes: the list {wrong}")
    if outputs is not None and len(order) != outputs:
        raise ConfigError(f"classes: the list has {len(order)} names, the model has {outputs} outputs")


def _list(answer: str) -> tuple[str, ...]:
    if not answer.startswith("@"):
        return tuple(part.strip() for part in answer.split(",") if part.strip())
    try:
        lines = Path(answer[1:]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"classes: cannot read {answer[1:]}: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def ask_metric(interview: Interview, labels: Labels, manifest: Manifest) -> str:
    """What "accuracy" means."""
    default, why = _usual_metric(labels, values_a_sample(manifest))
    return interview("metric", "What does accuracy mean?", plugins.names("metric"), default, why)


def _usual_metric(labels: Labels, outputs: int | None) -> tuple[str, str]:
    """The metric to offer and why, or nothing and why; of one output a sample, none is the highest."""
    single = outputs == 1
    if labels.kind == "none" and single:
        why = "the model gives one number a sample, which says nothing without labels: add them to the data"
        return "", why
    if labels.kind == "none":
        return "agreement", "there are no labels: answers are compared with those of the model as given"
    if labels.kind == "measured" and outputs not in {None, labels.size}:
        return "", f"labels are {labels.size} measured values a sample, the model gives {outputs}"
    if labels.kind == "measured":
        return "error", "labels are measured values: the mean absolute error"
    if not single:
        return "top1", "the share of samples whose highest output is the right class"
    if labels.kind == "two":
        return (
            "",
            "labels are two numbers, but not 0 and 1: save classes as 0 and 1, or answer `error` if they are measured",
        )
    if labels.kind == "whole":
        return (
            "error",
            "the model gives one number a sample, and labels are more than 0 and 1: the mean absolute error",
        )
    return "auc", "the model gives one number a sample, for two classes: the area under the ROC curve"
