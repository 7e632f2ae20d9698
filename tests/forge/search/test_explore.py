"""Who is tried, in which order, by how many processes, and what is left of it all when they are killed."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import toy
from msgspec.structs import replace

from farthing.errors import ConfigError, TrainingError
from farthing.forge.search.estimate import Limits
from farthing.forge.search.explore import Tried
from farthing.forge.search.halving import Standing, front

SCRIPT = Path(toy.__file__)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Tried]:
    return toy.explorer(tmp_path_factory.mktemp("search")).run()


def test_as_many_networks_as_wanted_are_tried_all_different_and_within_the_limits(
    undisturbed: list[Tried],
) -> None:
    assert len(undisturbed) == toy.PLAN.trials
    assert len({str(one.architecture) for one in undisturbed}) == toy.PLAN.trials
    assert max(one.estimate.macs for one in undisturbed) <= 3e5
    assert [one.number for one in undisturbed] == sorted(one.number for one in undisturbed)


def test_most_are_given_up_early_but_none_that_no_other_beats(undisturbed: list[Tried]) -> None:
    given_up = [one for one in undisturbed if one.refusal]
    assert given_up
    assert all(one.epochs < toy.PLAN.epochs and "for the same price" in one.refusal for one in given_up)
    final = [
        Standing(toy.score((one.architecture, toy.PLAN.epochs)), one.estimate.costs) for one in undisturbed
    ]
    assert all(undisturbed[place].finished for place in front(final))


def test_the_same_seed_tries_the_same_and_another_seed_others(
    tmp_path: Path, undisturbed: list[Tried]
) -> None:
    assert toy.words(toy.explorer(tmp_path / "again").run()) == toy.words(undisturbed)
    other = toy.explorer(tmp_path / "other", replace(toy.PLAN, seed=1)).run()
    assert toy.words(other) != toy.words(undisturbed)


def test_a_search_that_is_over_is_not_begun_anew_and_more_trials_go_on_from_it(
    tmp_path: Path, undisturbed: list[Tried]
) -> None:
    few = toy.explorer(tmp_path, replace(toy.PLAN, trials=6)).run()
    assert toy.words(few) == toy.words(undisturbed)[:6]
    trained: list[str] = []
    assert toy.words(toy.explorer(tmp_path, seen=trained.append).run()) == toy.words(undisturbed)
    assert trained == [str(one.architecture) for one in undisturbed[6:]]


def test_killed_at_any_moment_it_goes_on_to_the_same_networks(
    tmp_path: Path, undisturbed: list[Tried]
) -> None:
    moments, kills = random.Random(0), 0
    while True:
        command = [sys.executable, SCRIPT, tmp_path, "0.03"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            seen = _until(process, tmp_path / "study.journal", moments.randrange(4, 30))
        if seen:
            break
        kills += 1
    assert kills >= 3
    assert json.loads(seen)["tried"] == toy.words(undisturbed)


def _until(process: subprocess.Popen[str], journal: Path, lines: int) -> str:
    """Let it write so many lines, then kill it; what it printed if it came to its end before."""
    start = _lines(journal)
    while _lines(journal) < start + lines:
        try:
            return process.communicate(timeout=0.01)[0]
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    return ""


def _lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def test_several_processes_share_the_trials(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, SCRIPT, tmp_path, "0.05"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    first, second = (json.loads(process.communicate(timeout=120)[0]) for process in processes)
    assert first["tried"] == second["tried"]
    trained = first["trained"] + second["trained"]
    assert len(trained) == len(set(trained)) == toy.PLAN.trials
    assert first["trained"]
    assert second["trained"]


def test_a_trial_that_another_process_ends_just_now_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = toy.explorer(tmp_path)
    with ExitStack() as theirs:
        taken = other._take(theirs)
        assert taken is not None
        trained: list[str] = []
        mine = toy.explorer(tmp_path, replace(toy.PLAN, trials=2), seen=trained.append)
        held = mine._hold

        def ended(number: int, stack: ExitStack) -> bool:
            if number == taken.number:  # between the look at the list and the look at the lock
                other._try(taken)
                theirs.close()
            return held(number, stack)

        monkeypatch.setattr(mine, "_hold", ended)
        assert len(mine.run()) == 2
    assert str(taken.architecture) not in trained


def test_limits_that_nothing_keeps_are_named(tmp_path: Path) -> None:
    plan = replace(toy.PLAN, limits=Limits(macs=10, size_kb=1))
    with pytest.raises(ConfigError, match=r"keeps the limits \(macs 10, size_kb 1\)"):
        toy.explorer(tmp_path, plan).run()


def test_a_space_that_is_used_up_ends_the_search(tmp_path: Path) -> None:
    space = replace(
        toy.PLAN.space, families=("plain",), widths=(4, 8), stages=(2,), growths=(1.0,), depths=(1,), kernels=(3,),
        strides=(2,), poolings=("average",),
    )  # fmt: skip
    assert len(toy.explorer(tmp_path, replace(toy.PLAN, space=space)).run()) == 2


def test_the_time_ends_a_search_within_a_training_and_the_next_one_goes_on(
    tmp_path: Path, undisturbed: list[Tried]
) -> None:
    begun: list[str] = []
    found = toy.explorer(tmp_path, seen=begun.append, clock=lambda: 2000.0 * len(begun), hours=1.0).run()
    assert toy.words(found) == toy.words(undisturbed)[:1]
    assert begun[1:] == [str(undisturbed[1].architecture)], "the second one was left as it was"
    assert toy.words(toy.explorer(tmp_path, seen=begun.append).run()) == toy.words(undisturbed)
    assert begun[2] == begun[1]


def test_however_little_the_time_one_network_is_trained_to_its_end(tmp_path: Path) -> None:
    seconds = itertools.count()
    found = toy.explorer(tmp_path, clock=lambda: next(seconds), hours=1e-6).run()
    assert [one.finished for one in found] == [True]


def test_a_training_that_fails_is_a_trial_that_is_not_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def diverging(module: object, done: bool, score: Callable[[object], float] = toy.score) -> float:
        if next(calls) == 0:
            raise TrainingError("the loss is no longer a number")
        return score(module)

    monkeypatch.setattr(toy, "score", diverging)
    found = toy.explorer(tmp_path).run()
    assert [one.refusal for one in found if one.score is None] == ["the loss is no longer a number"]
    assert len(found) == toy.PLAN.trials
