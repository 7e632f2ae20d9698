"""What a model file is, told by its content; and modules from code, weights from files that run no code."""

from __future__ import annotations

import importlib
import importlib.util
import io
import pickle
import re
import sys
import zipfile
from pathlib import Path
from typing import Any, Literal

from farthing.errors import ModelError, UnsupportedError, nearest, require
from farthing.model import BUNDLE, MANIFEST

Kind = Literal["onnx", "torchscript", "export", "keras", "tflite", "openvino", "model"]
"""What a file holds; ``model`` is the zip of a model directory."""
HDF5 = b"\x89HDF\r\n\x1a\n"
NESTS = ("state_dict", "model_state_dict", "model", "weights", "ema")
FORWARD_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
)
"""What users' code and exporters raise when they cannot go on."""

_XML = re.compile(rb"\s*(<\?xml[^>]*>\s*)?<net\b")
_REFUSED = {
    b"\x80": "a Python pickle: refused, never unpickled",
}


def kind_of(path: Path, data: bytes) -> Kind:
    """Tell model files of all kinds apart by their content, never by their suffix.

    Raises:
        ModelError: empty, a pickle, or a torch archive of weights or of a pickled module.
        UnsupportedError: a model of a format that is not converted here.
    """
    if zipfile.is_zipfile(io.BytesIO(data)):
        return _kind_of_zip(path, data)
    if data.startswith(b"PK\x03\x04"):
        raise ModelError(f"{path} is an archive that is cut short or damaged: copy or save it again")
    for start, words in _REFUSED.items():
        if data.startswith(start):
            raise ModelError(
                f"{path} is {words}; give ONNX, TorchScript, a torch.export program, or module:factory"
            )
    if data.startswith(HDF5):
        return "keras"
    if data[4:8] == b"TFL3":
        return "tflite"
    if _XML.match(data[:1024]):
        return "openvino"
    if data[4:8] in {b"ET12", b"ET13"}:
        raise UnsupportedError(
            f"{path} is a {data[4:8].decode()} file: convert from the model it was made of"
        )
    return "onnx"


def _kind_of_zip(path: Path, data: bytes) -> Kind:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, RuntimeError, ValueError) as error:
        raise ModelError(f"{path} is a damaged archive ({error}): copy or save it again") from error
    if MANIFEST in names or BUNDLE in names:
        return "model"
    inner = {name.split("/", 1)[-1] for name in names}
    if {"metadata.json", "config.json"} <= {*names}:
        return "keras"
    if "archive_format" in inner and any(name.startswith("models/") for name in inner):
        return "export"
    if "serialized_exported_program.json" in names:
        raise UnsupportedError(
            f"{path} was saved by torch.export before torch 2.8: save it again with a newer torch"
        )
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "torchscript"
    if "data.pkl" in inner:
        raise ModelError(
            f"{path} holds weights or a pickled module, not a program: refused, never unpickled; give the code as "
            "well, as in --model package.module:factory --weights FILE"
        )
    raise ModelError(f"{path} is a zip archive, but not one that torch writes: give a model file")


def module_of(reference: str) -> Any:
    """The module that ``package.module:factory`` (or ``file.py:factory``) makes; this runs that code.

    Raises:
        ModelError: no such module or attribute, or it makes something else.
    """
    place, _, attribute = reference.rpartition(":")
    try:
        code = _code_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (ImportError, OSError, SyntaxError, ValueError) as error:
        raise ModelError(f"cannot import {place!r} of {reference!r}: {error}") from error
    factory = getattr(code, attribute, None)
    if factory is None:
        public = [name for name in vars(code) if not name.startswith("_")]
        raise ModelError(f"{place!r} has no {attribute!r}; {nearest(attribute, public)}")
    module_type = require("torch", "forge").nn.Module
    try:
        made = factory if isinstance(factory, module_type) else factory()
    except (*FORWARD_ERRORS, ImportError, OSError) as error:
        raise ModelError(
            f"{reference} fails when called without arguments: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, module_type):
        raise ModelError(f"{reference} makes a {type(made).__name__}, not a torch.nn.Module")
    return made


def _code_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    code = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, code)
    spec.loader.exec_module(code)
    return code


