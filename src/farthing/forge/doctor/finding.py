"""One thing that was looked at: how it stands, what was found, and the way to mend it."""

from __future__ import annotations

from typing import Literal

from farthing.config import Section

Area = Literal["environment", "machine", "model", "task", "target"]
Status = Literal["ok", "warning", "problem"]


class Finding(Section, frozen=True, kw_only=True):
    """What was found about one thing.

    Attributes:
        area, name: what was looked at.
        status: ``problem`` stands in the way or makes results wrong; ``warning`` costs speed, or a figure's worth.
        found: what there is.
        mend: what to do; empty if nothing needs doing.
    """

    area: Area
    name: str
    status: Status
    found: str
    mend: str = ""


class Diagnosis(Section, frozen=True, kw_only=True):
    """All findings, in the order they were made."""

    findings: tuple[Finding, ...]

    def of(self, status: Status) -> tuple[Finding, ...]:
        """Those of a status."""
        return tuple(finding for finding in self.findings if finding.status == status)

    @property
    def well(self) -> bool:
        """Whether there is no problem; warnings are none."""
        return not self.of("problem")


def ok(area: Area, name: str, found: str, mend: str = "") -> Finding:
    """A finding that is well; ``mend`` says what could be done all the same."""
    return Finding(area=area, name=name, status="ok", found=found, mend=mend)


def warning(area: Area, name: str, found: str, mend: str) -> Finding:
    """A finding that costs speed, or the worth of a figure."""
    return Finding(area=area, name=name, status="warning", found=found, mend=mend)


def problem(area: Area, name: str, found: str, mend: str) -> Finding:
    """A finding that stands in the way, or makes results wrong."""
    return Finding(area=area, name=name, status="problem", found=found, mend=mend)
