"""Measurement: never a bare number. The statistics that turn samples into a figure, a bound or "cannot tell"."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.config import Section
from farthing.errors import MeasurementError
from farthing.options import EngineOptions
from farthing.target import BUDGET_NAMES, Budget

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]
Verdict = Literal["better", "worse", "same", "cannot tell"]
Scenario = Literal["single_stream", "multi_stream", "server", "offline"]


class Interval(Section, frozen=True, kw_only=True):
    """A 95 % confidence interval around a value."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g}..{self.high:.4g})"


class Measurement(Section, frozen=True, kw_only=True):
    """What was measured, where and how often. None means not measured or unavailable, never zero.

    Attributes:
        model: digest of the model.
        engine, engine_version, options: what ran it, and how.
        machine: description of the machine.
        scenario: MLPerf scenario (https://github.com/mlcommons/inference): ``single_stream`` feeds one sample
            at a time, ``multi_stream`` a query of several, ``server`` single ones that arrive at random and wait their
            turn, ``offline`` feeds batches as fast as they are taken.
        batch: samples per call, or per query.
        runs: timed calls; ``seconds`` they took together.
        p50_ms, p90_ms, p99_ms: latency of one call, or of one query with its waiting, milliseconds, engine only.
        p90_bound_ms: upper 95 % confidence bound of p90; None if there were too few calls for one.
        throughput: samples per second.
        offered: queries per second that were offered, ``server`` only; ``workers`` answered them.
        load_ms: time to load the model.
        prepare_ms: time to preprocess one sample, beside the latency, not in it.
        peak_memory_mb: peak resident memory of a process that loads and runs the model, MB of 10^6 bytes;
            ``memory_mb`` is what it adds to the bare process.
        size_mb: model files, MB of 10^6 bytes.
        energy_mj: energy of one sample, millijoules; ``energy_source`` names the meter, or says "unavailable".
        temperature_c: the hottest sensor of the machine when the last call was timed, degrees Celsius.
        accuracy: the task's metric with its interval; ``metric``, ``split`` and ``samples`` say which.
        when: time of the measurement, ISO 8601, UTC.
    """

    model: str
    engine: str
    engine_version: str
    options: EngineOptions
    machine: str
    scenario: Scenario
    batch: int = 1
    runs: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p90_bound_ms: float | None = None
    throughput: float
    offered: float | None = None
    workers: int = 1
    load_ms: float | None = None
    prepare_ms: float | None = None
    peak_memory_mb: float | None = None
    memory_mb: float | None = None
    size_mb: float
    energy_mj: float | None = None
    energy_source: str = "unavailable"
    temperature_c: float | None = None
    accuracy: Interval | None = None
    metric: str = ""
    split: str = ""
    samples: int = 0
    when: str = ""

    def merged(self, **figures: Any) -> Measurement:
        """A copy with more figures filled in."""
        return msgspec.structs.replace(self, **figures)


class Figures(Section, frozen=True, kw_only=True):
    """The figures a budget limits, gathered from one or more measurements of a model; None = not measured."""

    accuracy: float | None = None
    accuracy_drop: float | None = None
    latency_ms: float | None = None
    throughput: float | None = None
    peak_memory_mb: float | None = None
    size_mb: float | None = None
    energy_mj: float | None = None


_FIGURE_OF = {"accuracy_min": "accuracy", "throughput_min": "throughput"}


def violations(figures: Figures, budget: Budget) -> tuple[str, ...]:
    """The limits of a budget that figures exceed, a sentence each; a limited figure nobody measured is one too.

    >>> violations(Figures(size_mb=1.5), Budget(size_mb=1))
    ('size_mb is 1.5, the budget is size_mb<=1',)
    """
    found = []
    for name in BUDGET_NAMES:
        limit = getattr(budget, name)
        if limit is None:
            continue
        value = getattr(figures, _FIGURE_OF.get(name, name))
        wanted = Budget(**{name: limit})
        if value is None:
            found.append(f"{name} could not be measured here, the budget is {wanted}")
        elif not within(value, limit, least=name.endswith("_min")):
            found.append(f"{_FIGURE_OF.get(name, name)} is {value:.4g}, the budget is {wanted}")
    return tuple(found)


