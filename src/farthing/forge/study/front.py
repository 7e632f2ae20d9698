"""Which methods no other beats, and who beats the others."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from farthing.forge.verdict import ALIKE
from farthing.recipe import Candidate

ON_FRONT = "on the front"
Worth = tuple[float, float, float]


def front(candidates: Sequence[Candidate]) -> tuple[int, ...]:
    """Numbers of those that no other beats: none loses less, answers sooner and is smaller, or equals them in part."""
    worth = _worth(candidates)
    return tuple(
        number for number, own in worth.items() if not any(_beats(other, own) for other in worth.values())
    )


def placed(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The same with a verdict on each method that was measured: on the front, or by which one there it is beaten."""
    worth, best = _worth(candidates), front(candidates)
    found = []
    for candidate in candidates:
        if candidate.number not in worth or candidate.status == "baseline":
            found.append(candidate)
            continue
        beaten = [n for n in best if _beats(worth[n], worth[candidate.number])]
        verdict = f"beaten by {_called(candidates[beaten[0]])}" if beaten else ON_FRONT
        found.append(replace(candidate, status="accepted", verdict=verdict))
    return tuple(found)


def _called(candidate: Candidate) -> str:
    return f"{candidate.name} in {candidate.engine} with {candidate.options}"


def _worth(candidates: Sequence[Candidate]) -> dict[int, Worth]:
    """Loss of the metric, median latency and size of each that has all three; the less the better."""
    found = {}
    for candidate in candidates:
        single = candidate.measurements.get("single_stream")
        if candidate.drop and single and candidate.figures.size_mb is not None:
            found[candidate.number] = (candidate.drop.value, single.p50_ms, candidate.figures.size_mb)
    return found


def _beats(one: Worth, other: Worth) -> bool:
    """Whether one is worse in nothing and better in something; a few per cent of latency are nothing."""
    (loss, latency, size), (its_loss, its_latency, its_size) = one, other
    no_worse = loss <= its_loss and size <= its_size and latency <= its_latency
    return no_worse and (loss < its_loss or size < its_size or latency < ALIKE * its_latency)
