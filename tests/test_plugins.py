from __future__ import annotations

import importlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from farthing import plugins
from farthing.errors import NotInstalled, PluginError
from farthing.metrics import Metric
from farthing.plugins import BUILTIN, get, names, register


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Parts that a test registers do not outlive it."""
    before = dict(plugins._registered)
    yield
    plugins._registered.clear()
    plugins._registered.update(before)


def test_every_kind_has_a_table() -> None:
    assert set(BUILTIN) == set(get_args(plugins.Kind))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in BUILTIN for name in BUILTIN[kind]])
def test_every_built_in_name_leads_somewhere(kind: plugins.Kind, name: str) -> None:
    if kind == "pass":
        pytest.importorskip("onnx")
        assert name.rsplit(".", 1)[-1].startswith("v"), "recipes store the version"
    part = get(kind, name)
    assert callable(part) or isinstance(part, Metric)
    if kind in {"engine", "metric"}:
        assert part.name == name


def test_the_nearest_name_is_suggested_and_all_are_listed() -> None:
    with pytest.raises(
        PluginError, match=r"no metric is called 'tpo1'; did you mean 'top1'\? Known: .*macro_f1"
    ):
        get("metric", "tpo1")


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("engin", "mine", "no kind of part is called 'engin'; did you mean 'engine'?"),
        (None, "mine", "no kind of part is called None; Known: "),
        ("engine", "", "the name of the engine is ''"),
        ("engine", 3, "the name of the engine is 3"),
    ],
)
def test_what_is_registered_has_a_kind_and_a_name(kind: Any, name: Any, message: str) -> None:
    with pytest.raises(PluginError, match=re.escape(message)):
        register(kind, name, object())


def test_a_registered_part_is_found_by_name() -> None:
    part = object()
    register("engine", "mine", part)
    assert get("engine", "mine") is part
    assert "mine" in names("engine")
    assert "mine" not in names("pass")
    register("engine", "mine", part)
    with pytest.raises(PluginError, match="the engine name 'mine' is already taken"):
        register("engine", "mine", object())
    with pytest.raises(PluginError, match="already taken"):
        register("engine", "fake", part)


def entry_point(place: Path, group: str, name: str, value: str, source: str) -> None:
    """An installed distribution that announces one part."""
    (place / "thirdparty.py").write_text(source)
    info = place / "thirdparty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("thirdparty", None)


def test_an_installed_entry_point_is_found(site: Path) -> None:
    entry_point(site, "farthing.metric", "theirs", "thirdparty:PART", "PART = 'a metric'\n")
    assert "theirs" in names("metric")
    assert "theirs" not in names("engine")
    assert "thirdparty" not in sys.modules, "listing imports nothing"
    assert get("metric", "theirs") == "a metric"


def test_an_entry_point_is_searched_for_once(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders are looked up for each prediction."""
    entry_point(site, "farthing.decoder", "theirs", "thirdparty:PART", "PART = object()\n")
    first = get("decoder", "theirs")
    monkeypatch.setattr(plugins, "_entry_points", lambda kind: pytest.fail("searched again"))
    assert get("decoder", "theirs") is first


@pytest.mark.parametrize("source", ["import no_such_module_at_all\n", "OTHER = 1\n"])
def test_an_entry_point_that_does_not_load_is_named(site: Path, source: str) -> None:
    entry_point(site, "farthing.pass", "prune.theirs.v1", "thirdparty:PART", source)
    with pytest.raises(
        PluginError, match=r"'prune.theirs.v1' of entry point 'thirdparty:PART' does not load"
    ):
        get("pass", "prune.theirs.v1")


def test_a_broken_entry_point_does_not_stop_other_engines(site: Path) -> None:
    from farthing.engines.base import open_engine
    from farthing.testing import fake_model

    entry_point(site, "farthing.engine", "aaa", "thirdparty:PART", "raise ImportError('broken')\n")
    with open_engine(fake_model()) as engine:
        assert engine.name == "fake"


def child(code: str) -> str:
    source = textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_pass_without_its_packages_names_the_extra() -> None:
    message = child("""
        import sys
        sys.modules["onnx"] = None
        from farthing import plugins
        from farthing.errors import NotInstalled
        try:
            plugins.get("pass", "graph.fuse.v1")
        except NotInstalled as error:
            print(error)
    """)
    assert "needs the Python package 'onnx'" in message
    assert "pip install 'farthing[forge]'" in message
    assert issubclass(NotInstalled, Exception)


def test_built_in_names_are_found_without_looking_at_what_is_installed() -> None:
    loaded = child("""
        import sys
        from farthing import plugins
        plugins.get("engine", "fake")
        print("importlib.metadata" in sys.modules, "onnxruntime" in sys.modules)
    """)
    assert loaded == "False False"
