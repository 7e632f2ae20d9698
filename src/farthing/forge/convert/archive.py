"""What torch's own archives may hold before torch loads them: nothing that would run code of the file's author.

``torch.export.load`` unpickles custom objects, evaluates shape expressions, looks operators up by dotted name
(``torch.os.system`` would be one) and loads compiled libraries. Everything of that kind is refused here, by a
list of what is allowed. What a TorchScript archive may hold is in `farthing.engines.archive`.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from farthing.engines.archive import FILE_OPERATORS, rewritten
from farthing.errors import ModelError

_LAYOUT = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|version|\.format_version|\.storage_alignment"
    r"|\.data/(version|serialization_id)|models/\w+\.json|extra/.*|data/sample_inputs/\w+\.pt"
    r"|data/weights/(weight_\d+|\w+_weights_config\.json)|data/constants/(tensor_\d+|\w+_constants_config\.json))"
)
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed)\.\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl)"
    r"|(_operator|math)\.(add|sub|mul|truediv|floordiv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_|ceil|floor|trunc)"
    r"|torch\.(_?sym_\w+)"
)
_PLAIN = re.compile(r"[\w.\-+<>@ ]*")
_EXPRESSION = re.compile(r"[\w\s+\-*/%(),.<>=!&|~]*")
_QUOTED = re.compile(r"'(\w*|[\d.eE+-]*)'")
_ATTRIBUTE = re.compile(r"[A-Za-z_)]\s*\.|\.\s*[A-Za-z_]|__")
_FUNCTIONS = frozenset(
    "FloorDiv ModularIndexing Where PythonMod Mod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural "
    "FloatPow FloatTrueDiv IntTrueDiv TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity Max Min Eq Ne "
    "Ge Gt Le Lt And Or Not Abs floor ceiling Mul Add Pow Integer Float Symbol".split()
)
_FREE_TEXT = frozenset({"metadata", "as_string", "as_strings", "guards_code", "treespec_namedtuple_fields"})
_TREE_TYPES = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", None})


def checked_program(path: Path, data: bytes) -> bytes:
    """A ``torch.export`` archive with nothing in it that loading would run, written anew from what was checked.

    Raises:
        ModelError: damaged, or it holds pickled objects, compiled code, or operators and expressions outside the list.
    """
    return rewritten(path, data, _check_program_member)


def _check_program_member(path: Path, name: str, content: bytes) -> None:
    if not _LAYOUT.fullmatch(name):
        raise ModelError(_refusal(path, f"it holds {name!r}, which may carry code"))
    if name.endswith(".json"):
        _check_json(path, name, json.loads(content))
    elif name.endswith(".pt"):
        _check_inputs(path, content)


def _refusal(path: Path, reason: str) -> str:
    return (
        f"{path} is refused, never unpickled: {reason}; "
        "if you trust it, load it in Python with torch.export.load and convert the program"
    )


def _check_inputs(path: Path, content: bytes) -> None:
    """Example inputs are the one pickle in every archive; torch would fall back to running it."""
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except (
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        pickle.UnpicklingError,
    ) as error:
        raise ModelError(_refusal(path, "its example inputs are more than tensors")) from error


def _check_json(path: Path, name: str, content: Any) -> None:
    if name.endswith("_config.json"):
        for entry in content.get("config", {}).values():
            if entry.get("use_pickle"):
                raise ModelError(_refusal(path, "it holds pickled tensors or objects"))
    for key, text in _strings(content):
        if not _allowed(key, text):
            raise ModelError(
                _refusal(path, f"{key or 'a name'} {text[:60]!r} is not on the list of what is allowed")
            )


def _strings(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON document with the key it stands under; keys themselves under the key ``""``."""
    if isinstance(content, str):
        yield key, content
    elif isinstance(content, list):
        for item in content:
            yield from _strings(item, key)
    elif isinstance(content, dict):
        for name, item in content.items():
            yield "", name
            if name not in _FREE_TEXT:
                yield from _strings(item, name)


def _allowed(key: str, text: str) -> bool:
    if key in {"target", "as_operator"}:
        return bool(_TARGET.fullmatch(text)) and not FILE_OPERATORS.search(text)
    if key == "expr_str" or "*" in text:
        return _safe_expression(text)
    if key in {"in_spec", "out_spec"} and text:
        return _safe_tree(json.loads(text))
    return bool(_PLAIN.fullmatch(text))


def _safe_expression(text: str) -> bool:
    text = _QUOTED.sub("0", text)  # Symbol('s77', integer=True): a name or a number in quotes
    called = re.findall(r"([A-Za-z_]\w*)\s*\(", text)
    return bool(_EXPRESSION.fullmatch(text)) and not _ATTRIBUTE.search(text) and set(called) <= _FUNCTIONS


def _safe_tree(spec: Any) -> bool:
    """A pytree of tuples, lists and dicts with text keys: other kinds import the module they name."""
    if isinstance(spec, list) and len(spec) == 2 and isinstance(spec[0], int):
        return spec[0] == 1 and _safe_tree(spec[1])
    if not isinstance(spec, dict) or spec.get("type") not in _TREE_TYPES:
        return False
    context = spec.get("context")
    if context is not None:
        parsed = json.loads(context) if isinstance(context, str) else context
        if parsed is not None and not (isinstance(parsed, list) and all(isinstance(k, str) for k in parsed)):
            return False
    return all(_safe_tree(child) for child in spec.get("children_spec", []))
