"""The benchmarks keep their promises: a table, a last line that counts the bars, an exit code, the rows as JSON."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from farthing.testing import fake_model

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ["case", "ours", "peers", "limit", "ratio", "bar"]


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("harness_table", ROOT / "benchmarks/harness/table.py")
    if spec is None or spec.loader is None:
        pytest.fail("benchmarks/harness/table.py is not there")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # the type hints of its sections are looked up there
    spec.loader.exec_module(module)
    return module


def row(table: ModuleType, case: str, **figures: Any) -> Any:
    figures = {"ours": 4.0, "unit": "ms", "bar": table.Bar(figure="ratio", sign=">=", value=2.7), **figures}
    return table.Row(case=case, **figures)


def test_a_row_is_held_to_the_figure_its_bar_names(table: ModuleType) -> None:
    def bar(figure: str, sign: str) -> Any:
        return table.Bar(figure=figure, sign=sign, value=2.0)

    given = {"ours": 1.0, "ratio": 2.0, "low": 1.9, "high": 2.1}
    assert row(table, "ratio", **given, bar=bar("ratio", ">=")).holds
    assert not row(table, "low", **given, bar=bar("low", ">=")).holds
    assert row(table, "ours", **given, bar=bar("ours", "<=")).holds
    assert not row(table, "nothing", ours=None, ratio=None, bar=bar("ratio", "<=")).holds
    assert not row(table, "nan", ratio=float("nan"), bar=bar("ratio", ">=")).holds


def test_a_short_row_stays_in_the_table_and_ends_the_run_with_1(
    table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = row(table, "good", ratio=3.0, low=2.9, high=3.1, limit=1.0, peers={"other": 5.0}, note="why")
    cases = {"a": lambda: [good], "b": lambda: [row(table, "bad", ratio=2.0)]}
    place = tmp_path / "out.json"
    assert table.run(cases, None, place) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 of 2 bars hold; short: bad"
    head = next(i for i, line in enumerate(lines) if line.split() == COLUMNS)
    assert "other 5 ms" in lines[head + 2]
    assert "3.00x (2.9..3.1)" in lines[head + 2]
    assert lines[head + 3].endswith("ratio >= 2.7: SHORT")
    assert "good: why" in lines
    written = json.loads(place.read_text())
    assert [(r["case"], r["bar"], r["holds"]) for r in written["rows"]] == [
        ("good", "ratio >= 2.7", True),
        ("bad", "ratio >= 2.7", False),
    ]
    assert table.run(cases, ["a"], None) == 0


def test_a_case_that_cannot_run_is_short_and_the_others_go_on(
    table: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    from farthing.errors import AssetError

    def offline() -> list[Any]:
        raise AssetError("no network")

    assert table.run({"a": offline, "b": lambda: [row(table, "good", ratio=3.0)]}, None, None) == 1
    output = capsys.readouterr().out
    assert "a: AssetError: no network" in output
    assert output.splitlines()[-1] == "1 of 2 bars hold; short: a"


def test_the_import_case_runs_from_the_command_line(tmp_path: Path) -> None:
    place = tmp_path / "rows.json"
    done = optimize("--only", "import", "--quick", "--cache", str(tmp_path / "cache"), "--json", str(place))
    rows = json.loads(place.read_text())["rows"]
    held = sum(row["holds"] for row in rows)
    assert [row["case"] for row in rows] == ["import", "import size"]
    assert {*COLUMNS, "unit", "low", "high", "holds", "note"} <= rows[0].keys()
    assert rows[0]["low"] <= rows[0]["ours"] <= rows[0]["high"]
    assert rows[1]["holds"], "the package has outgrown its 3 MB"
    assert done.returncode == (held < len(rows)), done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"{held} of {len(rows)} bars hold")
    assert not (tmp_path / "cache").exists(), "this case keeps nothing"


def test_an_unknown_case_is_refused_with_the_right_names(tmp_path: Path) -> None:
    done = optimize("--only", "imports", "--cache", str(tmp_path))
    assert done.returncode == 2
    for name in ("resnet18", "resnet8-mnist", "cnn-mnist", "no-harm", "wrapper", "import", "demo-search"):
        assert name in done.stderr


def test_figures_taken_in_company_say_so(table: ModuleType) -> None:
    facts = {"machine": "a board", "seconds": 3.0, "load_before": 0.5, "load_after": 1.0, "remark": "rough"}
    quiet = table.surroundings({**facts, "others_cores": {"a": 0.02}})
    busy = table.surroundings({**facts, "others_cores": {"a": 0.02, "b": 1.24}})
    assert "DISTURBED" not in quiet
    assert quiet.splitlines()[-1] == "rough"
    assert "DISTURBED" in busy
    assert "(b 1.2 on average)" in busy


def test_own_work_and_that_of_others_fit_into_the_machine(table: ModuleType) -> None:
    others, begin, before = table.Others(), time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-c", "sum(range(30_000_000))"], check=True)
    sum(range(30_000_000))
    own = sum(os.times()[:4]) - sum(before[:4])
    assert own > 0
    assert 0 <= others.cores() <= (os.cpu_count() or 1) + 0.2 - own / (time.perf_counter() - begin)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: importlib.import_module(f"harness.{name}")


def test_every_recipe_of_the_figures_is_made_of_steps_and_options_that_there_are(
    harness: Callable[[str], ModuleType],
) -> None:
    from farthing.forge.apply import build
    from farthing.target import Target

    for name, case in harness("compressing").CASES.items():
        for step in case.steps:
            resolved = build(step, Target.detect())[1]
            assert step.options.keys() <= resolved.options.keys(), name


def test_the_searched_students_are_those_that_the_docs_say_were_found(
    harness: Callable[[str], ModuleType],
) -> None:
    page = (ROOT / "docs/how-to/search-an-architecture.md").read_text()
    for student in (harness("compressing").CNN_STUDENT, harness("compressing").RESNET8_STUDENT):
        assert f"| `{student}` |" in page


def test_a_peer_is_met_by_the_fastest_of_ours_that_is_as_good_and_as_small(
    harness: Callable[[str], ModuleType],
) -> None:
    peers = harness("peers")

    def point(name: str, score: float, size: int, p50: float) -> Any:
        return peers.Point(peers.Entrant(name, fake_model(), "fake"), score, size, p50)

    theirs = point("tool", 0.97, 1000, 1.0)
    ours = [
        point("good and slow", 0.98, 900, 1.2),
        point("nearly as good, hardly larger", 0.9691, 1019, 1.04),
        point("worse", 0.9689, 900, 0.1),
        point("larger", 0.98, 1021, 0.1),
    ]
    row = peers.matched("net", theirs, ours)
    assert (row.ours, row.ratio, row.holds) == (1.04, 1.04, True)
    assert "nearly as good" in row.note
    slow = peers.matched("net", theirs, ours[:1])
    assert (slow.ratio, slow.holds) == (1.2, False)
    none = peers.matched("net", theirs, ours[2:])
    assert (none.ratio, none.holds) == (None, False)


@pytest.mark.slow
def test_a_recipe_is_compressed_and_raced(tmp_path: Path) -> None:
    place = tmp_path / "rows.json"
    found = script(
        "compress.py",
        "--only",
        "digits, pruned",
        "--quick",
        "--cache",
        str(tmp_path / "c"),
        "--json",
        str(place),
    )
    assert found.returncode in {0, 1}, found.stderr
    cases = [one["case"] for one in json.loads(place.read_text())["rows"]]
    assert cases == [
        f"digits, pruned: {what}" for what in ("size", "batches of 32", "single stream", "mean drop")
    ]


def optimize(*arguments: str) -> subprocess.CompletedProcess[str]:
    return script("optimize.py", *arguments)


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
