"""The report in a real browser: what it draws, how it answers, and that it stays silent on the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from farthing.forge.compare import compared
from farthing.forge.report import render
from farthing.forge.report.changes import render_comparison
from farthing.forge.report.portable import render_matrix

pytestmark = pytest.mark.browser
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser(chromium_options: dict[str, Any]) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(**chromium_options)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any, build: Any, recipe: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the report of a summary; the test fails if the page says anything on the console or asks the network."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def opened(summary: Any = None, **options: Any) -> Any:
        path = tmp_path / "report.html"
        path.write_text(render(build() if summary is None else summary, recipe), "utf-8")
        contexts.append(
            browser.new_context(
                **{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **options}
            )
        )
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.endswith("/report.html")] == []


def numbers(page: Any) -> list[str]:
    return page.eval_on_selector_all("#all tbody tr", "rows => rows.map(row => row.cells[0].textContent)")


def x_of(page: Any, number: int) -> float:
    box = page.locator(f".plot .mark[data-n='{number}'] .shape").bounding_box()
    return box["x"] + box["width"] / 2


def test_one_mark_for_each_timed_candidate(open_page: Open, build: Any) -> None:
    page = open_page()
    timed = [c.number for c in build().candidates if c.figures.latency_ms is not None]
    marks = page.eval_on_selector_all(".plot .mark", "marks => marks.map(mark => Number(mark.dataset.n))")
    assert sorted(marks) == timed
    assert page.locator(".plot .mark.winner").count() == 1
    assert page.locator(".plot .front").count() == 1
    assert page.locator(".plot .limit").count() == 2


def test_pointing_at_a_mark_shows_its_verdict(open_page: Open) -> None:
    page = open_page()
    tip = page.locator(".tip")
    assert tip.is_hidden()
    page.locator(".plot .mark.winner .shape").hover()
    assert tip.is_visible()
    assert "winner: 1.53x" in tip.inner_text()
    assert "26.9\xa0µs" in tip.inner_text()
    page.mouse.move(2, 2)
    assert tip.is_hidden()


def test_arrow_keys_walk_the_marks_and_enter_shows_the_row(open_page: Open) -> None:
    page = open_page()
    page.locator("input[name=log]").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.n") == "6"
    assert "winner: 1.53x" in page.locator(".tip").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.n") == "4"
    assert "accepted: 1.49x" in page.locator(".tip").inner_text()
    assert "accepted: 1.49x" in page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("Enter")
    assert page.locator("tr.shown").get_attribute("id") == "c4"
    page.keyboard.press("Escape")
    assert page.locator(".tip").is_hidden()
    assert page.locator(".plot .mark[tabindex='0']").count() == 1


def test_sorting_by_a_column_and_back(open_page: Open) -> None:
    page = open_page()
    before = numbers(page)
    head = page.get_by_role("button", name="p90", exact=True)
    head.click()
    column = "rows => rows.map(row => row.cells[7].dataset.v).filter(v => v !== undefined).map(Number)"
    ascending = page.eval_on_selector_all("#all tbody tr", column)
    assert ascending == sorted(ascending)
    assert set(numbers(page)[-3:]) == {"8", "9", "12"}, "what has no figure stays at the end"
    assert page.locator("#all th[aria-sort=ascending]").count() == 1
    head.click()
    assert page.eval_on_selector_all("#all tbody tr", column) == ascending[::-1]
    assert set(numbers(page)[-3:]) == {"8", "9", "12"}
    page.get_by_role("button", name="Verdict", exact=True).click()
    assert numbers(page)[0] in {"2", "4"}
    page.get_by_role("button", name="No.", exact=True).click()
    assert numbers(page) == before


def test_other_axes(open_page: Open) -> None:
    page = open_page()
    assert x_of(page, 6) < x_of(page, 0), "less latency is left"
    page.get_by_label("Throughput", exact=True).check()
    assert page.locator(".plot .mark").count() == 6
    assert "4 of 10 timed candidates" in page.locator("#plot-missing").inner_text()
    assert x_of(page, 6) > x_of(page, 0), "more throughput is right"
    page.get_by_label("Size", exact=True).check()
    assert page.locator(".plot .mark").count() == 10
    assert "Size, kB" in page.locator(".plot svg").text_content()
    page.get_by_label("Drop", exact=True).check()
    assert "points" in page.locator(".plot svg").text_content()
    boxes = {n: page.locator(f".plot .mark[data-n='{n}'] .shape").bounding_box()["y"] for n in (0, 4)}
    assert boxes[0] < boxes[4], "less drop is up"


def test_the_logarithmic_axis(open_page: Open) -> None:
    page = open_page()
    linear = [x_of(page, n) for n in (6, 0, 11)]
    page.get_by_label("Logarithmic across").check()
    spread = [x_of(page, n) for n in (6, 0, 11)]
    assert (spread[1] - spread[0]) / (spread[2] - spread[0]) > (linear[1] - linear[0]) / (
        linear[2] - linear[0]
    )
    assert page.locator(".plot text").count() > 8


def test_dark_and_light(open_page: Open) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    shade = f"{ground}.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)"
    assert open_page(color_scheme="dark").evaluate(shade) < 150
    assert open_page(color_scheme="light").evaluate(shade) > 600


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(open_page: Open, several: Any, scheme: str) -> None:
    """Contrast of 4.5 to 1, WCAG 2.2 criterion 1.4.3, for every text of the page against the ground it lies on."""
    page = open_page(several, color_scheme=scheme)
    poor = page.evaluate(
        """() => {
          const channels = (text) => text.match(/[\\d.]+/g).map(Number);
          const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const ground = (node) => {
            for (; node; node = node.parentElement) {
              const colour = channels(getComputedStyle(node).backgroundColor);
              if (colour.length < 4 || colour[3] > 0) return colour;
            }
            return [255, 255, 255];
          };
          const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
          const found = [];
          for (let node; (node = walker.nextNode());) {
            if (!node.textContent.trim() || !node.parentElement.getClientRects().length) continue;
            const style = getComputedStyle(node.parentElement);
            const colour = node.parentElement.namespaceURI.endsWith("svg") ? style.fill : style.color;
            const pair = [light(channels(colour)), light(ground(node.parentElement))].sort((a, b) => b - a);
            if ((pair[0] + 0.05) / (pair[1] + 0.05) < 4.5) found.push(node.textContent.trim());
          }
          return found;
        }"""
    )
    assert poor == []


@pytest.mark.parametrize("width", [320, 375, 768])
def test_a_narrow_page_does_not_scroll_sideways(open_page: Open, build: Any, width: int) -> None:
    long = build(model_name="a-model-with-a-name-" * 6, machine="x" * 300, command="farthing " + "y" * 400)
    winner = msgspec.structs.replace(long.candidates[6], name="n" * 80, verdict="v" * 90)
    long = msgspec.structs.replace(long, candidates=(*long.candidates[:6], winner, *long.candidates[7:]))
    page = open_page(long, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".plot .mark").count() == 10
    for mark in page.locator(".plot .mark").all():
        mark.focus()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        box = page.locator(".tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_hostile_names_run_nothing(open_page: Open, build: Any) -> None:
    name = "</script><img src=x onerror=alert(1)>"
    candidates = tuple(msgspec.structs.replace(c, name=name, verdict=name) for c in build().candidates)
    page = open_page(build(model_name=name, candidates=candidates))
    page.locator(".plot .mark.winner").focus()
    assert name in page.locator(".tip").inner_text()
    assert page.locator("img").count() == 0
    assert page.locator(".plot text.winner").text_content().startswith("</script>")


def test_sixty_candidates_and_one(open_page: Open, build: Any) -> None:
    assert open_page(build(extra=47)).locator(".plot .mark").count() == 57
    page = open_page(build(candidates=build().candidates[:1], winner=0))
    assert page.locator(".plot .mark").count() == 1
    page.get_by_label("Logarithmic across").check()
    assert page.locator(".plot .mark").count() == 1


def test_copying_the_command(open_page: Open, build: Any) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == build().command


def test_without_scripts_the_tables_stay(open_page: Open) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator("#all tbody tr").count() == 13
    assert page.locator("#all").is_visible()
    assert page.locator(".tradeoff").is_hidden()
    assert page.locator(".copy").first.is_hidden()


def test_printing_shows_the_whole_table_and_recipe(open_page: Open) -> None:
    page = open_page(viewport={"width": 720, "height": 1000})
    page.emulate_media(media="print")
    assert page.locator(".controls").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    assert page.evaluate(
        "[...document.querySelectorAll('pre')].every(pre => pre.scrollHeight <= pre.clientHeight + 1)"
    )


def test_engines_have_colours_and_statuses_shapes(open_page: Open, several: Any) -> None:
    page = open_page(several)
    colour = "mark => getComputedStyle(mark.querySelector('.shape')).fill"
    of = {n: page.eval_on_selector(f".plot .mark[data-n='{n}']", colour) for n in (0, 4, 6, 14, 16)}
    assert of[0] == of[4] == of[6], "one engine, one colour"
    assert len({of[0], of[14], of[16]}) == 3
    swatches = page.eval_on_selector_all(
        ".legend .swatch", "all => all.map(one => getComputedStyle(one).fill)"
    )
    assert swatches == [of[0], of[14], of[16]]
    page.locator(".plot .mark[data-n='16']").focus()
    tip = page.locator(".tip").inner_text()
    assert "litert, 1 thread" in tip
    assert "2.22×" in tip


def test_columns_of_engines_sort(open_page: Open, several: Any) -> None:
    page = open_page(several)
    page.get_by_role("button", name="Engine", exact=True).click()
    column = "rows => rows.map(row => row.cells[2].dataset.v.split(' ')[0])"
    names = page.eval_on_selector_all("#all tbody tr", column)
    assert names == sorted(names)
    page.get_by_role("button", name="Over float", exact=True).click()
    assert numbers(page)[0] == "13"


def test_smaller_layers_unfold(open_page: Open, several: Any) -> None:
    page = open_page(several)
    hidden = page.get_by_role("rowheader", name="/conv12/Conv Conv", exact=True).first
    assert hidden.is_hidden()
    page.locator(".sizes summary").first.click()
    assert hidden.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_engines_stand_out_from_the_page(open_page: Open, several: Any, scheme: str) -> None:
    """3 to 1 for marks, WCAG 2.2 criterion 1.4.11, for every colour an engine may have."""
    page = open_page(several, color_scheme=scheme)
    poor = page.evaluate(
        """() => {
          const light = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number).map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const ground = light(getComputedStyle(document.body).backgroundColor);
          const probe = document.createElement("i");
          document.body.append(probe);
          return [0, 1, 2, 3, 4, 5].filter((n) => {
            probe.style.setProperty("color", `var(--e${n})`);
            const pair = [light(getComputedStyle(probe).color), ground].sort((a, b) => b - a);
            return (pair[0] + 0.05) / (pair[1] + 0.05) < 3;
          });
        }"""
    )
    assert poor == []


@pytest.mark.parametrize("width", [320, 768])
def test_a_narrow_page_of_several_engines_does_not_scroll_sideways(
    open_page: Open, several: Any, width: int
) -> None:
    page = open_page(several, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for more in page.locator("summary").all():
        more.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def plain_pages(build: Any, several: Any) -> dict[str, str]:
    second = build(winner=4, machine="another machine with a long name " * 5)
    return {
        "matrix": render_matrix(several.matrix),
        "comparison": render_comparison(compared(build(), second, "monday", "tuesday")),
    }


@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("kind", ["matrix", "comparison"])
def test_pages_without_scripts(
    browser: Any, build: Any, several: Any, tmp_path: Path, kind: str, width: int
) -> None:
    said: list[str] = []
    (tmp_path / "page.html").write_text(plain_pages(build, several)[kind], "utf-8")
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("table").first.is_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).fontWeight") == "650", (
        "it has its style"
    )
    context.close()
    assert said == []
