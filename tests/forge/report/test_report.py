from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from farthing.config import plain, to_yaml
from farthing.errors import MeasurementError
from farthing.forge.report import render
from farthing.measure import Figures, Interval
from farthing.options import EngineOptions
from farthing.recipe import Candidate, Recipe, Step, Summary

VOID = {"meta", "input", "br"}
HOSTILE = "</script></style><img src=x onerror=alert(1)>'\"&amp;{{script}}<!--"


class Page(HTMLParser):
    """What a page holds: its elements with their text, by tag; complains about tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for index in self._open:
            self.elements[index][2].append(data)

    def all(self, tag: str, **attributes: str) -> list[str]:
        return [
            "".join(text)
            for name, found, text in self.elements
            if name == tag
            and all(value in (found.get(key.rstrip("_")) or "").split() for key, value in attributes.items())
        ]

    def text(self, tag: str, **attributes: str) -> str:
        return " ".join(" ".join(self.all(tag, **attributes)).split())

    @property
    def plot(self) -> dict[str, Any]:
        return json.loads(self.all("script", id="plot-data")[0])


def shown(summary: Summary, recipe: Recipe) -> Page:
    return Page(render(summary, recipe))


def test_the_page_says_what_was_found(build, recipe) -> None:
    summary = build()
    page = shown(summary, recipe)
    assert page.text("h1") == "example-cnn on example-digits"
    assert summary.sentence in page.text("p", class_="verdict")
    assert page.text("strong", class_="badge") == "Budget met"
    hero = page.text("ul", class_="hero")
    assert "1.53× the speed, one sample at a time" in hero
    assert "1.71×" in hero
    assert "3.90× smaller" in hero
    assert "413 kB to 106 kB" in hero.replace("\xa0", " ")
    assert "−0.20" in hero
    comparison = page.text("section", class_="comparison").replace("\xa0", " ")
    for piece in (
        "41.2 µs",
        "26.9 µs",
        "1.48 to 1.58×",
        "97.12 %",
        "96.14 to 97.66 %",
        "unavailable",
        "65,267",
    ):
        assert piece in comparison
    assert "2,000 samples" in page.text("section", class_="test")
    assert "Made-up figures" in page.text("section", class_="notes")
    conditions = page.text("section", class_="conditions")
    assert "test machine, 2 cores" in conditions
    assert "2 min 31 s" in conditions
    assert "validation 1,000" in conditions


def test_every_limit_of_the_budget_has_its_verdict(build, recipe) -> None:
    summary = build(budget="accuracy_drop<=0.001, latency_ms<=0.05, throughput_min>=100000, energy_mj<=1")
    page = shown(summary, recipe)
    states = [
        element[1]["class"] for element in page.elements if "state" in (element[1].get("class") or "").split()
    ]
    assert states == ["state exceeded", "state kept", "state exceeded", "state unknown"]
    words = page.text("table", class_="limits")
    assert "could not be measured" in words
    assert "missed" in words
    assert "(test)" in words


def test_a_limit_that_only_the_test_data_break_is_exceeded(build, recipe) -> None:
    page = shown(build(budget="accuracy_drop<=0.0018"), recipe)  # validation 0.0016, test 0.002
    assert "exceeded" in page.text("table", class_="limits")


def test_a_limit_that_too_few_samples_cannot_show_is_not_called_kept(build, recipe) -> None:
    words = "cannot tell whether accuracy_drop<=0.01 holds: one of 50 samples is 2.00 points"
    page = shown(build(budget="accuracy_drop<=0.01", met=False, violations=(words,)), recipe)
    table = page.text("table", class_="limits")
    assert "cannot tell" in table
    assert "kept" not in table
    assert words in page.text("ul", class_="violations")
    assert page.text("strong", class_="badge") == "Budget not met"


def test_all_candidates_are_listed_and_the_timed_ones_plotted(build, recipe) -> None:
    summary = build()
    page = shown(summary, recipe)
    rows = [e for e in page.elements if e[0] == "tr" and re.fullmatch(r"c\d+", e[1].get("id") or "")]
    assert [e[1]["id"] for e in rows] == [f"c{c.number}" for c in summary.candidates]
    assert {p["n"] for p in page.plot["points"]} == {
        c.number for c in summary.candidates if c.figures.latency_ms
    }
    winner = next(p for p in page.plot["points"] if p["status"] == "winner")
    assert winner["verdict"] == "winner: 1.53x"
    assert winner["accuracy"] == [97.12, 96.4, 97.84]
    assert winner["latency"] == pytest.approx(30.16, abs=0.01)
    assert page.plot["limits"]["latency"] == 50
    assert page.plot["limits"]["accuracy"] == pytest.approx(96.28)


def test_steps_name_the_options_that_tell_candidates_apart(build, recipe) -> None:
    table = shown(build(), recipe).text("table", id="all").replace("\u200b", "")
    assert "fuse, static(calibrator=percentile), compact" in table
    assert "samples=" not in table, "all have the same"
    first, *rest = build().candidates
    fewer = Step(
        use="quantize.static.v1", options={"calibrator": "x" * 99, "samples": 9, "exclude": ["a", "b"]}
    )
    candidates = (first, msgspec.structs.replace(rest[0], steps=(fewer,)), *rest[1:])
    table = shown(build(candidates=candidates), recipe).text("table", id="all").replace("\u200b", "")
    assert "samples=9, 2 exclude" in table
    assert "static(calibrator=percentile, samples=256), compact" in table
    assert "x" * 60 not in table


def test_what_was_not_taken_is_listed_with_its_reason(build, recipe) -> None:
    page = shown(build(), recipe)
    rest = page.text("section", class_="rest")
    for candidate in build().candidates:
        if candidate.status in ("accepted", "rejected", "failed"):
            assert candidate.name in rest
            assert candidate.verdict in rest
    assert "winner" not in rest


def test_nothing_hostile_gets_out_of_its_place(build, recipe) -> None:
    plain_tags = [e[0] for e in shown(build(), recipe).elements]
    summary = build(
        model_name=HOSTILE,
        task_name=HOSTILE,
        metric=HOSTILE,
        sentence=HOSTILE,
        notes=(HOSTILE,),
        violations=(HOSTILE,),
        met=False,
        budget=HOSTILE,
        machine=HOSTILE,
        versions={HOSTILE: HOSTILE},
        command=HOSTILE,
        when=HOSTILE,
        samples={HOSTILE: 3},
        candidates=tuple(
            msgspec.structs.replace(
                c,
                name=HOSTILE,
                verdict=HOSTILE,
                engine=HOSTILE,
                steps=(Step(use=HOSTILE, options={HOSTILE: HOSTILE, "list": [HOSTILE]}),),
            )
            for c in build().candidates
        ),
    )
    text = render(summary, msgspec.structs.replace(recipe, engine=HOSTILE))
    page = Page(text)
    tags = [e[0] for e in page.elements]
    assert "img" not in tags
    assert tags.count("script") == plain_tags.count("script") == 2
    assert tags.count("style") == 1
    assert not [key for e in page.elements for key in e[1] if key.startswith("on")]
    assert page.plot["points"][0]["name"] == HOSTILE
    assert HOSTILE in page.all("h1")[0]
    assert HOSTILE in page.all("p", class_="verdict")[0]


def test_the_page_loads_nothing(build, recipe) -> None:
    text = render(build(), recipe)
    page = Page(text)
    policy = next(
        e[1]["content"] or "" for e in page.elements if e[1].get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    links = [
        e[1][key] for e in page.elements for key in ("src", "href", "action", "srcset", "data") if key in e[1]
    ]
    assert all(link and link.startswith("#") for link in links)
    assert not [e for e in page.elements if "style" in e[1]], "the policy would ignore a style attribute"
    outside = set(re.findall(r"https?://[^\s\"'<]+", text)) - {"http://www.w3.org/2000/svg"}
    assert outside == set()
    assert "@import" not in text
    assert "url(" not in text


def test_links_and_labels_lead_to_ids_that_are_there_once(build, recipe) -> None:
    page = shown(build(extra=5), recipe)
    ids = [e[1]["id"] for e in page.elements if "id" in e[1]]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in page.elements:
        for key in ("aria-labelledby", "aria-describedby"):
            assert key not in attributes or attributes[key] in ids
        if "href" in attributes:
            assert (attributes["href"] or "")[1:] in ids


def test_without_timings_there_is_a_table_and_no_plot(build, recipe) -> None:
    candidates = tuple(
        msgspec.structs.replace(
            c,
            measurements={},
            speedup=None,
            offline_speedup=None,
            figures=Figures(size_mb=c.figures.size_mb, accuracy=c.figures.accuracy),
        )
        for c in build().candidates
    )
    page = shown(build(candidates=candidates), recipe)
    assert page.all("svg") == []
    assert page.plot["points"] == []
    assert "int8 percentile" in page.text("table", id="all")


def test_without_a_test_split_it_says_so(build, recipe) -> None:
    page = shown(build(test=None), recipe)
    assert "no test split" in page.text("section", class_="test")
    assert "validation data" in page.text("ul", class_="hero")


def test_a_model_that_stays_as_it_is(build, recipe) -> None:
    page = shown(build(winner=0, sentence="Nothing tried beats the model as it is."), recipe)
    assert "The model as it is" in page.all("h2")
    assert page.text("table", class_="alone").count("Change") == 0
    assert [p["status"] for p in page.plot["points"] if p["n"] == 0] == ["baseline"]


def test_a_search_that_tried_nothing_and_knows_nothing(recipe) -> None:
    only = Candidate(
        name="baseline", number=0, steps=(), engine="fake", options=EngineOptions(), status="baseline"
    )
    summary = Summary(
        model_name="m",
        task_name="t",
        metric="top1",
        sentence="Nothing.",
        met=True,
        violations=(),
        notes=(),
        budget="",
        winner=0,
        candidates=(only,),
    )
    page = shown(summary, recipe)
    assert "No limits." in page.text("section", class_="budget")
    assert "called from Python" in page.text("section", class_="again")


def test_no_candidate_at_all_is_an_error(build, recipe) -> None:
    with pytest.raises(MeasurementError, match="run the search again"):
        render(build(candidates=()), recipe)


def test_sizes(build, recipe) -> None:
    assert len(render(build(extra=17), recipe).encode()) < 150_000  # 30 candidates
    sixty = build(extra=47)
    assert len(sixty.candidates) == 60
    page = shown(sixty, recipe)
    assert len(page.plot["points"]) == 57


def test_the_recipe_and_the_command_can_be_copied_as_they_are(build, recipe) -> None:
    page = shown(build(), recipe)
    command, text = page.all("code")
    assert command == build().command
    assert text == to_yaml(recipe).rstrip()


def test_an_error_metric_is_plain_and_rising_is_worse(build, recipe) -> None:
    def turned(c: Candidate) -> Candidate:
        if c.accuracy is None or c.drop is None:
            return c
        value = 0.31 + c.drop.value
        accuracy = Interval(value=value, low=value - 0.01, high=value + 0.01)
        return msgspec.structs.replace(
            c, accuracy=accuracy, figures=msgspec.structs.replace(c.figures, accuracy=value)
        )

    candidates = tuple(map(turned, build().candidates))
    for name in ("error", "pinball"):  # one of ours, and a user's own
        page = shown(build(metric=name, higher_is_better=False, test=None, candidates=candidates), recipe)
        assert page.plot["y"]["accuracy"]["better"] == "low"
        assert "+0.0016" in page.text("ul", class_="hero")
        assert "%" not in page.text("section", class_="test")


def test_not_a_number_and_infinity_are_shown_as_missing(build, recipe) -> None:
    wide = Interval(value=0.9, low=-math.inf, high=math.inf)
    nan = Interval(value=math.nan, low=math.nan, high=math.nan)
    first, second, *rest = build().candidates
    candidates = (
        msgspec.structs.replace(first, accuracy=wide),
        msgspec.structs.replace(second, accuracy=nan),
        *rest,
    )
    page = shown(build(candidates=candidates), recipe)
    points = {p["n"]: p for p in page.plot["points"]}
    assert points[0]["accuracy"] == [90, None, None]
    assert points[1]["accuracy"] is None
    assert "nan" not in page.text("main").lower()
    assert "inf " not in page.text("main").lower()


def test_a_summary_read_back_gives_the_same_page(build, recipe) -> None:
    again = msgspec.json.decode(msgspec.json.encode(plain(build())), type=Summary)
    assert render(again, recipe) == render(build(), recipe)


def test_it_can_be_written_whatever_names_hold(build, recipe, tmp_path: Path) -> None:
    text = render(build(model_name="a\ud800\x00\x1b[31mb", command="--out \udcff"), recipe)
    (tmp_path / "report.html").write_text(text, "utf-8")
    assert "\x00" not in text
    assert "\x1b" not in text
