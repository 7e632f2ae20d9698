"""Two searches compared: what changed, and when a ratio may be given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.config import plain
from farthing.errors import ConfigError, ModelError
from farthing.forge.compare import Comparison, Figure, compare, compared
from farthing.forge.output import read_summary
from farthing.forge.report.changes import render_comparison, sentence
from farthing.measure import Interval
from farthing.recipe import Summary


def figure(found: Comparison, name: str) -> Figure:
    return next(one for one in found.figures if one.name == name)


def slower(summary: Summary, factor: float, numbers: set[int]) -> Summary:
    """The same search with some candidates that took so many times as long."""

    def changed(candidate: Any) -> Any:
        if candidate.number not in numbers or not candidate.measurements:
            return candidate
        single = candidate.measurements["single_stream"]
        single = msgspec.structs.replace(single, p50_ms=single.p50_ms * factor, p90_ms=single.p90_ms * factor)
        return msgspec.structs.replace(
            candidate, measurements={**candidate.measurements, "single_stream": single}
        )

    return msgspec.structs.replace(summary, candidates=tuple(map(changed, summary.candidates)))


def with_winner(summary: Summary, **fields: Any) -> Summary:
    winner = msgspec.structs.replace(summary.candidates[summary.winner], **fields)
    candidates = [*summary.candidates]
    candidates[summary.winner] = winner
    return msgspec.structs.replace(summary, candidates=tuple(candidates))


def test_the_same_search_twice(build: Any) -> None:
    found = compared(build(), build())
    assert found.conditions == ()
    assert found.appeared == found.vanished == found.changed == ()
    assert found.alike == len(build().candidates)
    assert figure(found, "size").verdict == "same"
    assert figure(found, "latency p50").verdict == "cannot tell", "3 % either way is what was measured"
    assert figure(found, "top1, validation").verdict == "same", "it is the same file"
    assert "is still int8 percentile" in sentence(found)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Comparison) == found


def test_speeds_are_held_against_the_baseline_both_have(build: Any) -> None:
    faster = with_winner(build(), speedup=Interval(value=3.0, low=2.9, high=3.1))
    found = figure(compared(build(), faster), "latency p50")
    assert found.verdict == "better"
    assert found.change is not None
    assert found.change.value == pytest.approx(3.0 / 1.53)
    assert found.change.low < 3.0 / 1.53 < found.change.high
    assert figure(compared(faster, build()), "latency p50").verdict == "worse"


def test_another_machine_gives_no_ratio(build: Any) -> None:
    found = compared(build(), build(machine="another machine"))
    for name in ("latency p50", "latency p90", "throughput", "peak memory"):
        one = figure(found, name)
        assert (one.change, one.verdict, one.why) == (None, "", "on different machines"), name
        assert one.before is not None
        assert one.after is not None
    assert figure(found, "size").verdict == "same", "bytes are the same everywhere"
    assert any("machine: test machine" in text for text in found.conditions)
    assert figure(compared(build(machine=""), build(machine="")), "latency p50").change is None


def test_a_machine_in_another_state_gives_no_ratio(build: Any) -> None:
    everything = {candidate.number for candidate in build().candidates}
    found = compared(build(), slower(build(), 1.3, everything))
    assert figure(found, "latency p50").why == "the machine was in another state"
    assert any("1.30 times as long" in text for text in found.conditions)
    assert figure(compared(build(), slower(build(), 1.05, everything)), "latency p50").change is not None


def test_another_model_gives_no_ratio_and_other_data_no_difference(build: Any) -> None:
    other = build()
    base = msgspec.structs.replace(other.candidates[0], model="sha256:other")
    other = msgspec.structs.replace(other, candidates=(base, *other.candidates[1:]))
    found = compared(build(), other)
    assert "no common baseline" in figure(found, "latency p50").why
    assert any("another file" in text for text in found.conditions)
    found = compared(build(), build(samples={"validation": 5, "test": 5}))
    assert figure(found, "top1, validation").why == "on other data"
    assert any(text.startswith("data:") for text in found.conditions)


def test_accuracy_by_its_intervals(build: Any) -> None:
    worse = with_winner(build(), accuracy=Interval(value=0.9, low=0.89, high=0.91))
    one = figure(compared(build(), worse), "top1, validation")
    assert one.verdict == "worse"
    assert one.change is not None
    assert one.change.value == pytest.approx(0.9 - 0.9712)
    errors = {"higher_is_better": False, "metric": "error"}
    lower = msgspec.structs.replace(worse, **errors)
    assert figure(compared(build(**errors), lower), "error, validation").verdict == "better"


def test_candidates_that_came_went_and_changed(build: Any) -> None:
    candidates = list(build().candidates)
    candidates[4] = msgspec.structs.replace(candidates[4], status="rejected", verdict="rejected: 0.9x")
    new = msgspec.structs.replace(candidates[5], name="int8 equalized", number=5)
    second = build(candidates=(*candidates[:5], new, *candidates[6:]))
    found = compared(build(), second)
    assert [one.name for one in found.appeared] == ["int8 equalized"]
    assert [(one.name, one.options) for one in found.vanished] == [("int8 minmax", "2 threads")]
    assert [(one.before, one.after) for one in found.changed] == [("accepted: 1.49x", "rejected: 0.9x")]
    text = sentence(found)
    assert "1 new, 1 gone, 1 with another verdict" in text


def test_another_winner_versions_and_temperature(build: Any) -> None:
    second = build(winner=4, versions={"farthing": "0.1", "onnx": "1"})
    hot = msgspec.structs.replace(second.candidates[4].measurements["single_stream"], temperature_c=80.0)
    second = with_winner(second, measurements={"single_stream": hot})
    first = build()
    cold = msgspec.structs.replace(first.candidates[6].measurements["single_stream"], temperature_c=40.0)
    first = with_winner(first, measurements={"single_stream": cold})
    found = compared(first, second)
    assert "int8 minmax (onnxruntime, 1 thread) wins in place of int8 percentile" in sentence(found)
    assert {"farthing 0.0; then 0.1", "onnx absent; then 1", "temperature: 40 degrees Celsius; then 80"} <= {
        *found.conditions
    }


def written(summary: Summary, place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "result.json").write_bytes(msgspec.json.encode(plain(summary)))
    return place


def test_directories_and_files(build: Any, tmp_path: Path) -> None:
    one, other = written(build(), tmp_path / "one"), written(build(), tmp_path / "other")
    assert compare(one, other / "result.json").alike == 13
    with pytest.raises(ModelError, match="farthing optimize"):
        read_summary(tmp_path)
    with pytest.raises(ModelError, match="no candidate"):
        read_summary(written(build(candidates=()), tmp_path / "empty"))
    (one / "result.json").write_text('{"model_name": 3}')
    with pytest.raises(ConfigError):
        read_summary(one)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.update(winner=99), "names candidate 99 as its winner, of 13"),
        (lambda d: d.update(winner=-1), "names candidate -1 as its winner"),
        (lambda d: d["candidates"].pop(0), "does not number its candidates from 0"),
        (lambda d: d["candidates"][3]["speedup"].update(value=0.0), "candidate 3 a time or a speed"),
        (
            lambda d: d["candidates"][0]["measurements"]["single_stream"].update(p50_ms=-1.0),
            "candidate 0 a time",
        ),
        (
            lambda d: d["candidates"][0]["measurements"]["single_stream"].update(throughput=0),
            "candidate 0 a time",
        ),
    ],
)
def test_figures_that_cannot_be_are_refused_by_name(
    build: Any, tmp_path: Path, spoil: Any, message: str
) -> None:
    place = written(build(), tmp_path / "one")
    data = msgspec.json.decode((place / "result.json").read_bytes())
    spoil(data)
    (place / "result.json").write_bytes(msgspec.json.encode(data))
    with pytest.raises(ModelError, match=message):
        compare(place, written(build(), tmp_path / "other"))


def test_a_result_of_another_version_says_so(build: Any, tmp_path: Path) -> None:
    place = written(build(versions={"farthing": "9.7.0"}), tmp_path / "one")
    data = msgspec.json.decode((place / "result.json").read_bytes())
    (place / "result.json").write_bytes(msgspec.json.encode({**data, "colour": "green"}))
    with pytest.raises(ConfigError, match=r"'colour'.*it was written by Farthing 9\.7\.0, and this is"):
        read_summary(place)
    (place / "result.json").write_bytes(msgspec.json.encode({**data, "colour": 1, "versions": {}}))
    with pytest.raises(ConfigError, match=r"'colour'.*winner$"):
        read_summary(place)


def test_the_page_escapes_and_loads_nothing(build: Any) -> None:
    hostile = "</style><img src=x onerror=alert(1)>"
    second = build(
        machine=hostile,
        model_name=hostile,
        task_name=hostile,
        candidates=tuple(
            msgspec.structs.replace(c, name=hostile, verdict=hostile) for c in build().candidates
        ),
    )
    text = render_comparison(compared(build(), second, "a", hostile))
    assert "<img" not in text
    assert "<script" not in text
    assert "default-src 'none'" in text
    page = render_comparison(compared(build(), build(machine="elsewhere")))
    assert "on different machines" in page
    assert "41.2" not in page, "the winners' figures, not the baseline's"


@given(st.floats(0.5, 50), st.floats(0.5, 50), st.floats(0.001, 0.3))
def test_turning_the_comparison_round_turns_the_ratio(one: float, other: float, spread: float) -> None:
    from farthing.forge.compare import _ratio

    first, second = (Interval(value=v, low=v * (1 - spread), high=v * (1 + spread)) for v in (one, other))
    there, back = _ratio(first, second), _ratio(second, first)
    assert there.value * back.value == pytest.approx(1)
    assert there.low <= there.value <= there.high
    assert there.low * back.high == pytest.approx(1)
