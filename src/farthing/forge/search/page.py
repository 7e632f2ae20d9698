"""The page of a search of networks: what no other beats, how good the predictions were, and all that was tried."""

from __future__ import annotations

from collections.abc import Sequence

from farthing.config import plain
from farthing.forge.search.explore import Tried
from farthing.forge.search.found import Found
from farthing.forge.search.words import prediction, rows, score
from farthing.page.frame import plain_page
from farthing.page.parts import listing, notes, pairs
from farthing.page.scatter import Points, against
from farthing.page.typeset import MISSING, Child, Html, duration, element, noted, number, section


def render(found: Found) -> str:
    """The page as HTML text that needs and loads nothing else."""
    return plain_page(
        f"A network for {found.task_name}",
        "Farthing: architecture search",
        found.sentence,
        _finalists(found),
        _pictures(found),
        _compared(found),
        _tested(found),
        _tried(found),
        notes(found.notes),
        _conditions(found),
    )


def _finalists(found: Found) -> Html:
    words = (
        "No network that was tried is as accurate, as fast and as small as one of these. Accuracy is that of the "
        f"deployed file on validation, in {found.engine if found.raced else 'ONNX Runtime'}. The first was chosen."
    )
    return section(
        "finalists", "What no other beats", element("p", words, class_="quiet"), listing(*rows(found))
    )


def _pictures(found: Found) -> Html:
    timed = any(one.estimate.latency_ms is not None for one in found.tried)
    across = "predicted time, µs" if timed else "multiply-accumulates"
    factor = 1000.0 if timed else 1.0
    percent = 100.0 if found.higher_is_better else -1.0
    upwards = f"{found.metric}, {'%' if found.higher_is_better else 'error'}, as trained"

    def points(name: str, some: Sequence[Tried], place: int) -> Points:
        known = [one for one in some if one.score is not None]
        return Points(
            name,
            [
                (
                    one.estimate.costs[place] * (factor if place == 0 else 1.0),
                    (one.score or 0.0) * percent,
                    f"{one.architecture}: {number((one.score or 0.0) * percent)}",
                )
                for one in known
            ],
        )

    best = {finalist.tried.number for finalist in found.finalists}
    every = [
        ("no other beats them", [one for one in found.tried if one.number in best]),
        ("trained to the end", [one for one in found.tried if one.finished and one.number not in best]),
        ("given up", [one for one in found.tried if not one.finished]),
    ]
    groups = [group for group in every if group[1]]
    charts = [
        against("Accuracy and time", across, upwards, [points(*group, 0) for group in groups]),
        against("Accuracy and size", "predicted size, kB", upwards, [points(*group, 1) for group in groups]),
    ]
    return section("pictures", "All networks that were tried", element("div", *charts, class_="charts"))


def _compared(found: Found) -> Html:
    if not found.raced:
        return Html("")
    body: list[list[Child]] = [
        [
            element("bdi", one.name),
            f"{one.engine}, {one.number}",
            number(one.size_mb * 1000),
            number(1000 * one.single.p50_ms),
            number(1000 * one.single.p90_ms),
            number(one.offline.throughput),
            f"{number(one.speedup.value)}×",
            f"{number(one.offline_speedup.value)}×",
        ]
        for one in (*found.baselines, *found.raced)
    ]
    heads = ["", "runs in", "kB", "p50, µs", "p90, µs", "samples/s", "faster", "in batches"]
    words = (
        "Timed together, interleaved, one thread; factors are over the fastest float32 form of "
        f"{found.model_name or 'the same network'}. {prediction(found)}"
    )
    return section("compared", "Timed whole", element("p", words, class_="quiet"), listing(heads, body))


def _tested(found: Found) -> Html:
    if found.test is None:
        return Html("")
    drop = f"; below {found.model_name} by {found.test_drop}, paired" if found.test_drop else ""
    words = f"{score(found, found.test)}, {found.metric} {found.test}{drop}, with 95 % intervals."
    return section("tested", "The one look at the test split", element("p", words))


def _tried(found: Found) -> Html:
    body: list[list[Child]] = [
        [
            noted(str(one.architecture), str(one.number)),
            MISSING if one.score is None else number(one.score * (100 if found.higher_is_better else -1), 4),
            str(one.epochs),
            MISSING if one.estimate.latency_ms is None else number(1000 * one.estimate.latency_ms),
            number(one.estimate.size_kb),
            f"{one.estimate.macs:,}",
            one.refusal,
        ]
        for one in found.tried
    ]
    heads = ["network", "score as trained", "epochs", "predicted µs", "predicted kB", "MACs", ""]
    return section("tried", "Trials", listing(heads, body))


def _conditions(found: Found) -> Html:
    limits = ", ".join(f"{name} {limit:g}" for name, limit in plain(found.limits).items() if limit)
    facts = [
        ("Task", f"{found.task_name}, {found.metric}"),
        ("Teacher", found.model_name or "none"),
        ("Runs in", f"{found.engine}, {found.number}, for {found.target}"),
        ("Limits", f"drop {found.accuracy_drop:g}{', ' if limits else ''}{limits}"),
        (
            "Training",
            f"{found.schedule.epochs} epochs, seed {found.schedule.seed}, augment {found.schedule.augment}",
        ),
        ("Machine", found.machine),
        ("Versions", ", ".join(f"{name} {version}" for name, version in found.versions.items())),
        ("When", f"{found.when}, {duration(found.seconds)}"),
        ("Again", found.command),
    ]
    return section("conditions", "Conditions", pairs(facts))
