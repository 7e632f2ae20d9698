"""The cache: nothing is made twice, nothing damaged is used, and processes may share it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.errors import ModelError, StorageError
from farthing.forge.cache import Cache, key_of
from farthing.measure import Interval
from farthing.model import Manifest, Model, TensorSpec
from farthing.recipe import Step

KEY = key_of("a key")


def model(content: bytes = b"weights") -> Model:
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 2))
    return Model.create(
        Manifest(name="m", format="fake", inputs=(spec,), outputs=(spec,)), {"m.json": content}
    )


class Maker:
    """Counts how often it is asked."""

    def __init__(self, content: bytes = b"weights") -> None:
        self.content = content
        self.asked = 0

    def __call__(self) -> Model:
        self.asked += 1
        return model(self.content)


def test_a_model_is_made_once(tmp_path: Path) -> None:
    make = Maker()
    first = Cache(tmp_path).model(KEY, make)
    second = Cache(tmp_path).model(KEY, make)
    assert make.asked == 1
    assert first.digest == second.digest == model().digest
    assert first.path == second.path
    assert first.path.is_relative_to(tmp_path)


def test_what_fails_is_not_kept(tmp_path: Path) -> None:
    def fail() -> Model:
        raise ModelError("no")

    with pytest.raises(ModelError, match="no"):
        Cache(tmp_path).model(KEY, fail)
    assert Cache(tmp_path).model(KEY, Maker()).digest == model().digest


def broken_file(place: Path) -> None:
    (place / "m.json").write_bytes(b"other")


def lost_file(place: Path) -> None:
    (place / "m.json").unlink()


def lost_manifest(place: Path) -> None:
    (place / "manifest.json").unlink()


def cut_manifest(place: Path) -> None:
    (place / "manifest.json").write_bytes((place / "manifest.json").read_bytes()[:40])


def emptied(place: Path) -> None:
    lost_file(place)
    lost_manifest(place)


@pytest.mark.parametrize("damage", [broken_file, lost_file, lost_manifest, cut_manifest, emptied])
def test_a_damaged_model_is_made_again(damage: Callable[[Path], None], tmp_path: Path) -> None:
    cache, make = Cache(tmp_path), Maker()
    damage(cache.model(KEY, make).path)
    again = cache.model(KEY, make)
    assert make.asked == 2
    again.verify()
    assert cache.model(KEY, make).digest == model().digest
    assert make.asked == 2


def test_values_are_kept_and_made_again_if_damaged_or_asked_for(tmp_path: Path) -> None:
    cache, asked = Cache(tmp_path), [0]

    def make() -> Interval:
        asked[0] += 1
        return Interval(value=asked[0], low=0, high=9)

    assert [cache.value(KEY, Interval, make).value for _ in range(3)] == [1, 1, 1]
    assert cache.value(KEY, Interval, make, again=True).value == 2
    assert cache.value(KEY, Interval, make).value == 2
    place = next(path for path in tmp_path.rglob("*.json"))
    for content in (b"", b"{", b'{"value": 1}', b"\xff\xfe", b'{"value": 1, "low": null, "high": 2}'):
        before = asked[0]
        place.write_bytes(content)
        assert cache.value(KEY, Interval, make).value == before + 1
        assert cache.value(KEY, Interval, make).value == before + 1


def test_values_of_plain_types(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for number, (kind, value) in enumerate(
        [(float, 1.5), (list[str], ["a"]), (tuple[float, float], (1.0, 2.0))]
    ):
        for _ in range(2):
            assert cache.value(key_of(number), kind, lambda value=value: value) == value  # type: ignore[misc]


SHARED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_cache import KEY, Maker
from farthing.forge.cache import Cache
cache, rounds = Cache(Path(sys.argv[1])), 0
until = time.time() + 1.5
while time.time() < until:
    for number in range(8):
        found = cache.model(KEY[:-1] + str(number), Maker(b"%d" % number))
        found.verify()
        assert found.file.read_bytes() == b"%d" % number
        assert cache.value(KEY[:-1] + str(number), int, lambda: number) == number
    if rounds == 0:
        first = found
    rounds += 1
first.verify()
print(rounds)
"""


def test_processes_share_a_cache(tmp_path: Path) -> None:
    """Three processes make and read the same eight entries: all see whole ones, and nobody's vanish under them."""
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", SHARED, str(tmp_path), here]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err.decode()
        assert int(out) > 1
    assert not list(tmp_path.rglob(".tmp-*"))


