"""Questions that only a person can answer, and a record of what was found, answered and assumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from farthing.config import Section
from farthing.errors import ConfigError, nearest


class Question(Section, frozen=True, kw_only=True):
    """Something that data and model do not say.

    Attributes:
        key: its name, as in ``resize``.
        text: the question.
        choices: the answers there are; empty if any text is one.
        default: what is taken without an answer; empty if there must be one.
        why: what hangs on it, where the default comes from, or what was wrong with the last answer.
    """

    key: str
    text: str
    choices: tuple[str, ...] = ()
    default: str = ""
    why: str = ""


Ask = Callable[[Question], str]
"""Asks a person: returns the answer, or an empty text for the default, which is then listed as assumed. An answer that
cannot be used is asked for again, up to five times."""

TRIES = 5


def take_defaults(question: Question) -> str:
    """An `Ask` that asks nobody: every default is taken and listed as assumed."""
    return ""


class Interview:
    """Asks, checks the answers and keeps the record.

    Args:
        ask: asks a person.

    Attributes:
        found: what was found out without asking, a sentence each.
        answers: key -> answer, defaults included.
        assumed: what rests on a default, a sentence each.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.found: list[str] = []
        self.answers: dict[str, str] = {}
        self.assumed: list[str] = []

    def __call__(
        self,
        key: str,
        text: str,
        choices: Sequence[str] = (),
        default: str = "",
        why: str = "",
        check: Callable[[str], object] | None = None,
    ) -> str:
        """Ask one question, again if the answer cannot be used.

        Args:
            key, text, choices, default, why: see `Question`.
            check: raises ConfigError for an answer that cannot be used.

        Raises:
            ConfigError: no usable answer in five tries, or there is neither answer nor default.
        """
        question = Question(key=key, text=text, choices=tuple(choices), default=default, why=why)
        for left in reversed(range(TRIES)):
            given = self._ask(question).strip()
            if not given:
                break
            try:
                self._check(question, given, check)
            except ConfigError as error:
                if not left:
                    raise
                question = msgspec.structs.replace(question, why=str(error))
            else:
                self.answers[key] = given
                return given
        return self._assumed(key, text, default, why)

    def _assumed(self, key: str, text: str, default: str, why: str) -> str:
        reason = f" ({why})" if why else ""
        if not default:
            raise ConfigError(
                f"{key}: {text} Nothing can be assumed here{reason}: run `farthing init` without --yes, and answer"
            )
        self.assumed.append(f"{key}: {default}{reason}")
        self.answers[key] = default
        return default

    @staticmethod
    def _check(question: Question, answer: str, check: Callable[[str], object] | None) -> None:
        if question.choices and answer not in question.choices:
            raise ConfigError(f"{question.key}: {answer!r} is no answer; {nearest(answer, question.choices)}")
        if check is not None:
            check(answer)
