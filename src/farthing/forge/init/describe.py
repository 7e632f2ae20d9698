"""Which arrays or columns are what, which classes there are, the metric and the splits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from farthing import plugins
from farthing.errors import ConfigError, TaskError, nearest
from farthing.forge.init.data import LABEL_WORDS, Column, DataSet, words_of
from farthing.forge.init.question import Interview
from farthing.model import Manifest, TensorSpec
from farthing.task import SPLITS, SplitName
from farthing.taskfile import SHARES, Source

NONE = "none"
Form = Literal["image", "tensor"]


def ask_source(interview: Interview, data: DataSet, manifest: Manifest) -> tuple[Source, Form]:
    """Which parts of the data are inputs and labels, and whether they are pictures."""
    if data.format == "folder":
        classes = f"{len(data.classes)} classes by folder" if data.classes else "no classes"
        interview.found.append(f"{data.size} pictures, {classes}")
        return Source(format="folder", path=str(data.path)), "image"
    label = _ask_label(interview, data)
    rest = [column for column in data.columns if column.name != label]
    if not rest:
        raise TaskError(f"{data.path} has nothing beside the labels")
    specs = manifest.data_inputs
    if data.format == "npz":
        inputs, shape, form = _arrays(interview, data, rest, specs)
    else:
        inputs, shape, form = _columns(rest, specs)
    return (
        Source(format=data.format, path=str(data.path), inputs=inputs, labels=label, shape=shape),
        form,
    )


def _ask_label(interview: Interview, data: DataSet) -> str:
    fits = [c.name for c in data.columns if not c.shape and (c.kind in "iuUb" or data.format != "npz")]
    likely = [name for word in LABEL_WORDS for name in fits if name.lower() == word]
    if not fits:
        interview.found.append("no array or column can be labels")
        return ""
    default = likely[0] if likely else NONE
    why = "named like labels" if likely else "none is named like labels"
    answer = interview("labels", "Which array or column holds the labels?", [*fits, NONE], default, why)
    return "" if answer == NONE else answer


def _arrays(
    interview: Interview, data: DataSet, rest: list[Column], specs: tuple[TensorSpec, ...]
) -> tuple[dict[str, str | list[str]], tuple[int, ...], Form]:
    """The array of each input; a single one may be flat, or hold pictures."""
    names = [column.name for column in rest]
    if len(specs) != 1:
        picked: dict[str, str | list[str]] = {}
        for spec in specs:
            default = spec.name if spec.name in names else ""
            picked[spec.name] = interview(
                f"input {spec.name}", f"Which array feeds input {spec.name!r}?", names, default
            )
        return picked, (), "tensor"
    spec = specs[0]
    fitting = [column for column in rest if _use(column, spec) is not None]
    likely = [c for c in fitting if c.name in {spec.name, "x", "X", "images", "inputs", "data"}] or fitting
    default = likely[0].name if likely else ""
    if not fitting:
        shapes = ", ".join(f"{c.name} {list(c.shape)}" for c in rest)
        raise TaskError(
            f"no array of {data.path} fits input {spec.name!r} {list(spec.shape)}; samples have: {shapes}"
        )
    chosen = default
    if len(fitting) > 1:
        chosen = interview(
            "input", f"Which array feeds input {spec.name!r}?", [c.name for c in fitting], default
        )
    column = next(c for c in fitting if c.name == chosen)
    shape, form = _use(column, spec) or ((), "tensor")
    interview.found.append(
        f"array {chosen!r} feeds input {spec.name!r} as {'pictures' if form == 'image' else 'it is'}"
    )
    return {"": chosen}, shape, form


def _inner(spec: TensorSpec) -> tuple[int | str, ...]:
    """The shape of one sample."""
    axis = 0 if spec.batch_axis is None and spec.shape and isinstance(spec.shape[0], str) else spec.batch_axis
    return tuple(size for place, size in enumerate(spec.shape) if place != axis)


def _use(column: Column, spec: TensorSpec) -> tuple[tuple[int, ...], Form] | None:
    """How an array can feed an input: the shape to give its samples, if any, and as what; None if it cannot."""
    if column.kind not in "fiub":
        return None
    inner = _inner(spec)
    picture = column.dtype == "uint8" and spec.dtype != "uint8" and len(inner) == 3
    if picture and len(column.shape) in {2, 3} and (len(column.shape) == 2 or column.shape[2] in {1, 3}):
        return (), "image"
    if len(column.shape) == len(inner) and all(
        isinstance(want, str) or size == want for size, want in zip(column.shape, inner, strict=True)
    ):
        return (), "tensor"
    fixed = tuple(size for size in inner if isinstance(size, int))
    if len(column.shape) == 1 and len(fixed) == len(inner) and math.prod(fixed) == column.shape[0]:
        if picture and spec.layout in {"NCHW", ""} and fixed[0] == 1:
            return fixed[1:], "image"
        return fixed, "tensor"
    return None


def _columns(
    rest: list[Column], specs: tuple[TensorSpec, ...]
) -> tuple[dict[str, str | list[str]], tuple[int, ...], Form]:
    """All columns of numbers as one vector, in the shape the model takes."""
    numbers = [column.name for column in rest if column.kind in "fiub"]
    if len(specs) != 1:
        raise ConfigError(
            f"the model has {len(specs)} inputs ({', '.join(s.name for s in specs)}): "
            "name the columns of each in a task file"
        )
    inner = _inner(specs[0])
    left_out = len(numbers) < len(rest)
    whole = len(numbers) == 1 and bool(rest[0].shape)  # a column of lists
    fixed = tuple(size for size in inner if isinstance(size, int))
    flat = rest[0].shape if whole else (len(numbers),)
    shape = (
        fixed
        if len(fixed) == len(inner) > 1 and math.prod(fixed) == math.prod(flat) and flat != fixed
        else ()
    )
    inputs: dict[str, str | list[str]] = {"": numbers[0] if whole else numbers} if left_out or whole else {}
    return inputs, shape, "tensor"


def ask_classes(interview: Interview, data: DataSet, label: str, manifest: Manifest) -> tuple[str, ...]:
    """Class names in the order of the model's output; empty if labels are numbers without names.

    Raises:
        ConfigError: an answer that does not name every class once.
        TaskError: the data have classes the model does not know.
    """
    words = data.classes or (words_of(data, label) if label else ())
    if manifest.labels:
        unknown = sorted(set(words) - set(manifest.labels))
        if unknown:
            raise TaskError(f"the data have the class {unknown[0]!r}; {nearest(unknown[0], manifest.labels)}")
        interview.found.append("the order of the classes stands in the model's manifest")
        return manifest.labels
    if not words:
        return ()
    outputs = manifest.outputs[0].shape[-1] if manifest.outputs and manifest.outputs[0].shape else "any"
    same = not isinstance(outputs, int) or outputs == len(words)
    text = "In which order does the output list the classes? (all of them, parted by commas, or @FILE, one a line)"
    why = (
        "tools such as torchvision number class folders alphabetically"
        if same
        else f"the model has {outputs} outputs, the data have {len(words)} classes, so all {outputs} must be named"
    )
    answer = interview("classes", text, default="alphabetical" if same else "", why=why)
    order = words if answer == "alphabetical" else _list(answer)
    missing = sorted(set(words) - set(order))
    if missing or len(set(order)) != len(order):
        wrong = f"lacks {missing[0]!r}; {nearest(missing[0], order)}" if missing else "names a class twice"
        raise ConfigError(f"classes: the list {wrong}")
    if isinstance(outputs, int) and len(order) != outputs:
        raise ConfigError(f"classes: the list has {len(order)} names, the model has {outputs} outputs")
    return tuple(order)


def _list(answer: str) -> tuple[str, ...]:
    if not answer.startswith("@"):
        return tuple(part.strip() for part in answer.split(",") if part.strip())
    try:
        lines = Path(answer[1:]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"classes: cannot read {answer[1:]}: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def ask_metric(interview: Interview, data: DataSet, label: str, manifest: Manifest) -> str:
    """What "accuracy" means."""
    kind = "i" if data.classes else next((c.kind for c in data.columns if c.name == label), "")
    known = plugins.names("metric")
    if not kind:
        default, why = (
            "agreement",
            "there are no labels: answers are compared with those of the model as given",
        )
    elif kind == "f":
        default, why = "error", "labels are no whole numbers: the mean absolute error"
    else:
        default, why = "top1", "the share of samples whose highest output is the right class"
    return interview("metric", "What does accuracy mean?", known, default, why)


def ask_splits(interview: Interview, data: DataSet) -> dict[SplitName, float | str]:
    """Shares of the samples, or the folders that are there.

    Raises:
        ConfigError: an answer that is not of the form ``train 0.5, test 0.5``.
    """
    if data.splits:
        interview.found.append(f"splits by folder: {', '.join(data.splits.values())}")
        return dict(data.splits)
    answer = interview(
        "splits",
        "How are the samples shared out?",
        default=", ".join(f"{name} {share}" for name, share in SHARES.items()),
        why="figures on samples the model was trained on say little: keep test to samples it has not seen",
    )
    known: dict[str, SplitName] = {split: split for split in SPLITS}
    shares: dict[SplitName, float | str] = {}
    for part in filter(None, (piece.strip() for piece in answer.split(","))):
        name, _, share = part.partition(" ")
        if name not in known:
            raise ConfigError(f"splits: no split is called {name!r}; {nearest(name, SPLITS)}")
        try:
            shares[known[name]] = float(share)
        except ValueError:
            raise ConfigError(f"splits: {part!r} is not of the form `train 0.5`") from None
    return shares
