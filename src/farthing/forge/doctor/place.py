"""The target: whether it is there, and whether the model suits it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from farthing.engines.base import engine_for
from farthing.errors import FarthingError, LinkError
from farthing.forge.doctor.finding import Finding, ok, problem, warning
from farthing.forge.doctor.timing import Surroundings, timing
from farthing.model import Model
from farthing.target import THIS, Target

if TYPE_CHECKING:
    from farthing.bench.remote.wire import Ready


def is_board(name: str, boards: Path | None) -> bool:
    """Whether a target is a board of the user's, so that models are timed there and not here."""
    from farthing.bench.remote import Boards

    return name != THIS and boards is not None and name in Boards(boards).names()


def place(name: str, boards: Path | None, model: Model | None) -> Iterator[Finding]:
    """Findings about a target: a board is asked over its connection, any other is looked up."""
    if boards is not None and is_board(name, boards):
        target, findings = _board(name, boards)
    else:
        target, findings = _described(name)
    yield from findings
    if target is not None and model is not None:
        yield from _suits(target, model)


def _described(name: str) -> tuple[Target | None, list[Finding]]:
    """This machine, or what is known of another one."""
    try:
        target = Target.find(name)
    except FarthingError as error:
        return None, [
            problem("target", "known", str(error), "see `farthing target list` and `farthing targets`")
        ]
    if name == THIS:
        return target, []
    words = f"{name}: {target.arch}, described, not connected: nothing can be measured on it"
    return target, [ok("target", "known", words, "farthing target add USER@HOST, to measure there")]


def _board(name: str, boards: Path) -> tuple[Target | None, list[Finding]]:
    """A board of the user's, asked what it is and how it is."""
    from farthing.bench.remote import Boards
    from farthing.bench.remote.install import look

    try:
        found = look(Boards(boards).get(name))
    except FarthingError as error:
        mend = f"do what it says, then: farthing target show {name}"
        if isinstance(error, LinkError):
            mend = "is it on, and does `ssh` reach it by hand?"
        return None, [problem("target", "reachable", str(error), mend)]
    here = Surroundings(
        cores=found.target.cores or 1,
        load=found.load,
        governors=found.governors,
        turbo=found.turbo,
        celsius=found.temperature,
        meter=found.meter,
    )
    return found.target, [_answering(name, found), *timing("target", here)]


def _answering(name: str, found: Ready) -> Finding:
    """That a board answers, and whether it is ready to measure."""
    from farthing.bench.remote.wheels import stamp

    engines = ", ".join(f"{engine} {version}" for engine, version in found.engines.items()) or "no engine"
    words = f"{name} answers: {found.description}; {engines}"
    if found.holder:
        words = f"{words}; {found.holder} measures there since {found.since}"
        return warning("target", "reachable", words, "wait until that is done")
    if found.stamp not in {"", stamp()}:
        words = f"{words}; its files of Farthing are not those that are here"
        return warning("target", "reachable", words, f"farthing target update {name}")
    return ok("target", "reachable", words)


def _suits(target: Target, model: Model) -> Iterator[Finding]:
    """Whether a model can run on a target at all."""
    manifest = model.manifest
    lacking = target.lacks(manifest.requires)
    if lacking and target.name != THIS:
        words = f"{target.name} lacks {', '.join(lacking)}, for which {manifest.name} was made"
        yield warning("target", "instruction sets", words, f"farthing optimize --target {target.name}")
    size = model.size_bytes / (1 << 20)
    if target.memory_mb is not None and size > 0.5 * target.memory_mb:
        words = f"the model takes {size:,.1f} of {target.memory_mb:,} MiB, before it computes anything"
        yield warning("target", "memory", words, "give a budget of size_mb or peak_memory_mb")
    elif target.memory_mb is not None:
        yield ok("target", "memory", f"{target.memory_mb:,} MiB for a model of {size:,.1f}")
    if target.engines:
        try:
            engine = engine_for(manifest.format)
        except FarthingError:
            engine = ""
        if engine not in target.engines:
            words = f"{target.name} runs {', '.join(target.engines)}; the model is {manifest.format}"
            yield ok(
                "target",
                "engine",
                words,
                f"farthing optimize --target {target.name} exports it",
            )
