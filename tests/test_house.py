"""Rules of the house that no linter checks."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from farthing import plugins

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def requirements() -> list[Requirement]:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    groups += PYPROJECT["dependency-groups"].values()
    return [Requirement(line) for group in groups for line in group if isinstance(line, str)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_a_file_fits_in_a_reader(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 450, "split it by what its parts do"


def test_no_module_is_named_after_nothing() -> None:
    empty_words = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
    named = {part for path in SOURCES for part in path.relative_to(ROOT / "src").with_suffix("").parts}
    assert not named & empty_words


def test_every_requirement_has_a_floor_and_a_pin_that_meets_it() -> None:
    pins = {canonicalize_name(pin.name): pin.specifier for pin in PINS}
    for requirement in requirements():
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(next(iter(pin)).version), f"{requirement} excludes its own pin"


def test_base_floors_can_be_installed_as_they_stand() -> None:
    for line in PROJECT["dependencies"]:
        assert [clause.operator for clause in Requirement(line).specifier] == [">="], line


def test_pins_suit_every_machine() -> None:
    assert [str(pin) for pin in PINS if "+" in str(pin.specifier)] == [], "no build suffixes"
    assert [pin.name for pin in PINS if pin.name.startswith("nvidia-") or pin.name == "triton"] == []


def test_every_engine_has_an_extra_of_its_name() -> None:
    engines = set(plugins.BUILTIN["engine"]) - {"fake", "oip"}  # they need nothing
    assert engines <= set(PROJECT["optional-dependencies"])
