"""The store: what goes in comes out, versions and pointers, damage, readers, limits, and processes side by side."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from farthing import files
from farthing.bundle import Bundle
from farthing.device.update.layout import Layout, Pointers
from farthing.device.update.store import Store
from farthing.errors import ConfigError, FarthingError, ModelError, StorageError
from farthing.model import Model
from farthing.testing import fake_model


def net(version: str, **more: object) -> Model:
    return fake_model(seed=len(version) + ord(version[-1]), **{"name": "net", "version": version, **more})  # type: ignore[arg-type]


def versions(store: Store, name: str = "net") -> list[str]:
    return [entry.version for entry in store.list() if entry.name == name]


def pointers(store: Store, name: str = "net") -> tuple[str, str]:
    found = [entry for entry in store.list() if entry.name == name]
    return (
        next((entry.version for entry in found if entry.current), ""),
        next((entry.version for entry in found if entry.previous), ""),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Versions 1 to 3; 2 is current, 1 is previous."""
    made = Store(tmp_path / "store", patience=0)
    for version in "123":
        made.add(net(version))
    made.activate("net", "1")
    made.activate("net", "2")
    return made


# --- in and out


def as_zip(model: Model, place: Path) -> Path:
    model.pack(place / "x.zip")
    return place / "x.zip"


@pytest.mark.parametrize(
    "give",
    [
        lambda model, place: model,
        lambda model, place: model.save(place / "model").path,
        lambda model, place: str(model.save(place / "model").path),
        lambda model, place: model.save(place / "best" / "model").path.parent,
        as_zip,
    ],
    ids=["model", "directory", "text", "search", "zip"],
)
def test_what_goes_in_comes_out(tmp_path: Path, give: Callable[[Model, Path], Model | Path | str]) -> None:
    model, store = net("7", labels=("a", "b", "c")), Store(tmp_path / "deep" / "store")
    entry = store.add(give(model, tmp_path))
    assert (entry.name, entry.version, entry.current, entry.previous) == ("net", "7", False, False)
    assert pointers(store) == ("", "")
    store.activate("net", "7")
    with store.open("net") as got:
        assert isinstance(got, Model)
        assert (got.digest, got.manifest) == (model.digest, model.manifest)
        assert files.tree_digest(got.path) == entry.digest
    assert Model.open(tmp_path / "deep" / "store" / "net" / "current").digest == model.digest


def test_a_bundle_goes_in_too(tmp_path: Path) -> None:
    small, large = net("1"), net("2", name="large")
    bundle = Bundle.create("both", "variants", {"small": small, "large": large}, tmp_path / "bundle")
    (tmp_path / "bundle" / "small" / "stray").touch()
    store = Store(tmp_path / "store")
    assert store.add(bundle).digest == store.add(tmp_path / "bundle").digest
    for copy in ("a.zip", "b.zip"):
        bundle.pack(tmp_path / copy)
    assert store.add(tmp_path / "a.zip").digest == store.list()[0].digest
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    store.add(tmp_path / "a.zip", version="2")
    store.activate("both", "2")
    with store.open("both") as got:
        assert isinstance(got, Bundle)
        assert got.manifest.version == "2"
        assert {key: model.digest for key, model in got.models.items()} == bundle.manifest.models
    assert versions(store, "both") == ["1", "2"]


def test_only_files_of_the_manifest_are_kept_and_nobody_may_write_them(tmp_path: Path) -> None:
    directory = net("1").save(tmp_path / "model").path
    (directory / "notes.txt").write_text("mine")
    (directory / "more").mkdir()
    (directory / "more" / "deep").write_text("mine")
    files.pack(directory, ["manifest.json", "model.json", "notes.txt", "more/deep"], tmp_path / "model.zip")
    store = Store(tmp_path / "store")
    for source in (directory, tmp_path / "model.zip"):
        place = store.root / ".objects" / store.add(source).digest
        assert sorted(os.listdir(place)) == ["manifest.json", "model.json"]
        assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o444}
    assert len(os.listdir(store.root / ".objects")) == 1, "the same content is kept once"


def test_a_name_and_a_version_are_written_into_the_copy(tmp_path: Path) -> None:
    store, model = Store(tmp_path / "store"), net("1")
    store.add(model, name="other", version="2026-11.b")
    store.activate("other", "2026-11.b")
    with store.open("other") as got:
        assert (got.manifest.name, got.manifest.version) == ("other", "2026-11.b")
        assert Model.open(got.path).file.read_bytes() == model.file.read_bytes()


