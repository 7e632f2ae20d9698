"""Which of the finalists is chosen."""

from __future__ import annotations

from pathlib import Path

from farthing.forge.families import Architecture, Stage
from farthing.forge.search.estimate import Estimate
from farthing.forge.search.explore import Tried
from farthing.forge.search.finalists import Finalist, Made, best_of, ranked
from farthing.measure import Interval
from farthing.model import Manifest, Model

NET = Architecture(family="plain", stages=(Stage(width=4),))
MODEL = Model(Path(), Manifest(name="none", format="onnx", inputs=(), outputs=()))


def tried(number: int, time: float, size: float, score: float | None = 0.9, refusal: str = "") -> Tried:
    cost = Estimate(macs=1, parameters=1, activation_kb=1.0, size_kb=size, latency_ms=time)
    return Tried(number=number, architecture=NET, estimate=cost, score=score, epochs=1, refusal=refusal)


def made(number: int, time: float, drop: float, refusal: str = "") -> Made:
    interval = Interval(value=drop, low=drop, high=drop)
    one = tried(number, time, 1.0)
    finalist = Finalist(
        tried=one, steps=(), digest="", size_bytes=1, accuracy=interval, drop=interval, refusal=refusal
    )
    return Made(finalist, MODEL, MODEL)


def order(some: list[Made], **options: str) -> list[int]:
    return [one.finalist.tried.number for one in ranked(some, **options)]  # type: ignore[arg-type]


FIELD = [
    made(0, 1.04, 0.002),
    made(1, 1.0, 0.008),
    made(2, 2.0, 0.001),
    made(3, 0.5, 0.2, "too much"),
    made(4, 0.4, 0.1, "too much"),
]


def test_the_fastest_is_chosen_and_of_several_about_as_fast_the_most_accurate() -> None:
    assert order(FIELD) == [0, 1, 2, 4, 3]


def test_the_most_accurate_is_chosen_if_that_is_preferred() -> None:
    assert order(FIELD, prefer="accuracy") == [2, 0, 1, 4, 3]


def test_where_nothing_keeps_the_accuracy_the_most_accurate_is_nearest() -> None:
    assert order(FIELD[3:]) == [4, 3]


def test_only_what_no_other_beats_is_looked_at_and_what_reaches_the_goal_first() -> None:
    field = [
        tried(0, 3.0, 3.0, 0.95),
        tried(1, 2.0, 2.0, 0.93),
        tried(2, 2.0, 2.5, 0.93),
        tried(3, 1.0, 1.0, 0.5),
    ]
    assert [one.number for one in best_of(field, 0.9)] == [1, 0, 3]
    assert [one.number for one in best_of(field, None)] == [0, 1, 3]
