from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing import config
from farthing.config import Section, canonical, convert, parse, plain, read, schema, stated, to_yaml
from farthing.errors import ConfigError


class Camera(Section, frozen=True, kw_only=True):
    address: str
    rate: float = 25.0
    size: tuple[int, int] = (640, 480)


class Settings(Section, frozen=True, kw_only=True):
    name: str = "x"
    mode: Literal["fast", "exact"] = "fast"
    budget: float | None = None
    folder: Path | None = None
    cameras: dict[str, Camera] = {}
    more: tuple[Camera, ...] = ()
    notes: dict[str, Any] = {}
    splits: dict[Literal["train", "test"], float] = {}


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# --- reading


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.yaml", "name: a\nbudget: 1e-3\ncameras:\n  door: {address: rtsp, rate: 5, size: [1, 2]}\n"),
        ("s.YML", "name: a\nbudget: 0.001\ncameras: {door: {address: rtsp, rate: 5.0, size: [1, 2]}}\n"),
        (
            "s.json",
            '{"name": "a", "budget": 1e-3, "cameras": {"door": {"address": "rtsp", "rate": 5, "size": [1, 2]}}}',
        ),
        ("s.toml", 'name = "a"\nbudget = 1e-3\n[cameras.door]\naddress = "rtsp"\nrate = 5\nsize = [1, 2]\n'),
    ],
)
def test_all_three_languages_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    door = Camera(address="rtsp", rate=5, size=(1, 2))
    assert read(written(tmp_path / name, text), Settings) == Settings(
        name="a", budget=0.001, cameras={"door": door}
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nam: a", "unknown key 'nam'; did you mean 'name'"),
        ("cameras: {door: {address: a, rat: 3}}", r"unknown key 'rat' at cameras\S*; did you mean 'rate'"),
        (
            "more: [{address: a}, {address: b, adress: c}]",
            r"unknown key 'adress' at more\[1\]; did you mean 'address'",
        ),
        ("cameras: {door: {rate: 3}}", "missing required field `address` - at `cameras"),
        ("budget: a lot", "Expected `float | null`, got `str` - at `budget`"),
        ("name: 3", "Expected `str`, got `int` - at `name`"),
        ("mode: fats", "'fats' at mode is not possible; did you mean 'fast'"),
        ("splits: {tets: 1}", "'tets' at splits is not possible; did you mean 'test'"),
        ("more: {a: 1}", "Expected `array`, got `object` - at `more`"),
        ("[1, 2]", "Expected `object`, got `array`"),
        ("", "is empty: write the settings into it"),
        ("# later\n", "is empty: write the settings into it"),
        ("name: a\nname: b", "a key is given twice"),
        (
            "cameras:\n  door: {address: a}\n  door: {address: b}",
            "a key is given twice in the map that begins in line 2",
        ),
        ("a: &x 1\nb: *x", "aliases"),
        ("name: [", "not valid YAML"),
        ("name: !!python/object/apply:os.system [id]", "not valid YAML"),
        ("name: !!int many", "not valid YAML"),
        ("name: 2020-99-99", "not valid YAML"),
        ("---\nname: a\n---\nname: b", "not valid YAML"),
        ("name: \x00", "not valid YAML"),
        (b"name: \xff\xfe", "not valid YAML"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = written(tmp_path / "s.yaml", text)
    with pytest.raises(ConfigError, match=message) as caught:
        read(path, Settings)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.json", '{"name": "a", "name": "b"}', "the key 'name' is given twice"),
        (
            "s.json",
            '{"cameras": {"a": {"address": "1", "address": "2"}}}',
            "the key 'address' is given twice",
        ),
        ("s.json", '{"budget": NaN}', "not valid JSON"),
        ("s.json", '{"name": "\\ud800"}', "not valid JSON"),
        ("s.json", "[" * 100_000, "nested too deeply"),
        ("s.json", "9" * 5000, "not valid JSON"),
        ("s.json", b"\xff", "not valid JSON"),
        ("s.json", "", "is empty: write the settings into it"),
        ("s.toml", 'name = "a"\nname = "b"', "not valid TOML"),
        ("s.toml", b"name = '\xff'", "not valid TOML"),
        ("s.txt", "name: a", "settings are read from .yaml, .json or .toml, not '.txt'"),
        ("settings", "name: a", "not a file without suffix"),
    ],
)
def test_other_languages_and_none(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(written(tmp_path / name, text), Settings)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent.yaml: No such file"):
        read(tmp_path / "absent.yaml", Settings)
    (tmp_path / "directory.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        read(tmp_path / "directory.yaml", Settings)


def test_a_huge_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it whole would end in a MemoryError
    with pytest.raises(ConfigError, match="larger than 4 MiB: not a settings file"):
        read(path, Settings)


def test_an_alias_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    with pytest.raises(ConfigError, match="aliases"):
        read(written(tmp_path / "s.yaml", "\n".join(lines)), Settings)


def test_a_recursive_alias_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="aliases"):
        read(written(tmp_path / "s.yaml", "notes: &a {b: *a}"), Settings)


@given(st.binary(max_size=200), st.sampled_from([".yaml", ".json", ".toml"]))
def test_any_bytes_are_data_or_a_config_error(raw: bytes, suffix: str) -> None:
    with contextlib.suppress(ConfigError):
        parse(raw, suffix, "here")


YAMLISH = st.text(st.sampled_from(list("ab01:-{}[],&*!<>|?'\"#%@` \n\t.~=e+_x")), max_size=40)


@given(YAMLISH)
def test_any_yaml_is_data_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse(text.encode(), ".yaml", "here")


# --- environment


def test_variables_are_filled_in_everywhere(tmp_path: Path) -> None:
    text = "name: ${SECRET}\ncameras: {a: {address: 'rtsp://u:${SECRET}@h/$1'}}"
    found = read(written(tmp_path / "s.yaml", text), Settings, {"SECRET": "s3: {cret}"})
    assert found.name == "s3: {cret}"
    assert found.cameras["a"].address == "rtsp://u:s3: {cret}@h/$1"


def test_a_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "s.yaml", "more: [{address: '${ABSENT}'}]")
    with pytest.raises(ConfigError, match=r"the environment variable ABSENT is not set"):
        read(path, Settings, {"PRESENT": "1"})
    with pytest.raises(ConfigError, match=r"the environment variable ABSENT is not set"):
        read(path, Settings, {})


