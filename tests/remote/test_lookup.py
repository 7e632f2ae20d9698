"""The table of blocks, measured on a board."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.remote.conftest import QUICK

from farthing.bench import Rule
from farthing.bench.machine import Here
from farthing.bench.remote import Board, Remote
from farthing.forge.cache import Cache
from farthing.forge.families import Architecture, Stage
from farthing.forge.search.deployment import Deployment
from farthing.recipe import Progress

RULE = Rule(warmup=2, min_count=5, min_seconds=0.05)
SHAPE = (1, 8, 8)


def test_blocks_are_timed_on_a_board_once(board: Board, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("torch")  # absent where the lowest versions are run
    from farthing.forge.search.lookup import Lookup

    heard: list[Progress] = []
    deployment = Deployment(engine="onnxruntime", number="float32")
    blocks = Architecture(family="resnet", stages=(Stage(width=4, stride=2),)).blocks(SHAPE, 10)
    with Remote(board, None, QUICK) as machine:
        for _ in range(2):
            lookup = Lookup(
                deployment, machine, machine.target, Cache(tmp_path), rule=RULE, listener=heard.append
            )
            assert lookup.price(blocks, SHAPE).size_bytes > 0
        assert len(heard) == 1
    here = Here()
    Lookup(deployment, here, here.target, Cache(tmp_path), rule=RULE, listener=heard.append).price(
        blocks, SHAPE
    )
    assert len(heard) == 2, "another machine has other prices"
