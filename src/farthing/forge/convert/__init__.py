"""Trained networks to ONNX: torch modules, programs, TorchScript, Keras; other files as they are. All are checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from farthing.errors import ModelError, UnsupportedError, require
from farthing.forge.convert import recognise
from farthing.model import Manifest, Model

Array = NDArray[Any]
TOLERANCE = 1e-4
OPSET = 17
LOWEST_OPSET, HIGHEST_OPSET = 7, 23  # what torch's exporters write and ONNX Runtime reads


class Conversion:
    """A converted model and what is known about it.

    Attributes:
        model: the model, in ONNX unless its file was taken as it is.
        checked: how it was checked, in one sentence.
        assumptions: what was taken for granted, a sentence each.
    """

    def __init__(self, model: Model, checked: str, assumptions: tuple[str, ...]) -> None:
        self.model = model
        self.checked = checked
        self.assumptions = assumptions

    def __repr__(self) -> str:
        return f"Conversion({self.model!r}, {self.checked!r})"


def convert(
    source: Any,
    *,
    name: str = "",
    example: Any = None,
    weights: Path | str | None = None,
    samples: Mapping[str, Array] | None = None,
    tolerance: float = TOLERANCE,
    opset: int | None = None,
    manifest: Manifest | None = None,
    path: Path | None = None,
    keep: bool = False,
    remote: Mapping[str, Any] | None = None,
) -> Conversion:
    """Make an ONNX model of a trained network, and check that it computes the same.

    A model on a server stays there: what is made says where and how to ask, for the engine ``oip``.
    ONNX, TFLite and OpenVINO files are taken as they are, for the engines that run them. Nothing about preprocessing,
    labels or the meaning of outputs is guessed: they come from ``manifest`` or stay open.

    Args:
        source: a ``torch.nn.Module``, script module or ``torch.export.ExportedProgram``; ``package.module:factory``
            (runs that code); or a file, whose kind is told by its content: ONNX, TFLite,
            OpenVINO's XML, TorchScript, a saved program, Keras; or the URL of a served model, as in
            ``http://host:8000/v2/models/NAME``.
        name: of the model; by default that of the file, factory or class.
        example: what the network takes: ``"1x3x224x224"``, a shape, or arrays; several in the order of its inputs.
        weights: a state dict for the factory's module, read with ``weights_only=True``; or the file of weights that
            goes with OpenVINO's XML, by default the one beside it that ends in ``.bin``.
        samples: real inputs to check on: input name -> samples along the first axis; ``""`` names the only input.
        tolerance: largest difference allowed, relative to the largest output of the source.
        opset: of the ONNX file made from torch, 7 to 23; by default 17, and 18 for programs, which need that.
            ONNX files keep their own.
        manifest: preprocess, labels, decode, licence, task and version to take over, and of tensors of the same
            name their role, layout and batch axis.
        path: directory to write; None makes a temporary one that lives as long as the returned model.
        keep: take a TorchScript file as it is as well, for the engine ``torchscript``.
        remote: settings of a served model, such as ``timeout_ms``, ``retry`` and ``ca``: see `farthing.engines.oip`.

    Raises:
        ModelError: not a model, damaged, refused (pickles), or it fails on the example.
        UnsupportedError: an operator or opset that cannot be handled.
        ConversionError: the result computes something else; the first differing operator is named.
        ConfigError: an example that is no shape.
        RemoteError: the server of a model does not answer, or refuses.
        NotInstalled: torch, onnx, or the runtime of the file is missing.
        StorageError: ``path`` cannot be written.
    """
    from farthing.forge.convert import served

    if remote or served.is_url(source):
        served.refuse(source, remote, weights=weights, samples=samples, opset=opset, keep=keep or None)
        return Conversion(*served.take(source, name, example, manifest, remote or {}, path))
    require("onnx", "forge")
    from farthing.forge.convert import asis, exported, kept  # need onnx

    made, origin = None, ""
    if isinstance(source, str | Path):
        given = str(source)
        source, kind, default = _opened(given, example, keep)
        origin = given if kind == "torch" else ""
        if kind == "onnx":
            if weights is not None:
                raise ModelError("weights were given with an ONNX file, which holds its own: leave them out")
            made = asis.take(source, example, samples, tolerance, name or default, opset, manifest, path)
        elif kind in kept.ENGINES and (keep or kind != "torchscript"):
            if opset is not None:
                raise UnsupportedError(f"{source} is taken as it is, not made ONNX: leave the opset out")
            wanted = kept.Wanted(kind, example, weights, samples, tolerance, name or default, manifest, path)
            made = kept.take(source, wanted)
    else:
        default = type(source).__name__.lower()
    if made is None:
        require("torch", "forge")
        options = exported.Options(tolerance=tolerance, opset=_level(opset), name=name or default)
        made = exported.make(source, weights, example, samples, options, manifest, path)
    model, checked, assumptions = made
    if origin and weights is None and source.state_dict():
        own = f"the weights are those that {origin} makes: random ones, unless it loads trained ones itself"
        assumptions = (f"{own} (give --weights FILE)", *assumptions)
    return Conversion(model, checked, assumptions)


def _level(opset: int | None) -> int:
    if opset is not None and not LOWEST_OPSET <= opset <= HIGHEST_OPSET:
        raise UnsupportedError(
            f"opset {opset} cannot be written: give one from {LOWEST_OPSET} to {HIGHEST_OPSET} (default: {OPSET})"
        )
    return OPSET if opset is None else opset


def _opened(source: str, example: Any, keep: bool) -> tuple[Any, str, str]:
    """What a text stands for: the thing itself (or a path, for what is taken as it is), its kind, and a name for it."""
    path = Path(source)
    if ":" in source and not path.exists():
        return recognise.module_of(source), "torch", source.rpartition(":")[2]
    if path.is_dir():
        raise ModelError(
            f"{path} is a directory: give the file of a model, or open a model directory as it is"
        )
    from farthing.forge.graph import read

    data = read(path)
    kind = recognise.kind_of(path, data)
    if kind == "model":
        raise ModelError(f"{path} is the zip of a model already: open it as it is")
    if kind in {"onnx", "tflite", "openvino"} or (keep and kind == "torchscript"):
        return path, kind, path.stem
    require("torch", "forge")
    if kind == "keras":
        from farthing.forge.convert import keras

        return keras.load(path, example), kind, path.stem
    if kind == "export":
        from farthing.forge.convert import program

        return program.load(path, data), kind, path.stem
    from farthing.forge.convert import script

    return script.load(path, data), kind, path.stem
