"""The table of blocks: each is measured once, and their sum is what the whole network takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from farthing.bench import Rule
from farthing.bench.machine import Here
from farthing.errors import UnsupportedError
from farthing.forge.cache import Cache
from farthing.forge.families import FAMILIES, Architecture, Family, Shape, Stage
from farthing.forge.search.deployment import Deployment
from farthing.forge.search.estimate import Estimator
from farthing.forge.search.lookup import Lookup, Piece, Price, pieces_of
from farthing.recipe import Progress
from farthing.target import Target

PICTURE, SIGNAL = (1, 12, 12), (3, 40)
QUICK = Rule(warmup=2, min_count=10, min_seconds=0.05, max_seconds=2.0)
HERE = Here()


def network(family: Family, width: int = 8) -> Architecture:
    stages = (Stage(width=width, stride=2), Stage(width=width, depth=2))
    return Architecture(family=family, stem=Stage(width=width), stages=stages)


def lookup(
    cache: Cache | None = None, engine: str = "litert", number: str = "int8", **options: object
) -> Lookup:
    deployment = Deployment(engine=engine, number=number)  # type: ignore[arg-type]
    return Lookup(deployment, HERE, Target.detect(), cache, rule=QUICK, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [PICTURE, SIGNAL], ids=["picture", "signal"])
@pytest.mark.parametrize("engine", ["litert", "onnxruntime"])
def test_the_sizes_of_blocks_add_up_to_the_file_of_the_network(engine: str, shape: Shape) -> None:
    table = lookup(engine=engine)
    for family in FAMILIES:
        blocks = network(family).blocks(shape, 10)
        (whole,) = table.measured([Piece(blocks=blocks, shape=shape)])
        assert table.price(blocks, shape).size_bytes == pytest.approx(whole.size_bytes, rel=0.2), family


def test_a_price_is_the_sum_of_what_was_measured(tmp_path: Path) -> None:
    table, blocks = lookup(Cache(tmp_path)), network("resnet").blocks(PICTURE, 10)
    price = table.price(blocks, PICTURE)
    (first,), *pairs = pieces_of(blocks, PICTURE)
    known = {piece: Cache(tmp_path).found(table.key(piece), Price) for pair in pairs for piece in pair}
    (start,) = [Cache(tmp_path).found(table.key(first), Price)]
    gaps = [known[full].milliseconds - known[bare].milliseconds for full, bare in pairs]  # type: ignore[union-attr]
    assert start is not None
    assert price.milliseconds == pytest.approx(start.milliseconds + sum(gaps))
    assert price.milliseconds > 0


def test_what_is_known_is_not_measured_again_by_whoever_asks(tmp_path: Path) -> None:
    heard: list[Progress] = []
    one = lookup(Cache(tmp_path), listener=heard.append)
    first = one.price(network("dscnn").blocks(PICTURE, 10), PICTURE)
    assert {event.stage for event in heard} == {"lookup"}
    heard.clear()
    again = lookup(Cache(tmp_path), listener=heard.append)
    assert again.price(network("dscnn").blocks(PICTURE, 10), PICTURE) == first
    assert not heard
    again.price(network("dscnn", 16).blocks(PICTURE, 10), PICTURE)
    assert heard
    heard.clear()
    lookup(Cache(tmp_path), listener=heard.append, batch=4).price(
        network("dscnn").blocks(PICTURE, 10), PICTURE
    )
    assert heard, "another batch is another price"


def test_equal_blocks_of_a_network_are_one_piece() -> None:
    blocks = Architecture(family="plain", stages=(Stage(width=8), Stage(width=8, depth=3))).blocks(
        PICTURE, 10
    )
    pieces = [piece for pair in pieces_of(blocks, PICTURE) for piece in pair]
    assert len(blocks) == 5
    assert (
        len(set(pieces)) == 4
    )  # the first and any other convolution, the classifier, and samples of one shape


def test_an_estimate_has_times_only_where_they_are_measured() -> None:
    counted = Estimator(PICTURE, 10).priced(network("plain"))
    priced = Estimator(PICTURE, 10, lookup()).priced(network("plain"))
    assert counted.latency_ms is None
    assert counted.costs == (counted.macs, counted.size_kb)
    assert priced.latency_ms is not None
    assert (priced.macs, priced.parameters, priced.activation_kb) == (
        counted.macs, counted.parameters, counted.activation_kb,
    )  # fmt: skip
    assert priced.size_kb > counted.size_kb  # a file is more than its parameters
    floats = Estimator(PICTURE, 10, floats=True).counted(network("plain"))
    assert floats.activation_kb == 4 * counted.activation_kb


def test_engines_that_nothing_is_made_for_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="nothing makes that from ONNX"):
        lookup(engine="torchscript").price(network("plain").blocks(PICTURE, 10), PICTURE)
