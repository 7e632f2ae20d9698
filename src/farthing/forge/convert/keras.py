"""Keras files (``.keras``, and the older ``.h5``): run by Keras 3 on torch, and exported like any torch program."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from farthing.errors import ConversionError, ModelError, UnsupportedError, require
from farthing.forge.convert.example import parse
from farthing.forge.convert.recognise import FORWARD_ERRORS, first_line
from farthing.scratch import Scratch

Array = NDArray[Any]
MAX_BYTES = 4 << 30
TRIAL = 2  # samples: torch.export settles on a batch of one if it sees one


def load(path: Path, example: Any) -> torch.export.ExportedProgram:
    """Rebuild a Keras model from its file, in Keras's safe mode, and export it with a free batch.

    Args:
        path: a ``.keras`` archive, or an HDF5 file of a whole model.
        example: shapes with the batch first, where the model leaves other axes open; see `convert`.

    Raises:
        ModelError: damaged, weights alone, code inside (Lambda layers), layers of the user's own, or open axes.
        UnsupportedError: something that torch cannot export.
        ConversionError: the exported program computes something else than the Keras model.
        NotInstalled: keras is missing.
    """
    model = _rebuilt(path)
    inputs = _inputs(model, path, example)
    wrapped = _Wrapped(model, list(inputs)).eval()
    tensors = tuple(torch.from_numpy(array) for array in inputs.values())
    try:
        with torch.no_grad():
            program = torch.export.export(wrapped, tensors, dynamic_shapes=_free(tensors))
            _compare(path, wrapped(*tensors), program.module()(*tensors))
    except FORWARD_ERRORS as error:
        raise UnsupportedError(f"torch cannot export the Keras model {path}: {first_line(error)}") from error
    return program


def keras() -> Any:
    """Keras 3 on its torch backend; its settings file is kept out of the user's home directory.

    Raises:
        NotInstalled: keras is missing.
        ModelError: this process has imported Keras for another backend.
    """
    with Scratch() as folder:
        if "keras" not in sys.modules:
            os.environ["KERAS_BACKEND"] = "torch"
            os.environ["KERAS_HOME"] = str(folder)  # it writes its settings there when it is imported
        found = require("keras", "keras")
    if found.config.backend() != "torch":
        raise ModelError(
            f"Keras runs on {found.config.backend()} in this process: set KERAS_BACKEND=torch before it is imported"
        )
    return found


def _rebuilt(path: Path) -> Any:
    _check_size(path)
    library = keras()
    with Scratch() as folder:  # the library tells formats by their suffix, we by content
        place = folder / ("model.keras" if zipfile.is_zipfile(path) else "model.h5")
        place.symlink_to(path.resolve())
        try:
            known = _older(library) if place.suffix == ".h5" else None
            return library.saving.load_model(place, custom_objects=known, compile=False, safe_mode=True)
        except (*FORWARD_ERRORS, OSError) as error:
            version = importlib.metadata.version("keras")
            raise ModelError(
                _refusal(path, version, first_line(error).replace(str(place), path.name))
            ) from error


def _older(library: Any) -> dict[str, Any]:
    """Layers that Keras 2 described with words Keras 3 does not know: a depthwise convolution's groups, always 1."""

    class DepthwiseConv2D(library.layers.DepthwiseConv2D):  # type: ignore[misc]
        def __init__(self, *arguments: Any, groups: int = 1, **settings: Any) -> None:
            super().__init__(*arguments, **settings, **({} if groups == 1 else {"groups": groups}))

    return {"DepthwiseConv2D": DepthwiseConv2D}


def _refusal(path: Path, version: str, said: str) -> str:
    if "Lambda" in said or "lambda" in said:
        return f"{path} holds the code of a Lambda layer: refused, never run; replace the layer and save it again"
    if "custom" in said or "Could not locate class" in said:
        return f"{path} has layers that are not Keras's own ({said.partition('. ')[0]}): export it where its code is"
    return f"{path} is not a whole model that Keras {version} reads: {said}"


def _check_size(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > MAX_BYTES:
        raise ModelError(f"{path} unpacks to {unpacked >> 20} MiB: more than {MAX_BYTES >> 20} are refused")


def _inputs(model: Any, path: Path, example: Any) -> dict[str, Array]:
    """Standard normal numbers (zeros and ones for whole numbers) by input name."""
    if not getattr(model, "inputs", None):
        raise ModelError(f"{path} was saved before it was built: call it on data once, and save it again")
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if example is not None:
        arrays = parse(example) if isinstance(example, str) else [np.asarray(array) for array in example]
        shapes = [array.shape[1:] for array in arrays]
    if len(shapes) != len(model.inputs) or any(size is None for shape in shapes for size in shape):
        wanted = ", ".join("x".join(str(size or "?") for size in tensor.shape) for tensor in model.inputs)
        raise ModelError(f"{path} takes {wanted}: say the open sizes, as in --example 1x224x224x3")
    generator = np.random.default_rng(0)
    named: dict[str, Array] = {}
    for tensor, shape in zip(model.inputs, shapes, strict=True):
        dtype = np.dtype(tensor.dtype)
        values = generator.standard_normal((TRIAL, *shape)) if dtype.kind == "f" else np.ones((TRIAL, *shape))
        named[_identifier(tensor.name, len(named))] = values.astype(dtype)
    return named


def _identifier(name: str, number: int) -> str:
    kept = "".join(letter if letter.isalnum() else "_" for letter in name)
    return kept if kept.isidentifier() else f"input_{number}"


def _free(tensors: tuple[torch.Tensor, ...]) -> Any:
    batch = torch.export.Dim.DYNAMIC
    return tuple({0: batch} for _ in tensors)


def _compare(path: Path, wanted: Any, found: Any) -> None:
    pairs = zip(pytree.tree_leaves(wanted), pytree.tree_leaves(found), strict=True)
    for first, second in pairs:
        if not torch.allclose(first, second, rtol=1e-4, atol=1e-5):
            raise ConversionError(f"the program exported from {path} answers otherwise than Keras does")


class _Wrapped(torch.nn.Module):
    """A Keras model in inference, its inputs by name: torch.export reads the names off the signature of ``forward``."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model = model

        def forward(*inputs: torch.Tensor) -> Any:
            return model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        vars(forward)["__signature__"] = inspect.Signature([inspect.Parameter(name, kind) for name in names])
        object.__setattr__(self, "forward", forward)
