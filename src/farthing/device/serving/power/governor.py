"""The machine's own power settings: CPU governors and frequencies through sysfs, power modes of a Jetson by nvpmodel.

They belong to the machine, not to us: what was set before is remembered, and put back. One governor at a time sets
them: of two, the second would take the settings of the first for those to put back.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import msgspec
from msgspec.structs import replace

from farthing import files
from farthing.config import Section
from farthing.device.serving.ending import AtExit, Home
from farthing.device.watch.probes.tools import Runner, run
from farthing.errors import ConfigError, StorageError, TargetError
from farthing.sysfs import number, text

CPU = "sys/devices/system/cpu"
CPUFREQ = f"{CPU}/cpufreq"
NVPMODEL = "/etc/nvpmodel.conf"
_TOOL_SECONDS = 10.0


class Former(Section, frozen=True, kw_only=True):
    """What was set before: file -> content, and the number of the Jetson's power mode."""

    files: dict[str, str] = {}
    nvpmodel: int | None = None


class Governor:
    """Sets governors, frequencies and power mode, and puts them back when it is closed: use it in ``with``.

    A program that ends without closing it puts them back as well; one that is killed (SIGTERM kills a Python program
    that does not handle it) leaves that to ``record``. From its first setting until it is closed, no other governor of
    this machine, in whichever process, sets anything.

    Args:
        root: where ``/sys`` is.
        runner: runs nvpmodel; None leaves it alone.
        record: a file that remembers what was set before, so that a process that was killed is put right by the next
            one that opens it; None remembers only in this process.

    Raises:
        StorageError: the record cannot be read.
        TargetError: it says what to put back, and that is not permitted.
    """

    def __init__(
        self, root: Path = Path("/"), runner: Runner | None = run, record: Path | None = None
    ) -> None:
        self._policies = sorted((root / CPUFREQ).glob("policy[0-9]*"))
        self._runner, self._record = runner, record
        self._former = Former()
        self._end: AtExit | None = None
        self._claim, self._settings, self._home = ExitStack(), root / CPU, Home()
        self._owner = False
        if record is not None and record.is_file() and self._owns():
            self.close()

    @property
    def available(self) -> bool:
        """Whether this machine has any such setting."""
        return bool(self._policies) or self._mode() is not None

    def set_governor(self, wanted: Sequence[str]) -> str:
        """Set the first of some governors that each processor has; which one it was.

        Raises:
            TargetError: no processor has one of them, setting it is not permitted, or another governor does.
        """
        self._take()
        chosen = ""
        for policy in self._policies:
            known = text(policy / "scaling_available_governors").split()
            fitting = next((name for name in wanted if name in known), "")
            if fitting:
                self._write(policy / "scaling_governor", fitting)
                chosen = fitting
        if not chosen:
            raise TargetError(f"this machine lets nobody choose a CPU governor out of {', '.join(wanted)}")
        return chosen

    def cap(self, share: float) -> int:
        """Let processors run at a share of their highest frequency at most, at their lowest at least.

        Returns:
            The highest frequency allowed, in kHz.

        Raises:
            ConfigError: a share that is none.
            TargetError: this machine has no such setting, it is not permitted, or another governor sets it.
        """
        if not 0 < share <= 1:
            raise ConfigError(f"a share of the highest frequency is above 0 and at most 1, not {share}")
        self._take()
        highest = 0
        for policy in self._policies:
            limits = [number(policy / f"cpuinfo_{end}_freq") for end in ("min", "max")]
            if None in limits:
                continue
            least, most = int(limits[0] or 0), int(limits[1] or 0)
            allowed = max(least, round(most * share))
            self._write(policy / "scaling_max_freq", str(allowed))
            highest = max(highest, allowed)
        if not highest:
            raise TargetError("this machine lets nobody limit the frequency of its processors")
        return highest

    def set_nvpmodel(self, mode: int) -> None:
        """Set the power mode of a Jetson by its number in /etc/nvpmodel.conf.

        Raises:
            TargetError: this is no Jetson, it has no such mode, it is not permitted, or another governor sets it.
        """
        self._take()
        now = self._mode()
        if now is None or self._runner is None:
            raise TargetError("nvpmodel does not answer: this is no Jetson, or it may not be asked")
        if now == mode:
            return
        former = self._former
        if former.nvpmodel is None:
            self._remember(replace(former, nvpmodel=now))
        told = self._runner(["nvpmodel", "-m", str(mode)], _TOOL_SECONDS)
        if told is None:
            self._remember(former)
        if told is None or self._mode() != mode:
            raise TargetError(
                f"nvpmodel did not take mode {mode}: it needs root, a mode of {NVPMODEL}, and for some a restart"
            )

    def close(self) -> None:
        """Put everything back. Closing twice is allowed; what could not be put back is tried again then.

        Raises:
            TargetError: something could not be put back: the message says what, and what it was.
        """
        if self._home.left:
            return
        if self._end is not None:
            self._end.cancel()
            self._end = None
        try:
            if self._former != Former():
                self._take()
                self._put_back()
        finally:
            self._owner = False
            self._claim.close()

    def _put_back(self) -> None:
        left, failed = {}, []
        for name, content in self._former.files.items():
            try:
                Path(name).write_text(content)
            except OSError as error:
                left[name] = content
                failed.append(f"{name} was {content!r}: {error.strerror}")
        mode = self._former.nvpmodel
        if mode is not None:
            if self._runner and self._runner(["nvpmodel", "-m", str(mode)], _TOOL_SECONDS) is not None:
                mode = None
            else:
                failed.append(f"the power mode was {mode}: nvpmodel did not take it")
        self._former = Former(files=left, nvpmodel=mode)
        if failed:
            raise TargetError(f"settings of this machine could not be put back: {'; '.join(failed)}")
        if self._record is not None:
            self._record.unlink(missing_ok=True)

    def _take(self) -> None:
        """Become the one who sets this machine."""
        if not self._owns():
            raise TargetError(
                f"another governor, of this process or of another one, sets the clocks of this machine (it holds "
                f"{self._settings}): close that one first"
            )

    def _owns(self) -> bool:
        """Whether this is the one who sets this machine; what one that was killed has left is its own then."""
        if not self._owner:
            with ExitStack() as claim:
                if self._settings.is_dir() and not claim.enter_context(files.claim(self._settings)):
                    return False
                if self._record is not None:
                    self._former = _recalled(self._record) if self._record.is_file() else Former()
                self._claim, self._owner = claim.pop_all(), True
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _write(self, place: Path, content: str) -> None:
        before = text(place).strip()
        if before == content:
            return
        former = self._former
        self._remember(replace(former, files={str(place): before, **former.files}))
        try:
            place.write_text(content)
        except OSError as error:
            self._remember(former)
            raise TargetError(
                f"{place} cannot be set to {content}: {error.strerror}; it needs root, or a rule that lets this user "
                "write it"
            ) from error

    def _remember(self, former: Former) -> None:
        """Before anything is changed, so that whoever comes later can put it back: this process at its end at least."""
        self._former = former
        self._end = self._end or AtExit(self.close)
        if self._record is not None:
            files.write(self._record, msgspec.json.encode(former))

    def _mode(self) -> int | None:
        told = "" if self._runner is None else self._runner(["nvpmodel", "-q"], _TOOL_SECONDS) or ""
        found = re.search(r"^(\d+)\s*$", told, re.MULTILINE)
        return int(found[1]) if found else None


def _recalled(record: Path) -> Former:
    try:
        former = msgspec.json.decode(record.read_bytes(), type=Former)
    except (OSError, msgspec.MsgspecError) as error:
        raise StorageError(
            f"{record} should say which settings to put back, but cannot be read: {error}; "
            "set governors and frequencies as you want them, and delete it"
        ) from error
    foreign = [name for name in former.files if f"{os.sep}{CPUFREQ}{os.sep}" not in os.path.normpath(name)]
    if foreign:
        raise StorageError(f"{record} names files that are no CPU settings: {', '.join(foreign)}; delete it")
    return former
