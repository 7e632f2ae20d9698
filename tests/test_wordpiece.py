"""Texts to tokens, as BERT's own tokenizer cuts them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.assets import ASSETS, fetch
from farthing.errors import AssetError, TaskError
from farthing.wordpiece import WordPiece

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "un",
    "##aff",
    "##able",
    "a",
    "##b",
    "##c",
    "!",
    "naive",
    "国",
    "$",
    "5",
]


@pytest.fixture
def tokenizer() -> WordPiece:
    return WordPiece({piece: number for number, piece in enumerate(PIECES)})


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("unaffable", ["un", "##aff", "##able"]),
        ("UN-affable", ["un", "[UNK]", "[UNK]"]),
        ("abc!a", ["a", "##b", "##c", "!", "a"]),
        ("Naïve\tNAÏVE", ["naive", "naive"]),
        ("国国", ["国", "国"]),
        ("$5", ["$", "5"]),
        ("a\x00b \ufffd", ["a", "##b"]),
        ("a" * 101, ["[UNK]"]),
        ("", []),
    ],
)
def test_longest_pieces_first_from_the_left(tokenizer: WordPiece, text: str, pieces: list[str]) -> None:
    assert tokenizer.pieces(text) == pieces


def test_texts_are_cut_and_padded_and_the_mask_says_where(tokenizer: WordPiece) -> None:
    found = tokenizer.encode(["a b c ! a", "a", ""], length=4)
    assert found["tokens"].tolist() == [[2, 7, 1, 3], [2, 7, 3, 0], [2, 3, 0, 0]]
    assert found["mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert {array.dtype.name for array in found.values()} == {"int64"}


@given(st.text(max_size=40))
def test_any_text_has_tokens_that_the_vocabulary_knows(text: str) -> None:
    known = {piece: number for number, piece in enumerate(PIECES)}
    assert set(WordPiece(known).pieces(text)) <= set(known)


def test_what_is_no_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"lacks \[UNK\], \[SEP\]"):
        WordPiece({"[PAD]": 0, "[CLS]": 1})
    with pytest.raises(TaskError, match="holds no vocabulary"):
        WordPiece.read(tmp_path / "none.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match="holds no vocabulary"):
        WordPiece.read(tmp_path / "binary")


@pytest.mark.slow
def test_the_vocabulary_of_minilm() -> None:
    try:
        tokenizer = WordPiece.read(fetch(ASSETS["minilm-vocabulary"]))
    except AssetError as error:
        pytest.skip(str(error))
    sentences = ["The cat sleeps on the sofa.", "Interest rates rose again this month."]
    known = [  # by the tokenizer that the model was trained with
        [101, 1996, 4937, 25126, 2006, 1996, 10682, 1012, 102, 0],
        [101, 3037, 6165, 3123, 2153, 2023, 3204, 1012, 102, 0],
    ]
    assert tokenizer.encode(sentences, length=10)["tokens"].tolist() == known
    assert tokenizer.pieces("unaffable") == ["una", "##ffa", "##ble"]
    assert "[UNK]" not in tokenizer.pieces("Straße, e=mc^2 & naïveté: 3.14 — “quoted”")
