"""The documentation holds together: links lead somewhere, both languages keep step, reference pages match the code."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import unicodedata
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

import farthing
from farthing import catalogue, errors
from farthing.bundle import BundleManifest, Exits
from farthing.cli import COMMANDS
from farthing.device.serving.cache.lru import CacheRule, CacheStats
from farthing.device.serving.queue.backlog import QueueRule, QueueStats
from farthing.device.serving.server.settings import Batching, Entry, Limits, Settings
from farthing.device.watch.advice import Thresholds
from farthing.engines.oip import Remote
from farthing.engines.remote.retrying import BreakerRule, RetryRule
from farthing.forge.quantize.blockwise import Blockwise
from farthing.forge.quantize.dynamic import DynamicInt8
from farthing.forge.quantize.float16 import Float16
from farthing.forge.quantize.gptq import Gptq
from farthing.forge.quantize.heads import Join, Joined
from farthing.forge.quantize.smooth import Smooth
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.quantize.tables import Tables
from farthing.forge.quantize.weights import WeightsOnly
from farthing.forge.sensitivity.result import Effect, Mixture, Operator, Sensitivity, Whole
from farthing.forge.study.result import Layer, Rounded, Study, Width
from farthing.forge.training.distill import Student
from farthing.forge.training.distillation import Distillation, Feature
from farthing.forge.training.finetune import FineTune
from farthing.forge.training.schedule import Schedule
from farthing.model import Manifest, Preprocess, Quantization, Resize, TensorSpec
from farthing.plugins import BUILTIN
from farthing.recipe import Candidate, Recipe, Step, Summary
from farthing.target import Budget, Target
from farthing.taskfile import Source, TaskFile

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
TRANSLATED = [
    (ROOT / "README.md", ROOT / "README.zh-CN.md"),
    (DOCS / "tutorial.md", DOCS / "tutorial.zh-CN.md"),
]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and its like make of headings."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.M):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        kept = (c for c in text if c in " -_" or unicodedata.category(c)[0] in "LNM")
        found.add("".join(kept).replace(" ", "-"))
    return found


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(text: str) -> list[str]:
    """Text without its line breaks, which argparse sets differently from one Python to the next."""
    return text.split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), f"{page.name} links to {target}, which is not there"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), (
                f"{page.name} links to {target}: {place.name} has no such heading"
            )


def test_every_page_is_linked_from_another() -> None:
    linked = set()
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s#]+)", prose(page)):
            linked.add((page.parent / target).resolve())
    lonely = [str(page.relative_to(ROOT)) for page in DOCS.rglob("*.md") if page not in linked]
    assert lonely == []


@pytest.mark.parametrize(("english", "chinese"), TRANSLATED, ids=lambda page: page.name)
def test_both_languages_keep_step(english: Path, chinese: Path) -> None:
    levels = [re.findall(r"^(#+) ", prose(page), re.M) for page in (english, chinese)]
    assert levels[0] == levels[1]
    blocks = [FENCE.findall(page.read_text()) for page in (english, chinese)]
    assert [block[0] for block in blocks[0]] == [block[0] for block in blocks[1]]
    for one, other in zip(*blocks, strict=True):
        assert one[1] == other[1]
    rows = [len(re.findall(r"^\|", prose(page), re.M)) for page in (english, chinese)]
    assert rows[0] == rows[1]


def test_every_command_is_on_the_command_line_page_as_it_is() -> None:
    cli_page = tool("cli_page")
    page = cli_page.PAGE.read_text()
    places = cli_page.blocks(page)
    assert set(places) == {"", *COMMANDS}
    for command, (start, end) in places.items():
        said = page[start:end]
        assert words(said) == words(cli_page.help_of(command)), (
            "docs/reference/cli.md is out of step: python tools/cli_page.py"
        )


def test_readme_names_every_command() -> None:
    for page in TRANSLATED[0]:
        assert re.findall(r"^\| `farthing (\w+)` \|", page.read_text(), re.M) == list(COMMANDS)


def test_python_page_names_what_is_public() -> None:
    page = (DOCS / "reference" / "python.md").read_text()
    named = re.findall(r"^### `(\w+)`$", page, re.M)
    assert sorted(named) == sorted(farthing.__all__)
    assert len(named) <= 30


def test_python_page_shows_the_arguments_there_are() -> None:
    page = (DOCS / "reference" / "python.md").read_text()
    shown = dict(re.findall(r"^### `(\w+)`\n\n`\1\((.*)\)`$", page, re.M))
    functions = {name for name in farthing.__all__ if inspect.isfunction(getattr(farthing, name))}
    assert set(shown) == functions
    for name, arguments in shown.items():
        parameters = inspect.signature(getattr(farthing, name)).parameters
        assert [part for part in arguments.split(", ") if part != "*"] == list(parameters), name


def test_errors_page_shows_the_tree() -> None:
    page = (DOCS / "reference" / "errors.md").read_text()
    classes = {name for name in errors.__all__ if inspect.isclass(getattr(errors, name))}
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == classes
    assert set(re.findall(r"\w+", FENCE.findall(page)[0][1])) == classes


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        ("reference/manifest.md", Manifest),
        ("reference/manifest.md", TensorSpec),
        ("reference/manifest.md", Preprocess),
        ("reference/manifest.md", Resize),
        ("reference/manifest.md", Quantization),
        ("reference/manifest.md", BundleManifest),
        ("reference/manifest.md", Exits),
        ("reference/task-file.md", TaskFile),
        ("reference/task-file.md", Source),
        ("reference/recipe.md", Recipe),
        ("reference/recipe.md", Step),
        ("reference/recipe.md", StaticInt8),
        ("reference/recipe.md", DynamicInt8),
        ("reference/recipe.md", Gptq),
        ("reference/recipe.md", Blockwise),
        ("reference/recipe.md", Tables),
        ("reference/recipe.md", WeightsOnly),
        ("reference/recipe.md", Smooth),
        ("reference/recipe.md", Float16),
        ("reference/recipe.md", FineTune),
        ("reference/recipe.md", Student),
        ("how-to/train-and-distil.md", Schedule),
        ("how-to/train-and-distil.md", Distillation),
        ("how-to/train-and-distil.md", Feature),
        ("reference/budget.md", Budget),
        ("reference/targets.md", Target),
        ("how-to/watch-a-device.md", Thresholds),
        ("reference/server.md", Settings),
        ("reference/server.md", Entry),
        ("reference/server.md", Batching),
        ("reference/server.md", Limits),
        ("reference/engines.md", Remote),
        ("reference/engines.md", RetryRule),
        ("reference/engines.md", BreakerRule),
        ("how-to/read-result-json.md", Summary),
        ("how-to/read-result-json.md", Candidate),
        ("reference/sensitivity.md", Sensitivity),
        ("reference/sensitivity.md", Operator),
        ("reference/sensitivity.md", Effect),
        ("reference/sensitivity.md", Whole),
        ("reference/sensitivity.md", Mixture),
        ("reference/sensitivity.md", Join),
        ("reference/sensitivity.md", Joined),
        ("reference/study.md", Study),
        ("reference/study.md", Layer),
        ("reference/study.md", Rounded),
        ("reference/study.md", Width),
        ("how-to/answer-in-real-time.md", QueueRule),
        ("how-to/answer-in-real-time.md", QueueStats),
        ("how-to/cache-answers.md", CacheRule),
        ("how-to/cache-answers.md", CacheStats),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_key_has_a_row(page: str, kind: type[msgspec.Struct]) -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", (DOCS / page).read_text(), re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {field.name for field in msgspec.structs.fields(kind)} <= named


def test_recipe_page_has_every_built_in_pass() -> None:
    page = (DOCS / "reference" / "recipe.md").read_text()
    assert re.findall(r"^### `(.*)`$", page, re.M) == list(BUILTIN["pass"])


def test_task_page_has_every_built_in_metric() -> None:
    page = (DOCS / "reference" / "task-file.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| `metric`"))
    assert set(re.findall(r"`(\w+)`", row)) == {"metric", *BUILTIN["metric"]}


def test_tasks_page_has_every_built_in_task() -> None:
    page = (DOCS / "reference" / "tasks.md").read_text()
    table = page.partition("## Samples")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.M)) == set(BUILTIN["task"])


def test_targets_page_has_every_device_of_the_catalogue() -> None:
    page = (DOCS / "reference" / "targets.md").read_text().partition("## The catalogue")[2]
    assert set(re.findall(r"`([\w-]+)`[,| ]", page)) >= set(catalogue.names())


def test_glossary_is_in_order() -> None:
    entries = re.findall(r"^\*\*(.*?)\.\*\*", (DOCS / "glossary.md").read_text(), re.M)
    assert entries == sorted(entries, key=str.lower)


def test_records_of_decisions_are_numbered_and_listed() -> None:
    numbers = [path.name[:4] for path in sorted((DOCS / "adr").glob("[0-9]*.md"))]
    assert numbers == [f"{i:04}" for i in range(1, len(numbers) + 1)]
    listed = re.findall(r"^\| \[(\d{4})\]", (DOCS / "adr" / "README.md").read_text(), re.M)
    assert listed == numbers


def test_architecture_page_shows_the_modules_there_are() -> None:
    page = FENCE.findall((DOCS / "architecture.md").read_text())[0][1]
    shown = set(re.findall(r"^  (\w+(?:\.py|/))", page, re.M))
    source = ROOT / "src" / "farthing"
    there = {p.name if p.is_file() else f"{p.name}/" for p in source.iterdir() if p.name not in {"py.typed"}}
    assert shown == {name for name in there if name not in {"__pycache__/", "data/"}}


def test_architecture_page_places_every_file_of_forge() -> None:
    page = (DOCS / "architecture.md").read_text()
    table = page.partition("## Forge, by what its files do")[2].partition("## ")[0]
    shown = re.findall(r"`(\w+/?)`", table)
    forge = ROOT / "src" / "farthing" / "forge"
    there = {p.stem if p.is_file() else f"{p.name}/" for p in forge.iterdir()} - {"__init__", "__pycache__/"}
    assert sorted(shown) == sorted(there)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_shell_blocks_are_valid_and_no_block_is_left_without_a_language(page: Path) -> None:
    for language, text in FENCE.findall(page.read_text()):
        assert language, f"{page.name} has a block without a language"
        if language == "bash":
            checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
            assert checked.returncode == 0, checked.stderr
