"""Which arrays or columns are inputs, and how samples are shared out."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from farthing.errors import ConfigError, TaskError, nearest
from farthing.forge.init.data import Column, DataSet
from farthing.forge.init.labels import ask_label, inner, named_like_labels
from farthing.forge.init.question import Interview
from farthing.model import Manifest, TensorSpec
from farthing.task import SPLITS, SplitName
from farthing.taskfile import SHARES, Source

Form = Literal["image", "tensor"]


def ask_source(interview: Interview, data: DataSet, manifest: Manifest) -> tuple[Source, Form]:
    """Which parts of the data are inputs and labels, and whether they are pictures.

    Raises:
        TaskError: nothing fits the model, or the labels are not one a sample.
    """
    interview.found += data.remarks
    if data.format == "folder":
        classes = f"{len(data.classes)} classes by folder" if data.classes else "no classes"
        interview.found.append(f"{data.size} pictures, {classes}")
        return Source(format="folder", path=str(data.path)), "image"
    specs = manifest.data_inputs
    if data.format == "npz":
        data = _of_one_length(interview, data, specs)
    label = ask_label(interview, data, manifest)
    rest = [column for column in data.columns if column.name != label]
    if not rest:
        raise TaskError(f"{data.path} has nothing beside the labels")
    if data.format == "npz":
        inputs, shape, form = _arrays(interview, data, rest, specs)
    else:
        inputs, shape, form = _columns(interview, data, rest, specs)
    return (
        Source(format=data.format, path=str(data.path), inputs=inputs, labels=label, shape=shape),
        form,
    )


def _of_one_length(interview: Interview, data: DataSet, specs: tuple[TensorSpec, ...]) -> DataSet:
    """The arrays with an entry for each sample: as many as those that can feed the model have."""
    feeding = [c for c in data.columns if not named_like_labels(c) and any(_use(c, spec) for spec in specs)]
    most = max(feeding or data.columns, key=lambda column: column.size)
    kept = tuple(column for column in data.columns if column.size == most.size)
    others = [column for column in data.columns if column.size != most.size]
    wrong = next((c for c in others if named_like_labels(c) and not _class_names(c)), None)
    if wrong is not None and not any(map(named_like_labels, kept)):
        raise TaskError(
            f"{data.path}: {wrong.name!r} has {wrong.size} entries, but {most.name!r} has {most.size}: "
            f"give each sample one label, or leave {wrong.name!r} out"
        )
    if others:
        names = ", ".join(f"{column.name} ({column.size})" for column in others)
        interview.found.append(f"arrays that do not have {most.size} entries are left out: {names}")
    return msgspec.structs.replace(data, columns=kept, size=most.size)


def _class_names(column: Column) -> bool:
    return column.kind == "U" and column.name.lower() == "classes"


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
        shapes = ", ".join(f"{c.name} {c.dtype} {list(c.shape)}" for c in rest)
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


def _use(column: Column, spec: TensorSpec) -> tuple[tuple[int, ...], Form] | None:
    """How an array can feed an input: the shape to give its samples, if any, and as what; None if it cannot."""
    if column.kind not in "fiub":
        return None
    wanted = inner(spec)
    picture = column.dtype == "uint8" and spec.dtype != "uint8" and len(wanted) == 3
    if picture and len(column.shape) in {2, 3} and (len(column.shape) == 2 or column.shape[2] in {1, 3}):
        return (), "image"
    if len(column.shape) == len(wanted) and all(
        isinstance(want, str) or size == want for size, want in zip(column.shape, wanted, strict=True)
    ):
        return (), "tensor"
    fixed = tuple(size for size in wanted if isinstance(size, int))
    if len(column.shape) == 1 and len(fixed) == len(wanted) and math.prod(fixed) == column.shape[0]:
        if picture and spec.layout in {"NCHW", ""} and fixed[0] == 1:
            return fixed[1:], "image"
        return fixed, "tensor"
    return None


def _columns(
    interview: Interview, data: DataSet, rest: list[Column], specs: tuple[TensorSpec, ...]
) -> tuple[dict[str, str | list[str]], tuple[int, ...], Form]:
    """All columns of numbers as one vector, in the shape the model takes."""
    if len(specs) != 1:
        raise ConfigError(
            f"the model has {len(specs)} inputs ({', '.join(s.name for s in specs)}): "
            "name the columns of each in a task file"
        )
    used = [column for column in rest if column.kind in "fiub" and column.name]
    without = [_why_not(column) for column in rest if column not in used]
    if without:
        interview.found.append(f"columns left out: {', '.join(without)}")
    wanted = inner(specs[0])
    fixed = tuple(size for size in wanted if isinstance(size, int))
    whole = len(used) == 1 and bool(used[0].shape)  # a column of lists
    flat = used[0].shape if whole else (len(used),)
    if len(fixed) == len(wanted) and math.prod(fixed) != math.prod(flat):
        left = f"; left out: {', '.join(without)}" if without else ""
        names = ", ".join(column.name for column in used[:8]) + (" ..." if len(used) > 8 else "")
        raise TaskError(
            f"input {specs[0].name!r} takes {math.prod(fixed)} numbers a sample, but {data.path} has "
            f"{math.prod(flat)} ({names or 'none'}){left}"
        )
    shape = fixed if len(fixed) == len(wanted) > 1 and flat != fixed else ()
    names_used = [column.name for column in used]
    inputs: dict[str, str | list[str]] = (
        {"": names_used[0] if whole else names_used} if without or whole else {}
    )
    return inputs, shape, "tensor"


def _why_not(column: Column) -> str:
    if not column.name:
        return "one without a name (an index?)"
    return f"{column.name} ({f'holds {column.wrong}' if column.wrong else column.dtype})"


def ask_splits(interview: Interview, data: DataSet) -> dict[SplitName, float | str]:
    """Shares of the samples, or the folders that are there.

    Raises:
        ConfigError: an answer that is not of the form ``validation 0.5, test 0.5``.
    """
    if data.splits:
        interview.found.append(f"splits by folder: {', '.join(data.splits.values())}")
        if not {"calibration", "train"} & set(data.splits):
            interview.assumed.append(
                "there is no folder for calibration or train: a search needs one, for int8"
            )
        if "validation" not in data.splits:
            interview.assumed.append("there is no folder for validation: a search needs one, to decide by")
        return dict(data.splits)
    return _shares(
        interview(
            "splits",
            "How are the samples shared out?",
            default=", ".join(f"{name} {share}" for name, share in SHARES.items()),
            why="nothing is set aside for training, the model is trained: give only samples it was not trained on",
            check=_shares,
        )
    )


def _shares(answer: str) -> dict[SplitName, float | str]:
    known: dict[str, SplitName] = {split: split for split in SPLITS}
    shares: dict[SplitName, float | str] = {}
    for part in filter(None, (piece.strip() for piece in answer.split(","))):
        name, _, share = part.partition(" ")
        if name not in known:
            raise ConfigError(f"splits: no split is called {name!r}; {nearest(name, SPLITS)}")
        try:
            shares[known[name]] = float(share)
        except ValueError:
            raise ConfigError(f"splits: {part!r} is not of the form `test 0.4`") from None
    values = [float(share) for share in shares.values()]
    if not values or min(values) <= 0 or sum(values) > 1 + 1e-9:
        raise ConfigError(f"splits: shares are above 0 and sum to at most 1, not {sum(values):g}")
    return shares
