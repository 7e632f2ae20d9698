"""The analysis as a whole: what it finds on networks whose weak place is known, as data and as a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from farthing.config import plain
from farthing.errors import ConfigError, EngineError, UnsupportedError
from farthing.forge.evaluate import Judge
from farthing.forge.fuse import Fuse
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.sensitivity import PRECISIONS, Sensitivity, sensitivity
from farthing.forge.sensitivity.page import in_words, render
from farthing.forge.timing import Clock, Variant
from farthing.model import Model
from farthing.recipe import Progress
from farthing.target import Target
from farthing.task import Task

VNNI = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def found(scaled: Model, digits_task: Task, cache: Path) -> Sensitivity:
    """Of a network whose tensor between the first two convolutions spans 4^15."""
    return sensitivity(scaled, digits_task, VNNI, cache=cache, scored=2, subset=200)


def test_the_weak_place_is_found_in_every_precision_that_has_it(found: Sensitivity) -> None:
    assert found.precisions == tuple(PRECISIONS)
    kinds = {one.name: one.kind for one in found.operators}
    convolutions = [name for name, kind in kinds.items() if kind == "Conv"]
    for name in ("int8", "int8 per tensor"):
        assert {one.name for one in found.worst(name)[:2]} == set(convolutions[:2])
        worst = found.worst(name)[0].effect(name)
        assert worst is not None
        assert worst.output_sqnr is not None
        assert worst.output_sqnr < 15
        assert worst.drop is not None
        assert worst.drop.value > 0.1


def test_the_metric_is_asked_for_the_worst_only(found: Sensitivity) -> None:
    for name in found.precisions:
        scored = [one.name for one in found.operators if (e := one.effect(name)) and e.drop is not None]
        numbers = [one for one in found.worst(name) if (e := one.effect(name)) and e.output_sqnr is not None]
        assert set(scored) <= {one.name for one in found.worst(name)[:2]}
        assert len(scored) == 2 or len(numbers) < len(found.worst(name))
    assert found.subset == 200
    assert [one.precision for one in found.whole] == ["float32", *found.precisions]
    drops = {one.precision: one.drop for one in found.whole}
    assert drops["float32"] is not None
    assert drops["float32"].value == 0
    assert drops["int8"] is not None
    assert drops["int8"].value > 0.1


def test_what_overflows_is_no_number_and_has_no_metric(found: Sensitivity) -> None:
    """Values up to 4^15 are more than float16 holds; the metric of NaN is not asked for."""
    worst = found.worst("float16")[0].effect("float16")
    assert worst is not None
    assert (worst.output_sqnr, worst.drop) == (None, None)


def test_the_mixture_is_the_least_that_keeps_the_limit(
    found: Sensitivity, scaled: Model, digits_task: Task
) -> None:
    mixture = found.mixture
    assert mixture is not None
    assert mixture.met
    assert mixture.samples == 400, "the whole validation split"
    assert len(mixture.floats) == 2
    assert in_words(mixture) == "int8 keeps the limit with 2 of 4 operators in float."
    model = Fuse()(scaled, VNNI, digits_task)
    again = StaticInt8(exclude=mixture.floats)(model, VNNI, digits_task)
    assert again.manifest.quantization is not None
    assert again.manifest.quantization.excluded == mixture.floats


def test_a_limit_that_int8_keeps_needs_no_float(cnn: Model, digits_task: Task, cache: Path) -> None:
    found = sensitivity(cnn, digits_task, VNNI, precisions=["int8"], scored=0, cache=cache)
    assert found.mixture is not None
    assert (found.mixture.floats, found.mixture.quantized, found.mixture.tried) == ((), 4, 1)
    assert all(effect.drop is None for one in found.operators for effect in one.effects)
    none = sensitivity(cnn, digits_task, VNNI, precisions=["float16"], scored=0, limit=0.0, cache=cache)
    assert none.mixture is None, "float16 has no mixture with int8"


def test_a_limit_that_nothing_keeps_is_said_to_be_so(scaled: Model, digits_task: Task, cache: Path) -> None:
    """Weights in float too, but for one operator: the first convolution's range ruins everything."""
    model = scaled
    found = sensitivity(model, digits_task, VNNI, precisions=["int8"], scored=0, limit=0.0, cache=cache)
    assert found.mixture is not None
    assert found.mixture.met == (found.mixture.drop.value <= 0)
    if not found.mixture.met:
        assert len(found.mixture.floats) == 3
        assert "does not keep the limit, even with 3 of 4" in in_words(found.mixture)