def load_weights(module: Any, path: Path) -> tuple[str, ...]:
    """Fill a module with a state dict, every key of both in use; returns what was assumed on the way.

    The file is read with ``weights_only=True``: tensors and plain containers, no code.

    Raises:
        ModelError: no such file, a pickle that holds more than weights, or keys or shapes that differ.
    """
    torch = require("torch", "forge")
    try:
        _refuse_other_files(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"cannot read the weights {path}: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(_weights_refusal(path, str(error))) from error
    state, assumptions = _state_of(found, module.state_dict(), path, torch.Tensor)
    _check_keys(state, module.state_dict(), path)
    module.load_state_dict(state, strict=True)
    return assumptions


def _refuse_other_files(path: Path) -> None:
    """Say what a file is that is no state dict: torch's own words for it advise to switch its safety off."""
    with path.open("rb") as file:
        start = file.read(4)
    packed = start == b"PK\x03\x04"
    if not start or (packed and not zipfile.is_zipfile(path)):
        raise ModelError(f"{path} is empty, cut short or damaged: copy the weights again")
    if not packed and not start.startswith(b"\x80"):
        raise ModelError(f"{path} is no file of weights that torch saved: save module.state_dict()")
    if packed:
        with zipfile.ZipFile(path) as archive:
            program = any("/code/" in name or "/models/" in name for name in archive.namelist())
        if program:
            raise ModelError(
                f"{path} is a whole program with its weights (TorchScript or torch.export): convert it by itself, "
                "without a factory"
            )


def _weights_refusal(path: Path, said: str) -> str:
    other = re.search(r"GLOBAL ([\w.]+)", said)
    if other:
        return (
            f"{path} holds a pickled {other[1]}, which is more than weights: refused, never unpickled; "
            "save module.state_dict() instead"
        )
    return f"{path} is damaged, or holds more than weights: refused, never unpickled; save module.state_dict() again"


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, without colours; its type if it says nothing."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return next(iter(text.splitlines()), type(error).__name__)


def _state_of(
    found: Any, wanted: dict[str, Any], path: Path, tensor: type
) -> tuple[dict[str, Any], tuple[str, ...]]:
    assumptions: list[str] = []
    for nest in NESTS:
        if isinstance(found, dict) and isinstance(found.get(nest), dict) and nest not in wanted:
            found = found[nest]
            assumptions.append(f"weights taken from the entry {nest!r} of {path.name}")
            break
    if not isinstance(found, dict) or not all(isinstance(value, tensor) for value in found.values()):
        raise ModelError(f"{path} holds a {type(found).__name__}, not a state dict: save module.state_dict()")
    if found and all(key.startswith("module.") for key in found) and not any(key in wanted for key in found):
        found = {key.removeprefix("module."): value for key, value in found.items()}
        assumptions.append(
            f"the prefix 'module.' of every weight in {path.name} left out (DataParallel writes it)"
        )
    return dict(found), tuple(assumptions)


def _check_keys(state: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    missing = [key for key in wanted if key not in state]
    unknown = [key for key in state if key not in wanted]
    if missing or unknown:
        raise ModelError(
            f"{path} does not fit the module: it lacks {_some(missing)} and has {_some(unknown)} besides; "
            "give the weights of this very architecture"
        )
    for key, value in state.items():
        if value.shape != wanted[key].shape:
            raise ModelError(
                f"{path} does not fit the module: {key} has shape {list(value.shape)}, "
                f"the module needs {list(wanted[key].shape)}"
            )


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:3])
    return f"{shown} and {len(keys) - 3} more" if len(keys) > 3 else shown or "nothing"
