"""Questions that only a person can answer, and a record of what was found, answered and assumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from farthing.config import Section
from farthing.errors import ConfigError, nearest


class Question(Section, frozen=True, kw_only=True):
    """Something that data and model do not say.

    Attributes:
        key: its name, as in ``resize``.
        text: the question.
        choices: the answers there are; empty if any text is one.
        default: what is taken without an answer; empty if there must be one.
        why: what hangs on it, or where the default comes from.
    """

    key: str
    text: str
    choices: tuple[str, ...] = ()
    default: str = ""
    why: str = ""


Ask = Callable[[Question], str]
"""Asks a person: returns the answer, or an empty text for the default, which is then listed as assumed."""


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
        self, key: str, text: str, choices: Sequence[str] = (), default: str = "", why: str = ""
    ) -> str:
        """Ask one question.

        Raises:
            ConfigError: the answer is none of the choices, or there is neither answer nor default.
        """
        question = Question(key=key, text=text, choices=tuple(choices), default=default, why=why)
        answer = self._ask(question).strip()
        if not answer:
            if not default:
                raise ConfigError(f"{text} ({key}): this needs an answer; {why}".rstrip("; "))
            self.assumed.append(f"{key}: {default}" + (f" ({why})" if why else ""))
            answer = default
        if choices and answer not in choices:
            raise ConfigError(f"{key}: {answer!r} is no answer; {nearest(answer, choices)}")
        self.answers[key] = answer
        return answer
