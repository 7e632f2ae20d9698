"""The report of a search over several engines: its table, the insides of models, which engines agree."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import msgspec
import pytest

from farthing.anatomy import Anatomy, Cell, Layer, Matrix, Placed
from farthing.forge.report import render
from farthing.forge.report.engines import fastest
from farthing.forge.report.inside import error, placed
from farthing.recipe import Recipe, Summary


def _page(text: str) -> Any:
    """The reader of pages that the tests beside this file have."""
    path = Path(__file__).with_name("test_report.py")
    spec = importlib.util.spec_from_file_location("report_pages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Page(text)


@pytest.fixture
def page(several: Summary, recipe: Recipe) -> Any:
    return _page(render(several, recipe))


def test_a_row_for_each_engine(page: Any) -> None:
    table = page.text("table", class_="engines").replace("\xa0", " ")
    assert table.index("onnxruntime") < table.index("openvino") < table.index("litert")
    for piece in (
        "35.2 µs fused, 1 thread",
        "0.77× the best",
        "2.22× 2.17 to 2.27×",
        "1.98×",
        "2.60×",
        "bfloat16",
    ):
        assert piece in table, piece
    assert page.text("tr", class_="winner").startswith("onnxruntime")


def test_the_gain_is_over_the_fastest_float_of_any_engine(page: Any) -> None:
    hero = page.text("ul", class_="hero").replace("\xa0", " ")
    assert "1.31× the speed of the fastest float32 candidate of any engine" in hero
    assert "1.31× over its own engine" in hero


def test_one_engine_has_no_such_table(build: Any, recipe: Recipe) -> None:
    page = _page(render(build(), recipe))
    assert page.all("section", class_="engines") == []
    assert "any engine" not in page.text("ul", class_="hero")
    assert page.plot["engines"] == 1
    assert "Engine" not in page.text("table", id="all")
    for section in ("sizes", "placement", "portability"):
        assert page.all("section", class_=section) == []


def test_candidates_say_their_engine_and_its_options(page: Any) -> None:
    table = page.text("table", id="all")
    assert "openvino bfloat16" in table
    assert table.count("litert") >= 2
    assert "Over float" in table
    engines = {point["n"]: point["engine"] for point in page.plot["points"]}
    assert (engines[0], engines[13], engines[15]) == (0, 1, 2)
    assert page.plot["engines"] == 3


def test_bytes_by_layer_add_up_to_the_files(page: Any) -> None:
    sizes = page.text("section", class_="sizes").replace("\xa0", " ")
    assert "As givenonnx, 413 kB in 14 layers" in sizes
    assert "int8 percentileonnx, 106 kB in 14 layers" in sizes
    assert "graph, names and the like" in sizes
    assert "Convfloat3240.0" in sizes
    assert len(page.all("details")) == 3
    shares = [float(text.split()[0]) for text in page.all("span", class_="share")[:15]]
    assert sum(shares) == pytest.approx(100, abs=1)


def test_the_winner_node_by_node(page: Any) -> None:
    text = page.text("section", class_="placement").replace("\xa0", " ")
    assert "15 nodes on CPUExecutionProvider (14 in int8, 1 in uint8); 99.5 µs together" in text
    assert "QLinearConv" in text
    assert "1 × 16 × 14 × 14" in text


def test_what_is_not_known_is_called_unavailable(several: Summary, recipe: Recipe) -> None:
    bare = Anatomy(
        candidate=6, format="tflite", bytes=100, notes=("placement unavailable: it ran elsewhere",)
    )
    page = _page(render(msgspec.structs.replace(several, anatomy=(bare,)), recipe))
    text = page.text("section", class_="placement")
    assert "unavailable" in text
    assert "ran elsewhere" in text
    untimed = Placed(node="a", operator="CONV_2D", provider="delegate (XNNPACK)")
    assert placed([untimed]) == "1 node on delegate (XNNPACK)"


def test_which_engines_agree(page: Any) -> None:
    text = page.text("section", class_="portability")
    for piece in ("its own engine", "equal", "max error 2e-06, relative 3e-07 (tolerance 1e-04)", "refused"):
        assert piece in text, piece
    assert "NonMaxSuppression" in page.text("td")
    assert "cannot be written as TFLite" in page.text("dl", class_="reasons")
    assert error(Cell(model="m", engine="e", verdict="failed")) == ""


def test_the_fastest_is_one_that_was_timed(several: Summary) -> None:
    untimed = [c for c in several.candidates if not c.measurements]
    assert fastest(untimed) is None
    found = fastest(list(several.candidates))
    assert found is not None
    assert found.engine == "litert"


def test_hostile_insides_stay_text(several: Summary, recipe: Recipe) -> None:
    hostile = "</script><img src=x onerror=alert(1)>{{script}}"
    part = Anatomy(
        candidate=6,
        format=hostile,
        bytes=10,
        engine=hostile,
        layers=(Layer(name=hostile, operator=hostile, bytes=5, dtype=hostile),),
        placement=(Placed(node=hostile, operator=hostile, provider=hostile, precision=hostile),),
        notes=(hostile,),
    )
    cell = Cell(
        model=hostile, engine=hostile, verdict="refused", operator=hostile, detail=hostile, via=hostile
    )
    portable = Matrix(models=(hostile,), engines=(hostile,), cells=(cell,), inputs=hostile)
    candidates = tuple(msgspec.structs.replace(c, engine=f"{c.engine}{hostile}") for c in several.candidates)
    summary = msgspec.structs.replace(several, anatomy=(part,), matrix=portable, candidates=candidates)
    text = render(summary, recipe)
    assert "<img" not in text
    plain = {tag for tag, _, _ in _page(render(several, recipe)).elements}
    assert {tag for tag, _, _ in _page(text).elements} <= plain


def test_zeros_and_the_zip_are_told_beside_those_of_the_model_as_given(
    several: Summary, recipe: Recipe
) -> None:
    first, last = several.anatomy[0], several.anatomy[-1]
    dense = msgspec.structs.replace(first, zipped_bytes=380_000, zeros=0.01)
    sparse = msgspec.structs.replace(last, zipped_bytes=95_000, zeros=0.8)
    text = render(msgspec.structs.replace(several, anatomy=(dense, sparse)), recipe).replace("\xa0", " ")
    assert "380 kB as a zip" in text
    assert "95.0 kB as a zip, 4.00x smaller; 80% of the weights are zero" in text
    assert text.count("weights are zero") == 1, "rounding makes some zeros, which are not spoken of"
    assert "as a zip" not in render(several, recipe)
