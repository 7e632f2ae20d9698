"""The command ``farthing search``: a search from beginning to end, finalists timed whole, all of it written down."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from farthing import files
from farthing.assets import default_cache
from farthing.bench.machine import Here, Machine
from farthing.config import plain, to_json, to_yaml
from farthing.forge.apply import versions, versions_of
from farthing.forge.cache import Cache, key_of
from farthing.forge.output import MODEL, RECIPE, REPORT, claimed
from farthing.forge.search.architecture import SearchArchitecture
from farthing.forge.search.described import described
from farthing.forge.search.found import Found
from farthing.forge.search.page import render
from farthing.forge.search.words import sentence
from farthing.forge.workshop import Workshop
from farthing.model import Manifest, Model, as_model
from farthing.options import EngineOptions
from farthing.recipe import Listener, Recipe, Step, ignore
from farthing.target import Budget, Target
from farthing.task import Task, as_task

if TYPE_CHECKING:
    from farthing.forge.search.finalists import Made
    from farthing.forge.search.run import Outcome, Subject

USE = "search.architecture.v1"
TRAINED, RESULT = "trained", "search.json"
OURS = frozenset({MODEL, TRAINED, RECIPE, REPORT, RESULT})


def find(
    task: Task | Path | str,
    out: Path | str | None,
    *,
    teacher: Model | Path | str | None = None,
    manifest: Manifest | None = None,
    target: Target | str = "this",
    options: SearchArchitecture | None = None,
    machine: Machine | None = None,
    cache: Path | None = None,
    listener: Listener = ignore,
    command: str = "",
) -> Found | None:
    """Search a network for a task, time the best whole, and write them down.

    The same call once more goes on with the trials there are, and so does one that wants more of them. Several
    processes with the same arguments share the trials.

    Args:
        task: data and metric; the test split is scored once, for the network that is chosen and the teacher.
        out: output directory: absent, empty, or an earlier result. None only takes part in the trials of others, and
            returns when there are enough.
        teacher: the model that does the work so far.
        manifest: without a teacher: what networks take and give; read off the data of a task of arrays if None.
        target: what the network is made ready for.
        options: of the search.
        machine: where blocks and networks are timed; this one if None.
        cache: directory for results; ``~/.cache/farthing`` if None.
        listener: hears of progress.
        command: how the caller can be repeated, for the report.

    Raises:
        FarthingError: as `SearchArchitecture.planned`; nothing is left half-written.
    """
    job = _Job(task, teacher, manifest, target, options, machine, cache, listener)
    if out is None:
        job.take_part()
        return None
    with claimed(Path(out), OURS) as directory:
        start = time.perf_counter()
        outcome = job.run()
        found = job.found(outcome, command, time.perf_counter() - start)
        job.write(found, outcome.finalists[0], directory)
    return found


class _Job:
    def __init__(
        self,
        task: Task | Path | str,
        teacher: Model | Path | str | None,
        manifest: Manifest | None,
        target: Target | str,
        options: SearchArchitecture | None,
        machine: Machine | None,
        cache: Path | None,
        listener: Listener,
    ) -> None:
        from farthing.forge.search.run import Subject
        from farthing.forge.training.losses import understood

        self.root = cache or default_cache()
        self.task = as_task(task, self.root)
        self.target = Target.find(target) if isinstance(target, str) else target
        self.machine, self.cache = machine or Here(), Cache(self.root)
        self.workshop = Workshop(listener=listener, machine=self.machine, cache=self.cache)
        self.model = None if teacher is None else as_model(teacher)
        wanted = options or SearchArchitecture()
        given = wanted if self.model is not None else replace(wanted, teacher="")
        self.options: SearchArchitecture = msgspec.convert(given.resolved(self.target), SearchArchitecture)
        if self.model is not None:
            self.task.check(self.model.manifest)
            facts, teachers = understood(self.model), self.options.teaching(self.model, self.workshop)
        else:
            facts, teachers = manifest or described(self.task), []
        self.subject: Subject = Subject(facts, self.model, teachers)

    # Searching --------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """The search, in a directory of the cache that whoever wants the same finds again."""
        from farthing.forge.search.run import search

        with self._at_work() as workshop:
            return search(self.options, self.subject, self.target, self.task, workshop)

    def take_part(self) -> None:
        """Only the trials."""
        from farthing.forge.search.run import take_part

        with self._at_work() as workshop:
            take_part(self.options, self.subject, self.target, self.task, workshop)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[Workshop]:
        self.cache.sweep()
        place = self.root / "work" / self._key()[:2] / self._key()
        files.make_directory(place)
        with files.hold(place):
            yield Workshop(self.workshop.listener, place, self.machine, self.cache)

    def _key(self) -> str:
        """What decides the trials; how many of them are wanted, and in what time, does not."""
        about = [self.task.digest, self.subject.manifest, self.model.digest if self.model else ""]
        options = replace(self.options, trials=1, hours=None)
        return key_of("architectures", options, *about, self.target, self.machine.target, versions(USE))

    # Concluding -------------------------------------------------------------------------------------------------

    def found(self, outcome: Outcome, command: str, seconds: float) -> Found:
        from farthing.forge.search.whole import Whole

        first, options = outcome.finalists[0], self.options
        whole = Whole(self.model, self.target, self.task, self.workshop, self.cache)
        baselines, raced = whole.raced(outcome, options.number)
        test, drop = whole.tested(outcome)
        single = raced[0].single if options.batch == 1 and raced else raced[0].offline if raced else None
        broken = [first.finalist.refusal] if first.finalist.refusal else []
        limit = options.limits.latency_ms
        if single and limit is not None and single.p50_ms > limit:
            broken.append(f"a call takes {1000 * single.p50_ms:.3g} us, the limit is {1000 * limit:.3g} us")
        unknown = Found(
            task_name=self.task.name,
            metric=self.task.metric.name,
            higher_is_better=self.task.metric.higher_is_better,
            model_name=self.model.manifest.name if self.model else "",
            engine=outcome.engine,
            number=options.number,
            batch=options.batch,
            families=options.families,
            limits=options.limits,
            accuracy_drop=options.accuracy_drop,
            trials=options.trials,
            schedule=options.schedule,
            sentence="",
            met=not broken,
            violations=tuple(broken),
            notes=tuple(self._notes()),
            finalists=tuple(made.finalist for made in outcome.finalists),
            baselines=baselines,
            raced=raced,
            test=test,
            test_drop=drop,
            tried=tuple(outcome.tried),
            target=self.target.name,
            machine=self.machine.description,
            versions={**versions(USE), outcome.runtime.engine: outcome.runtime.version},
            command=command,
            when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seconds=seconds,
        )
        return replace(unknown, sentence=sentence(unknown))

    def _notes(self) -> list[str]:
        if self.target.is_machine(self.machine.target):
            return []
        measured = self.machine.description
        return [f"Target {self.target.name} is not the machine that measured: times are those of {measured}."]

    # Writing ----------------------------------------------------------------------------------------------------

    def write(self, found: Found, chosen: Made, directory: Path) -> None:
        """The chosen network as deployed and as trained, the recipe, what was found, and its page."""

        def fill(fresh: Path) -> None:
            chosen.deployed.save(fresh / MODEL)
            chosen.trained.save(fresh / TRAINED)
            (fresh / RESULT).write_bytes(to_json(found))
            (fresh / REPORT).write_text(render(found), "utf-8")
            if self.model is not None:
                (fresh / RECIPE).write_text(to_yaml(self._recipe(self.model, found, chosen)), "utf-8")

        files.write_directory(directory, fill)

    def _recipe(self, model: Model, found: Found, chosen: Made) -> Recipe:
        planned = replace(self.options, architecture=chosen.finalist.tried.architecture)
        steps = (Step(use=USE, options=plain(planned)), *chosen.finalist.steps)
        return Recipe(
            model=model.digest,
            task=self.task.digest,
            target=self.target,
            steps=steps,
            engine=found.raced[0].engine if found.raced else "onnxruntime",
            options=found.raced[0].single.options if found.raced else EngineOptions(),
            budget=Budget(accuracy_drop=self.options.accuracy_drop),
            artefact=chosen.deployed.digest,
            accuracy=chosen.finalist.accuracy,
            versions=versions_of(steps),
        )
