"""Model: a directory with a ``manifest.json`` that says all a runner must know. Bundle: several of them."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from farthing import files
from farthing.config import Section, SectionT, canonical, convert, parse, plain
from farthing.errors import FarthingError, ModelError, StorageError

MANIFEST = "manifest.json"
BUNDLE = "bundle.json"
INNER = "model"  # where a search puts its winner, below its report
MAX_MANIFEST_BYTES = 16 << 20

Filter = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]


class TensorSpec(Section, frozen=True, kw_only=True):
    """One input or output of a model.

    Attributes:
        name: its name in the model file.
        dtype: numpy name of its element type, as in ``float32`` or ``uint8``.
        shape: sizes; a free axis is its name, as in ``("batch", 3, 224, 224)``.
        role: ``data``, ``state`` (kept by a session between calls; the i-th state output feeds the
            i-th state input) or ``parameter`` (a setting such as a threshold or sample rate).
        batch_axis: the axis along which samples lie, or None if the tensor has none.
        layout: meaning of the axes, as in ``NCHW``, ``NHWC``, ``NCW``, ``NC``; empty if it has none.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    role: Literal["data", "state", "parameter"] = "data"
    batch_axis: int | None = None
    layout: str = ""

    def sized(self, batch: int, free: int = 1) -> tuple[int, ...]:
        """The shape with ``batch`` at a free batch axis and ``free`` at every other free axis."""
        return tuple(
            size if isinstance(size, int) else (batch if axis == self.batch_axis else free)
            for axis, size in enumerate(self.shape)
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
                raise ValueError(f"{name} has {len(values)} values, but {self.colour} has {channels} channels")
        if not all(value > 0 for value in self.std) or not self.scale > 0:
            raise ValueError("scale and every std must be above 0")


class Quantization(Section, frozen=True, kw_only=True):
    """How the numbers of a model are stored and computed; None in a manifest means as trained."""

    scheme: Literal["static", "dynamic", "float16"]
    weights: str
    activations: str
    per_channel: bool = False
    reduce_range: bool = False
    calibrator: str = ""
    excluded: tuple[str, ...] = ()


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
        decode: what the outputs mean: ``logits``, ``probabilities``, ``detections`` or empty.
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
    decode: Literal["", "logits", "probabilities", "detections"] = ""
    labels: tuple[str, ...] = ()
    quantization: Quantization | None = None
    lineage: tuple[str, ...] = ()
    licence: str = ""

    def __post_init__(self) -> None:
        for group, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            if len({spec.name for spec in specs}) != len(specs):
                raise ValueError(f"two {group} have the same name")
        for name, sha in self.files.items():
            if not re.fullmatch(r"[\w.+-]+", name) or name in {MANIFEST, BUNDLE, ".", ".."}:
                raise ValueError(f"{name!r} is not a plain file name")
            if not re.fullmatch(r"[0-9a-f]{64}", sha):
                raise ValueError(f"the hash of {name} is not a SHA-256")
        for spec in (*self.inputs, *self.outputs):
            if spec.batch_axis is not None and not 0 <= spec.batch_axis < len(spec.shape):
                raise ValueError(f"tensor {spec.name}: batch_axis {spec.batch_axis} is outside its shape")

    @property
    def data_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs a caller feeds: not state."""
        return tuple(spec for spec in self.inputs if spec.role != "state")


class Model:
    """A trained network on disk: a directory and its manifest. Immutable; passes make new ones.

    Attributes:
        path: the directory.
        manifest: its manifest.
    """

    def __init__(
        self, path: Path, manifest: Manifest, keep: tempfile.TemporaryDirectory[str] | None = None
    ) -> None:
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
        path = Path(path)
        keep = None
        if path.is_file():
            keep = tempfile.TemporaryDirectory(prefix="farthing-")
            files.unpack(path, Path(keep.name))
            path = Path(keep.name)
        if not (path / MANIFEST).exists() and (path / INNER / MANIFEST).is_file():
            path = path / INNER
        model = cls(path, read_manifest(path), keep)
        model.verify()
        return model

    @classmethod
    def create(cls, manifest: Manifest, content: Mapping[str, bytes | Path], path: Path | None = None) -> Model:
        """Write a new model; the manifest's ``files`` are computed from ``content``.

        Args:
            manifest: all but its ``files``.
            content: file name -> bytes, or a file to copy; the first is the one an engine opens.
            path: its directory; None makes a temporary one that lives as long as the returned object.

        Raises:
            StorageError: it cannot be written there.
        """
        keep = None
        if path is None:
            keep = tempfile.TemporaryDirectory(prefix="farthing-")
            path = Path(keep.name) / "model"
        hashes: dict[str, str] = {}

        def fill(fresh: Path) -> None:
            for name, source in content.items():
                if isinstance(source, Path):
                    shutil.copyfile(source, fresh / name)
                else:
                    (fresh / name).write_bytes(source)
                hashes[name] = files.file_digest(fresh / name)
            complete = checked(manifest, files=hashes)
            (fresh / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(plain(complete))) + b"\n")

        files.write_directory(path, fill)
        return cls(path, checked(manifest, files=hashes), keep)

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest, and through its hashes over every file."""
        return files.digest(canonical(self.manifest))

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
                raise ModelError(f"{self.path} lacks the file {name} that its manifest names: copy the model again")
            if files.file_digest(place) != sha:
                raise ModelError(f"{place} is not the file its manifest was written for (SHA-256 differs): copy it again")

    def save(self, path: Path) -> Model:
        """Copy the model to a directory, whole or not at all."""
        return Model.create(self.manifest, {name: self.path / name for name in self.manifest.files}, path)

    def pack(self, archive: Path) -> None:
        """Write the model as one zip file; the same model gives the same bytes."""
        files.pack(self.path, archive)


def checked(manifest: Manifest, **changes: object) -> Manifest:
    """A copy of a manifest with some fields replaced, its rules checked again."""
    return msgspec.structs.replace(manifest, **changes)


def read_manifest(directory: Path) -> Manifest:
    """Read ``manifest.json`` of a model directory.

    Raises:
        ModelError: there is none, or it cannot be understood.
    """
    return _read(directory, MANIFEST, Manifest)


def _read(directory: Path, name: str, kind: type[SectionT]) -> SectionT:
    place = directory / name
    if not place.is_file():
        hint = "give the directory that `farthing convert` or `farthing optimize` wrote"
        raise ModelError(f"{directory} is not a model: it has no {name}; {hint}")
    if place.stat().st_size > MAX_MANIFEST_BYTES:
        raise ModelError(f"{place} is too large for a manifest: refused")
    try:
        return convert(parse(place.read_bytes(), ".json", str(place)), kind, str(place))
    except StorageError:
        raise
    except FarthingError as error:
        raise ModelError(str(error)) from error


Role = Literal["parts", "exits", "variants", "head_tail"]


class BundleManifest(Section, frozen=True, kw_only=True):
    """What a bundle's models are to each other: parts run in order, exits of one network, variants of one model, or head and tail."""

    name: str
    role: Role
    models: dict[str, str]  # name -> digest, in order


class Bundle:
    """Several models with one role, in sub-directories named after them, under a ``bundle.json``."""

    def __init__(self, path: Path, manifest: BundleManifest, models: Mapping[str, Model]) -> None:
        self.path = path
        self.manifest = manifest
        self.models = dict(models)

    @classmethod
    def create(cls, name: str, role: Role, models: Mapping[str, Model], path: Path) -> Bundle:
        """Write a bundle directory, whole or not at all.

        Raises:
            ModelError: no models, or a name that is not a plain directory name.
            StorageError: it cannot be written there.
        """
        if not models:
            raise ModelError(f"the bundle {name} has no models")
        for part in models:
            if not re.fullmatch(r"\w[\w.-]*", part):
                raise ModelError(f"{part!r} is not a plain name for a model in a bundle")
        manifest = BundleManifest(name=name, role=role, models={key: model.digest for key, model in models.items()})

        def fill(fresh: Path) -> None:
            for key, model in models.items():
                model.save(fresh / key)
            (fresh / BUNDLE).write_bytes(msgspec.json.format(msgspec.json.encode(plain(manifest))) + b"\n")

        files.write_directory(path, fill)
        return cls(path, manifest, {key: Model.open(path / key) for key in models})

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Open a bundle directory and check every model in it.

        Raises:
            ModelError: no ``bundle.json``, a model is missing, damaged or not the one that was bundled.
        """
        path = Path(path)
        manifest = _read(path, BUNDLE, BundleManifest)
        models = {}
        for key, sha in manifest.models.items():
            if not re.fullmatch(r"\w[\w.-]*", key):
                raise ModelError(f"{path / BUNDLE} holds the unsafe name {key!r}: refused")
            models[key] = Model.open(path / key)
            if models[key].digest != sha:
                raise ModelError(f"{path / key} is not the model that was bundled: copy the bundle again")
        return cls(path, manifest, models)
