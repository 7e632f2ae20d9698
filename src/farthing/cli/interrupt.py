"""How a command ends: Ctrl-C at any moment gives one line, exit code 130 and nothing left behind; our mistakes give 70.

Python's own way, an exception wherever the main thread happens to be, is not enough: raised in a finalizer it is
printed and forgotten, modules that are being imported make another error of it, and raised while a temporary
directory is being removed it leaves the rest there. So Ctrl-C is noted as well, and ends the command in any case.

This module is imported before all others of a command, and so imports next to nothing itself.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

TYPE_CHECKING = False  # importing `typing` for it would double the time in which Ctrl-C is still Python's

if TYPE_CHECKING:
    from sys import UnraisableHookArgs
    from types import FrameType

EXIT_CODE = 130
MISTAKE = 70  # EX_SOFTWARE of sysexits.h
MESSAGE = "farthing: interrupted; finished steps are kept, run the same command again to go on"
SOON = 0.02


class Interrupt:
    """The user's wish to stop, as this process knows it.

    Attributes:
        came: whether Ctrl-C was pressed since `listen`.
    """

    def __init__(self) -> None:
        self.came = False
        self._others: Callable[[UnraisableHookArgs], object] = sys.unraisablehook

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed, whatever became of the first one."""
        if self.came:
            raise KeyboardInterrupt

    def answered(self) -> None:
        """The command took Ctrl-C for what it is meant for there, and comes to its own end; the next one ends it."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.came = False

    def listen(self) -> None:
        """Take over Ctrl-C, unless whoever started this process has it ignored (``nohup``, a job in the background)."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            return
        signal.signal(signal.SIGALRM, self._due)
        signal.signal(signal.SIGINT, self._pressed)
        self._others, sys.unraisablehook = sys.unraisablehook, self._lost

    def deafen(self) -> None:
        """The command is over: nothing is left to interrupt."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _pressed(self, number: int, frame: FrameType | None) -> None:
        again, self.came = self.came, True
        if again:
            raise KeyboardInterrupt
        self._due(number, frame)

    def _due(self, number: int, frame: FrameType | None) -> None:
        if not _tidying(frame):
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, SOON)

    def _lost(self, what: UnraisableHookArgs) -> None:
        """An exception that Python cannot raise: an interrupt comes again in a moment."""
        if issubclass(what.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, SOON)
        else:
            self._others(what)


_TIDY = ("/tempfile.py", "/weakref.py")


def _tidying(frame: FrameType | None) -> bool:
    """Whether a temporary directory is being made or removed, or a finalizer runs: each is let finish."""
    while frame is not None:
        code = frame.f_code
        if code.co_name in {"rmtree", "__del__"} or code.co_filename.endswith(_TIDY):
            return True
        frame = frame.f_back
    return False


INTERRUPT = Interrupt()


def program(run: Callable[[], int]) -> int:
    """Run a command that is all this process is for: Ctrl-C ends it with one line and exit code 130.

    An error that nobody foresaw ends it with its traceback and exit code 70: Python's own 1 means something else here.
    What comes before the first line of this module is Python's: a Ctrl-C during its start ends it in its own way.
    """
    code, place = EXIT_CODE, ""
    try:
        INTERRUPT.listen()
        place = _workplace()
        code = run()
    except BaseException as error:  # noqa: BLE001 - what Ctrl-C was made into, and what nobody foresaw
        INTERRUPT.deafen()
        INTERRUPT.came = INTERRUPT.came or isinstance(error, KeyboardInterrupt)
        if not INTERRUPT.came:
            code = _unforeseen(error)
    finally:
        INTERRUPT.deafen()
        _clear(place)
    if INTERRUPT.came:
        _leave()
    return code


def _unforeseen(error: BaseException) -> int:
    """Show an error that is none of ours to explain, ask for a report, and return the exit code for it."""
    if isinstance(error, SystemExit):
        raise error
    import traceback

    from farthing import __version__

    traceback.print_exception(error)
    said = (
        f"farthing: nobody foresaw this error: please report it with the lines above (Farthing {__version__})"
    )
    print(said, file=sys.stderr)
    return MISTAKE


def _workplace() -> str:
    """One directory for all temporary files, those of third parties and child processes too; `_clear` removes it.

    It is locked as long as this process lives, so that a later one can tell what a killed one left.
    """
    import tempfile

    from farthing.scratch import COMMAND, hold, sweep

    try:
        place = tempfile.mkdtemp(prefix=COMMAND)
    except OSError:
        return ""  # what needs one will say so
    if hold(place) is not None:  # until the process ends; where nothing can be locked nothing is swept
        sweep(tempfile.gettempdir())
    os.environ["TMPDIR"] = tempfile.tempdir = place
    return place


def _clear(place: str) -> None:
    import shutil

    if place:
        shutil.rmtree(place, ignore_errors=True)


def _leave() -> None:
    """Say so and end at once: modules that were cut off while loading do not survive Python's orderly end."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"{MESSAGE}\n")):
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):  # nobody reads it any more
            continue
    os._exit(EXIT_CODE)
