"""The file that several processes share: what is written stays, what was cut short does no harm."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from farthing.errors import StorageError
from farthing.forge.search.space import Choose
from farthing.forge.search.study import JOURNAL, Study

GOALS = ("maximize", "minimize")


def draw(choose: Choose) -> tuple[int, str]:
    size = choose("size", (1, 2, 4, 8))
    return size, choose("kind", ("a", "b")) if size > 2 else "small"


def study(place: Path, goals: Sequence[str] = GOALS) -> Study:
    return Study(place, goals, seed=0, startup=3)  # type: ignore[arg-type]


def played(place: Path, count: int) -> list[tuple[int, str]]:
    """Proposals, each finished with values that follow from it."""
    one, found = study(place), []
    for _ in range(count):
        proposal = one.propose(draw)
        number = one.begin(proposal, {"made": list(proposal.made)})
        size, kind = proposal.made
        found.append(proposal.made)
        one.note(number, "size", size)
        one.finish(number, (size + (kind == "b"), size**2), excess=max(0.0, size - 4))
    return found


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    made = played(tmp_path, 5)
    trials = study(tmp_path).trials()
    assert [tuple(trial.notes["made"]) for trial in trials] == made
    assert [trial.values for trial in trials] == [(size + (kind == "b"), size**2) for size, kind in made]
    assert [trial.excess for trial in trials] == [max(0.0, size - 4) for size, _ in made]
    assert all(trial.done and trial.notes["size"] == trial.notes["made"][0] for trial in trials)


def test_a_study_that_goes_on_proposes_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    whole = played(tmp_path / "one", 8)
    assert played(tmp_path / "two", 3) + played(tmp_path / "two", 5) == whole


def test_what_is_to_come_first_comes_first_and_once(tmp_path: Path) -> None:
    choices = [{"size": 8, "kind": "b"}, {"size": 1}]
    assert not study(tmp_path).begun
    study(tmp_path).begin_with(choices)
    assert study(tmp_path).begun
    assert study(tmp_path).propose(draw, attempt=1).made != (8, "b")
    assert played(tmp_path, 2) == [(8, "b"), (1, "small")]
    assert len(study(tmp_path).trials()) == 2


def test_a_trial_without_an_end_is_running_and_may_be_finished_by_another_process(tmp_path: Path) -> None:
    one = study(tmp_path)
    number = one.begin(one.propose(draw), {})
    assert [trial.done for trial in study(tmp_path).trials()] == [False]
    study(tmp_path).note(number, "by", "another")
    study(tmp_path).finish(number, (1.0, 2.0))
    (trial,) = study(tmp_path).trials()
    assert (trial.done, trial.values, trial.notes) == (True, (1.0, 2.0), {"by": "another"})


def test_proposals_that_are_not_taken_leave_nothing_behind(tmp_path: Path) -> None:
    whole = played(tmp_path / "one", 6)
    some = played(tmp_path / "two", 3)
    one = study(tmp_path / "two")
    assert len({one.propose(draw, attempt).made for attempt in range(20)}) > 2
    assert len(one.trials()) == 3
    assert some + played(tmp_path / "two", 3) == whole


@pytest.mark.parametrize("seed", range(6))
def test_a_line_cut_short_anywhere_is_as_if_it_had_not_been_begun(tmp_path: Path, seed: int) -> None:
    made = played(tmp_path, 4)
    journal = tmp_path / JOURNAL
    content = journal.read_bytes()
    first = content.index(b"\n") + 1  # the study itself is there
    journal.write_bytes(content[: random.Random(seed).randrange(first, len(content))])
    known = [tuple(trial.notes["made"]) for trial in study(tmp_path).trials()]
    assert known == made[: len(known)]
    more = played(tmp_path, 2)
    assert [tuple(trial.notes["made"]) for trial in study(tmp_path).trials()] == known + more
    assert journal.read_bytes().endswith(b"\n")


def test_a_damaged_file_and_other_goals_are_refused(tmp_path: Path) -> None:
    played(tmp_path, 1)
    with pytest.raises(StorageError, match="other goals"):
        study(tmp_path, ("minimize", "minimize"))
    (tmp_path / JOURNAL).write_bytes(b"no journal\n")
    with pytest.raises(StorageError, match="remove that directory to begin anew"):
        study(tmp_path)


def test_optuna_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    played(tmp_path, 4)
    assert capfd.readouterr() == ("", "")
