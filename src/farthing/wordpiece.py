"""Text to the numbers of tokens that BERT and its kin take."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.errors import TaskError

Array = NDArray[Any]
LONGEST = 100  # characters of a word; a longer one is unknown
PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


class WordPiece:
    """The uncased tokenizer of BERT (Devlin et al. 2018, https://arxiv.org/abs/1810.04805).

    Text is lowered and loses its accents; words are cut at spaces and punctuation, and each into the longest pieces
    of the vocabulary, from the left. Pieces inside a word begin with ``##``.

    Args:
        vocabulary: piece -> number.

    Raises:
        TaskError: it lacks one of the tokens for padding, unknown words, start and end.
    """

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        lacking = [token for token in (PAD, UNKNOWN, START, END) if token not in vocabulary]
        if lacking:
            raise TaskError(f"the vocabulary lacks {', '.join(lacking)}: it is not one of BERT")
        self._known = dict(vocabulary)

    @classmethod
    def read(cls, path: Path) -> WordPiece:
        """The tokenizer of a ``vocab.txt``, one piece a line.

        Raises:
            TaskError: the file cannot be read, or is no such vocabulary.
        """
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(f"{path} holds no vocabulary: {error}") from error
        return cls({piece: number for number, piece in enumerate(lines) if piece})

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text, without those for start and end."""
        return [piece for word in _words(text) for piece in self._cut(word)]

    def encode(self, texts: Sequence[str], length: int) -> dict[str, Array]:
        """Texts as a model reads them: cut to ``length`` tokens, shorter ones padded.

        Returns:
            ``tokens`` and ``mask`` (1 where there is one), int64 (texts, length).
        """
        ids = np.full((len(texts), length), self._known[PAD], np.int64)
        mask = np.zeros((len(texts), length), np.int64)
        for row, text in enumerate(texts):
            pieces = [START, *self.pieces(text)[: length - 2], END]
            ids[row, : len(pieces)] = [self._known[piece] for piece in pieces]
            mask[row, : len(pieces)] = 1
        return {"tokens": ids, "mask": mask}

    def _cut(self, word: str) -> list[str]:
        found: list[str] = []
        start = 0
        while start < len(word):
            ends = range(len(word), start, -1)
            marked = ("##" if start else "") + word[start:]
            extra = 2 if start else 0
            end = next((end for end in ends if marked[: end - start + extra] in self._known), None)
            if end is None or len(word) > LONGEST:
                return [UNKNOWN]
            found.append(marked[: end - start + extra])
            start = end
        return found


def _words(text: str) -> Iterator[str]:
    """Words and marks, lowered and without accents."""
    spaced = "".join(f" {mark} " if _stands_alone(mark) else mark for mark in _cleaned(text))
    for word in spaced.split():
        bare = unicodedata.normalize("NFD", word.lower())
        yield from "".join(
            f" {mark} " if _is_punctuation(mark) else mark
            for mark in bare
            if unicodedata.category(mark) != "Mn"
        ).split()


def _cleaned(text: str) -> Iterator[str]:
    for mark in text:
        if mark.isspace():
            yield " "
        elif mark != "\ufffd" and not unicodedata.category(mark).startswith("C"):
            yield mark


def _stands_alone(mark: str) -> bool:
    """Whether it is a Chinese character: each is a word."""
    return unicodedata.name(mark, "").startswith("CJK ") and unicodedata.category(mark) == "Lo"


def _is_punctuation(mark: str) -> bool:
    """As BERT has it: what ASCII calls no letter and no digit counts too, such as ``$`` and ``^``."""
    return unicodedata.category(mark).startswith("P") or ("!" <= mark <= "~" and not mark.isalnum())