def test_who_comes_second_uses_what_the_first_one_kept(tmp_path: Path) -> None:
    """Both find nothing, both make it; the slower one must neither fail nor replace what the other already uses."""
    cache = Cache(tmp_path)
    kept: list[Model] = []

    def slow() -> Model:
        kept.append(cache.model(KEY, Maker()))
        return model()

    second = cache.model(KEY, slow)
    assert second.path == kept[0].path
    inode = (kept[0].path / "m.json").stat().st_ino
    assert (second.path / "m.json").stat().st_ino == inode


def test_leftovers_of_killed_processes_are_swept_once_they_are_old(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.model(KEY, Maker())
    cache.value(KEY, int, lambda: 3)
    folder, file = tmp_path / "models" / KEY[:2] / ".tmp-abc", tmp_path / "values" / KEY[:2] / ".tmp-def"
    (folder / "half").mkdir(parents=True)
    file.write_bytes(b"half")
    cache.sweep()
    assert folder.exists(), "what is young may belong to a live process"
    assert file.exists()
    for path in (folder, file):
        os.utime(path, (time.time() - 7200,) * 2)
    cache.sweep()
    assert not folder.exists()
    assert not file.exists()
    assert cache.model(KEY, Maker()).digest == model().digest
    assert cache.value(KEY, int, lambda: 4) == 3


def test_unfinished_work_is_found_again_and_goes_when_it_is_done(tmp_path: Path) -> None:
    cache, seen = Cache(tmp_path), []
    lock = tmp_path / "work" / KEY[:2] / f"{KEY}.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()  # as a killed process leaves it

    def work(state: Path | None) -> Model:
        assert state is not None
        seen.append([path.name for path in state.iterdir()])
        (state / f"step{len(seen)}").write_bytes(b"done")
        if len(seen) < 3:
            raise KeyboardInterrupt
        return model()

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            cache.resumed(KEY, work)
    assert cache.size_bytes() > 0
    assert cache.resumed(KEY, work).digest == cache.resumed(KEY, work).digest == model().digest
    assert seen == [[], ["step1"], ["step1", "step2"]]
    assert not [path for path in (tmp_path / "work").rglob("*") if path.name != KEY[:2]]


def test_who_works_on_the_same_at_the_same_time_does_so_without_a_directory(tmp_path: Path) -> None:
    cache, states = Cache(tmp_path), []

    def second(state: Path | None) -> Model:
        states.append(state)
        return model()

    def first(state: Path | None) -> Model:
        states.append(state)
        cache.resumed(KEY, second)
        assert state is not None
        assert state.exists(), "it belongs to the first, who is still at work"
        return model()

    cache.resumed(KEY, first)
    assert states[0] is not None
    assert states[1] is None
    assert not states[0].exists()


def test_unfinished_work_is_swept_after_a_week(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    place = tmp_path / "work" / KEY[:2] / KEY
    (place / "part").mkdir(parents=True)
    (place / "part" / "training.pt").write_bytes(b"half")
    lock = place.with_name(f"{KEY}.lock")
    lock.touch()
    day = 24 * 3600
    for age, there in ((2 * day, True), (8 * day, False)):
        for path in (place, lock, *place.rglob("*")):
            os.utime(path, (time.time() - age,) * 2)
        if there:
            os.utime(place / "part" / "training.pt")
        cache.sweep()
        assert place.exists() is there
        assert lock.exists() is there


def test_clear_and_size_know_only_entries(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "digits.csv").write_bytes(b"1" * 1000)
    cache = Cache(tmp_path)
    assert cache.size_bytes() == 0
    cache.model(KEY, Maker(b"x" * 5000))
    cache.value(KEY, int, lambda: 3)
    assert 5000 < cache.size_bytes() < 7000
    cache.clear()
    assert cache.size_bytes() == 0
    assert (tmp_path / "assets" / "digits.csv").exists()


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for cache in (Cache(tmp_path / "file"), Cache(tmp_path / "file" / "below")):
        with pytest.raises(StorageError, match="a file stands where a directory is needed"):
            cache.model(KEY, Maker())
        with pytest.raises(StorageError, match="a file stands where a directory is needed"):
            cache.value(KEY, int, lambda: 3)
        cache.sweep()
        cache.clear()


@given(st.lists(st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text())), max_size=4))
def test_keys_follow_their_parts(parts: list[object]) -> None:
    assert key_of(*parts) == key_of(*parts)
    assert key_of(*parts) != key_of(*parts, "")
    assert key_of("".join(map(str, parts))) != key_of(*parts, None)


def test_keys_do_not_depend_on_the_order_of_options() -> None:
    one = Step(use="a", options={"x": 1, "y": [2]})
    other = Step(use="a", options={"y": [2], "x": 1})
    assert key_of(one) == key_of(other)
    assert key_of(one) != key_of(Step(use="a", options={"x": 1, "y": [3]}))
