"""Model: a directory with a ``manifest.json`` that says all a runner must know."""

from __future__ import annotations

import math
import re
import shutil
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec

from farthing import files
from farthing.config import Section, SectionT, canonical, convert, parse, stated, to_json
from farthing.errors import ConfigError, ModelError, StorageError, nearest
from farthing.scratch import Scratch

MANIFEST = "manifest.json"
BUNDLE = "bundle.json"
INNER = "model"  # where a search puts its winner, below its report
_CONVERT = "give the directory that `farthing convert` or `farthing optimize` wrote"
MAX_MANIFEST_BYTES = 16 << 20
DTYPES = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 "
    "float16 bfloat16 float32 float64 complex64 complex128 str".split()
)

Filter = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]


class TensorSpec(Section, frozen=True, kw_only=True):
    """One input or output of a model.

    Attributes:
        name: its name in the model file.
        dtype: numpy name of its element type, as in ``float32`` or ``uint8``; ``str`` for text.
        shape: sizes; a free axis is its name, as in ``("batch", 3, 224, 224)``.
        role: ``data``, ``state`` (kept by a session between calls; the i-th state output feeds the
            i-th state input) or ``parameter`` (a setting such as a threshold or sample rate).
        batch_axis: the axis along which samples lie, or None if the tensor has none.
        layout: meaning of the axes, as in ``NCHW``, ``NHWC``, ``NCW``, ``NC``; empty if it has none.
        scale, zero_point: what integers stand for, ``(stored - zero_point) * scale``; a scale of None means themselves.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    role: Literal["data", "state", "parameter"] = "data"
    batch_axis: int | None = None
    layout: str = ""
    scale: float | None = None
    zero_point: int = 0

    def __post_init__(self) -> None:
        if self.scale is not None and not (0 < self.scale < math.inf and "int" in self.dtype):
            raise ConfigError(
                f"tensor {self.name}: a scale is above 0 and belongs to integers, not {self.dtype}"
            )
        if self.dtype not in DTYPES:
            raise ConfigError(
                f"tensor {self.name}: no dtype is called {self.dtype!r}; {nearest(self.dtype, DTYPES)}"
            )
        if any(size == "" or (isinstance(size, int) and size < 0) for size in self.shape):
            raise ConfigError(
                f"tensor {self.name}: sizes are whole numbers from 0 or names, not {list(self.shape)}"
            )
        if self.batch_axis is not None and not 0 <= self.batch_axis < len(self.shape):
            raise ConfigError(
                f"tensor {self.name}: batch_axis {self.batch_axis} is outside {list(self.shape)}"
            )

    def sized(self, batch: int, free: int = 1) -> tuple[int, ...]:
        """The shape with ``batch`` at a free batch axis and ``free`` at every other free axis."""
        return tuple(
            size if isinstance(size, int) else (batch if axis == self.batch_axis else free)
            for axis, size in enumerate(self.shape)
        )

    @property
    def free_axes(self) -> tuple[str, ...]:
        """The names of the sizes that are open, but for the batch."""
        return tuple(
            size for axis, size in enumerate(self.shape) if isinstance(size, str) and axis != self.batch_axis
        )

    @property
    def fixed_batch(self) -> int | None:
        """The size of the batch axis if the model fixes it, else None."""
        size = None if self.batch_axis is None else self.shape[self.batch_axis]
        return size if isinstance(size, int) else None


class Resize(Section, frozen=True, kw_only=True):
    """How an image is brought to size, in pixels.

    ``stretch`` scales both sides, ``cover`` keeps the proportions and fills the size (cut the rest with
    ``crop``), ``letterbox`` keeps them and pads with ``fill`` (0..255) on both sides.
    ``antialias`` widens the filter when shrinking, as Pillow does and OpenCV does not.
    """

    height: int
    width: int
    filter: Filter
    antialias: bool
    mode: Literal["stretch", "cover", "letterbox"] = "stretch"
    fill: int = 0

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"height and width must be from 1, not {self.height} x {self.width}")
        if not 0 <= self.fill <= 255:
            raise ConfigError(f"fill must be from 0 to 255, not {self.fill}")


class Preprocess(Section, frozen=True, kw_only=True):
    """What turns a picture into the model's input: resize, centre crop, colour order, ``(x * scale - mean) / std``.

    Attributes:
        colour: channel order that the model expects.
        scale: factor on pixel values 0..255, applied first (``1 / 255`` brings them to 0..1).
        mean, std: per channel, after ``scale``; one value serves all channels.
        resize: how to bring it to size; None demands pictures that already fit.
        crop: height and width of a centre crop after the resize.
    """

    colour: Literal["RGB", "BGR", "GRAY"]
    scale: float
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: Resize | None = None
    crop: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        channels = 1 if self.colour == "GRAY" else 3
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in {1, channels}:
                raise ConfigError(
                    f"{name} has {len(values)} values, but {self.colour} has {channels} channels"
                )
        if not all(0 < value < math.inf for value in (self.scale, *self.std)):
            raise ConfigError("scale and every std must be above 0")
        if not all(map(math.isfinite, self.mean)):
            raise ConfigError("every mean must be a number, not NaN or infinity")
        if self.crop and min(self.crop) < 1:
            raise ConfigError(f"crop must be from 1, not {self.crop[0]} x {self.crop[1]}")


class Quantization(Section, frozen=True, kw_only=True):
    """How the numbers of a model are stored and computed; None in a manifest means as trained.

    Attributes:
        scheme: ``static``, ``dynamic`` or ``float16`` by our passes; others may write their own.
        weights, activations: element types, as in ``int8``.
        per_channel: a scale for each output channel of a weight.
        reduce_range: weights keep 7 bits.
        calibrator: how the ranges of activations were found; empty if they were not.
        excluded: names of operators that stayed float.
        floats: what operators that stayed float compute in, if that is not float32.
    """

    scheme: str
    weights: str
    activations: str
    per_channel: bool = False
    reduce_range: bool = False
    calibrator: str = ""
    excluded: tuple[str, ...] = ()
    floats: str = ""


class Manifest(Section, frozen=True, kw_only=True):
    """The only truth about a model; nothing in it is guessed from a file suffix.

    Attributes:
        name, version: what the owner calls it.
        format: ``onnx``, ``fake`` ...: decides which engines can run it.
        files: file name -> SHA-256; the first is the one an engine opens.
        inputs, outputs: tensors in the order of the model file.
        preprocess: how pictures become the input; None if inputs are not pictures.
        requires: instruction sets without which results or speed differ, as in ``("avx512_vnni",)``.
        task: name of the task it was made for.
        decode: what the outputs mean: ``logits``, ``probabilities``, ``detections``, the name of a registered
            decoder, or empty. It is looked up when it is used.
        labels: class names in the order of the output.
        quantization: how its numbers are stored.
        lineage: the steps that made it, oldest first.
        licence: SPDX identifier or the words of its owner.
    """

    name: str
    version: str = "1"
    format: str
    files: dict[str, str] = {}
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None = None
    requires: tuple[str, ...] = ()
    task: str = ""
    decode: str = ""
    labels: tuple[str, ...] = ()
    quantization: Quantization | None = None
    lineage: tuple[str, ...] = ()
    licence: str = ""

    def __post_init__(self) -> None:
        for group, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            if len({spec.name for spec in specs}) != len(specs):
                raise ConfigError(f"two {group} have the same name")
        for name, sha in self.files.items():
            if not is_plain(name):
                raise ConfigError(f"{name!r} is not a plain file name")
            if not re.fullmatch(r"[0-9a-f]{64}", sha):
                raise ConfigError(f"the hash of {name} is not a SHA-256")
        kept = [[spec for spec in specs if spec.role == "state"] for specs in (self.inputs, self.outputs)]
        if [(spec.dtype, len(spec.shape)) for spec in kept[0]] != [
            (spec.dtype, len(spec.shape)) for spec in kept[1]
        ]:
            names = [[spec.name for spec in specs] for specs in kept]
            raise ConfigError(f"state outputs {names[1]} do not feed the state inputs {names[0]} one by one")

    @property
    def data_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs a caller feeds: not state."""
        return tuple(spec for spec in self.inputs if spec.role != "state")