def within(value: float, limit: float, least: bool) -> bool:
    """Whether a figure keeps a limit; a millionth of slack absorbs rounding. NaN keeps none."""
    slack = 1e-6 * max(1.0, abs(limit))
    return value >= limit - slack if least else value <= limit + slack


def percentile(samples: Floats, share: float) -> float:
    """The ``share`` quantile as an observed value: the smallest that at least that share does not exceed."""
    if samples.size == 0:
        raise MeasurementError("no samples were taken: measure longer")
    ranked = np.sort(samples)
    rank = math.ceil(share * len(ranked) - 1e-9)  # 0.9 * 10 must not round up to 10
    return float(ranked[min(len(ranked), max(rank, 1)) - 1])


def percentile_bound(samples: Floats, share: float) -> float | None:
    """Upper 95 % confidence bound of a quantile by order statistics, distribution-free; None if too few samples.

    The r-th of n ranked values is at or above the quantile q with probability P(Binomial(n, q) < r)
    (Hahn and Meeker, Statistical Intervals, 1991, section 5.2); the normal approximation of the binomial is used.
    """
    n = samples.size
    rank = math.ceil(n * share + 1.645 * math.sqrt(n * share * (1 - share)) + 0.5)
    return None if rank > n else float(np.sort(samples)[rank - 1])


