"""What is in a model: tensors, operators, parameters, work, size, and what runs each node how long."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from farthing.anatomy import Layer, Placed
from farthing.errors import ModelError
from farthing.forge.convert.recognise import kind_of
from farthing.forge.inspect.facts import Array, Inspection, Subject, Weights
from farthing.model import Model
from farthing.options import EngineOptions

__all__ = ["Inspection", "Layer", "Placed", "Weights", "inspect", "zipped"]

CHUNK = 1 << 20


def inspect(
    model: Model | Path | str,
    feeds: Mapping[str, Array] | None = None,
    *,
    run: bool = True,
    engine: str = "",
    options: EngineOptions | None = None,
) -> Inspection:
    """Look into a model and run it a few times under its runtime's profiler.

    Args:
        model: a model, its directory or zip, or an ONNX, TFLite, OpenVINO (``.xml``) or TorchScript file.
        feeds: inputs to run it on; without them, seeded random numbers for one sample.
        run: False only reads the file: no work, no placement.
        engine: whose placement is wanted; by default the format's own (OpenVINO reads ONNX files as well).
        options: how it is to run: precision and providers, where the engine heeds them.

    Raises:
        ModelError: not a model, or a damaged one.
        UnsupportedError: an operator or opset that is not known.
        NotInstalled: the package that reads its format is missing.
    """
    chosen = options or EngineOptions()
    if not isinstance(model, Model):
        place = Path(model)
        if place.is_file() and (kind := _kind_of(place)) != "model":
            kind = "openvino" if (kind, engine) == ("onnx", "openvino") else kind
            beside = [place.with_suffix(".bin")] if kind == "openvino" else []
            found = _look(kind, Subject(place, None, _size(place, kind), feeds, run, chosen))
            return replace(found, zipped_bytes=zipped([place, *(path for path in beside if path.is_file())]))
        model = Model.open(place)
    kind = model.manifest.format
    kind = "openvino" if (kind, engine) == ("onnx", "openvino") else kind
    found = _look(kind, Subject(model.file, model.manifest, model.size_bytes, feeds, run, chosen))
    return replace(found, zipped_bytes=zipped([model.path / name for name in model.manifest.files]))


def zipped(paths: Sequence[Path]) -> int:
    """Bytes of files as a zip holds them, each compressed by deflate."""
    total = 0
    for path in paths:
        press = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        with path.open("rb") as file:
            total += sum(len(press.compress(part)) for part in iter(lambda: file.read(CHUNK), b""))
        total += len(press.flush())
    return total


def _kind_of(path: Path) -> str:
    try:
        return kind_of(path, path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


def _size(path: Path, kind: str) -> int:
    """Bytes of the file; of an OpenVINO model, with the weights beside it."""
    beside = path.with_suffix(".bin")
    extra = beside.stat().st_size if kind == "openvino" and beside.is_file() else 0
    return path.stat().st_size + extra


def _look(kind: str, subject: Subject) -> Inspection:
    if kind == "onnx":
        from farthing.forge.inspect.of_onnx import look
    elif kind == "tflite":
        from farthing.forge.inspect.of_tflite import look
    elif kind == "openvino":
        from farthing.forge.inspect.of_openvino import look
    elif kind == "torchscript":
        from farthing.forge.inspect.of_torchscript import look
    else:
        return _unknown(kind, subject)
    return look(subject)


def _unknown(kind: str, subject: Subject) -> Inspection:
    manifest = subject.manifest
    return Inspection(
        name=subject.name,
        format=kind,
        size_bytes=subject.size_bytes,
        inputs=manifest.inputs if manifest else (),
        outputs=manifest.outputs if manifest else (),
        notes=(
            f"operators and placement are shown for ONNX, TFLite, OpenVINO and TorchScript, this one is {kind!r}",
        ),
    )
