"""Triton's ``config.pbtxt``: the text format of protocol buffers, as far as model configurations use it.

What Farthing understands is honoured, what makes no difference here is listed as ignored, and everything else is
refused by name. The fields are those of Triton's ``model_config.proto``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from farthing.config import convert
from farthing.device.serving.server.settings import ModelSettings
from farthing.engines.openinference import DTYPES
from farthing.errors import ConfigError, nearest

NAME = "config.pbtxt"
MAX_BYTES = 1 << 20
_DEPTH = 16
_TOKEN = re.compile(
    r"""\s+|\#[^\n]*                              # skipped
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?f?))
    |(?P<word>[A-Za-z_][\w.]*)
    |(?P<mark>[{}\[\]<>:,;])""",
    re.X,
)
_BOOLEANS = {"true": True, "True": True, "t": True, "false": False, "False": False, "f": False}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}
_CLOSING = {"{": "}", "<": ">"}


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


class _Word(str):
    """A bare word: a boolean or the name of an enumerated value, told apart from a quoted text."""

    __slots__ = ()


def parse(text: str, where: str) -> dict[str, list[Any]]:
    """A message as field name -> its values in order; a message among them is a dict of the same kind.

    Raises:
        ConfigError: it is not in text format; the line is named.
    """
    parser = _Parser(list(_tokens(text, where)), where)
    return parser.message("", 0)


def _tokens(text: str, where: str) -> Iterator[_Token]:
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ConfigError(f"{where}, line {line}: {text[at : at + 20]!r} has no place in this format")
        if match.lastgroup:
            yield _Token(match.lastgroup, match[0], line)
        line += match[0].count("\n")
        at = match.end()


class _Parser:
    def __init__(self, tokens: list[_Token], where: str) -> None:
        self._tokens = [*tokens, _Token("end", "", tokens[-1].line if tokens else 1)]
        self._at = 0
        self._where = where

    def message(self, closing: str, depth: int) -> dict[str, list[Any]]:
        """Fields up to the closing mark; empty: up to the end."""
        if depth > _DEPTH:
            raise self._error("it is nested too deeply")
        fields: dict[str, list[Any]] = {}
        while (token := self._next()).text != closing or token.kind not in {"mark", "end"}:
            if token.kind != "word":
                raise self._error(
                    f"{token.text or 'the end'!r} stands where the name of a field should", token
                )
            fields.setdefault(token.text, []).extend(self._values(depth))
            if self._peek().text in {",", ";"}:
                self._at += 1
        return fields

    def _values(self, depth: int) -> list[Any]:
        colon = self._peek().text == ":" and self._peek().kind == "mark"
        self._at += colon
        token = self._peek()
        if token.text != "[" or token.kind != "mark":
            return [self._value(colon, depth)]
        self._at += 1
        values: list[Any] = []
        while self._peek().text != "]" or self._peek().kind != "mark":
            values.append(self._value(True, depth))
            if self._peek().text == ",":
                self._at += 1
        self._at += 1
        return values

    def _value(self, colon: bool, depth: int) -> Any:
        token = self._next()
        if token.kind == "mark" and token.text in _CLOSING:
            return self.message(_CLOSING[token.text], depth + 1)
        if not colon or token.kind in {"mark", "end"}:
            raise self._error(f"{token.text or 'the end'!r} stands where a value should", token)
        if token.kind == "text":
            parts = [_unquoted(token.text)]
            while self._peek().kind == "text":
                parts.append(_unquoted(self._next().text))
            return "".join(parts)
        return _number(token.text) if token.kind == "number" else _Word(token.text)

    def _peek(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        token = self._tokens[self._at]
        self._at += token.kind != "end"
        return token

    def _error(self, what: str, token: _Token | None = None) -> ConfigError:
        return ConfigError(f"{self._where}, line {(token or self._peek()).line}: {what}")


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), text[1:-1])


def _number(text: str) -> int | float:
    digits = text.lower()
    if "x" in digits:
        return int(digits, 16)
    return float(digits.rstrip("f")) if re.search(r"[.ef]", digits) else int(digits)


class Declared(NamedTuple):
    """A tensor as a configuration declares it; a free axis is -1, and the batch axis is left out."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class TritonConfig(NamedTuple):
    """What a ``config.pbtxt`` asks for.

    Attributes:
        name: of the model; empty if it names none.
        settings: what we honour.
        inputs, outputs: tensors it declares, to be held against the manifest.
        ignored: fields that make no difference here.
    """

    name: str = ""
    settings: ModelSettings = ModelSettings()
    inputs: tuple[Declared, ...] = ()
    outputs: tuple[Declared, ...] = ()
    ignored: tuple[str, ...] = ()