@pytest.mark.parametrize(
    "word", ["../up", "a/b", "", ".hidden", "current", "previous", "store.json", "x" * 129, "é"]
)
def test_words_that_cannot_be_directories_are_refused(tmp_path: Path, word: str) -> None:
    store = Store(tmp_path / "store")
    for field in ("name", "version"):
        with pytest.raises(ModelError, match=f"give another {field}"):
            store.add(fake_model(**{field: word}))  # type: ignore[arg-type]
    assert store.list() == ()
    assert os.listdir(tmp_path / "store" / ".objects") == []


def test_the_same_version_with_other_content_is_refused(store: Store) -> None:
    before = store.list()
    with pytest.raises(
        StorageError, match="holds version 2 of net with other content: give this one another version"
    ):
        store.add(net("2", labels=("x",)))
    assert store.list() == before
    assert {entry.version for entry in before if entry.digest == store.add(net("2")).digest} == {"2"}


@pytest.mark.parametrize("damage", ["changed", "no manifest", "not a zip", "absent"])
def test_damaged_sources_leave_the_store_as_it_was(store: Store, tmp_path: Path, damage: str) -> None:
    directory = net("4").save(tmp_path / "model").path
    (directory / "model.json").write_text("{}")
    sources = {"changed": directory, "no manifest": tmp_path / "a.zip", "not a zip": tmp_path / "b.zip"}
    files.pack(directory, ["model.json"], tmp_path / "a.zip")
    (tmp_path / "b.zip").write_text("PK")
    before = files.tree_digest(store.root)
    with pytest.raises((ModelError, StorageError)):
        store.add(sources.get(damage, tmp_path / "absent"))
    assert files.tree_digest(store.root) == before


def test_a_directory_of_something_else_is_not_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        StorageError, match=r"holds 'thesis.tex' and no store.json: choose an empty directory"
    ):
        Store(tmp_path).add(net("1"))
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_what_is_no_store_or_a_newer_one_is_said(tmp_path: Path) -> None:
    absent = Store(tmp_path / "absent")
    acts: list[Callable[[], object]] = [absent.list, absent.gc, absent.verify, absent.used]
    acts += [lambda: absent.activate("net", "1"), lambda: absent.rollback("net")]
    for act in acts:
        with pytest.raises(StorageError, match="is not a store of models: `farthing store add` makes one"):
            act()
    assert not (tmp_path / "absent").exists()
    newer = Store(tmp_path / "newer")
    newer.add(net("1"))
    (tmp_path / "newer" / "store.json").write_text('{"layout": 2}')
    with pytest.raises(StorageError, match="has layout 2, this Farthing knows 1"):
        newer.add(net("2"))
    (tmp_path / "newer" / "store.json").write_text('{"layout": 1, "more": 1}')
    with pytest.raises(ConfigError, match="unknown key 'more'"):
        newer.list()


# --- pointers


def test_activate_and_rollback_move_both_pointers(store: Store) -> None:
    assert pointers(store) == ("2", "1")
    store.activate("net", "2")
    assert pointers(store) == ("2", "1"), "what is current already stays so"
    store.activate("net", "3")
    assert pointers(store) == ("3", "2")
    assert store.rollback("net") == "2"
    assert pointers(store) == ("2", "3")
    store.activate("net", "previous")
    assert pointers(store) == ("3", "2")
    for word, version in (("current", "3"), ("previous", "2"), ("1", "1")):
        with store.open("net", word) as model:
            assert model.manifest.version == version