def test_a_second_look_computes_nothing(
    scaled: Model, digits_task: Task, cache: Path, found: Sensitivity, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Progress] = []

    def look() -> Sensitivity:
        asked: dict[str, Any] = {"precisions": ["int8", "int4 weights"], "scored": 2, "subset": 200}
        seen = sensitivity(scaled, digits_task, VNNI, cache=cache, listener=heard.append, **asked)
        return msgspec.structs.replace(seen, when="", seconds=0)

    first = look()
    monkeypatch.setattr(Judge, "_compute", None)
    heard.clear()
    assert look() == first
    assert not [event for event in heard if event.total and "operator by operator" in event.text]


def test_interrupted_it_goes_on_where_it_was(
    scaled: Model, digits_task: Task, tmp_path: Path, found: Sensitivity
) -> None:
    def stop(event: Progress) -> None:
        if event.text.startswith("the metric, by single operators") and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sensitivity(scaled, digits_task, VNNI, cache=tmp_path, scored=2, subset=200, listener=stop)
    heard: list[Progress] = []
    again = sensitivity(
        scaled, digits_task, VNNI, cache=tmp_path, scored=2, subset=200, listener=heard.append
    )
    assert not [event for event in heard if event.total and "operator by operator" in event.text]
    assert again.operators == found.operators


def test_a_precision_whose_model_crashes_the_engine_is_noted(
    cnn: Model, digits_task: Task, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(clock: Clock, variant: Variant, model: Model) -> None:
        raise EngineError("it ended with SIGSEGV")

    monkeypatch.setattr(Clock, "trial", crash)
    found = sensitivity(cnn, digits_task, VNNI, precisions=["float16"], scored=0, cache=cache)
    assert [one.precision for one in found.whole] == ["float32"]
    assert found.notes == ("the model in float16 could not be looked at: it ended with SIGSEGV.",)
    assert found.operators


def test_it_is_plain_data(found: Sensitivity) -> None:
    assert msgspec.json.decode(msgspec.json.encode(plain(found)), type=Sensitivity) == found


def test_the_page_shows_every_operator_and_escapes_what_others_wrote(found: Sensitivity) -> None:
    page = render(msgspec.structs.replace(found, model_name="<script>alert(1)</script>"))
    assert "<script" not in page
    assert "default-src 'none'" in page
    for one in found.operators:
        assert page.count(one.name) >= 2, "in a picture and in the table"
    assert page.count("<circle") == 2 * sum(
        value is not None for one in found.operators for e in one.effects for value in (e.own_sqnr,)
    )
    assert "2 of 4 operators in float" in page
    assert re.search(r"<code>/0/Conv</code>|<code>/3/Conv</code>", page)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precisions": ["int7"]}, "no precision is called 'int7'; did you mean 'int8'"),
        ({"precisions": []}, "there is nothing to look at"),
        ({"samples": 0}, "samples and subset are from 1"),
        ({"subset": 0}, "samples and subset are from 1"),
        ({"scored": -1}, "scored from 0"),
        ({"limit": -0.1}, "the limit is what the metric may lose"),
        ({"limit": float("nan")}, "the limit is what the metric may lose"),
    ],
    ids=str,
)
def test_what_means_nothing_is_refused(
    options: dict[str, Any], words: str, cnn: Model, digits_task: Task, cache: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        sensitivity(cnn, digits_task, VNNI, cache=cache, **options)


def test_a_quantized_model_is_refused(cnn: Model, digits_task: Task, cache: Path) -> None:
    int8 = StaticInt8()(Fuse()(cnn, VNNI, digits_task), VNNI, digits_task)
    with pytest.raises(UnsupportedError, match="quantized already: give the float model"):
        sensitivity(int8, digits_task, VNNI, cache=cache)
