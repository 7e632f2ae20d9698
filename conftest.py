"""The README and the docs are tests: their Python and bash blocks run in order, each page in an empty directory.

A block is left out by an HTML comment before it: ``<!--- skip: next -->``. What is only to be read is marked
``console`` (a transcript) or ``text``. Pages without code, and docs that are not there, are no error.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from farthing import plugins

ROOT = Path(__file__).parent


class BashBlocks(CodeBlockParser):
    """Runs ``bash`` blocks, with the commands of the environment that runs the tests; a failing line fails."""

    language = "bash"

    def evaluate(self, example: Example) -> str | None:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", str(example.parsed)],
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return f"exit code {done.returncode}\n{done.stdout}{done.stderr}" if done.returncode else None


class InOrder:
    """All parsers of a page: skips first, then code."""

    def __init__(self) -> None:
        self.parsers = (SkipParser(), PythonCodeBlockParser(), BashBlocks())

    def __call__(self, document: Document) -> Iterable[Region]:
        for parser in self.parsers:
            yield from parser(document)


def start(namespace: dict[str, Any]) -> None:
    """A page begins in an empty directory; files of the checkout are reached through ``ROOT``."""
    place = tempfile.TemporaryDirectory(prefix="farthing-docs-")
    namespace.update(ROOT=ROOT, _place=place, _before=Path.cwd(), _known={**plugins._registered})
    os.environ["ROOT"] = str(ROOT)
    os.chdir(place.name)


def finish(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_before"])
    plugins._registered.clear()  # what a page registered is not there for others in this process
    plugins._registered.update(namespace["_known"])
    namespace["_place"].cleanup()


pytest_collect_file = Sybil(
    parsers=[InOrder()], patterns=["README*.md", "docs/*.md", "docs/**/*.md"], setup=start, teardown=finish
).pytest()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An object a page leaves open is no failure of the page (and Sybil 10 cannot show such a one)."""
    for item in items:
        if isinstance(item, SybilItem):
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))
