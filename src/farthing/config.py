"""Settings as plain data: typed sections, read from YAML, TOML or JSON, with errors that name the right key."""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec
import yaml

from farthing.errors import ConfigError, nearest

SectionT = TypeVar("SectionT")
MAX_BYTES = 4 << 20  # YAML is read at some 0.1 MB/s


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every settings and manifest type: immutable, checked, unknown keys refused.

    Subclasses repeat ``frozen=True`` and ``kw_only=True`` so that type checkers see them too.
    """


def read(path: Path, kind: type[SectionT], environment: Mapping[str, str] | None = None) -> SectionT:
    """Read a settings file (``.yaml``, ``.yml``, ``.json`` or ``.toml``) into ``kind``.

    Args:
        path: the file.
        kind: the type of section it holds.
        environment: what replaces each ``${NAME}`` in a value. Only for files of one's own: what a stranger's
            file asks for ends up in results. None leaves ``${NAME}`` as it stands.

    Raises:
        ConfigError: no such file, not readable as its suffix says, an unknown key (the nearest right
            one is named), a wrong type, or a name that ``environment`` lacks.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES >> 20} MiB: not a settings file")
    data = parse(raw, path.suffix.lower(), str(path)) if raw.strip() else None
    if data is None:
        raise ConfigError(f"{path} is empty: write the settings into it")
    return convert(data if environment is None else _resolve(data, environment, str(path)), kind, str(path))


def parse(raw: bytes, suffix: str, where: str) -> Any:
    """Decode YAML, JSON or TOML bytes to plain data.

    Raises:
        ConfigError: the bytes are not what the suffix says, a key is given twice, or the suffix is none of these.
    """
    try:
        if suffix in {".yaml", ".yml"}:
            return yaml.load(raw, Loader=_Loader)
        if suffix == ".json":
            json.loads(raw, object_pairs_hook=_once)  # msgspec would take the last of two equal keys
            return msgspec.json.decode(raw)
        if suffix == ".toml":
            return tomllib.loads(raw.decode())
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply for a settings file") from None
    except (
        yaml.YAMLError,
        msgspec.MsgspecError,
        ValueError,
        KeyError,
        AttributeError,
    ) as error:  # PyYAML leaks some
        raise ConfigError(f"{where} is not valid {suffix[1:].upper()}: {error}") from error
    found = repr(suffix) if suffix else "a file without suffix"
    raise ConfigError(f"{where}: settings are read from .yaml, .json or .toml, not {found}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return mapping


_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
"""1e-3: a number to all but YAML 1.1, which wants a point in it."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, and aliases (an alias bomb expands without bound)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed in settings")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=True)
        if len(mapping) != len(node.value):
            raise yaml.YAMLError(
                f"a key is given twice in the map that begins in line {node.start_mark.line + 1}"
            )
        return mapping


class _Dumper(yaml.SafeDumper):
    """SafeDumper whose text reads back: ``1e3`` is quoted, and rare line breaks are escaped."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if set(data) & set("\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _resolve(data: Any, environment: Mapping[str, str], where: str) -> Any:
    if isinstance(data, Mapping):
        return {key: _resolve(value, environment, where) for key, value in data.items()}
    if isinstance(data, list):
        return [_resolve(value, environment, where) for value in data]
    if isinstance(data, str):
        return re.sub(r"\$\{(\w+)\}", lambda match: _variable(match[1], environment, where), data)
    return data


def _variable(name: str, environment: Mapping[str, str], where: str) -> str:
    value = environment.get(name)
    if value is None:
        raise ConfigError(f"{where} uses ${{{name}}}, but the environment variable {name} is not set")
    return value


def convert(data: Any, kind: type[SectionT], where: str) -> SectionT:
    """Turn plain data into ``kind``; ``where`` names the source in error messages.

    Raises:
        ConfigError: an unknown key (with its place and the nearest right one), a missing key or a wrong type.
    """
    try:
        return msgspec.convert(data, kind, strict=True, dec_hook=_path_hook)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(str(error), kind)}") from error