def test_what_is_not_there_is_named_with_the_nearest(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no model 'nett'; did you mean 'net'"):
        store.activate("nett", "1")
    with pytest.raises(StorageError, match="no version '9' of net; Known: 1, 2, 3"):
        store.activate("net", "9")
    with pytest.raises(StorageError, match="no model 'other'"):
        store.verify("other")
    fresh = Store(tmp_path / "fresh")
    fresh.add(net("1"))
    with (
        pytest.raises(
            StorageError, match="net has no current version: `farthing store activate net VERSION`"
        ),
        fresh.open("net"),
    ):
        pass
    fresh.activate("net", "1")
    with pytest.raises(StorageError, match="net has no previous version"):
        fresh.rollback("net")


def test_a_link_that_is_followed_shows_one_whole_model_while_pointers_move(store: Store) -> None:
    """Whoever resolves the link first, as servers do, reads all of one version."""
    resolved = (store.root / "net" / "current").resolve()
    store.activate("net", "3")
    assert Model.open(resolved).manifest.version == "2"


# --- damage


def flip(place: Path) -> None:
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a bit": lambda place: flip(place / "model.json"),
    "cut off": lambda place: os.truncate(place / "model.json", 10),
    "empty": lambda place: os.truncate(place / "model.json", 0),
    "gone": lambda place: (place / "model.json").unlink(),
    "the manifest": lambda place: flip(place / "manifest.json"),
    "no manifest": lambda place: (place / "manifest.json").unlink(),
    "a file more": lambda place: (place / "more").touch(),
    "a link": lambda place: (
        (place / "model.json").unlink(),
        (place / "model.json").symlink_to("/etc/passwd"),
    )[0],
    "all": lambda place: shutil.rmtree(place),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_refused_and_the_way_back_named(store: Store, damage: str) -> None:
    DAMAGES[damage]((store.root / "net" / "current").resolve())
    for _ in range(2):
        with (
            pytest.raises(
                ModelError, match=r"net 2 .*version 1 is there to go back to: `farthing store rollback net`"
            ),
            store.open("net"),
        ):
            pass
    assert len(os.listdir(store.root / ".quarantine")) == (damage != "all")
    assert [found.version for found in store.verify()] == ["2"]
    assert store.rollback("net") == "1"
    assert (pointers(store), versions(store)) == (("1", ""), ["1", "3"])
    with store.open("net") as model:
        assert model.manifest.version == "1"
    assert store.verify() == ()
    store.add(net("2"))
    store.activate("net", "2")
    assert (pointers(store), store.verify()) == (("2", "1"), ())


def test_adding_it_again_mends_what_is_current(store: Store) -> None:
    flip((store.root / "net" / "current" / "model.json").resolve())
    assert [found.version for found in store.verify("net")] == ["2"]
    with pytest.raises(StorageError, match="with other content"):
        store.add(net("2", labels=("x",)))
    store.add(net("2"))
    with store.open("net") as model:
        assert model.manifest.version == "2"
    flip((store.root / "net" / "current" / "model.json").resolve())
    store.add(net("2"))  # nobody had looked in between
    assert store.verify() == ()


def test_a_damaged_version_is_not_made_current(store: Store) -> None:
    flip((store.root / "net" / "versions" / "3" / "model.json").resolve())
    with pytest.raises(ModelError, match=r"net 3 is damaged: .*SHA-256 differs.; add it again"):
        store.activate("net", "3")
    flip((store.root / "net" / "previous" / "model.json").resolve())
    with pytest.raises(ModelError, match="net 1 is damaged"):
        store.rollback("net")
    assert pointers(store)[0] == "2"


def test_a_manifest_of_another_farthing_is_no_damage(store: Store) -> None:
    """After a step back to an older Farthing its models are refused, and are there still when it comes back."""
    place = store.root / ".objects" / "new"
    shutil.copytree((store.root / "net" / "current").resolve(), place)
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").chmod(0o644)
    (place / "manifest.json").write_text(json.dumps({**manifest, "from_the_future": 1}))
    digest = files.tree_digest(place)
    place.rename(place.with_name(digest))
    (store.root / "net" / "versions" / "4").symlink_to(f"../../.objects/{digest}")
    with pytest.raises(ModelError, match="unknown key 'from_the_future'"), store.open("net", "4"):
        pass
    assert (store.verify(), os.listdir(store.root / ".quarantine")) == ((), [])


def test_a_process_without_file_handles_does_not_condemn_a_model(store: Store) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    failed, taken = 0, [os.dup(0) for _ in range(20)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(8):  # one more each time
            try:
                with store.open("net") as model:
                    assert model.manifest.version == "2"
            except (FarthingError, OSError):
                failed += 1
            os.close(taken.pop())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for handle in taken:
            os.close(handle)
    assert 1 < failed < 8
    assert (store.verify(), os.listdir(store.root / ".quarantine")) == ((), [])


# --- room


def test_gc_keeps_what_is_pointed_to_held_or_young(store: Store) -> None:
    for version in ("4", "5", "6"):
        store.add(net(version))
    (store.root / ".objects" / ("0" * 64)).mkdir()
    (store.root / ".objects" / ".tmp-killed").mkdir()
    with store.open("net", "4") as held:
        assert store.gc(keep=1) == 2 * 8192
        assert versions(store) == ["1", "2", "4", "6"]
        assert Model.open(held.path).manifest.version == "4"
    assert store.gc(keep=0) == 2 * 8192
    assert (versions(store), len(os.listdir(store.root / ".objects"))) == (["1", "2"], 2)
    assert pointers(store) == ("2", "1")
    assert store.gc(keep=0) == 0


def test_a_clock_that_was_set_back_makes_no_version_older(store: Store) -> None:
    """A board without a clock of its own begins in 1970, until the network tells it the time."""
    ahead = time.time_ns() + 10**18
    for version in "123":
        os.utime(store.root / "net" / "versions" / version, ns=(ahead, ahead), follow_symlinks=False)
    store.add(net("4"))
    store.add(fake_model(name="other"))
    store.add(net("5"))
    assert versions(store) == ["1", "2", "3", "4", "5"]
    store.gc(keep=1)
    assert versions(store) == ["1", "2", "5"]
    limited = Store(store.root, limit_bytes=store.used() + 50_000)
    limited.add(net("6"))
    assert versions(store)[-1] == "6"


def test_a_model_whose_last_version_goes_goes_too(store: Store) -> None:
    store.add(net("1", name="other"))
    store.gc(keep=0)
    assert [entry.name for entry in store.list()] == ["net", "net"]
    assert not (store.root / "other").exists()


@pytest.mark.parametrize("target", ["..", ".", "../../.objects", "/", "/etc", "", "file", "directory"])
def test_what_is_no_version_is_never_followed_nor_removed(store: Store, target: str) -> None:
    stray = store.root / "net" / "versions" / "77"
    if target == "file":
        stray.write_text("notes")
    elif target == "directory":
        stray.mkdir()
    elif target:
        stray.symlink_to(target)
    for change in (
        lambda: store.activate("net", "77"),
        lambda: store.open("net", "77").__enter__(),
        lambda: store.add(net("4")),
        store.verify,
        lambda: store.gc(keep=0),
    ):
        with contextlib.suppress(StorageError):
            change()
    assert os.path.lexists(stray) == bool(target)
    assert pointers(store) == ("2", "1")
    assert versions(store) == ["1", "2"], "gc took the others"
    assert store.verify() == ()


def test_a_store_whose_links_were_copied_as_directories_is_left_alone(store: Store, tmp_path: Path) -> None:
    copy = Store(tmp_path / "copy")
    shutil.copytree(store.root, copy.root)  # follows links, as `cp -rL` does
    copy.gc(keep=0)
    assert (copy.root / "net" / "versions" / "2" / "manifest.json").is_file()


def test_content_that_two_versions_share_stays_while_one_needs_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = store.add(net("1")).digest
    (store.root / "net" / "versions" / "2").symlink_to(f"../../.objects/{digest}")
    store.activate("net", "2")
    assert store.gc(keep=0) == 0
    assert (versions(store), store.verify()) == (["2"], ())


def test_a_limit_is_kept_by_the_oldest_versions_going(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", limit_bytes=90_000)
    for number in range(1, 30):
        store.add(net(str(number)))
        assert store.used() <= 90_000
        if number == 2:
            store.activate("net", "1")
            store.activate("net", "2")
    kept = versions(store)
    assert kept[:2] == ["1", "2"]
    assert kept[2:] == [str(number) for number in range(30 - len(kept) + 2, 30)], "the last ones"
    assert len(kept) > 3
    assert store.verify() == ()


def test_a_limit_that_cannot_be_kept_names_the_bytes_and_removes_nothing(store: Store) -> None:
    tight = Store(store.root, limit_bytes=store.used())
    before = store.list()
    with pytest.raises(
        StorageError, match=rf"big needs [\d,]+ bytes, but {store.used():,} of the {store.used():,} that"
    ):
        tight.add(fake_model(features=4000, name="big"))
    assert store.list() == before
    with store.open("net", "3"), pytest.raises(StorageError, match="raise the limit"):
        tight.add(net("4"))
    assert store.list() == before


def test_spare_bytes_of_the_disk_stay_free(store: Store) -> None:
    before = store.list()
    greedy = Store(store.root, spare_bytes=1 << 60)
    with pytest.raises(
        StorageError, match=r"net needs [\d,]+ bytes, but of [\d,]+ on the disk .* are to stay free"
    ):
        greedy.add(net("4"))
    assert store.list() == before


def test_a_full_disk_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        store = Store(place / "store", spare_bytes=-(1 << 30))  # let it run into the wall
        store.add(net("1"))
        store.activate("net", "1")
        with pytest.raises(StorageError, match="the disk is full"):
            store.add(fake_model(features=9000, name="net", version="2"))
        assert (versions(store), store.verify()) == (["1"], ())
        assert len(os.listdir(store.root / ".objects")) == 1
    finally:
        subprocess.run(["umount", str(place)], check=True)


# --- side by side

WORKER = """
import sys
from pathlib import Path
from farthing.device.update.store import Store
from farthing.errors import StorageError
from farthing.model import Model
from farthing.testing import fake_model

store, who = Store(Path(sys.argv[1])), sys.argv[2]
if who == "reader":
    seen = set()
    for _ in range(150):
        with store.open("net") as model:
            assert Model.open(model.path).digest == model.digest
            seen.add(model.manifest.version)
    print(len(seen))
else:
    for number in range(12):
        version = f"{who}.{number}"
        store.add(fake_model(seed=number, name="net", version=version))
        try:
            store.activate("net", version)
        except StorageError as error:  # another's gc was faster than we
            assert "holds no version" in str(error), error
        store.gc(keep=0)
"""


def test_processes_change_and_read_one_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.add(net("1"))
    store.activate("net", "1")
    program = [sys.executable, "-c", textwrap.dedent(WORKER), str(store.root)]
    workers = [
        subprocess.Popen([*program, who], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for who in ("a", "b", "reader", "reader")
    ]
    results = [(worker.communicate(), worker.returncode) for worker in workers]
    assert [code for _, code in results] == [0] * 4, "\n".join(error for (_, error), _ in results)
    assert store.verify() == ()
    assert len(versions(store)) == 2
    assert len(os.listdir(store.root / ".objects")) == 2


def test_a_rollback_goes_back_to_what_is_previous_when_its_turn_comes(store: Store) -> None:
    patient = Store(store.root, patience=30)
    with ThreadPoolExecutor(1) as another:
        with files.lock(store.root / ".lock", "a change"):
            waiting = another.submit(patient.rollback, "net")
            time.sleep(0.2)  # it has looked at the store by now, and waits for the lock
            Layout(store.root).point("net", Pointers(current="3", previous="2"))
        assert waiting.result(30) == "2"
    assert pointers(store) == ("2", "3")


def test_a_change_waits_for_another_and_says_so_if_it_takes_too_long(store: Store) -> None:
    with (
        files.lock(store.root / ".lock", "the store"),
        pytest.raises(StorageError, match="in use by another process"),
    ):
        store.activate("net", "3")
    assert versions(store) == ["1", "2", "3"]


# --- anything in any order


class Anything(RuleBasedStateMachine):
    """The store against a dictionary and two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        place = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.store = Store(Path(place) / "store")
        self.there: list[str] = []
        self.current = self.previous = ""

    @rule(version=st.sampled_from("12345"))
    def add(self, version: str) -> None:
        self.store.add(net(version))
        self.there = [one for one in self.there if one != version] + [version]

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(self.there))
        self.store.activate("net", version)
        if version != self.current:
            self.current, self.previous = version, self.current

    @precondition(lambda self: self.previous)
    @rule()
    def rollback(self) -> None:
        assert self.store.rollback("net") == self.previous
        self.current, self.previous = self.previous, self.current

    @precondition(lambda self: self.there)
    @rule(keep=st.integers(0, 2))
    def gc(self, keep: int) -> None:
        self.store.gc(keep)
        loose = [one for one in self.there if one not in {self.current, self.previous}]
        gone = loose[: max(len(loose) - keep, 0)]
        self.there = [one for one in self.there if one not in gone]

    @precondition(lambda self: self.current)
    @rule()
    def damage(self) -> None:
        flip((self.store.root / "net" / "current" / "model.json").resolve())
        assert [found.version for found in self.store.verify()] == [self.current]
        self.store.add(net(self.current))
        self.there = [one for one in self.there if one != self.current] + [self.current]

    @invariant()
    def agrees(self) -> None:
        if self.there:
            assert versions(self.store) == self.there
            assert pointers(self.store) == (self.current, self.previous)
            assert self.store.verify() == ()
            assert len(os.listdir(self.store.root / ".objects")) == len(self.there)

    def teardown(self) -> None:
        self.stack.close()


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