def is_plain(name: str) -> bool:
    """Whether a name is one of a file in the model's own directory, and not one we write there ourselves."""
    match = re.fullmatch(r"[\w+-][\w.+-]*", name, re.ASCII) and len(name) <= 128
    return bool(match) and name not in {MANIFEST, BUNDLE}


class Model:
    """A trained network on disk: a directory and its manifest. Immutable; passes make new ones.

    Attributes:
        path: the directory.
        manifest: its manifest.
    """

    def __init__(self, path: Path, manifest: Manifest, keep: Scratch | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self._keep = keep  # a temporary directory lives as long as the model that is in it

    def __repr__(self) -> str:
        return f"Model({self.manifest.name!r}, {self.manifest.format}, {self.digest[:12]})"

    @classmethod
    def open(cls, path: Path | str) -> Model:
        """Open a model directory, a zip of one, or the output of a search, and check every file against its hash.

        Raises:
            ModelError: no manifest there, one that cannot be read, or files that are missing or changed.
            StorageError: an unsafe or damaged zip.
        """
        path, keep = Path(path), None
        if path.is_file():
            path, keep = _unpacked(path)
        if not (path / MANIFEST).exists() and (path / INNER / MANIFEST).is_file():
            path = path / INNER
        model = cls(path, read_manifest(path), keep)
        model.verify()
        return model

    @classmethod
    def create(
        cls, manifest: Manifest, content: Mapping[str, bytes | Path], path: Path | None = None
    ) -> Model:
        """Write a new model; the manifest's ``files`` are computed from ``content``.

        Args:
            manifest: all but its ``files``.
            content: file name -> bytes, or a file to copy; the first is the one an engine opens.
            path: its directory, absent, empty or an earlier model, which is replaced; None makes a temporary one
                that lives as long as the returned object.

        Raises:
            ModelError: no files, or names that are not plain file names.
            StorageError: it cannot be written there, or the directory holds something else.
        """
        return cls._written(manifest, content, path, {})

    @classmethod
    def _written(
        cls,
        manifest: Manifest,
        content: Mapping[str, bytes | Path],
        path: Path | None,
        expected: Mapping[str, str],
    ) -> Model:
        """See `create`; a copy that has another hash than the one expected of it is refused."""
        _check_content(content)
        keep = None
        if path is None:
            keep = Scratch()
            path = keep.path / "model"
        refuse_foreign(path, MANIFEST)
        hashes: dict[str, str] = {}

        def fill(fresh: Path) -> None:
            for name, source in content.items():
                if isinstance(source, Path):
                    shutil.copyfile(source, fresh / name)
                else:
                    (fresh / name).write_bytes(source)
                hashes[name] = files.file_digest(fresh / name)
                if hashes[name] != expected.get(name, hashes[name]):
                    raise ModelError(f"{name} changed while it was copied: copy the model again")
            complete = checked(manifest, files=hashes)
            (fresh / MANIFEST).write_bytes(to_json(complete))

        files.write_directory(path, fill)
        return cls(path, checked(manifest, files=hashes), keep)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what the manifest states, through its hashes over every file, and which file comes first."""
        return files.digest(canonical(stated(self.manifest)) + next(iter(self.manifest.files), "").encode())

    @property
    def file(self) -> Path:
        """The file an engine opens."""
        return self.path / next(iter(self.manifest.files))

    @property
    def size_bytes(self) -> int:
        """Bytes of all model files; the manifest is not counted."""
        return sum((self.path / name).stat().st_size for name in self.manifest.files)

    def verify(self) -> None:
        """Check that every file is there and has the hash that the manifest states.

        Raises:
            ModelError: a file is missing or is not the one the manifest was written for.
        """
        if not self.manifest.files:
            raise ModelError(f"{self.path / MANIFEST} names no files: the model is empty")
        for name, sha in self.manifest.files.items():
            place = self.path / name
            if not place.is_file() or place.is_symlink():
                raise ModelError(
                    f"{self.path} lacks the file {name} that its manifest names: copy the model again"
                )
            try:
                found = files.file_digest(place)
            except OSError as error:
                raise ModelError(f"cannot read {place}: {error.strerror or error}") from error
            if found != sha:
                raise ModelError(
                    f"{place} is not the file its manifest names (SHA-256 differs): copy it again"
                )

    def save(self, path: Path) -> Model:
        """Copy the model to a directory, whole or not at all; the copy is checked against the manifest.

        Raises:
            ModelError: a file changed since the model was opened.
            StorageError: it cannot be written there.
        """
        self.verify()
        content = {name: self.path / name for name in self.manifest.files}
        return Model._written(self.manifest, content, path, self.manifest.files)

    def pack(self, archive: Path) -> None:
        """Write the model as one zip file; the same model gives the same bytes. Other files beside it are left out."""
        files.pack(self.path, (MANIFEST, *self.manifest.files), archive)


def _check_content(content: Mapping[str, bytes | Path]) -> None:
    if not content:
        raise ModelError("a model has at least one file")
    for name, source in content.items():
        if not is_plain(name):
            raise ModelError(f"{name!r} is not a plain name for a model file")
        if isinstance(source, Path) and not source.is_file():
            raise ModelError(f"there is no file {source} to copy into the model")


def refuse_foreign(path: Path, marker: str) -> None:
    """Replace only what Farthing wrote: nobody's other files vanish because a path was mistyped."""
    if path.is_dir() and any(path.iterdir()) and not (path / marker).is_file():
        raise StorageError(f"{path} is not empty and holds no {marker}: choose another directory")


def _unpacked(archive: Path) -> tuple[Path, Scratch]:
    """What a zip of a model unpacks to, and the temporary directory to keep while it is in use."""
    if not zipfile.is_zipfile(archive):
        raise ModelError(f"{archive} is neither a model directory nor a zip of one; {_CONVERT}")
    keep = Scratch()
    path = keep.path
    files.unpack(archive, path)
    if not (path / MANIFEST).is_file():
        raise ModelError(f"{archive} is a zip, but not of a model: it has no {MANIFEST}; {_CONVERT}")
    return path, keep


def as_model(given: object) -> Model:
    """A model as it is, or the one at a path (see `Model.open`).

    Raises:
        ModelError: neither.
    """
    if isinstance(given, Model):
        return given
    if isinstance(given, str | Path):
        return Model.open(given)
    raise ModelError(
        f"a model is a farthing.Model or the path of one, not {type(given).__name__}: farthing.convert makes one"
    )


def checked(manifest: Manifest, **changes: object) -> Manifest:
    """A copy of a manifest with some fields replaced, its rules checked again."""
    return msgspec.structs.replace(manifest, **changes)


def read_manifest(directory: Path) -> Manifest:
    """Read ``manifest.json`` of a model directory.

    Raises:
        ModelError: there is none, or it cannot be understood.
    """
    return read_section(directory, MANIFEST, Manifest)


def read_section(directory: Path, name: str, kind: type[SectionT]) -> SectionT:
    """Read ``manifest.json`` or ``bundle.json``, with a ModelError for whatever is wrong with it."""
    place = directory / name
    try:
        if not place.is_file():
            raise ModelError(f"{directory} is not a model: it has no {name}; {_CONVERT}")
        if place.stat().st_size > MAX_MANIFEST_BYTES:
            raise ModelError(f"{place} is too large for a manifest: refused")
        return convert(parse(place.read_bytes(), ".json", str(place)), kind, str(place))
    except OSError as error:
        raise ModelError(f"cannot read {place}: {error.strerror or error}") from error
    except ConfigError as error:
        raise ModelError(str(error)) from error
