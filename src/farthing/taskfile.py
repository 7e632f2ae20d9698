"""Task files: a task described in YAML over an npz, a folder of pictures, a CSV or a Parquet file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.arrayfile import as_text, as_whole, is_number, read_csv, read_npz, read_parquet
from farthing.config import Section, read
from farthing.errors import ConfigError, TaskError, nearest
from farthing.task import CLASS_METRICS, PIXEL_METRICS, SPLITS, ImageFiles, Split, SplitName, Task

Array = NDArray[Any]
Arrays = tuple[dict[str, Array], Array | None, Array | None]
"""Inputs, labels and groups of some samples, as a file holds them."""
SHARES: dict[SplitName, float | str] = {"calibration": 0.2, "validation": 0.4, "test": 0.4}
"""How samples are shared out by default: the model is trained, so none are set aside for that."""
MOST_STARS = 3
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


class Source(Section, frozen=True, kw_only=True):
    """Where the samples are.

    Attributes:
        format: ``npz`` (arrays, no pickles), ``folder`` (one sub-folder a class, or pictures without labels),
            ``csv`` or ``parquet`` (a row a sample).
        path: relative to the task file; ``{split}`` in it stands for the split's own name.
        inputs: model input -> array (npz) or columns (csv, parquet); without it the array ``x``, or every
            column but the label and the group.
        labels: array or column of the labels; empty if there are none.
        groups: array or column that says which samples belong together; for a folder how a picture's name says it,
            below the folder of its class: ``{group}_*`` or ``{group}/*``. Empty if every sample stands for itself.
        shape: shape of one sample, where the file keeps it flat, as rows of csv and parquet do.
    """

    format: Literal["npz", "folder", "csv", "parquet"]
    path: str
    inputs: dict[str, str | list[str]] = {}
    labels: str = ""
    groups: str = ""
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.format == "folder" and self.groups:
            stars, depth = self.groups.count("*"), self.groups.count("/")
            if self.groups.count("{group}") != 1 or stars > MOST_STARS or depth > 1:
                raise ValueError(
                    f"groups of a folder are a pattern such as '{{group}}_*' or '{{group}}/*', not {self.groups!r}"
                )

    @property
    def depth(self) -> int:
        """How many folders lie between the folder of a class and its pictures."""
        return self.groups.count("/") if self.format == "folder" else 0


class TaskFile(Section, frozen=True, kw_only=True):
    """A task file. ``splits`` gives each split its share (0.6), or the word that replaces ``{split}`` in the path.

    ``seed`` is a whole number from 0. ``loss`` is ``module:function``, or empty for what the metric calls for.
    """

    name: str
    source: Source
    metric: str
    splits: dict[SplitName, float | str] = msgspec.field(default_factory=lambda: dict(SHARES))
    labels: tuple[str, ...] = ()
    form: Literal["image", "tensor"] = "tensor"
    seed: int = 0
    licence: str = ""
    loss: str = ""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be a whole number from 0, not {self.seed}")
        if self.loss and ":" not in self.loss:
            raise ValueError(f"loss is module:function, not {self.loss!r}")


def read_task(path: Path) -> Task:
    """Read a task file and its data.

    Raises:
        TaskError: the file or its data cannot be used; the message says which part and why.
        NotInstalled: pictures need Pillow, Parquet needs pyarrow.
    """
    try:
        described = read(path, TaskFile)
    except ConfigError as error:
        raise TaskError(str(error)) from error
    form = "image" if described.source.format == "folder" else described.form
    labels, splits = _splits(described, path.parent)
    return Task(
        described.name,
        splits,
        described.metric,
        labels=labels,
        form=form,
        licence=described.licence,
        loss=described.loss or None,
    )


def _splits(described: TaskFile, root: Path) -> tuple[tuple[str, ...], dict[str, Split]]:
    shares = {key: value for key, value in described.splits.items() if not isinstance(value, str)}
    named: dict[SplitName, str] = {
        key: value for key, value in described.splits.items() if isinstance(value, str)
    }
    if shares and named:
        raise TaskError(f"task {described.name}: give every split a share, or every split a name, not both")
    if not shares and not named:
        raise TaskError(f"task {described.name}: `splits` is empty; known splits: {', '.join(SPLITS)}")
    if named:
        if "{split}" not in described.source.path:
            raise TaskError(
                f"task {described.name}: the path needs {{split}} in it, because splits are named"
            )
        if len(set(named.values())) != len(named):
            raise TaskError(
                f"task {described.name}: two splits have the same name: each needs data of its own"
            )
        labels = _class_names(described, root, list(named.values()))
        return labels, {key: _load(described, root, name, labels, key) for key, name in named.items()}
    labels = _class_names(described, root, [""])
    return labels, shared_out(_load(described, root, "", labels, ""), shares, described.seed, described.name)


def _class_names(described: TaskFile, root: Path, words: list[str]) -> tuple[str, ...]:
    """The labels as given, or the names of the folders in any split: all splits must number them alike."""
    if described.labels or described.source.format != "folder":
        return described.labels
    return class_folders([_place(described, root, word) for word in words], described.source.depth)


def class_folders(roots: Iterable[Path], depth: int = 0) -> tuple[str, ...]:
    """The sub-folders that are classes, sorted.

    Raises:
        TaskError: one holds no picture anywhere; it would be a class, and shift the numbers of those behind it.
    """
    places: dict[str, list[Path]] = {}
    for root in roots:
        for name in _folders(root):
            places.setdefault(name, []).append(root / name)
    for name, found in sorted(places.items()):
        if not any(pictures(place, depth) for place in found):
            there = "into a folder for each group in it" if depth else "right into it"
            raise TaskError(
                f"{found[0]} holds no pictures ({', '.join(sorted(PICTURES))}), but counts as the class {name!r}: "
                f"put its pictures {there}, or remove it"
            )
    return tuple(sorted(places))


def _place(described: TaskFile, root: Path, word: str) -> Path:
    path = root / described.source.path.replace("{split}", word)
    if not path.exists():
        raise TaskError(f"task {described.name}: {path} does not exist (paths are relative to the task file)")
    if described.source.format == "folder" and not path.is_dir():
        raise TaskError(f"{path} is not a folder of pictures")
    return path


def _folders(path: Path) -> set[str]:
    return {
        entry.name for entry in _entries(path) if entry.is_dir() and not entry.name.startswith((".", "__"))
    }


def _entries(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError as error:
        raise TaskError(f"cannot look into {path}: {error.strerror or error}") from error


def _is_picture(entry: Path) -> bool:
    return entry.suffix.lower() in PICTURES and not entry.name.startswith(".")


def shared_out(split: Split, shares: Mapping[Any, float], seed: int, name: str) -> dict[str, Split]:
    """Cut samples into splits by share, each class in proportion, in an order that the seed decides.

    Samples that belong together stay together: then the shares are kept as nearly as whole groups allow.

    Raises:
        TaskError: shares that make no sense, or a split that gets nothing.
    """
    total = sum(shares.values())
    if not 0 < total <= 1 + 1e-9 or min(shares.values()) <= 0:
        raise TaskError(
            f"task {name}: the shares of the splits must be above 0 and sum to at most 1, not {total:g}"
        )
    order = np.random.default_rng(seed).permutation(len(split))
    one_each = split.labels is not None and split.labels.dtype.kind in "iu" and split.labels.ndim == 1
    classes = split.labels if one_each and split.labels is not None else np.zeros(len(split), np.int64)
    of_each = list(shares.values())
    if split.groups is None:
        picks, units = _cut(order, classes, of_each), "samples"
    else:
        picks, units = _cut_between_groups(order, classes, split.groups, of_each), "groups"
    for key, picked in zip(shares, picks, strict=True):
        if not len(picked):
            amount = len(order) if split.groups is None else len(np.unique(split.groups))
            raise TaskError(
                f"task {name}: the {key} split is empty, because {amount} {units} are too few for a share of "
                f"{shares[key]:g}: give it more"
            )
    return {key: split.subset(picked) for key, picked in zip(shares, picks, strict=True)}


def _cut(order: Array, classes: Array, shares: Sequence[float]) -> list[Array]:
    """Rows of each share, those of every class spread evenly over the order."""
    place = np.empty(len(order))
    for label in np.unique(classes):
        rows = np.flatnonzero(classes[order] == label)
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    order = order[np.argsort(place, kind="stable")]
    ends = np.round(np.cumsum(shares) * len(order)).astype(int)
    return [order[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _cut_between_groups(order: Array, classes: Array, groups: Array, shares: Sequence[float]) -> list[Array]:
    """Rows of each share: groups, large ones first, go where most of their classes is missing still."""
    _, member = np.unique(groups, return_inverse=True)
    _, label = np.unique(classes, return_inverse=True)
    held = np.zeros((member.max() + 1, label.max() + 1))
    np.add.at(held, (member, label), 1)
    missing = np.outer([*shares, max(0.0, 1 - sum(shares))], held.sum(0))  # the last is of what nobody gets
    place = np.empty(len(held), np.int64)
    drawn = list(dict.fromkeys(member[order].tolist()))
    for group in sorted(drawn, key=lambda group: -held[group].sum()):
        place[group] = int((missing @ held[group]).argmax())
        missing[place[group]] -= held[group]
    return [order[place[member[order]] == number] for number in range(len(shares))]


def _load(
    described: TaskFile, root: Path, word: str, classes: tuple[str, ...], key: SplitName | Literal[""]
) -> Split:
    """The samples of one split, or of all if ``key`` is empty; those of ``calibration`` may have no labels."""
    source, path = described.source, _place(described, root, word)
    where = f"task {described.name}, {f'the {key} split in ' if key else ''}{path}"
    bare = key == "calibration"
    split = (
        _folder(path, source, classes, bare)
        if source.format == "folder"
        else _arrays(described, path, where, bare)
    )
    split.check(where)  # here a bad sample has the number it has in the file
    return split


def _arrays(described: TaskFile, path: Path, where: str, bare: bool) -> Split:
    source = described.source
    if source.format == "npz":
        inputs, labels, groups = _npz(path, source, bare)
    else:
        columns = read_csv(path) if source.format == "csv" else read_parquet(path)
        inputs, labels, groups = _table(columns, path, source, bare)
    if source.shape:
        inputs = {name: _shaped(array, source.shape, path) for name, array in inputs.items()}
    try:
        return Split(inputs, _as_labels(labels, described, path), _as_groups(groups, path))
    except TaskError as error:
        raise TaskError(str(error) if str(path) in str(error) else f"{where}: {error}") from error


def _shaped(array: Array, shape: tuple[int, ...], path: Path) -> Array:
    try:
        return array.reshape(len(array), *shape)
    except ValueError:
        found = list(array.shape[1:])
        raise TaskError(f"{path}: samples have shape {found}, which does not make {list(shape)}") from None


def _folder(path: Path, source: Source, classes: tuple[str, ...], bare: bool) -> Split:
    loose = pictures(path)
    if not classes or (bare and loose and not _folders(path)):
        groups = None if bare else _groups_of(loose, path, 0, source.groups)
        return ImageFiles({"": np.array(loose, dtype=str)}, groups=groups)
    _refuse_twice(classes, path)
    unknown = _folders(path) - set(classes)
    if unknown:
        raise TaskError(
            f"{path} has the folder {min(unknown)!r}, which is not a label; {nearest(min(unknown), classes)}"
        )
    found = [pictures(path / name, source.depth) for name in classes]
    if loose and not any(found):
        raise TaskError(
            f"the {len(loose)} pictures in {path} have no labels: put each into the folder of its class "
            f"({', '.join(classes[:5])}{' ...' if len(classes) > 5 else ''})"
        )
    paths = [one for some in found for one in some]
    numbers = np.repeat(np.arange(len(classes)), [len(some) for some in found])
    groups = None if bare else _groups_of(paths, path, 1, source.groups)
    return ImageFiles({"": np.array(paths, dtype=str)}, numbers, groups)


def _groups_of(paths: Sequence[str], root: Path, above: int, form: str) -> Array | None:
    """The group of each picture, as its path below ``above`` folders says it: one name is one group in any class."""
    if not form or not paths:
        return None
    known = {"{group}": "([^/]+)", "*": "[^/]*"}
    pattern = re.compile(
        "".join(known.get(part, re.escape(part)) for part in re.split(r"(\{group\}|\*)", form))
    )
    names = []
    for path in paths:
        match = pattern.fullmatch("/".join(Path(path).relative_to(root).parts[above:]))
        if not match:
            raise TaskError(
                f"{path} is in no group, because `groups` is {form!r}: name or place it like that"
            )
        names.append(match[1])
    return _as_groups(np.array(names), root)


def pictures(path: Path, depth: int = 0) -> list[str]:
    """Picture files in a folder, and in folders in it down to a depth, sorted; none if there is no such folder."""
    if not path.is_dir():
        return []
    found = sorted(str(entry) for entry in _entries(path) if _is_picture(entry))
    deeper = sorted(_folders(path)) if depth else []
    return found + [one for name in deeper for one in pictures(path / name, depth - 1)]


def _npz(path: Path, source: Source, bare: bool) -> Arrays:
    wanted = source.inputs or {"": "x"}
    several = [name for name, array in wanted.items() if not isinstance(array, str)]
    if several:
        raise TaskError(
            f"{path}: input {several[0]!r} names several arrays; in an npz file each input is one"
        )
    named = {name: str(array) for name, array in wanted.items()}
    beside = [name for name in (source.labels, source.groups) if name]
    arrays = read_npz(path, [*named.values(), *beside], optional=beside if bare else ())
    inputs = {name: arrays[array] for name, array in named.items()}
    return inputs, arrays.get(source.labels), arrays.get(source.groups)


def _column(columns: dict[str, Array], name: str, path: Path) -> Array:
    if name not in columns:
        raise TaskError(f"{path} has no {name!r}; {nearest(name, columns)}")
    return columns[name]


def _table(columns: dict[str, Array], path: Path, source: Source, bare: bool) -> Arrays:
    rest = [name for name in columns if name not in {source.labels, source.groups}]
    inputs = {}
    for name, wanted in (source.inputs or {"": rest}).items():
        keys = [wanted] if isinstance(wanted, str) else wanted
        picked = [_numbers(_column(columns, key, path), key, path) for key in keys]
        try:
            stacked = np.stack(picked, axis=-1)
        except ValueError as error:
            raise TaskError(f"{path}: the columns of input {name or 'data'} do not fit: {error}") from error
        inputs[name] = stacked[..., 0] if len(picked) == 1 and stacked.ndim > 2 else stacked
    labels, groups = (
        None if not name or (bare and name not in columns) else _column(columns, name, path)
        for name in (source.labels, source.groups)
    )
    return inputs, labels, groups


def _numbers(column: Array, name: str, path: Path) -> Array:
    try:
        return np.asarray(column, np.float32)
    except (ValueError, TypeError):
        row, text = next(((i, t) for i, t in enumerate(column.tolist()) if not is_number(t)), (0, column[0]))
        raise TaskError(
            f"{path}: column {name!r} is an input, but {str(text)[:40]!r} (sample {row}) is no number: clean it, "
            "or name the columns to use in `inputs`"
        ) from None


def _as_labels(labels: Array | None, described: TaskFile, path: Path) -> Array | None:
    """Labels as numbers, whole ones for classes: words are looked up in the class names."""
    names, classes = described.labels, described.metric in {*CLASS_METRICS, *PIXEL_METRICS, "auc"}
    if labels is None:
        return None
    if classes and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    labels = as_text(labels)
    if labels.dtype.kind in "iub":
        return labels.astype(np.int64) if labels.dtype.kind == "b" else labels
    if labels.dtype.kind == "f":
        return as_whole(labels) if classes else labels
    if labels.dtype.kind != "U" or labels.ndim != 1:
        raise TaskError(
            f"{path}: labels are {labels.dtype} {list(labels.shape)}, not a number or word a sample"
        )
    if names and set(labels.tolist()) <= set(names):
        _refuse_twice(names, path)
        numbers = {word: number for number, word in enumerate(names)}
        return np.array([numbers[word] for word in labels.tolist()], dtype=np.int64)
    try:
        return as_whole(labels.astype(np.float64))
    except ValueError:
        wrong = next(word for word in labels.tolist() if word not in names)
        raise TaskError(
            f"{path}: label {wrong!r} is none of the task's `labels`; {nearest(wrong, names)}"
        ) from None


def _as_groups(groups: Array | None, path: Path) -> Array | None:
    """Groups as numbers, whatever names them."""
    if groups is None:
        return None
    names = as_text(groups)
    names = as_whole(names) if names.dtype.kind == "f" else names
    if names.dtype.kind not in "iubU" or names.ndim != 1:
        raise TaskError(
            f"{path}: groups are {groups.dtype} {list(groups.shape)}, not a whole number or word a sample"
        )
    if names.dtype.kind == "U" and not np.char.str_len(names).all():
        raise TaskError(f"{path}: sample {int(np.char.str_len(names).argmin())} has no group: give it one")
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _refuse_twice(names: Sequence[str], path: Path) -> None:
    """Where words stand for classes, each class needs a word of its own; numbered classes may share a name."""
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise TaskError(f"{path}: `labels` names {twice!r} twice: give each class a name of its own")
