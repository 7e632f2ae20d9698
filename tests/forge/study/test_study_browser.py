"""The pages of a study and an analysis of sensitivity in a real browser: all marks are drawn, nothing is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from farthing.bench import Rule
from farthing.forge.ladder import rounds
from farthing.forge.sensitivity import sensitivity
from farthing.forge.sensitivity.page import render as render_sensitivity
from farthing.forge.study import study
from farthing.forge.study.page import render as render_study
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

VNNI = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))
pytestmark = pytest.mark.browser


@pytest.fixture
def open_page(chromium_options: dict[str, Any], tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Opens a page of some text; the test fails if it says anything on the console or asks the network."""
    playwright = pytest.importorskip("playwright.sync_api")
    said: list[str] = []
    asked: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(**chromium_options)

        def opened(text: str) -> Any:
            path = tmp_path / "page.html"
            path.write_text(text, "utf-8")
            page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(path.as_uri())
            return page

        yield opened
        browser.close()
    assert said == []
    assert [url for url in asked if not url.endswith("/page.html")] == []


def test_a_study_plots_every_method_that_was_timed(
    cnn: Model,
    digits_task: Task,
    cache_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    open_page: Callable[[str], Any],
) -> None:
    monkeypatch.setattr(rounds, "SPRINT", Rule(warmup=1, min_count=5, min_seconds=0.02))
    found = study(cnn, digits_task, VNNI, engines=["onnxruntime"], subset=100, cache=cache_root)
    page = open_page(render_study(found))
    timed = [candidate for candidate in found.methods if candidate.measurements]
    assert page.locator(".plot .mark").count() == len(timed)
    page.locator("input[name=x][value=size]").check(force=True)
    assert page.locator(".plot .mark").count() == len(timed)
    assert page.locator(".chart .spot").count() == 9 + 6 * len(found.layers)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_the_picture_of_an_analysis_fits_on_a_telephone(
    cnn: Model, digits_task: Task, tmp_path: Path, open_page: Callable[[str], Any]
) -> None:
    found = sensitivity(cnn, digits_task, precisions=["int8", "float16"], scored=0, cache=tmp_path / "cache")
    page = open_page(render_sensitivity(found))
    box = page.locator(".chart svg").first.bounding_box()
    assert box["width"] > 400
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator(".chart svg").first.bounding_box()["width"] > 500, "it scrolls, and stays readable"
    assert page.locator(".chart").first.bounding_box()["width"] <= 340
