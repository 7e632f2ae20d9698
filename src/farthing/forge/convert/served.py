"""A model that stays on another machine: described by its server, tried once, and kept as where and how to ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.engines.base import open_engine
from farthing.engines.oip import remote_model
from farthing.errors import ConfigError
from farthing.forge.convert.describe import manifest_of, with_layouts
from farthing.forge.convert.example import example_of
from farthing.model import Manifest, Model, TensorSpec


def is_url(source: object) -> bool:
    """Whether a source is on a server."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def refuse(source: object, settings: Mapping[str, Any] | None, **others: object) -> None:
    """Refuse what makes no sense for a model that stays where it is.

    Raises:
        ConfigError: settings of a server, and no URL; or what is meant for files.
    """
    if not is_url(source):
        raise ConfigError(
            f"settings of a server were given ({', '.join(settings or ())}), but no URL of a model: leave them out"
        )
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ConfigError(f"{source} stays on its server: leave {', '.join(given)} out")


def take(
    url: str,
    name: str,
    example: Any,
    owner: Manifest | None,
    settings: Mapping[str, Any],
    out: Path | None,
) -> tuple[Model, str, tuple[str, ...]]:
    """Ask a server for a model. Returns the model, how it was checked, and what was assumed."""
    told = dict(settings)
    ca = told.pop("ca", None)
    draft = remote_model(
        url,
        name=name,
        inputs=owner.inputs if owner else (),
        outputs=owner.outputs if owner else (),
        ca=None if ca is None else Path(ca),
        **told,
    )
    inputs, layouts = with_layouts(draft.manifest.inputs, owner)
    made = manifest_of(
        draft.manifest.name, inputs, draft.manifest.outputs, "convert.oip.v1", owner, draft.manifest.format
    )
    content = {file: draft.path / file for file in draft.manifest.files}
    described = Model(draft.path, msgspec.structs.replace(made, files=draft.manifest.files))
    with open_engine(described) as engine:
        feeds = _feeds(made.inputs, example)
        engine.run(feeds)
        checked = f"{engine.version} answers as it describes, tried on one inference"
    return Model.create(made, content, out), checked, (*_taken(draft.manifest), *layouts, *_open(url))


def _feeds(inputs: Sequence[TensorSpec], example: Any) -> dict[str, NDArray[Any]]:
    """One call's inputs: the example, or zeros with every free axis 1 long."""
    given = example_of(example, None, np.float32)
    if given is None:
        return {
            spec.name: np.full(
                spec.sized(1), "" if spec.dtype == "str" else 0, _NUMPY.get(spec.dtype, spec.dtype)
            )
            for spec in inputs
        }
    if len(given.arrays) != len(inputs):
        raise ConfigError(f"the example has {len(given.arrays)} inputs, the model {len(inputs)}")
    return {spec.name: array for spec, array in zip(inputs, given.arrays, strict=True)}


_NUMPY: dict[str, Any] = {"str": object}


def _taken(manifest: Manifest) -> list[str]:
    batched = [spec.name for spec in (*manifest.inputs, *manifest.outputs) if spec.batch_axis == 0]
    return [f"axis 0 of {', '.join(batched)} taken as the batch (its size is free)"] if batched else []


def _open(url: str) -> list[str]:
    if "/versions/" in url:
        return []
    return ["no version was named: what the server computes may change (add /versions/VERSION to the URL)"]