def bootstrap(values: Floats, statistic: Any, rounds: int = 2000, seed: int = 0, block: int = 1) -> Interval:
    """Percentile bootstrap (Efron 1979) of a statistic over the first axis of ``values``.

    Args:
        values: samples along the first axis; columns are resampled together, which keeps pairs together.
        statistic: function of an array ``(rounds, n, ...)`` that reduces axis 1.
        rounds: resamples.
        seed: of the generator: the same samples give the same interval.
        block: samples drawn together, for samples that are correlated in time (circular block bootstrap,
            Politis and Romano 1992).

    Raises:
        MeasurementError: there are no samples.
    """
    if len(values) == 0:
        raise MeasurementError("no samples were taken: measure longer")
    generator = np.random.default_rng(seed)
    n, blocks = len(values), -(-len(values) // block)
    draws = []
    for start in range(0, rounds, 200):
        starts = generator.integers(0, n, (min(200, rounds - start), blocks, 1))
        picks = ((starts + np.arange(block)) % n).reshape(len(starts), -1)[:, :n]
        draws.append(statistic(values[picks]))
    spread = np.concatenate(draws)
    low, high = np.percentile(spread, [2.5, 97.5])
    return Interval(value=float(statistic(values[None])[0]), low=float(low), high=float(high))


SESSION_SPREAD = 0.02
"""Two loads of one model into one runtime differ in speed by up to this share, however long they are timed (memory
layout); no number of rounds shows it, so every interval of a speed ratio is at least this wide either way."""


def ratio_of_medians(pairs: Floats) -> Interval:
    """How many times faster: median of the first column over median of the second, with its 95 % interval.

    Rounds are resampled in blocks, because what disturbs one disturbs the next; and the interval is never narrower
    than `SESSION_SPREAD` either way.

    Args:
        pairs: shape (rounds, 2): times of both candidates in the same interleaved round.
    """

    def statistic(draws: Floats) -> Floats:
        medians = np.median(draws, axis=1)
        return np.asarray(medians[..., 0] / medians[..., 1])

    values = np.asarray(pairs, np.float64)
    found = bootstrap(values, statistic, block=max(1, math.isqrt(len(values))))
    return Interval(
        value=found.value,
        low=min(found.low, found.value * (1 - SESSION_SPREAD)),
        high=max(found.high, found.value * (1 + SESSION_SPREAD)),
    )


def compare(ratio: Interval, margin: float = 0.03) -> Verdict:
    """Read a speed ratio: above 1 is better; an interval that holds both sides of 1 cannot tell.

    ``margin`` is the difference that is called the same: an interval within 1 +- margin.
    """
    if ratio.low > 1:
        return "better"
    if ratio.high < 1:
        return "worse"
    return "same" if ratio.low >= 1 - margin and ratio.high <= 1 + margin else "cannot tell"


def mean_interval(values: Sequence[float] | Floats, groups: Ints | None = None) -> Interval:
    """Mean of per-sample scores with its 95 % interval (normal approximation; Wilson's for 0/1 scores).

    Wilson, J. Am. Stat. Assoc. 22 (1927), keeps the interval honest at 0 and 100 %. A single score that is neither
    says nothing of its spread: its interval is one to either side, or its own size if that is more.

    Args:
        values: one score a sample.
        groups: which samples belong together (views of one photo, windows of one person), a whole number each. Then
            groups are what is independent: the standard error is clustered, with Student's t for their number
            (Cameron and Miller, J. Human Resources 50, 2015), and Wilson's interval takes the samples for as many as
            their error is worth (Korn and Graubard, Survey Methodology 24, 1998), never for more than there are. Where
            all scores are 0 or all 1 nothing shows how alike a group's are: they are taken for one each.

    Raises:
        MeasurementError: there are no scores.
    """
    scores = np.asarray(values, np.float64)
    if not len(scores):
        raise MeasurementError("there are no scores to average: give the split samples")
    n, mean = len(scores), float(np.mean(scores))
    counted = bool(np.isin(scores, (0.0, 1.0)).all())
    if groups is None:
        if not counted:
            half = 1.96 * float(np.std(scores, ddof=1)) / math.sqrt(n) if n > 1 else max(1.0, abs(mean))
            return Interval(value=mean, low=mean - half, high=mean + half)
        return _wilson(mean, n)
    count = len(np.unique(groups))
    if count < 2:
        return _wilson(mean, 0) if counted else _around(mean, max(1.0, abs(mean)))
    error, t = max(_clustered_error(scores, groups), _plain_error(scores)), student(count - 1)
    if not counted:
        return _around(mean, t * error)
    return _wilson(mean, min(n, mean * (1 - mean) / error**2) * (1.96 / t) ** 2 if error else count)


def _around(value: float, half: float) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def _wilson(share: float, n: float) -> Interval:
    """Wilson's interval of a share of n samples; n may be a fraction, and with none anything is possible."""
    if not n:
        return Interval(value=share, low=0.0, high=1.0)
    z2 = 1.96**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = 1.96 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def _plain_error(values: Floats) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _clustered_error(values: Floats, groups: Ints) -> float:
    """Standard error of a mean over samples that are independent only from group to group."""
    _, member = np.unique(groups, return_inverse=True)
    sums = np.bincount(member, values - values.mean())
    return math.sqrt(float((sums**2).sum()) * len(sums) / (len(sums) - 1)) / len(values)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5; to 0.1 % from 3 degrees of freedom).

    >>> round(student(9), 3), round(student(100_000), 3)
    (2.262, 1.96)
    """
    if freedom < 3:
        return (12.706, 4.303)[freedom - 1]
    z, v = 1.959964, float(freedom)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v**power for power, term in enumerate(terms, 1))


def paired_difference(first: Floats, second: Floats, groups: Ints | None = None) -> Interval:
    """Mean of ``first - second`` over the same samples with its 95 % interval.

    For scores that are all 0 or 1 the half width has a floor of one changed sample either way, so that
    equal answers on few samples do not read as certainty.

    Args:
        first, second: one score a sample.
        groups: which samples belong together, as for `mean_interval`.

    Raises:
        MeasurementError: there are no samples.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    gaps = a - b
    if not len(gaps):
        raise MeasurementError("there are no samples to compare: give the split samples")
    n, mean = len(gaps), float(np.mean(gaps))
    counted = bool(np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all())
    floor = 1.0 / n if counted else 0.0
    if groups is None:
        spread = float(np.std(gaps, ddof=1)) if n > 1 else abs(mean)
        return _around(mean, max(1.96 * spread / math.sqrt(n), floor))
    count = len(np.unique(groups))
    if count < 2:
        return _around(mean, max(abs(mean), floor))
    error = max(_clustered_error(gaps, groups), _plain_error(gaps))
    return _around(mean, max(student(count - 1) * error, floor))


def machine_name(cpu: str, cores: int | None) -> str:
    """One line that says where a figure comes from."""
    return f"{cpu or platform.machine()}, {cores or '?'} cores, {platform.system()} {platform.release()}"
