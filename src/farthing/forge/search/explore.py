"""The search itself: who is tried next, how far it is trained, and what is known of all that were tried.

Several processes may explore one directory: each takes the next network, and takes over where a process that is gone
left one. A process alone tries the same networks, in the same order, whenever it is started with the same seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from farthing import files
from farthing.config import Section, canonical, convert, plain
from farthing.errors import ConfigError, StorageError, TrainingError
from farthing.forge.families import Architecture
from farthing.forge.search.estimate import Estimate, Estimator, Limits
from farthing.forge.search.halving import Standing, goes_on, rungs
from farthing.forge.search.space import Space
from farthing.forge.search.study import Study, Trial
from farthing.recipe import Listener, Progress

if TYPE_CHECKING:
    from torch import nn

ATTEMPTS = 300  # proposals that break a limit or were made before, in a row
POLL_SECONDS = 0.5
PATIENCE = 3600.0  # seconds another process may take to choose a network and measure its blocks
AfterEpoch = Callable[[int, "nn.Module"], None]
Trainer = Callable[[Architecture, Path, AfterEpoch], object]
"""Trains an architecture, its state in a directory that outlives a kill, and calls after each epoch, from 1."""
Choices = Callable[[Space, Callable[[Architecture], bool]], Sequence[dict[str, Any]]]
"""Of a space and what says whether a network keeps the limits: what is tried first, as choices of each trait."""


class Plan(Section, frozen=True, kw_only=True):
    """What decides which networks are tried.

    Attributes:
        space: where they come from.
        limits: what they may cost.
        trials: how many are trained.
        epochs: of those that are trained to the end.
        least: score below which nobody wants a network; None for none.
        seed: of what is proposed.
        startup: trials before what came of them decides what is proposed.
    """

    space: Space
    limits: Limits = Limits()
    trials: int = 12
    epochs: int = 27
    least: float | None = None
    seed: int = 0
    startup: int = 6


class Tried(Section, frozen=True, kw_only=True):
    """A network that was tried.

    Attributes:
        number: of the trial.
        architecture: the network.
        estimate: what it was said to cost.
        score: the metric on validation after ``epochs``, as trained, its sign turned if less is better; None if the
            training failed.
        epochs: how many it was trained.
        refusal: why it was given up, in a few words; empty if it was trained to the end.
    """

    number: int
    architecture: Architecture
    estimate: Estimate
    score: float | None = None
    epochs: int = 0
    refusal: str = ""

    @property
    def finished(self) -> bool:
        """Whether it was trained to the end."""
        return self.score is not None and not self.refusal


class _Taken(NamedTuple):
    number: int
    architecture: Architecture
    estimate: Estimate


class _Halted(Exception):
    """Ends a training that is not worth going on with."""


class _Late(Exception):
    """Leaves a training because the time is over."""


class Explorer:
    """One process's part in a search.

    Args:
        place: the directory that the processes share.
        first: what is tried first.
        trainer: trains a network.
        score: of a network on validation, and of whether its training is over; more is better.
        listener: hears of each trial, stage ``search``.
        clock: seconds.
        hours: after which it ends, at the end of an epoch, as soon as one network is trained to its end. The network
            that was being trained stays as it is: whoever searches there next takes it over.
    """

    def __init__(
        self,
        place: Path,
        plan: Plan,
        estimator: Estimator,
        first: Choices,
        trainer: Trainer,
        score: Callable[[nn.Module, bool], float],
        listener: Listener,
        clock: Callable[[], float] = time.monotonic,
        hours: float | None = None,
    ) -> None:
        self._place, self._plan, self._estimator, self._first = place, plan, estimator, first
        self._trainer, self._score, self._listener, self._clock = trainer, score, listener, clock
        self._end = None if hours is None else clock() + hours * 3600
        self._study = Study(place, ("maximize", "minimize", "minimize"), plan.seed, plan.startup)
        self._rungs = rungs(plan.epochs)

    def run(self) -> list[Tried]:
        """Try networks until there are enough of them, and return all that were tried, by any process.

        Raises:
            ConfigError: no network of the space keeps the limits.
            StorageError: the directory cannot be written.
            FarthingError: what is no fault of a single network.
        """
        while True:
            with ExitStack() as held:
                taken = self._take(held)
                if taken is None:
                    return self.tried()
                self._try(taken)

    def tried(self) -> list[Tried]:
        """All that were trained so far, in their order."""
        return [self._known(trial) for trial in self._study.trials() if trial.done]

    def _known(self, trial: Trial) -> Tried:
        epochs, score = _last(trial.notes, self._rungs)
        taken = _taken(trial)
        return Tried(
            number=trial.number,
            architecture=taken.architecture,
            estimate=taken.estimate,
            score=score,
            epochs=epochs,
            refusal=trial.notes["refusal"],
        )

    # Taking -----------------------------------------------------------------------------------------------------

    def _take(self, held: ExitStack) -> _Taken | None:
        """The next network, held until ``held`` is closed; None if there are enough."""
        while not self._over():
            with files.lock(self._place / "turn.lock", f"the search in {self._place}", PATIENCE):
                trials = self._study.trials()
                running = [trial for trial in trials if not trial.done]
                if left := next((trial for trial in running if self._left(trial.number, held)), None):
                    return _taken(left)
                if len(trials) < self._plan.trials:
                    taken = self._propose(held)
                    if taken or not running:
                        return taken
                elif not running:
                    return None
            time.sleep(POLL_SECONDS)  # others are at the last ones: they may be killed
        return None

    def _over(self) -> bool:
        """Whether the time is over, and there is something to show for it."""
        if self._end is None or self._clock() < self._end:
            return False
        return any(one.finished for one in self.tried())

    def _left(self, number: int, held: ExitStack) -> bool:
        """Whether the process that ran a trial is gone, and has not just ended it: then it is ours."""
        if not self._hold(number, held):
            return False
        if self._study.trials()[number].done:
            held.close()
            return False
        return True

    def _hold(self, number: int, held: ExitStack) -> bool:
        """Whether a trial is ours now; the kernel lets go of those of processes that are gone."""
        try:
            held.enter_context(files.lock(self._place / f"trial-{number}.lock", f"trial {number}"))
        except StorageError:
            return False
        return True

    def _propose(self, held: ExitStack) -> _Taken | None:
        """The first proposal that keeps the limits and is new; None if there seems to be none."""
        if not self._study.begun:
            self._study.begin_with(self._first(self._plan.space, self._keeps))
        known = {canonical(trial.notes["architecture"]) for trial in self._study.trials()}
        for attempt in range(ATTEMPTS):
            if self._over():
                return None
            proposal = self._study.propose(self._plan.space.draw, attempt)
            architecture: Architecture = proposal.made
            if canonical(architecture) in known or not self._keeps(architecture):
                continue
            estimate = self._estimator.priced(architecture)
            if self._plan.limits.excess(estimate):
                continue
            notes = {"architecture": plain(architecture), "estimate": plain(estimate)}
            number = self._study.begin(proposal, notes)
            self._hold(number, held)
            return _Taken(number, architecture, estimate)
        if not known:
            limits = [f"{name} {limit:g}" for name, limit in plain(self._plan.limits).items() if limit]
            raise ConfigError(
                f"none of {ATTEMPTS} networks of the search space keeps the limits ({', '.join(limits)}): "
                "allow for more (those you did not give are the model's and the target's own)"
            )
        return None

    def _keeps(self, architecture: Architecture) -> bool:
        return not self._plan.limits.excess(self._estimator.counted(architecture))

    # Trying -----------------------------------------------------------------------------------------------------

    def _try(self, taken: _Taken) -> None:
        number = taken.number
        self._say(f"trial {number}: {taken.architecture}; {taken.estimate}")
        refusal, failed = "", False
        try:
            self._trainer(
                taken.architecture,
                self._place / f"trial-{number}",
                lambda epoch, module: self._judge(taken, epoch, module),
            )
        except _Halted as halt:
            refusal = str(halt)
        except _Late:
            self._say(f"trial {number}: left as it is, the time is over")
            return
        except TrainingError as error:
            refusal, failed = str(error), True
        self._study.note(number, "refusal", refusal)
        _, score = _last(self._study.trials()[number].notes, self._rungs)
        if score is None or failed:
            score, short = 0.0, 1.0
        else:
            short = 0.0 if self._plan.least is None else max(0.0, self._plan.least - score)
        self._study.finish(number, (score, *taken.estimate.costs), short)
        self._say(f"trial {number}: {refusal or f'{score:.4f} on validation'}", outcome=True)

    def _judge(self, taken: _Taken, epoch: int, module: nn.Module) -> None:
        """At a rung: score the network, and stop its training if too many do better for the same price."""
        if epoch not in self._rungs:
            if self._over():
                raise _Late
            return
        score = self._score(module, epoch == self._rungs[-1])
        self._study.note(taken.number, _rung(epoch), score)
        others = [
            Standing(trial.notes[_rung(epoch)], _taken(trial).estimate.costs)
            for trial in self._study.trials()
            if trial.number != taken.number and _rung(epoch) in trial.notes
        ]
        if epoch != self._rungs[-1] and not goes_on(Standing(score, taken.estimate.costs), others):
            raise _Halted(
                f"given up after {epoch} epochs at {score:.4f}: others do better for the same price"
            )

    def _say(self, text: str, outcome: bool = False) -> None:
        done = len(self.tried())
        self._listener(
            Progress(stage="search", text=text, done=done, total=self._plan.trials, outcome=outcome)
        )


def _rung(epoch: int) -> str:
    return f"score after {epoch}"


def _last(notes: Mapping[str, Any], stages: Sequence[int]) -> tuple[int, float | None]:
    """The last of the rungs that a trial came to, and its score there."""
    found = [(epoch, notes[_rung(epoch)]) for epoch in stages if _rung(epoch) in notes]
    return found[-1] if found else (0, None)


def _taken(trial: Trial) -> _Taken:
    architecture = convert(trial.notes["architecture"], Architecture, f"trial {trial.number}")
    return _Taken(
        trial.number, architecture, convert(trial.notes["estimate"], Estimate, f"trial {trial.number}")
    )
