"""What a search of networks found, in sentences and rows for people: the page and the terminal share them."""

from __future__ import annotations

from farthing.forge.search.found import Found, Raced
from farthing.measure import Interval
from farthing.page.typeset import MISSING, count, number, signed


def sentence(found: Found) -> str:
    """The outcome."""
    first = found.finalists[0]
    tried = count(len(found.tried), "network")
    about = f"{first.tried.architecture}{_gains(found)}"
    lost = f"; {score(found, first.accuracy)} on validation{_change(found, first.drop)}"
    if found.met:
        return f"Of {tried}, {about}{lost}."
    return (
        f"None of {tried} keeps what was asked; nearest comes {about}{lost}: {'; '.join(found.violations)}."
    )


def _gains(found: Found) -> str:
    """How much smaller and faster the first finalist is than the best float32 form of what it is compared with."""
    if not found.raced or not found.baselines:
        return ""
    first, size = found.raced[0], min(base.size_mb for base in found.baselines)
    what = found.model_name or "the same network in float32"
    ratio, single, offline = size / first.size_mb, first.speedup.value, first.offline_speedup.value
    return (
        f": {number(ratio)} times smaller than {what}, {number(single)} times faster one at a time and "
        f"{number(offline)} times in batches of {first.offline.batch}"
    )


def _change(found: Found, drop: Interval) -> str:
    if not found.model_name:
        return ""
    share = found.higher_is_better
    value = signed((-100 if share else 1) * drop.value, 2 if share else 4)
    return f" ({value}{' points' if share else ''})"


def score(found: Found, value: Interval | None) -> str:
    """A value of the metric."""
    if value is None:
        return MISSING
    return f"{100 * value.value:.2f} %" if found.higher_is_better else f"{value.value:.4g}"


def prediction(found: Found) -> str:
    """How far predicted times were from measured ones; empty if nothing was timed whole."""
    if found.typical_error is None:
        return ""
    worst = max(found.errors, key=abs)
    return (
        f"Predicted times of the finalists, as sums over their blocks, are {100 * found.typical_error:.1f} % from "
        f"those measured whole (median), {100 * abs(worst):.1f} % at most."
    )


def rows(found: Found) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table of the finalists."""
    timed = bool(found.raced)
    heads = ["network", found.metric, "drop", "kB", "parameters", "MACs", "peak kB"]
    heads += ["us", "faster", "in batches"] if timed else []
    found_rows = []
    for place, finalist in enumerate(found.finalists):
        estimate = finalist.tried.estimate
        row = [
            str(finalist.tried.architecture),
            score(found, finalist.accuracy),
            f"{100 * finalist.drop.value:.2f}" if found.higher_is_better else f"{finalist.drop.value:.4g}",
            number(finalist.size_bytes / 1000),
            f"{estimate.parameters:,}",
            f"{estimate.macs:,}",
            number(estimate.activation_kb),
        ]
        found_rows.append(row + (_speeds(found.raced[place]) if timed else []))
    return heads, found_rows


def _speeds(raced: Raced) -> list[str]:
    return [
        number(1000 * raced.single.p50_ms),
        f"{number(raced.speedup.value)}x",
        f"{number(raced.offline_speedup.value)}x",
    ]
