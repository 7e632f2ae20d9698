from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing import errors
from farthing.errors import FarthingError, NotInstalled, nearest, require

CLASSES = [part for part in vars(errors).values() if isinstance(part, type) and issubclass(part, Exception)]


def test_one_root_catches_everything() -> None:
    assert all(issubclass(part, FarthingError) for part in CLASSES)
    assert len(CLASSES) > 10


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Indentation in the drawing is the depth of the class, and every class is drawn once, below its parent."""
    drawn: list[type[Exception]] = []
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        name = line.strip(" │├└─").split(" ")[0]
        if name not in errors.__all__ or not isinstance(getattr(errors, name), type):
            continue
        depth = (len(line) - len(line.lstrip(" │├└─"))) // 4
        path = [*path[: depth - 1], name]
        kind = getattr(errors, name)
        drawn.append(kind)
        parent = FarthingError if depth == 2 else getattr(errors, path[-2]) if depth > 2 else Exception
        assert kind.__base__ is parent, name
    assert sorted(map(str, drawn)) == sorted(map(str, CLASSES))


def test_nearest_names_the_likely_one_and_all() -> None:
    assert nearest("latencyms", ["latency_ms", "size_mb"]).startswith("did you mean 'latency_ms'? Known: ")
    assert nearest("zzz", ["latency_ms"]) == "Known: latency_ms"
    assert nearest("x", []) == "Known: none"


@given(st.text(), st.lists(st.text(min_size=1)))
def test_nearest_never_fails_and_omits_no_name(name: str, known: list[str]) -> None:
    sentence = nearest(name, known)
    assert all(one in sentence for one in known)


def test_require_imports_what_is_there() -> None:
    assert require("json", "json").loads("1") == 1


def test_require_names_package_and_extra() -> None:
    with pytest.raises(NotInstalled, match=r"package 'no_such_package'.*pip install 'farthing\[image\]'"):
        require("no_such_package.inner", "image")


def test_require_names_the_package_that_a_package_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_more.py").write_text("import deeper_dependency\n")
    (tmp_path / "broken_package.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotInstalled, match="'deeper_dependency', which is not installed"):
        require("needs_more", "image")
    with pytest.raises(NotInstalled, match=r"installed but does not load: libGL.so.1"):
        require("broken_package", "camera")


def test_importing_errors_imports_nothing_else_of_farthing() -> None:
    wanted = "('farthing.', 'numpy', 'msgspec', 'yaml')"
    code = f"import sys, farthing.errors; print([name for name in sys.modules if name.startswith({wanted})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['farthing.errors']"
