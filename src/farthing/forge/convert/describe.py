"""The manifest of a converted model: what the file says, what was seen, and what its owner says."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from farthing.errors import ModelError, nearest
from farthing.model import Manifest, TensorSpec

IMAGE_CHANNELS = (1, 3)


def layout_of(spec: TensorSpec) -> str:
    """``NCHW`` or ``NHWC`` for a tensor of four axes with 1 or 3 channels, else nothing."""
    if len(spec.shape) != 4:
        return ""
    if spec.shape[1] in IMAGE_CHANNELS:
        return "NCHW"
    return "NHWC" if spec.shape[3] in IMAGE_CHANNELS else ""


def with_layouts(specs: Sequence[TensorSpec], owner: Manifest | None) -> tuple[list[TensorSpec], list[str]]:
    """Data inputs with the layout their shape suggests, and a sentence for each; the owner's word goes first."""
    told = {spec.name for spec in owner.inputs if spec.layout} if owner else set[str]()
    found, assumptions = [], []
    for spec in specs:
        layout = layout_of(spec)
        if layout and spec.name not in told and spec.role == "data":
            channels = spec.shape[layout.index("C")]
            assumptions.append(
                f"layout of {spec.name} taken as {layout} (4 axes, axis {layout.index('C')} has {channels} "
                f"channel{'s' if channels != 1 else ''})"
            )
            spec = msgspec.structs.replace(spec, layout=layout)
        found.append(spec)
    return found, assumptions


def manifest_of(
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    lineage: str,
    owner: Manifest | None,
    form: str = "onnx",
) -> Manifest:
    """A manifest of the tensors seen, with everything else from the owner's manifest if there is one.

    Raises:
        ModelError: the owner's manifest names tensors that the model lacks, or does not fit it.
    """
    try:
        if owner is None:
            made = Manifest(
                name=name, format=form, inputs=tuple(inputs), outputs=tuple(outputs), lineage=(lineage,)
            )
        else:
            made = msgspec.structs.replace(
                owner,
                name=owner.name or name,
                format=form,
                files={},
                inputs=tuple(_owned(inputs, owner.inputs)),
                outputs=tuple(_owned(outputs, owner.outputs)),
                lineage=(*owner.lineage, lineage),
            )
    except ValueError as error:
        raise ModelError(f"the manifest given for {name} does not fit the model: {error}") from error
    check_labels(made)
    return made


def _owned(specs: Sequence[TensorSpec], told: Sequence[TensorSpec]) -> list[TensorSpec]:
    known = {spec.name: spec for spec in told}
    for name in known:
        if name not in {spec.name for spec in specs}:
            raise ModelError(
                f"the manifest names the tensor {name!r}; {nearest(name, [s.name for s in specs])}"
            )
    owned = []
    for spec in specs:
        owner = known.get(spec.name)
        if owner is not None:
            axis = spec.batch_axis if owner.batch_axis is None else owner.batch_axis
            spec = msgspec.structs.replace(
                spec, role=owner.role, layout=owner.layout or spec.layout, batch_axis=axis
            )
        owned.append(spec)
    return owned


def check_labels(manifest: Manifest) -> None:
    """Hold the number of class names against the first output's last axis.

    Raises:
        ModelError: they differ.
    """
    shape = manifest.outputs[0].shape if manifest.outputs else ()
    classes = shape[-1] if shape else None
    if manifest.labels and isinstance(classes, int) and len(manifest.labels) != classes:
        raise ModelError(
            f"{len(manifest.labels)} labels were given, but output {manifest.outputs[0].name!r} has {classes} values: "
            "give one label for each, in the order of the output"
        )
