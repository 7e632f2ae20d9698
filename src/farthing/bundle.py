"""Bundle: several models with one role, in one directory, and how tensors go from one to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from farthing import files
from farthing.config import Section, to_json
from farthing.errors import ConfigError, ModelError, nearest
from farthing.model import (
    BUNDLE,
    MANIFEST,
    Model,
    TensorSpec,
    is_plain,
    read_section,
    refuse_foreign,
)

Role = Literal["parts", "exits", "variants", "head_tail"]
THRESHOLDS = (0.95, 0.8, 0.6)


class Exits(Section, frozen=True, kw_only=True):
    """When a network with early exits answers before its end.

    Attributes:
        measure: how sure an exit is of a sample, 0 to 1. ``confidence``: its largest probability. ``entropy``:
            1 - H / ln(classes), where H is the entropy of its probabilities: 1 if one class has all of it, 0 if all
            have the same (Teerapittayanon et al. 2016, BranchyNet, https://arxiv.org/abs/1709.01686, turned round).
        thresholds: a sample leaves at the first exit that is at least so sure; one for each exit but the last, which
            always answers. Empty takes 0.95, 0.8 and 0.6 from the first exit on, and 0.6 for any further one.
        scores: what exits give: ``logits``, or ``probabilities``.
    """

    measure: Literal["confidence", "entropy"] = "confidence"
    thresholds: tuple[float, ...] = ()
    scores: Literal["logits", "probabilities"] = "logits"

    def __post_init__(self) -> None:
        if not all(0 <= value <= 1 for value in self.thresholds):
            raise ConfigError(f"thresholds are from 0 to 1, not {list(self.thresholds)}")

    def resolved(self, exits: int) -> tuple[float, ...]:
        """The threshold of each of so many exits but the last.

        Raises:
            ModelError: thresholds are given, but not one for each.
        """
        early = exits - 1
        if not self.thresholds:
            return (THRESHOLDS + THRESHOLDS[-1:] * early)[:early]
        if len(self.thresholds) != early:
            raise ModelError(
                f"{len(self.thresholds)} thresholds for {exits} exits: give {early}, one for each exit but the last"
            )
        return self.thresholds


class BundleManifest(Section, frozen=True, kw_only=True):
    """What models are to each other: parts run in order, exits of one network, variants of one model, head and tail.

    Attributes:
        name, version: what the owner calls the whole.
        role: what the models are to each other.
        models: name -> digest, in order.
        outputs: of ``parts``: names of the whole's outputs, in order; empty: what parts make and no later part takes.
        exits: of ``exits``: when a sample leaves early; None takes the defaults.
    """

    name: str
    version: str = "1"
    role: Role
    models: dict[str, str]
    outputs: tuple[str, ...] = ()
    exits: Exits | None = None


class Bundle:
    """Several models with one role, in sub-directories named after them, under a ``bundle.json``."""

    def __init__(self, path: Path, manifest: BundleManifest, models: Mapping[str, Model]) -> None:
        self.path = path
        self.manifest = manifest
        self.models = dict(models)

    @classmethod
    def create(
        cls,
        name: str,
        role: Role,
        models: Mapping[str, Model],
        path: Path,
        *,
        outputs: Sequence[str] = (),
        exits: Exits | None = None,
    ) -> Bundle:
        """Write a bundle directory, whole or not at all.

        Args:
            name: of the whole.
            role: what the models are to each other.
            models: name -> model, in order.
            path: the directory, absent, empty or an earlier bundle, which is replaced.
            outputs, exits: see `BundleManifest`.

        Raises:
            ModelError: no models, a name that is not a plain directory name, or parts or exits whose tensors do not
                fit together (see `wire`).
            StorageError: it cannot be written there.
        """
        if not models:
            raise ModelError(f"the bundle {name} has no models")
        for part in models:
            if not is_plain(part):
                raise ModelError(f"{part!r} is not a plain name for a model in a bundle")
        digests = {key: model.digest for key, model in models.items()}
        manifest = BundleManifest(name=name, role=role, models=digests, outputs=tuple(outputs), exits=exits)
        _check_role(manifest, models)
        refuse_foreign(path, BUNDLE)

        def fill(fresh: Path) -> None:
            for key, model in models.items():
                model.save(fresh / key)
            (fresh / BUNDLE).write_bytes(to_json(manifest))

        files.write_directory(path, fill)
        return cls(path, manifest, {key: Model.open(path / key) for key in models})

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Open a bundle directory and check every model in it.

        Raises:
            ModelError: no ``bundle.json``, a model is missing, damaged or not the one that was bundled, or parts or
                exits whose tensors do not fit together.
        """
        path = Path(path)
        manifest = read_section(path, BUNDLE, BundleManifest)
        if not manifest.models:
            raise ModelError(f"{path / BUNDLE} names no models: the bundle is empty")
        models = {}
        for key, sha in manifest.models.items():
            if not is_plain(key):
                raise ModelError(f"{path / BUNDLE} holds the unsafe name {key!r}: refused")
            models[key] = Model.open(path / key)
            if models[key].digest != sha:
                raise ModelError(f"{path / key} is not the model that was bundled: copy the bundle again")
        _check_role(manifest, models)
        return cls(path, manifest, models)

    def pack(self, archive: Path) -> None:
        """Write the bundle as one zip file, for a device's store; the same bundle gives the same bytes."""
        names = (
            f"{key}/{name}"
            for key, model in self.models.items()
            for name in (MANIFEST, *model.manifest.files)
        )
        files.pack(self.path, (BUNDLE, *names), archive)


def as_bundle(given: Bundle | Path | str, role: Role) -> Bundle:
    """A bundle as it is, or the one at a path (see `Bundle.open`), which must have a role.

    Raises:
        ModelError: not a bundle, or its tensors do not fit together.
        ConfigError: a bundle of another role.
    """
    opened = given if isinstance(given, Bundle) else Bundle.open(given)
    if opened.manifest.role != role:
        raise ConfigError(f"{opened.path} is a bundle of {opened.manifest.role}, not of {role}")
    return opened


def _check_role(manifest: BundleManifest, models: Mapping[str, Model]) -> None:
    if manifest.role in {"parts", "exits"}:
        wire([Ends.of(model) for model in models.values()], manifest.outputs)
    if manifest.role == "exits":
        (manifest.exits or Exits()).resolved(len(models))


class HasEnds(Protocol):
    """What has named tensors at both ends: a manifest, an engine, a service."""

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...
    @property
    def outputs(self) -> Sequence[TensorSpec]: ...


class Ends(NamedTuple):
    """Tensors that go into a part and come out of it; state stays inside."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]

    @classmethod
    def of(cls, model: Model) -> Ends:
        """Those of a model, as its engine will have them."""
        manifest = model.manifest
        return cls(manifest.data_inputs, [spec for spec in manifest.outputs if spec.role != "state"])


class Wiring(NamedTuple):
    """How tensors go through parts that run in order.

    Attributes:
        inputs: what the whole is fed: what parts take and none of them makes, in order of first use.
        outputs: what the whole gives.
        takes: names that each part takes.
        spent: names that nobody wants any more once a part has run, for each part.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    takes: tuple[tuple[str, ...], ...]
    spent: tuple[frozenset[str], ...]


def wire(parts: Sequence[HasEnds], outputs: Sequence[str] = ()) -> Wiring:
    """Join parts by the names of their tensors: a part takes what the caller feeds and what earlier parts made.

    Args:
        parts: in the order they run.
        outputs: names of the whole's outputs; empty: what parts make and no later part takes.

    Raises:
        ModelError: no parts, a tensor made twice or taken before it is made, one that is made in another type or shape
            than it is taken in, or an output that nobody makes.
    """
    if not parts:
        raise ModelError("there are no parts to run")
    made: dict[str, TensorSpec] = {}
    fed: dict[str, TensorSpec] = {}
    for number, part in enumerate(parts, 1):
        for spec in part.inputs:
            given = made.get(spec.name) or fed.setdefault(spec.name, spec)
            _check_joint(given, spec, number)
        for spec in part.outputs:
            if spec.name in fed or spec.name in made:
                raise ModelError(
                    f"part {number} makes {spec.name!r}, which is taken or made before it: rename it"
                )
            made[spec.name] = spec
    return _wiring(parts, made, fed, outputs)


def _wiring(
    parts: Sequence[HasEnds],
    made: Mapping[str, TensorSpec],
    fed: Mapping[str, TensorSpec],
    outputs: Sequence[str],
) -> Wiring:
    takes = tuple(tuple(spec.name for spec in part.inputs) for part in parts)
    taken = set().union(*takes)
    for name in outputs:
        if name not in made:
            raise ModelError(f"no part makes the output {name!r}; {nearest(name, made)}")
    given = tuple(outputs) or tuple(name for name in made if name not in taken)
    if not given:
        raise ModelError(
            "every tensor that the parts make is taken by a later one: say which are the outputs"
        )
    last = {name: number for number, names in enumerate(takes) for name in names}
    last |= {
        spec.name: number
        for number, part in enumerate(parts)
        for spec in part.outputs
        if spec.name not in last
    }
    spent = (
        frozenset(name for name, when in last.items() if when == number and name not in given)
        for number in range(len(parts))
    )
    return Wiring(tuple(fed.values()), tuple(made[name] for name in given), takes, tuple(spent))


def _check_joint(made: TensorSpec, taken: TensorSpec, number: int) -> None:
    """A tensor is taken as it is made: same type, same axes, and no two fixed sizes that differ."""
    sizes = zip(made.shape, taken.shape, strict=False)
    clash = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in sizes)
    if made.dtype != taken.dtype or len(made.shape) != len(taken.shape) or clash:
        raise ModelError(
            f"part {number} takes {taken.name!r} as {taken.dtype} {list(taken.shape)}, but it is made or fed before as "
            f"{made.dtype} {list(made.shape)}: the parts are not of one model"
        )
