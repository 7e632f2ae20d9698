"""The catalogue of devices: what is published of them, each figure with its source. None of it was measured."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from farthing.config import Section, read
from farthing.errors import TargetError, nearest
from farthing.target import Target

PLACE = Path(__file__).parent / "data" / "catalogue"
Kind = Literal["microcontroller", "embedded processor", "edge GPU", "NPU or FPGA", "edge server"]
KINDS: tuple[Kind, ...] = ("microcontroller", "embedded processor", "edge GPU", "NPU or FPGA", "edge server")
Value = int | float | str | tuple[str, ...]


class Meaning(Section, frozen=True, kw_only=True):
    """What a figure of the catalogue is.

    Attributes:
        unit: for the table; empty if it has none.
        about: what it says.
        kind: of its value: ``count``, ``number``, ``text`` or ``names``.
    """

    unit: str = ""
    about: str
    kind: Literal["count", "number", "text", "names"] = "number"


FIGURES = {
    "cpu": Meaning(about="processor", kind="text"),
    "cores": Meaning(about="processor cores", kind="count"),
    "isa": Meaning(about="instruction set extensions", kind="names"),
    "clock_mhz": Meaning(unit="MHz", about="highest clock of the fastest core"),
    "memory_mb": Meaning(unit="MiB", about="working memory"),
    "memory_gbs": Meaning(unit="GB/s", about="bandwidth of the working memory"),
    "flash_mb": Meaning(unit="MiB", about="memory for programs, on the chip"),
    "accelerator": Meaning(about="what computes beside the processor", kind="text"),
    "accelerator_dtypes": Meaning(about="element types it computes with", kind="names"),
    "tops": Meaning(unit="TOPS", about="10^12 operations a second, as the maker counts them"),
    "power_w": Meaning(unit="W", about="power, as the source states it"),
}


class Source(Section, frozen=True, kw_only=True):
    """A page that states the figure: the maker's where it could be read, else another that was.

    Attributes:
        title: of the page; url: where it is published.
    """

    title: str
    url: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"https://[\w.-]+/\S*", self.url):
            raise ValueError(f"{self.url!r} is not the address of a document")


class Figure(Section, frozen=True, kw_only=True):
    """A figure, the key of its source among the device's `sources`, and what must be known to read it."""

    value: Value
    source: str
    note: str = ""


class Device(Section, frozen=True, kw_only=True):
    """A device as published pages describe it.

    Attributes:
        title: its full name.
        kind: one of `KINDS`.
        arch: as `Target.arch`.
        engines, dtypes: as `Target` has them: what there is for it, and what it computes with without emulation.
        figures: name, of those in `FIGURES`, -> value and source.
        sources: key -> page.
    """

    title: str
    kind: Kind
    arch: str
    engines: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    figures: dict[str, Figure]
    sources: dict[str, Source]

    def __post_init__(self) -> None:
        for name, figure in self.figures.items():
            if name not in FIGURES:
                raise ValueError(f"no figure is called {name!r}; {nearest(name, FIGURES)}")
            if figure.source not in self.sources:
                raise ValueError(f"{name} is from {figure.source!r}, which is none of the sources")
            _check(name, figure.value)
        unused = set(self.sources) - {figure.source for figure in self.figures.values()}
        if unused:
            raise ValueError(f"nothing is from {min(unused)!r}: leave the source out")
        self.target("device")

    def value(self, name: str) -> Any:
        """The value of a figure, or None where there is none."""
        return self.figures[name].value if name in self.figures else None

    def target(self, name: str) -> Target:
        """What a search needs to know of it."""
        accelerator = self.value("accelerator")
        return Target(
            name=name,
            arch=self.arch,
            isa=self.value("isa") or (),
            cores=self.value("cores"),
            memory_mb=self.value("memory_mb"),
            cpu=self.value("cpu") or "",
            engines=self.engines,
            dtypes=self.dtypes,
            board=self.title,
            accelerators=(accelerator,) if accelerator else (),
        )


def _check(name: str, value: Value) -> None:
    kind = FIGURES[name].kind
    right = {
        "count": isinstance(value, int) and value > 0,
        "number": isinstance(value, int | float) and 0 < value < float("inf"),
        "text": isinstance(value, str) and bool(value),
        "names": isinstance(value, tuple) and bool(value),
    }
    if not right[kind]:
        raise ValueError(f"{name} must be a {kind}, not {value!r}")


@cache
def names() -> tuple[str, ...]:
    """The devices of the catalogue, sorted."""
    return tuple(sorted(path.stem for path in PLACE.glob("*.toml")))


def device(name: str) -> Device:
    """The device of that name.

    Raises:
        TargetError: there is none; the nearest right name is suggested.
    """
    if name not in names():
        raise TargetError(f"no device is called {name!r}; {nearest(name, names())}")
    return read(PLACE / f"{name}.toml", Device)


def devices() -> dict[str, Device]:
    """All devices by name, in the order of their kinds."""
    found = {name: device(name) for name in names()}
    return dict(sorted(found.items(), key=lambda item: KINDS.index(item[1].kind)))


def shown(value: Value, unit: str = "") -> str:
    """A value for people.

    >>> shown(0.25, "MiB"), shown(8, "MiB"), shown(("asimd", "asimddp"))
    ('256 KiB', '8 MiB', 'asimd, asimddp')
    """
    if unit == "MiB" and isinstance(value, int | float) and value < 1:
        return f"{value * 1024:g} KiB"
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return f"{text} {unit}".rstrip()


def plain(found: Device) -> dict[str, Any]:
    """A device as plain data, for JSON."""
    made: dict[str, Any] = msgspec.to_builtins(found)
    return made