_LISTS = {"preferred_batch_size", "instance_group", "versions"}
_MESSAGES: dict[str, tuple[str, ...]] = {
    "": ("max_batch_size", "dynamic_batching", "version_policy", "instance_group"),
    "dynamic_batching": (
        "preferred_batch_size",
        "max_queue_delay_microseconds",
        "preserve_ordering",
        "priority_levels",
        "default_priority_level",
        "default_queue_policy",
    ),
    "default_queue_policy": (
        "timeout_action",
        "default_timeout_microseconds",
        "allow_timeout_override",
        "max_queue_size",
    ),
    "version_policy": ("latest", "all", "specific"),
    "latest": ("num_versions",),
    "all": (),
    "specific": ("versions",),
    "instance_group": ("count", "kind"),
}
_IGNORED = {
    "": {
        "backend",
        "cc_model_filenames",
        "default_model_filename",
        "metric_tags",
        "model_metrics",
        "model_repository_agents",
        "model_warmup",
        "optimization",
        "parameters",
        "platform",
        "response_cache",
        "runtime",
    },
    "instance_group": {
        "gpus",
        "host_policy",
        "name",
        "passive",
        "profile",
        "rate_limiter",
        "secondary_devices",
    },
    "tensor": {"format", "label_filename"},
}
_TENSOR_FLAGS = {"allow_ragged_batch", "is_non_linear_format_io", "is_shape_tensor", "optional"}
_REFUSED = {
    "ensemble_scheduling": "ensembles are not served: serve their models one by one",
    "sequence_batching": "sequences are not served: a model with state needs a stream for each caller",
    "model_operations": "libraries of custom operators are not loaded",
    "model_transaction_policy": "a request gets one answer: decoupled models are not served",
    "priority_queue_policy": "priorities have no policies of their own: give a default_queue_policy",
    "batch_input": "inputs made out of batches are not served",
    "batch_output": "outputs made out of batches are not served",
}  # fmt: skip


def read(path: Path) -> TritonConfig:
    """Read a ``config.pbtxt``.

    Raises:
        ConfigError: not readable, not in text format, or a field that is unknown or that we cannot honour.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES >> 20} MiB: no model configuration")
    return understand(parse(text, str(path)), str(path))


def understand(fields: Mapping[str, list[Any]], where: str) -> TritonConfig:
    """What the fields of a configuration mean. See `read` for errors."""
    fields = dict(fields)
    ignored: list[str] = []
    name = _single(fields.pop("name", [""]), "name", where)
    tensors = {group: fields.pop(group, []) for group in ("input", "output")}
    plain = _plain("", fields, where, ignored)
    declared = {
        group: tuple(_tensor(one, f"{where}: {group}", ignored) for one in given)
        for group, given in tensors.items()
    }
    policy = plain.get("dynamic_batching", {}).get("default_queue_policy")
    if policy is not None:
        policy.setdefault("allow_timeout_override", False)  # what leaving it out means in this format
    if not plain.get("dynamic_batching", {}).get("default_priority_level", 1):
        del plain["dynamic_batching"]["default_priority_level"]
    settings = convert(plain, ModelSettings, where)
    return TritonConfig(
        str(name), settings, declared["input"], declared["output"], tuple(sorted(set(ignored)))
    )


def _plain(kind: str, fields: Mapping[str, list[Any]], where: str, ignored: list[str]) -> dict[str, Any]:
    """A message as the plain data of our section of the same fields."""
    found: dict[str, Any] = {}
    for name, values in fields.items():
        place = f"{kind}.{name}" if kind else name
        if name in _IGNORED.get(kind, ()) or (name in _REFUSED and _says_no(values)):
            ignored.append(place)
        elif name not in _MESSAGES[kind]:
            reason = _REFUSED.get(name) or f"unknown field; {nearest(name, _MESSAGES[kind])}"
            raise ConfigError(f"{where}: {place}: {reason}")
        elif name in _LISTS:
            found[name] = [_value(name, value, where, ignored) for value in values]
        else:
            found[name] = _value(name, _single(values, place, where), where, ignored)
    return found


def _value(name: str, value: Any, where: str, ignored: list[str]) -> Any:
    if name in _MESSAGES:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {name} is a message, as in {name} {{ }}")
        return _plain(name, value, where, ignored)
    return _boolean(value)


def _boolean(value: Any) -> Any:
    return _BOOLEANS.get(value, value) if isinstance(value, _Word) else value


def _says_no(values: list[Any]) -> bool:
    """Whether a field only says that something is not asked for."""
    fields = [one for value in values for one in (value.values() if isinstance(value, dict) else [[value]])]
    return bool(fields) and all(_boolean(value) is False for field in fields for value in field)


def _single(values: list[Any], name: str, where: str) -> Any:
    if len(values) != 1:
        raise ConfigError(f"{where}: {name} is given {len(values)} times: once is enough")
    return values[0]


def _tensor(fields: Any, where: str, ignored: list[str]) -> Declared:
    if not isinstance(fields, dict):
        raise ConfigError(f"{where} is a message, as in {{ name: ... }}")
    known = {"name", "data_type", "dims"}
    for name in fields.keys() - known:
        if name not in _IGNORED["tensor"] and not (name in _TENSOR_FLAGS and _says_no(fields[name])):
            raise ConfigError(f"{where}: {name} is not honoured: leave it out; {nearest(name, known)}")
        ignored.append(f"{where.rpartition(' ')[2]}.{name}")
    name = str(_single(fields.get("name", []), "name", where))
    data_type = str(_single(fields.get("data_type", []), "data_type", where)).removeprefix("TYPE_")
    dtype = DTYPES.get("BYTES" if data_type == "STRING" else data_type)
    dims = fields.get("dims", [])
    if dtype is None or not all(type(size) is int for size in dims):
        raise ConfigError(f"{where} {name!r}: no tensors are of {data_type} {dims}")
    return Declared(name, dtype, tuple(dims))
