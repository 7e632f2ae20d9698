"""The models of a server as the disk changes: what fails, fails alone."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from farthing.device.serving.server.repository import Event, Repository
from farthing.device.serving.server.settings import Entry, Specific, VersionPolicy
from farthing.errors import ConfigError, FarthingError, ModelError, UnknownModelError
from farthing.testing import fake_model


def laid(place: Path, *names: str) -> Path:
    """A repository of models, each in one version."""
    for name in names:
        fake_model(name=name).save(place / name / "1")
    return place


@asynccontextmanager
async def opened(*entries: Entry, keep_going: bool = False) -> AsyncIterator[tuple[Repository, list[Event]]]:
    events: list[Event] = []
    repository = Repository(entries, events.append)
    try:
        await repository.start(keep_going)
        yield repository, events
    finally:
        await repository.close()


def drive(test: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await test()

    asyncio.run(run())


def names(repository: Repository) -> list[tuple[str, str]]:
    return [(one.name, one.version) for one in repository.served()]


def _bad_config(model: Path) -> None:
    (model / "config.pbtxt").write_text("nonsense {")


def _no_file(model: Path) -> None:
    (model / "1" / "model.json").unlink()


def _bad_name(model: Path) -> None:
    model.rename(model.with_name("b c"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(_bad_config, "line 1"), (_no_file, "lacks the file"), (_bad_name, "cannot stand in a URL")],
)
def test_a_broken_model_does_not_stop_the_others(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    place = laid(tmp_path / "models", "a", "b")
    spoil(place / "b")

    async def test() -> None:
        with pytest.raises(FarthingError, match=said):
            async with opened(Entry(path=place)):
                pass
        async with opened(Entry(path=place), keep_going=True) as (repository, events):
            assert names(repository) == [("a", "1")]
            assert [said in event.reason for event in events if event.kind == "failed"] == [True]
            assert not repository.complete
            fake_model(name="a", seed=1).save(place / "a" / "2")
            await repository.load("a")
            assert names(repository) == [("a", "2")]
            with pytest.raises(UnknownModelError):
                await repository.load("zzz")
            assert [line.state for line in repository.index()] == ["READY", "UNAVAILABLE"]

    drive(test)


def test_what_breaks_later_leaves_the_server_ready(tmp_path: Path) -> None:
    place = laid(tmp_path / "models", "a", "b")

    async def test() -> None:
        async with opened(Entry(path=place)) as (repository, events):
            (place / "b" / "config.pbtxt").write_text("nonsense {")
            await repository.load("a")
            with pytest.raises(ConfigError):
                await repository.load("b")
            assert names(repository) == [("a", "1"), ("b", "1")]
            assert repository.complete, "both answer"
            place.rename(tmp_path / "elsewhere")
            await repository.refresh()
            await repository.refresh()
            assert repository.complete, "what is gone from the disk is still served"
            assert sum("does not exist" in event.reason for event in events) == 1
            with pytest.raises(ModelError, match="does not exist"):
                await repository.load("a")
            (tmp_path / "elsewhere").rename(place)
            (place / "b" / "config.pbtxt").unlink()
            await repository.refresh()
            assert [line.state for line in repository.index()] == ["READY", "READY"]

    drive(test)


def test_one_entry_that_is_not_there_does_not_stop_the_others(tmp_path: Path) -> None:
    entries = Entry(path=laid(tmp_path / "models", "a")), Entry(path=tmp_path / "late")

    async def test() -> None:
        with pytest.raises(ModelError, match="does not exist"):
            async with opened(*entries):
                pass
        async with opened(*entries, keep_going=True) as (repository, _):
            assert names(repository) == [("a", "1")]
            assert not repository.complete, "it was told to serve more"
            assert any("does not exist" in line.reason for line in repository.index())
            laid(tmp_path / "late", "c")
            await repository.refresh()
            assert repository.complete
            assert names(repository) == [("a", "1"), ("c", "1")]

    drive(test)


def test_a_copy_under_way_is_looked_at_until_it_is_whole(tmp_path: Path) -> None:
    place = laid(tmp_path / "models", "a")
    fresh = fake_model(name="a", seed=1).save(tmp_path / "fresh")

    async def test() -> None:
        async with opened(Entry(path=place)) as (repository, events):
            (place / "a" / "2").mkdir()
            shutil.copy2(fresh.path / "manifest.json", place / "a" / "2")
            await repository.refresh()
            whole = fresh.file.read_bytes()
            (place / "a" / "2" / fresh.file.name).write_bytes(whole[:9])
            await repository.refresh()
            (place / "a" / "2" / fresh.file.name).write_bytes(whole[:-9])
            await repository.refresh()
            assert names(repository) == [("a", "1")]
            assert ["lacks the file" in event.reason for event in events if event.kind == "failed"] == [
                True,
                False,
            ], "said once each"
            (place / "a" / "2" / fresh.file.name).write_bytes(whole)
            await repository.refresh()
            assert names(repository) == [("a", "2")]
            assert len(repository.index()) == 1

    drive(test)


def test_what_was_broken_and_is_taken_away_is_forgotten(tmp_path: Path) -> None:
    place = laid(tmp_path / "models", "a")

    async def test() -> None:
        async with opened(Entry(path=place)) as (repository, _):
            (place / "new" / "1").mkdir(parents=True)
            (place / "a" / "2").mkdir()
            await repository.refresh()
            assert not repository.complete
            shutil.rmtree(place / "new")
            (place / "a" / "2").rmdir()
            await repository.refresh()
            assert repository.complete
            assert len(repository.index()) == 1

    drive(test)


def test_two_models_of_one_name_are_refused_and_no_other(tmp_path: Path) -> None:
    entries = [Entry(path=laid(tmp_path / one, "a", one)) for one in ("x", "y")]

    async def test() -> None:
        with pytest.raises(FarthingError, match="both called 'a'"):
            async with opened(*entries):
                pass
        async with opened(*entries, keep_going=True) as (repository, _):
            assert names(repository) == [("x", "1"), ("y", "1")]

    drive(test)


def test_a_version_named_twice_is_opened_once(tmp_path: Path) -> None:
    place = laid(tmp_path / "models", "a")
    policy = VersionPolicy(specific=Specific(versions=(1, 1)))

    async def test() -> None:
        async with opened(Entry(path=place, version_policy=policy)) as (repository, events):
            assert [event.kind for event in events] == ["loaded"]
            assert names(repository) == [("a", "1")]

    drive(test)