def _path_hook(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError


def _explain(message: str, kind: Any) -> str:
    """What msgspec says, with the right names where it knows that one is wrong."""
    match = re.match(
        r"(Object contains unknown field `|Invalid enum value ')(.+?)[`'](?: - at (`key` in )?`\$(.*)`)?$",
        message,
        re.S,
    )
    if not match:
        return message.replace("`$.", "`")
    wrong, name, key, place = match.groups()
    path = [part for part in re.sub(r"\[[^\]]*\]", "", place or "").split(".") if part]
    at, found = f" at {place.lstrip('.')}" if place else "", _type_at(kind, path)
    if wrong.startswith("Object"):
        fields = [
            field.encode_name for section in _sections(found)[:1] for field in msgspec.structs.fields(section)
        ]
        return f"unknown key {name!r}{at}; {nearest(name, fields)}"
    values = _literals(get_args(found)[0] if key else found)
    return f"{name!r}{at} is not possible; {nearest(name, values)}" if values else message


def _type_at(kind: Any, place: list[str]) -> Any:
    """The type found by following the names of fields from ``kind``, through tuples and maps; None if there is none."""
    if not place:
        return kind
    for section in _sections(kind):
        for field in msgspec.structs.fields(section):
            if field.encode_name == place[0]:
                return _type_at(field.type, place[1:])
    return None


def _literals(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [value for part in get_args(kind) for value in _literals(part)]


def _sections(kind: Any) -> list[Any]:
    """The section types that ``kind`` is or holds (in an optional, a tuple or a mapping)."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [section for part in get_args(kind) for section in _sections(part)]


def plain(section: object) -> Any:
    """A section as plain data (maps, lists, numbers, text), ready for JSON or YAML."""
    return msgspec.to_builtins(section, enc_hook=_plain_hook)


def _plain_hook(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} is not plain data")


def to_yaml(section: object) -> str:
    """A section as YAML text, keys in their declared order."""
    return yaml.dump(plain(section), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def to_json(section: object) -> bytes:
    """A section as indented JSON with a line break at its end, keys in their declared order."""
    return msgspec.json.format(msgspec.json.encode(plain(section))) + b"\n"


def canonical(section: object) -> bytes:
    """A section as canonical JSON (sorted keys, no spaces, 5 for 5.0): what digests are taken over."""
    return msgspec.json.encode(_numbers(plain(section)), order="sorted")


def changed(section: SectionT, **fields: Any) -> SectionT:
    """A copy with other values, checked as a new one is: `msgspec.structs.replace` does not check before 0.19."""
    names = msgspec.structs.asdict(section)  # type: ignore[arg-type]
    return type(section)(**{**names, **fields})


def stated(section: object) -> Any:
    """A section as plain data without what is left at its default: a field that comes later changes no digest."""
    if isinstance(section, msgspec.Struct):
        values = {one.encode_name: (getattr(section, one.name), one) for one in _fields(type(section))}
        return {name: stated(value) for name, (value, one) in values.items() if value != _default(one)}
    if isinstance(section, dict):
        return {key: stated(value) for key, value in section.items()}
    if isinstance(section, list | tuple):
        return [stated(value) for value in section]
    return plain(section)


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The fields of a kind of section: msgspec evaluates their annotations anew each time it is asked."""
    return msgspec.structs.fields(kind)


def _default(field: msgspec.structs.FieldInfo) -> Any:
    """What a field is if nobody states it; `msgspec.NODEFAULT`, which equals nothing, where it must be stated."""
    factory: Any = field.default_factory
    return field.default if factory is msgspec.NODEFAULT else factory()


def _numbers(data: Any) -> Any:
    """Whole floats as integers: a field given as 5 in Python is 5.0 once read from a file, and is the same."""
    if isinstance(data, dict):
        return {key: _numbers(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_numbers(value) for value in data]
    return int(data) if isinstance(data, float) and data.is_integer() and abs(data) < 1 << 53 else data


def schema(kind: type[Any]) -> dict[str, Any]:
    """The JSON schema of a section type."""
    return msgspec.json.schema(kind, schema_hook=lambda part: {"type": "string"})
