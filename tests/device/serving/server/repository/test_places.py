from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from farthing.bundle import Bundle
from farthing.device.serving.server.repository.places import find
from farthing.device.serving.server.settings import All, Batching, Entry, VersionPolicy
from farthing.errors import ConfigError, FarthingError, ModelError
from farthing.testing import fake_model


def found(path: Path, name: str = "") -> list[tuple[str, list[str]]]:
    return [
        (place.name, [one.name for one in place.versions()]) for place in find(Entry(path=path, name=name))
    ]


def test_single_models(tmp_path: Path) -> None:
    model = fake_model(name="net").save(tmp_path / "here")
    fake_model(name="best").save(tmp_path / "search" / "model")
    model.pack(tmp_path / "zipped.zip")
    Bundle.create("both", "variants", {"a": model, "b": model}, tmp_path / "bundle")
    assert found(tmp_path / "here") == [("net", [""])]
    assert found(tmp_path / "here", "gate") == [("gate", [""])]
    assert found(tmp_path / "search") == [("best", [""])]
    assert found(tmp_path / "zipped.zip") == [("zipped", [""])]
    assert found(tmp_path / "bundle") == [("both", [""])]


def test_a_repository_as_tritons(tmp_path: Path) -> None:
    for version in ("1", "2", "10"):
        fake_model(name="x").save(tmp_path / "gate" / version)
    fake_model().save(tmp_path / "deep" / "3" / "model.here")
    fake_model().save(tmp_path / "plain")
    (tmp_path / "gate" / "notes.txt").write_text("")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "README").write_text("")
    assert found(tmp_path) == [("deep", ["3"]), ("gate", ["10"]), ("plain", [""])]
    assert found(tmp_path / "gate", "other") == [("other", ["10"])]
    (tmp_path / "gate" / "config.pbtxt").write_text(
        "max_batch_size: 4 version_policy { latest { num_versions: 2 } } platform: 'onnxruntime_onnx'"
    )
    place = find(Entry(path=tmp_path / "gate"))[0]
    assert [one.name for one in place.versions()] == ["2", "10"], "the default one last"
    assert (place.settings.max_batch_size, place.config.ignored) == (4, ("platform",))
    everything = Entry(
        path=tmp_path / "gate", version_policy=VersionPolicy(all=All()), dynamic_batching=Batching()
    )
    place = find(everything)[0]
    assert [one.name for one in place.versions()] == ["1", "2", "10"], "what is given goes before the file"
    assert place.settings.max_batch_size == 4


def test_a_store_is_followed_to_its_current_model(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fake_model(name="net", version=name).save(tmp_path / "store" / "models" / name)
    current = tmp_path / "store" / "current"
    current.symlink_to("models/a")
    place = find(Entry(path=tmp_path / "store"))[0]
    assert place.name == "net"
    (before,) = place.versions()
    assert place.versions() == [before]
    current.unlink()
    current.symlink_to("models/b")
    (after,) = place.versions()
    assert after.path.name == "b"
    assert after.mark != before.mark
    current.unlink()
    current.symlink_to("models/gone")
    with pytest.raises(ModelError, match="cannot read"):
        find(Entry(path=tmp_path / "store"))[0].versions()


def test_a_model_written_anew_is_another(tmp_path: Path) -> None:
    fake_model(seed=0).save(tmp_path / "net")
    place = find(Entry(path=tmp_path / "net"))[0]
    before = place.versions()
    fake_model(seed=1).save(tmp_path / "net")
    assert place.versions() != before


def test_what_holds_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.onnx").write_text("")
    (tmp_path / "gate" / "1").mkdir(parents=True)
    for name, said in (
        ("gone", "does not exist"),
        ("empty", "holds no model"),
        ("file.onnx", "holds no model.*farthing convert"),
    ):
        with pytest.raises(ModelError, match=said):
            find(Entry(path=tmp_path / name))
    with pytest.raises(ModelError, match="holds no model: a version is a model directory"):
        found(tmp_path / "gate")
    for name in ("a", "b"):
        fake_model().save(tmp_path / "gate" / "1" / name)
    with pytest.raises(ModelError, match="holds 2 models"):
        found(tmp_path / "gate")
    fake_model().save(tmp_path / "two" / "a")
    with pytest.raises(ModelError, match="leave out the name"):
        found(tmp_path / "two", "x")


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that everyone may read, however this user's temporary ones are."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@contextmanager
def nobody() -> Iterator[None]:
    """Without the rights of root, where the tests run with them."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_what_cannot_be_read_is_said_so(open_place: Path) -> None:
    for name in ("readable", "closed", "lost+found"):
        fake_model(name=name).save(open_place / "models" / name / "1")
    for name in ("closed", "lost+found"):
        (open_place / "models" / name).chmod(0)
    try:
        with nobody():
            with pytest.raises(ModelError, match=r"cannot read .*closed.*: Permission denied"):
                find(Entry(path=open_place / "models" / "closed"))
            readable, closed = sorted(
                find(Entry(path=open_place / "models")), key=lambda place: place.name, reverse=True
            )
            assert [one.name for one in readable.versions()] == ["1"]
            with pytest.raises(ModelError, match=r"cannot read .*closed"):
                closed.versions()
    finally:
        for name in ("closed", "lost+found"):
            (open_place / "models" / name).chmod(0o700)
    with pytest.raises(ModelError, match="cannot read"):
        find(Entry(path=Path("x" * 9999)))
    (open_place / "models" / "current").symlink_to("current")
    with pytest.raises(ModelError, match="cannot read"):
        find(Entry(path=open_place / "models"))[0].versions()


def test_names_that_cannot_stand_in_a_url_are_refused(tmp_path: Path) -> None:
    fake_model(name="a b/../c").save(tmp_path / "net")
    with pytest.raises(ModelError, match="NAME="):
        find(Entry(path=tmp_path / "net"))
    assert found(tmp_path / "net", "ok") == [("ok", [""])]


def test_configurations_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    fake_model().save(tmp_path / "gate" / "1")
    config = tmp_path / "gate" / "config.pbtxt"
    for text, kind, said in (
        ('name: "other"', ModelError, "is of 'other', but its directory is 'gate'"),
        ("backend", ConfigError, "stands where a value"),
        ("version_policy { specific { versions: 7 } }", ConfigError, "version 7 is not there"),
    ):
        config.write_text(text)
        with pytest.raises(FarthingError, match=said) as caught:
            found(tmp_path)
        assert isinstance(caught.value, kind)
