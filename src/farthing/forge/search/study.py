"""The memory of a search: trials in a file that several processes share, and that outlives them. Optuna's one user.

Optuna (https://optuna.org, Akiba et al. 2019, https://arxiv.org/abs/1907.10902) proposes what to try: for several goals
at once by its tree-structured Parzen estimator (Ozaki et al. 2022, https://doi.org/10.1613/jair.1.13188). Why Optuna,
and what it brings along, is in docs/adr.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from farthing import files
from farthing.config import Section
from farthing.errors import FarthingError, StorageError, require
from farthing.forge.search.space import Choose, OptionT

Direction = Literal["maximize", "minimize"]
JOURNAL = "study.journal"
FIRST = "first"
NARROWEST, NARROW = 24, 2  # of so many draws for a trait the most promising is taken
WIDE = 150  # attempts after which what came of earlier trials no longer counts
PATIENCE = 60.0  # seconds to wait for another process that writes a line


class Trial(Section, frozen=True, kw_only=True):
    """One thing that is tried.

    Attributes:
        number: of the trial, from 0.
        done: whether it came to an end; if not, the process that runs it may be gone.
        values: what came of it, in the order of the goals; empty unless it is done.
        excess: by how much it breaks what must be kept, 0 if it does not.
        notes: plain data that was noted on the way.
    """

    number: int
    done: bool
    values: tuple[float, ...] = ()
    excess: float = 0.0
    notes: dict[str, Any] = {}


class Proposal(NamedTuple):
    """What might be tried next: what was made, and what was chosen for it, with the options of each trait."""

    made: Any
    choices: dict[str, Any]
    options: dict[str, tuple[Any, ...]]


class Study:
    """Trials towards several goals, in a directory.

    Args:
        place: the directory; a study that is there goes on.
        goals: whether more or less of each value is better.
        seed: what is proposed depends on it and on the trials before, so that one process proposes the same again.
        startup: how many trials are drawn at random before what came of them decides.

    Raises:
        NotInstalled: Optuna is missing.
        StorageError: the directory cannot be used, or the study in it is damaged or has other goals.
    """

    def __init__(self, place: Path, goals: Sequence[Direction], seed: int = 0, startup: int = 10) -> None:
        self._optuna: Any = require("optuna", "search")
        self._optuna.logging.disable_default_handler()  # it would write to standard error
        self._place, self._seed, self._startup = place, seed, startup
        files.make_directory(place)
        with _understood(place):
            self._study = self._optuna.create_study(
                storage=self._optuna.storages.JournalStorage(_backend(place / JOURNAL)),
                study_name="search",
                directions=list(goals),
                load_if_exists=True,
            )
            if [one.name.lower() for one in self._study.directions] != list(goals):
                raise StorageError(f"{place} holds a study with other goals: choose another directory")

    def begin_with(self, choices: Sequence[Mapping[str, Any]]) -> None:
        """Say what is to be proposed first: choices by the name of each trait."""
        with _understood(self._place):
            self._study.set_user_attr(FIRST, [dict(choice) for choice in choices])

    @property
    def begun(self) -> bool:
        """Whether it was said what is to be proposed first."""
        with _understood(self._place):
            return FIRST in self._study.user_attrs

    def propose(self, draw: Callable[[Choose], object], attempt: int = 0) -> Proposal:
        """What might be tried next; nothing is written.

        The trials that there are, the seed and ``attempt`` decide it.

        Args:
            draw: makes what is proposed; it is given what chooses.
            attempt: 0 asks for the next of those that come first, as long as there are any, then for the most
                promising; later ones look further and further around.
        """
        with _understood(self._place):
            trials, first = self._study.get_trials(deepcopy=False), self._study.user_attrs.get(FIRST, [])
        choices: dict[str, Any] = {}
        traits: dict[str, tuple[Any, ...]] = {}
        fixed = first[len(trials)] if attempt == 0 and len(trials) < len(first) else {}
        sampled = self._sampler(len(trials), attempt, sum(trial.state.is_finished() for trial in trials))

        def choose(name: str, options: Sequence[OptionT]) -> OptionT:
            traits[name] = tuple(options)
            picked: OptionT = fixed[name] if name in fixed else sampled(name, traits[name])
            choices[name] = picked
            return picked

        return Proposal(draw(choose), choices, traits)

    def _sampler(self, before: int, attempt: int, done: int) -> Callable[[str, tuple[Any, ...]], Any]:
        """What chooses one of some options."""
        seed = int(files.digest(f"{self._seed} {before} {attempt}".encode())[:8], 16)
        startup = 0 if done >= self._startup and attempt < WIDE else done + 1
        candidates = NARROWEST if attempt == 0 else NARROW if attempt < WIDE // 2 else 1
        sampler = self._optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=startup, n_ei_candidates=candidates
        )
        blank = self._optuna.trial.create_trial(state=self._optuna.trial.TrialState.RUNNING)

        def sampled(name: str, options: tuple[Any, ...]) -> Any:
            with _understood(self._place):
                return sampler.sample_independent(self._study, blank, name, self._among(options))

        return sampled

    def begin(self, proposal: Proposal, notes: Mapping[str, Any]) -> int:
        """Write down that something is being tried, all at once; the number of the trial."""
        trial = self._optuna.trial.create_trial(
            state=self._optuna.trial.TrialState.RUNNING,
            params=proposal.choices,
            distributions={name: self._among(options) for name, options in proposal.options.items()},
            user_attrs=dict(notes),
        )
        with _understood(self._place):
            self._study.add_trial(trial)
            return len(self._study.get_trials(deepcopy=False)) - 1

    def _among(self, options: tuple[Any, ...]) -> Any:
        return self._optuna.distributions.CategoricalDistribution(options)

    def note(self, number: int, name: str, value: Any) -> None:
        """Keep plain data with a trial that is not done."""
        with _understood(self._place):
            self._trial(number).set_user_attr(name, value)

    def finish(self, number: int, values: Sequence[float], excess: float = 0.0) -> None:
        """Say what came of a trial, and by how much it breaks what must be kept."""
        with _understood(self._place):
            self._trial(number).set_constraint("excess", excess)
            self._study.tell(number, list(values))

    def trials(self) -> list[Trial]:
        """All trials, of every process, in their order."""
        with _understood(self._place):
            found = self._study.get_trials(deepcopy=False)
        return [
            Trial(
                number=one.number,
                done=one.state.is_finished(),
                values=tuple(one.values or ()),
                excess=max([0.0, *one.constraints.values()]),
                notes=dict(one.user_attrs),
            )
            for one in found
        ]

    def _trial(self, number: int) -> Any:
        trial = self._study.get_trials(deepcopy=False)[number]
        return self._optuna.trial.Trial(self._study, trial._trial_id)


@contextlib.contextmanager
def _understood(place: Path) -> Iterator[None]:
    """Turn what goes wrong with the file into errors of ours."""
    try:
        with files.explained(place / JOURNAL):
            yield
    except FarthingError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"the study in {place} cannot be read: {error}; remove that directory to begin anew"
        ) from error


def _backend(path: Path) -> Any:
    """A journal that survives kills and full disks.

    Optuna's own leaves its lock behind when it is killed, and reads no further where a line was cut short. Here the
    kernel drops the lock, and half a line is cut off before the next is written.
    """
    base: Any = require("optuna.storages.journal", "search").BaseJournalBackend

    class Journal(base):  # type: ignore[misc]  # a class of a package that is imported when it is used
        def __init__(self) -> None:
            self._places = [0]  # where each line begins

        def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
            if not path.exists():
                return []
            with path.open("rb") as file:
                file.seek(self._places[min(log_number_from, len(self._places) - 1)])
                known = min(log_number_from, len(self._places) - 1)
                lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
            del self._places[known + 1 :]
            for line in lines:
                self._places.append(self._places[-1] + len(line))
            return [json.loads(line) for line in lines[log_number_from - known :]]

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
            held = files.lock(path.with_suffix(".lock"), f"the study {path}", PATIENCE)
            with held, path.open("ab") as file:
                file.truncate(_whole(path))
                file.write(text.encode())
                file.flush()
                files.sync(path)

    return Journal()


def _whole(path: Path) -> int:
    """Bytes of a journal up to the end of its last whole line."""
    content = path.read_bytes()
    return content.rfind(b"\n") + 1
