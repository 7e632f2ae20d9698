"""What commands print."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.cli import show
from farthing.measure import Interval, Measurement
from farthing.options import EngineOptions
from farthing.recipe import Candidate, Progress, Summary

FOUND = Measurement(
    model="ab", engine="fake", engine_version="1", options=EngineOptions(), machine="bench",
    scenario="single_stream", runs=200,
    seconds=1.0, p50_ms=0.5, p90_ms=1.25, p99_ms=2.0, throughput=1800.4, size_mb=0.25,
)  # fmt: skip


def test_tables_align_numbers_to_the_right() -> None:
    lines = show.table(["name", "size"], [["a", "1.5"], ["longer", "10.25"]]).splitlines()
    assert lines == ["name     size", "------  -----", "a         1.5", "longer  10.25"]


HEAD = ["name", "size", "speed", "verdict"]
ROWS = [["one", "1.5", "1.00x", "accepted: as fast as ever"], ["two", "10.25", "0.50x", "rejected"]]


def test_a_table_that_is_too_wide_is_folded() -> None:
    lines = show.table(HEAD, ROWS, width=40).splitlines()
    assert lines == [
        "name   size  speed  verdict",
        "----  -----  -----  --------------------",
        "one     1.5  1.00x  accepted: as fast as",
        "                    ever",
        "two   10.25  0.50x  rejected",
    ]
    assert show.table(HEAD, ROWS, width=200) == show.table(HEAD, ROWS)


def test_a_table_that_is_far_too_wide_loses_what_is_least_needed() -> None:
    lines = show.table(HEAD, ROWS, spare=("speed", "size", "absent"), width=30).splitlines()
    assert lines[0] == "name   size  verdict"
    assert "size" not in show.table(HEAD, ROWS, spare=("speed", "size"), width=24)


@given(
    rows=st.lists(st.tuples(*[st.text("ab 1", min_size=1, max_size=40)] * 4), min_size=1, max_size=5),
    width=st.integers(64 + 6, 120),
)
def test_a_folded_table_fits_and_loses_no_word(rows: list[tuple[str, ...]], width: int) -> None:
    rows = [tuple(f"a{cell}" for cell in row) for row in rows]
    lines = show.table(["a", "b", "c", "d"], rows, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert sorted("".join("".join(lines[2:]).split())) == sorted("".join("".join(map("".join, rows)).split()))


def test_only_a_terminal_limits_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    assert show.room() is None
    monkeypatch.setenv("COLUMNS", "33")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert show.room() == 33


def test_sentences_below_a_table_keep_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/a/{'long-' * 12}path"
    found = Summary(
        model_name="m", task_name="t", metric="top1", sentence=f"It is {'much ' * 20}smaller, see {path} for more.",
        met=True, violations=(), notes=("few " * 30,), budget="", winner=0,
        candidates=(Candidate(name="as given", number=0, steps=(), engine="fake", options=EngineOptions()),),
    )  # fmt: skip
    assert found.sentence in show.summary(found)
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    sentences = show.summary(found).partition("It is")[2].splitlines()
    assert max(len(line) for line in sentences if path not in line) <= 50
    assert len(sentences) > 5
    assert any(path in line for line in sentences)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0042, "4.2 us"), (0.5, "500.0 us"), (1.0, "1.00 ms"), (1234.5, "1234.50 ms")],
)
def test_times_take_the_unit_that_reads_best(value: float | None, shown: str) -> None:
    assert show.milliseconds(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(None, "-"), (0.25, "250.0 kB"), (1.0, "1.00 MB")])
def test_sizes_take_the_unit_that_reads_best(value: float | None, shown: str) -> None:
    assert show.megabytes(value) == shown


def test_what_was_not_measured_is_named_so() -> None:
    shown = show.measurement(FOUND)
    assert "energy         unavailable (no meter on this machine)" in shown
    assert "peak memory    not measured" in shown
    assert "latency p90    1.25 ms" in shown


def test_an_interval_shows_its_bounds() -> None:
    assert show.interval(Interval(value=0.5, low=0.25, high=0.75), scale=100, digits=1) == "50.0 (25.0..75.0)"


def test_progress_as_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with show.progress(as_lines_of_json=True) as listener:
        listener(Progress(stage="passes", text="fused", done=1, total=2))
        listener(Progress(stage="done", text="it is done"))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["stage"] for event in events] == ["passes", "done"]
    assert all(event["event"] == "progress" for event in events)


def test_plain_progress_does_not_repeat_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with show.progress(as_lines_of_json=False) as listener:
        for done in range(50):
            listener(Progress(stage="race", text="timing", done=done, total=50))
        listener(Progress(stage="done", text="finished"))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == ["race: timing", "done: finished"]


def test_a_stage_that_counts_says_how_long_it_will_take_yet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 0.0, 30.0, 30.0, 60.0, 60.0, 61.0, 61.0])
    monkeypatch.setattr(show.time, "monotonic", lambda: next(now))
    with show.progress(as_lines_of_json=False) as listener:
        listener(Progress(stage="sensitivity", text="int8", done=1, total=10))
        listener(Progress(stage="sensitivity", text="int8", done=4, total=10))
        listener(Progress(stage="sensitivity", text="int8", done=7, total=10))
        listener(Progress(stage="sensitivity", text="int4", done=1, total=10))
    assert capsys.readouterr().err.splitlines() == [
        "sensitivity: int8",
        "sensitivity: int8, 4 of 10, 1 min 0 s left",
        "sensitivity: int8, 7 of 10, 30.0 s left",
        "sensitivity: int4",
    ]


def searched(count: int, engines: tuple[str, ...] = ("onnxruntime",)) -> Summary:
    around = Interval(value=2.0, low=1.9, high=2.1)
    candidates = [
        Candidate(
            name="baseline" if number == 0 else f"rung {number}", number=number, steps=(),
            engine=engines[number % len(engines)], options=EngineOptions(),
            status="baseline" if number == 0 else "winner" if number == 3 else "rejected",
            over_float=around if number in {0, 3, 5} else None, verdict="why",
        )
        for number in range(count)
    ]  # fmt: skip
    return Summary(
        model_name="m", task_name="t", metric="top1", sentence="It won.", met=True, violations=(), notes=(),
        budget="", winner=3, candidates=tuple(candidates),
    )  # fmt: skip


def test_engines_are_named_where_there_are_several() -> None:
    assert "engine" not in show.summary(searched(6))
    two = show.summary(searched(6, ("litert", "openvino")))
    assert two.splitlines()[0].split()[:2] == ["candidate", "engine"]
    assert "openvino" in two


def test_of_many_candidates_those_that_went_far_are_listed() -> None:
    text = show.summary(searched(40))
    assert "*3 " in text
    assert "rung 5 " in text
    assert "rung 7 " not in text
    assert "(37 more were rejected before the last race: the report lists them)" in text
    assert "more were rejected" not in show.summary(searched(16))