def test_what_a_variable_holds_is_not_expanded_again(tmp_path: Path) -> None:
    path = written(tmp_path / "s.yaml", "name: '${A}'")
    assert read(path, Settings, {"A": "${B}", "B": "b"}).name == "${B}"


def test_a_stranger_s_file_learns_nothing_of_the_environment(tmp_path: Path) -> None:
    assert os.environ.get("PATH")
    text = '{"name": "${PATH}", "notes": {"${PATH}": "${FARTHING_TEST_ABSENT}"}}'
    found = read(written(tmp_path / "s.json", text), Settings)
    assert found == Settings(name="${PATH}", notes={"${PATH}": "${FARTHING_TEST_ABSENT}"})


# --- writing


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
floats = st.floats(allow_nan=False, allow_infinity=False)
wide = st.integers(-(2**63), 2**64 - 1)
cameras = st.builds(Camera, address=texts, rate=floats, size=st.tuples(st.integers(-9, 9), st.integers()))
settings = st.builds(
    Settings,
    name=texts
    | st.sampled_from(
        [
            "1e3",
            "no",
            "~",
            "2020-01-01",
            "0x1",
            "1:30",
            "=",
            "<<",
            "null",
            "\x85",
            "a\u2028 b",
            "\ufeff",
            "1_000",
            ".5E-3",
        ]
    ),
    mode=st.sampled_from(["fast", "exact"]),
    budget=st.none() | floats,
    folder=st.none() | st.sampled_from([Path("/a/b"), Path("c d")]),
    cameras=st.dictionaries(texts, cameras, max_size=3),
    more=st.lists(cameras, max_size=3).map(tuple),
    notes=st.dictionaries(
        texts, st.none() | texts | floats | st.booleans() | st.integers(-(2**63), 2**64 - 1), max_size=3
    ),
)


@given(settings)
def test_yaml_json_and_back(one: Settings) -> None:
    text = to_yaml(one)
    assert convert(parse(text.encode(), ".yaml", "y"), Settings, "y") == one
    assert convert(parse(canonical(one), ".json", "j"), Settings, "j") == one
    assert convert(plain(one), Settings, "p") == one


@given(settings)
def test_canonical_bytes_do_not_depend_on_the_order_of_maps(one: Settings) -> None:
    turned = msgspec.structs.replace(one, cameras=dict(reversed(one.cameras.items())))
    assert canonical(turned) == canonical(one)


def test_a_number_is_the_same_whether_whole_or_not_and_after_a_file() -> None:
    """Else the digest of a model made with ``scale=1`` changes when it is opened again."""
    whole, read_back = Settings(budget=5), Settings(budget=5.0)
    assert canonical(whole) == canonical(read_back)
    assert canonical(Settings(budget=5.5)) != canonical(whole)
    assert canonical({"flag": True}) != canonical({"flag": 1})
    assert canonical({"far": 1e300}) == b'{"far":1e300}'


def test_yaml_keeps_the_declared_order() -> None:
    assert list(parse(to_yaml(Settings()).encode(), ".yaml", "y")) == list(Settings.__struct_fields__)


def test_sections_are_immutable() -> None:
    with pytest.raises(AttributeError):
        Settings().name = "b"  # type: ignore[misc]


def test_the_schema_knows_every_field_and_allows_no_other() -> None:
    found = schema(Settings)
    described = found["$defs"]["Settings"]
    assert set(described["properties"]) == set(Settings.__struct_fields__)
    assert described["additionalProperties"] is False
    assert json.dumps(found)


def test_a_limit_stands_between_yaml_and_the_machine() -> None:
    assert config.MAX_BYTES <= 4 << 20


class Part(Section, frozen=True, kw_only=True):
    size: int
    scale: float | None = None
    tags: dict[str, str] = {}


class Whole(Section, frozen=True, kw_only=True):
    name: str
    parts: tuple[Part, ...] = ()
    chosen: Part | None = None
    by_name: dict[str, Part] = {}


def test_what_is_left_at_its_default_is_not_stated() -> None:
    """A digest over what is stated stays the same when a later version adds a field."""
    made = Whole(
        name="a",
        parts=(Part(size=1), Part(size=0, scale=2.0)),
        chosen=Part(size=3, tags={"k": ""}),
        by_name={"b": Part(size=4)},
    )
    assert stated(made) == {
        "name": "a",
        "parts": [{"size": 1}, {"size": 0, "scale": 2.0}],
        "chosen": {"size": 3, "tags": {"k": ""}},
        "by_name": {"b": {"size": 4}},
    }
    assert stated(Whole(name="")) == {"name": ""}
