"""What every engine must do. A new engine adds one file to `rows`, with the models its tests need, and passes."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rows import BIAS, DECAY, WEIGHTS, Array, Row, fake, litert, oip, onnxruntime, openvino, spec, torchscript
from rows.onnxruntime import onnx_affine

from farthing import plugins
from farthing.engines.base import Engine, open_engine
from farthing.errors import (
    ConfigError,
    EngineError,
    FeedError,
    ModelError,
    PluginError,
    UnsupportedError,
)
from farthing.model import Model
from farthing.options import make_options
from farthing.testing import fake_model

ROWS = [fake.ROW, onnxruntime.ROW, openvino.ROW, litert.ROW, torchscript.ROW, oip.ROW]


def having(*builders: str) -> pytest.MarkDecorator:
    """The rows that have these models."""
    rows = [row for row in ROWS if all(getattr(row, name) for name in builders)]
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.engine)


every = having()


@pytest.fixture(autouse=True)
def runtime(request: pytest.FixtureRequest) -> None:
    row = request.node.callspec.params.get("row") if hasattr(request.node, "callspec") else None
    if (
        row and row.package and not importlib.util.find_spec(row.package)
    ):  # importing it is the engine's affair
        pytest.skip(f"{row.package} is not installed")


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def expected(x: Array) -> Array:
    return x @ WEIGHTS + BIAS


def in_a_child(row: Row, model: Model, code: str, **environment: str) -> Any:
    """Run code in a fresh interpreter, `model` opened there; what it gives as `answer` comes back."""
    source = f"""
import json, os, sys
from pathlib import Path
from farthing.engines.base import open_engine
from farthing.model import Model
from farthing.options import EngineOptions
model = Model.open({str(model.path)!r})
name, package = {row.engine!r}, {row.package!r}
thread_count = lambda: len(os.listdir('/proc/self/task'))
{code}
print(json.dumps(answer))
"""
    environment = {k: v for k, v in os.environ.items() if k not in row.environment} | environment
    child = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, env=environment, check=False
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


# --- the table itself


def test_every_built_in_engine_has_a_row() -> None:
    assert {row.engine for row in ROWS} == set(plugins.BUILTIN["engine"])


@every
def test_an_engine_says_what_it_is(row: Row) -> None:
    kind = plugins.get("engine", row.engine)
    assert kind.name == row.engine
    assert kind.concurrency in {"threads", "serial"}
    with row.open(row.affine("batch")) as engine:
        assert isinstance(engine, kind)
        assert engine.version
        assert engine.stateful is False


# --- tensors


@every
def test_inputs_and_outputs_are_the_manifest_s(row: Row) -> None:
    model = row.affine("batch")
    with row.open(model) as engine:
        assert tuple(engine.inputs) == model.manifest.inputs
        assert tuple(engine.outputs) == model.manifest.outputs


@every
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_names_dtypes_shapes_and_values(row: Row, batch: int) -> None:
    x = numbers(batch, 4)
    with row.open(row.affine("batch")) as engine:
        results = engine.run({"x": x})
    assert list(results) == ["y"]
    assert isinstance(results["y"], np.ndarray)
    assert results["y"].dtype == np.float32
    assert results["y"].shape == (batch, 3)
    np.testing.assert_allclose(results["y"], expected(x), rtol=1e-5, atol=1e-6)


@every
def test_a_batch_equals_its_samples_one_by_one(row: Row) -> None:
    x = numbers(6, 4)
    with row.open(row.affine("batch")) as engine:
        together = engine.run({"x": x})["y"]
        singly = np.concatenate([engine.run({"x": x[i : i + 1]})["y"] for i in range(6)])
    np.testing.assert_allclose(together, singly, rtol=1e-6, atol=1e-6)


@every
def test_a_fixed_batch_is_kept_and_another_refused(row: Row) -> None:
    with row.open(row.affine(2)) as engine:
        np.testing.assert_allclose(
            engine.run({"x": numbers(2, 4)})["y"], expected(numbers(2, 4)), rtol=1e-5, atol=1e-6
        )
        with pytest.raises(FeedError, match="'x'"):
            engine.run({"x": numbers(3, 4)})


@every
@pytest.mark.parametrize(
    "form",
    [
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: np.repeat(x, 3, axis=1)[:, ::3],
        lambda x: x[::-1][::-1],
    ],
)
def test_the_layout_in_memory_does_not_matter(row: Row, form: Callable[[Array], Array]) -> None:
    x = numbers(5, 4)
    with row.open(row.affine("batch")) as engine:
        np.testing.assert_allclose(engine.run({"x": form(x)})["y"], expected(x), rtol=1e-5, atol=1e-6)


@every
def test_inputs_are_left_alone_and_results_belong_to_the_caller(row: Row) -> None:
    first, second = numbers(3, 4), numbers(3, 4, seed=1)
    first.setflags(write=False)
    with row.open(row.affine("batch")) as engine:
        one = engine.run({"x": first})["y"]
        kept = one.copy()
        two = engine.run({"x": second})["y"]
        np.testing.assert_array_equal(one, kept)
        one[:] = 0
        np.testing.assert_allclose(two, expected(second), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(engine.run({"x": first})["y"], kept)
    np.testing.assert_array_equal(first, numbers(3, 4))


@having("identity")
def test_every_dtype_goes_through_unchanged(row: Row) -> None:
    assert row.identity
    for dtype in row.dtypes:
        if dtype == "str":
            values: Array = np.array([["a", "bé"], ["", "long text"]])
        else:
            kind = np.dtype(dtype).kind
            limits = np.iinfo(dtype) if kind in "iu" else None
            values = np.array([[0, 1], [limits.min, limits.max] if limits else [1, 0]], dtype)
        with row.open(row.identity(dtype)) as engine:
            result = engine.run({"x": values})["y"]
        assert result.tolist() == values.tolist()
        assert dtype == "str" or result.dtype == values.dtype


@having("free")
@pytest.mark.parametrize(("batch", "time"), [(1, 1), (2, 5), (3, 2)])
def test_free_axes_take_any_size(row: Row, batch: int, time: int) -> None:
    assert row.free
    x = numbers(batch, time, 4)
    with row.open(row.free()) as engine:
        for _ in range(2):
            np.testing.assert_allclose(engine.run({"x": x})["y"], expected(x), rtol=1e-5, atol=1e-6)
            x = numbers(batch, time + 1, 4)


@having("two")
def test_several_inputs_go_by_name_not_by_order(row: Row) -> None:
    assert row.two
    a, b = numbers(2, 4), numbers(2, 4, seed=1)
    with row.open(row.two()) as engine:
        for feeds in ({"a": a, "b": b}, {"b": b, "a": a}):
            np.testing.assert_allclose(engine.run(feeds)["y"], a - b, rtol=1e-6)
        with pytest.raises(FeedError, match="axis 'batch'"):
            engine.run({"a": a, "b": numbers(1, 4)})
        with pytest.raises(FeedError, match=r"missing: \['b'\].*unknown: \['c'\]"):
            engine.run({"a": a, "c": b})


@having("parameter")
def test_a_scalar_parameter_is_fed_beside_the_data(row: Row) -> None:
    assert row.parameter
    x = numbers(3, 4)
    with row.open(row.parameter()) as engine:
        np.testing.assert_allclose(
            engine.run({"x": x, "gain": np.array(2.5, np.float32)})["y"], x * 2.5, rtol=1e-6
        )
        with pytest.raises(FeedError, match="gain"):
            engine.run({"x": x})
        with pytest.raises(FeedError, match="gain"):
            engine.run({"x": x, "gain": np.ones(1, np.float32)})


@having("suppress")
def test_outputs_may_be_as_long_as_the_data_has_it(row: Row) -> None:
    assert row.suppress
    low = np.random.default_rng(3).uniform(0, 8, (40, 2)).astype(np.float32)
    boxes, scores = np.concatenate([low, low + 2], 1), np.linspace(0, 1, 40, dtype=np.float32)
    with row.open(row.suppress()) as engine:
        for count in (40, 7, 1):
            kept = engine.run({"boxes": boxes[:count], "scores": scores[:count]})["kept"]
            assert kept.tolist() == suppressed(boxes[:count], scores[:count])


def suppressed(boxes: Array, scores: Array) -> list[int]:
    """Greedy non-maximum suppression, as `Row.suppress` has it."""
    kept: list[int] = []
    for number in [int(n) for n in np.argsort(-scores) if scores[n] > 0.1]:
        sides = [
            np.minimum(boxes[number, 2:], boxes[k, 2:]) - np.maximum(boxes[number, :2], boxes[k, :2])
            for k in kept
        ]
        shared = [float(np.prod(np.clip(side, 0, None))) for side in sides]
        if all(area / (8 - area) <= 0.5 for area in shared):  # both are 2 x 2
            kept.append(number)
    return kept


# --- state


def remembered(xs: Array) -> Array:
    """What a stateful model answers to a stream, axis 0 being time."""
    state, answers = np.zeros_like(expected(xs[0])), []
    for x in xs:
        state = DECAY * state + expected(x)
        answers.append(state)
    return np.stack(answers)


def stream(engine: Engine, xs: Array) -> Array:
    return np.stack([engine.run({"x": x})["y"] for x in xs])


@having("stateful")
def test_state_is_kept_between_calls_and_hidden_from_callers(row: Row) -> None:
    assert row.stateful
    model, xs = row.stateful(), numbers(5, 1, 4)
    with row.open(model) as engine:
        assert engine.stateful is True
        assert [one.name for one in engine.inputs] == ["x"]
        assert [one.name for one in engine.outputs] == ["y"]
        np.testing.assert_allclose(stream(engine, xs), remembered(xs), rtol=1e-5, atol=1e-6)


@having("stateful")
def test_each_session_is_a_stream_of_its_own(row: Row) -> None:
    assert row.stateful
    xs, others = numbers(5, 1, 4), numbers(5, 1, 4, seed=1)
    with row.open(row.stateful()) as engine:
        stream(engine, numbers(3, 1, 4, seed=2))
        one, two = engine.session(), engine.session()
        answers = [(one.run({"x": x})["y"], two.run({"x": y})["y"]) for x, y in zip(xs, others, strict=True)]
        np.testing.assert_allclose([a for a, _ in answers], remembered(xs), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose([b for _, b in answers], remembered(others), rtol=1e-5, atol=1e-6)
        one.close()
        with pytest.raises(EngineError, match="closed"):
            one.run({"x": xs[0]})
        two.run({"x": xs[0]})
    two.run({"x": xs[0]})
    two.close()


@having("inner_state")
def test_state_inside_the_file_is_a_stream_s_own_too(row: Row) -> None:
    assert row.inner_state
    xs, others = numbers(5, 1, 4), numbers(5, 1, 4, seed=1)
    with row.open(row.inner_state()) as engine:
        assert engine.stateful is True
        answers = stream(engine, xs)
        one, two = engine.session(), engine.session()
        mixed = [(one.run({"x": x})["y"], two.run({"x": y})["y"]) for x, y in zip(xs, others, strict=True)]
        two.close()
        one.run({"x": xs[0]})
        one.close()
    np.testing.assert_allclose(answers, remembered(xs), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([a for a, _ in mixed], remembered(xs), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([b for _, b in mixed], remembered(others), rtol=1e-5, atol=1e-6)


@having("stateful")
def test_writing_into_a_result_does_not_reach_the_state(row: Row) -> None:
    assert row.stateful
    xs = numbers(3, 1, 4)
    with row.open(row.stateful()) as engine:
        engine.run({"x": xs[0]})["y"][:] = 1e6
        np.testing.assert_allclose(stream(engine, xs[1:]), remembered(xs)[1:], rtol=1e-5, atol=1e-6)


@having("stateful")
def test_a_stream_may_be_batched_but_not_change_its_batch(row: Row) -> None:
    assert row.stateful
    xs = numbers(4, 3, 4)
    with row.open(row.stateful()) as engine:
        np.testing.assert_allclose(stream(engine, xs), remembered(xs), rtol=1e-5, atol=1e-6)
        for batch in (1, 2, 4):
            with pytest.raises(FeedError, match=f"batches of 3, not {batch}"):
                engine.run({"x": numbers(batch, 4)})
        np.testing.assert_allclose(
            stream(engine.session(), xs[:, :1]), remembered(xs[:, :1]), rtol=1e-5, atol=1e-6
        )


@having("fixed_state")
def test_state_of_a_fixed_batch(row: Row) -> None:
    assert row.fixed_state
    xs = numbers(4, 2, 4)
    with row.open(row.fixed_state()) as engine:
        np.testing.assert_allclose(stream(engine, xs), remembered(xs), rtol=1e-5, atol=1e-6)


@having("stateful")
def test_streams_in_eight_threads_do_not_mix(row: Row) -> None:
    assert row.stateful
    with row.open(row.stateful()) as engine, ThreadPoolExecutor(8) as pool:
        data = [numbers(50, 1, 4, seed=seed) for seed in range(8)]
        answers = list(pool.map(lambda xs: stream(engine.session(), xs), data))
    for xs, answer in zip(data, answers, strict=True):
        np.testing.assert_allclose(answer, remembered(xs), rtol=1e-4, atol=1e-5)


@having("stateful")
def test_callers_of_one_stream_take_turns(row: Row) -> None:
    """Nothing is lost: with x @ W + b = c each time, the n-th answer is c * (1 - DECAY**n) / (1 - DECAY)."""
    assert row.stateful
    x = numbers(1, 4)
    with row.open(row.stateful()) as engine, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: engine.run({"x": x})["y"], range(16)))
    found = sorted(float(answer[0, 0] / expected(x)[0, 0]) for answer in answers)
    np.testing.assert_allclose(found, [(1 - DECAY**n) / (1 - DECAY) for n in range(1, 17)], rtol=1e-4)


# --- threads and options


@every
def test_eight_threads_get_their_own_answers(row: Row) -> None:
    def ask(seed: int) -> bool:
        x = numbers(1 + seed % 5, 4, seed=seed)
        return bool(np.allclose(engine.run({"x": x})["y"], expected(x), rtol=1e-4, atol=1e-5))

    with row.open(row.affine("batch")) as engine, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(400)))


@every
def test_a_thread_count_is_honoured_or_refused(row: Row) -> None:
    """Counted are the threads there are while an engine is open, or those that worked if a pool outlives it."""
    counts = in_a_child(
        row,
        row.large(),
        f"""
import numpy as np
from farthing.errors import EngineError
pool = {row.pool}
def worked(engine, wanted):
    '''Threads that computed for a millisecond or more: all of them, soon; a busy machine may keep one waiting.'''
    tasks = Path("/proc/self/task")
    spent = lambda: {{t.name: int((t / "schedstat").read_text().split()[0]) for t in tasks.iterdir()}}
    before = spent()
    for _ in range(40):
        for _ in range(10):
            engine.run({{"x": np.zeros((256, 512), np.float32)}})
        busy = sum(now - before.get(thread, 0) > 1e6 for thread, now in spent().items())
        if busy >= wanted:
            break
    return busy
open_engine(model, name).close()  # what the runtime starts once for all
answer = []
for threads in (1, 2, 4):
    before = thread_count()
    try:
        with open_engine(model, name, EngineOptions(threads=threads)) as engine:
            for _ in range(3):
                engine.run({{"x": np.zeros((64, 512), np.float32)}})
            answer.append(worked(engine, threads) if pool else 1 + thread_count() - before)
        assert pool or thread_count() == before, "threads are left behind"
    except EngineError as error:
        answer.append("threads" in str(error))
""",
    )
    assert counts == [threads if threads in row.threads else True for threads in (1, 2, 4)]


@every
def test_what_an_engine_cannot_do_is_refused(row: Row) -> None:
    with pytest.raises(EngineError, match="provider"):
        row.open(row.affine("batch"), providers=("NoSuchProvider",))
    for threads in (0, -1, 100_000):
        with pytest.raises(ConfigError, match="threads must be from 1"):
            make_options(threads=threads)


@every
def test_the_engine_is_found_by_format_and_refuses_others(row: Row) -> None:
    model = row.affine("batch")
    with open_engine(model) as engine:
        assert engine.name == row.engine
    other = next(one for one in ROWS if one.engine != row.engine)
    if not plugins.get("engine", other.engine).formats & plugins.get("engine", row.engine).formats:
        with pytest.raises(EngineError, match=f"engine {other.engine} runs .* files, not"):
            open_engine(model, other.engine)


@every
def test_a_precision_is_honoured_or_refused(row: Row) -> None:
    """Half precision keeps 8 or 11 bits of a number: an engine that takes it without effect would be right to 24."""
    model, x = row.large(), numbers(64, 512)
    with row.open(model) as engine:
        exact = engine.run({"x": x})["y"]
    for precision in ("bfloat16", "float16"):
        if engine := opened(row, model, precision, precision=precision):
            with engine:
                assert 1e-4 < np.abs(engine.run({"x": x})["y"] - exact).max() < 0.05


@every
def test_spinning_threads_are_honoured_or_refused(row: Row) -> None:
    if engine := opened(row, row.affine("batch"), "spin", spin=True):
        engine.close()


def opened(row: Row, model: Model, word: str, **options: Any) -> Engine | None:
    """The engine, or None if it refuses with this word."""
    try:
        return row.open(model, **options)
    except EngineError as error:
        if word not in str(error):
            raise
    return None


def test_formats_and_engines_nobody_knows() -> None:
    model = fake_model()
    strange = Model(model.path, msgspec.structs.replace(model.manifest, format="fakes"))
    with pytest.raises(ModelError, match="no engine runs the format 'fakes'; did you mean 'fake'"):
        open_engine(strange)
    with pytest.raises(PluginError, match="did you mean 'fake'"):
        open_engine(model, "fack")


@having("package")
def test_without_its_package_the_extra_is_named(row: Row) -> None:
    message = in_a_child(
        row,
        row.affine("batch"),
        """
from farthing.errors import NotInstalled
sys.modules[package] = None
try:
    open_engine(model, name)
except NotInstalled as error:
    answer = str(error)
""",
    )
    assert f"farthing[{row.engine}]" in message


# --- errors


@every
@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "missing: \\['x'\\]"),
        ({"X": numbers(1, 4)}, "missing: \\['x'\\], unknown: \\['X'\\]"),
        ({"x": numbers(1, 4), "z": numbers(1, 4)}, "unknown: \\['z'\\]"),
        ({"x": numbers(1, 4).astype(np.float64)}, "'x' is float64 \\[1, 4\\], but the model takes float32"),
        ({"x": numbers(1, 4).astype(">f4")}, "foreign byte order"),
        ({"x": np.zeros((1, 4), object)}, "object"),
        ({"x": numbers(1, 5)}, "'x' is float32 \\[1, 5\\], but .* \\['batch', 4\\]"),
        ({"x": numbers(4)}, "'x' is float32 \\[4\\]"),
        ({"x": numbers(1, 1, 4)}, "'x'"),
        ({"x": [[1.0, 2.0, 3.0, 4.0]]}, "'x' is a list: give a numpy array"),
        ({"x": np.float32(1)}, "'x' is a float32: give a numpy array"),
        ({"x": None}, "missing|NoneType"),
    ],
)
def test_feeds_that_do_not_fit_are_named(row: Row, feeds: dict[str, Any], message: str) -> None:
    with row.open(row.affine("batch")) as engine:
        with pytest.raises(FeedError, match=message):
            engine.run(feeds)
        np.testing.assert_allclose(
            engine.run({"x": numbers(1, 4)})["y"], expected(numbers(1, 4)), rtol=1e-5, atol=1e-6
        )


@every
def test_a_closed_engine_says_so_and_closes_twice(row: Row) -> None:
    engine = row.open(row.affine("batch"))
    engine.close()
    engine.close()
    for act in (lambda: engine.run({"x": numbers(1, 4)}), engine.session):
        with pytest.raises(EngineError, match="closed: open the model again"):
            act()
    with row.open(row.affine("batch")) as again:
        again.close()


@every
@pytest.mark.parametrize("damage", ["empty", "half", "all but a byte", "noise", "text", "pickle", "own"])
def test_a_damaged_file_is_a_model_error(row: Row, damage: str, tmp_path: Path) -> None:
    sound = row.affine("batch")
    content = sound.file.read_bytes()
    contents = {
        "empty": [b""],
        "half": [content[: len(content) // 2]],
        "all but a byte": [content[:-1]],
        "noise": [np.random.default_rng(0).bytes(500)],
        "text": [b"not a model\n"],
        "pickle": [pickle.dumps({"weights": 1})],
        "own": list(row.damaged),
    }[damage]
    for data in contents:
        broken = Model.create(sound.manifest, {**files_of(sound), sound.file.name: data})
        with pytest.raises(ModelError) as caught:
            row.open(broken)
        assert str(broken.path) in str(caught.value)


def files_of(model: Model) -> dict[str, bytes | Path]:
    return {name: model.path / name for name in model.manifest.files}


RENAMED = [{"inputs": (spec("input", "batch", 4),)}, {"outputs": (spec("out", "batch", 3),)}]
LIES: list[dict[str, Any]] = [
    {"inputs": (spec("x", "batch", 5),)},
    {"inputs": (spec("x", "batch", "features"),)},
    {"inputs": (spec("x", "batch", 4, dtype="float64"),)},
    {"inputs": (spec("x", "batch", 4), spec("z", "batch", 4))},
    {"inputs": ()},
    {"outputs": (spec("y", "batch", 2),)},
    {"outputs": (spec("y", "batch", 3, dtype="int64"),)},
    {"outputs": ()},
]


@pytest.mark.parametrize(
    ("row", "lie"),
    [(row, lie) for row in ROWS for lie in [*LIES, *(RENAMED if row.named else [])]],
    ids=lambda part: (
        part.engine if isinstance(part, Row) else str([(k, s) for k in part for s in part[k]][:1])[:60]
    ),
)
def test_a_manifest_that_contradicts_its_file_is_refused(row: Row, lie: dict[str, Any]) -> None:
    model = row.affine("batch")
    lying = Model.create(msgspec.structs.replace(model.manifest, **lie), files_of(model))
    with pytest.raises(ModelError):
        row.open(lying)


@having("named")
def test_a_manifest_of_another_rank_is_refused(row: Row) -> None:
    model = row.affine("batch")
    flat = msgspec.structs.replace(model.manifest, inputs=(spec("x", "batch", 2, 2),))
    with pytest.raises(ModelError):
        row.open(Model.create(flat, files_of(model)))


@having("unsupported")
def test_what_the_runtime_does_not_know_is_unsupported(row: Row) -> None:
    for build in row.unsupported:
        with pytest.raises(UnsupportedError):
            row.open(build())


# --- what it leaves behind


@every
def test_memory_is_returned(row: Row) -> None:
    grown = in_a_child(
        row,
        row.large(),
        """
import gc, re
import numpy as np
def resident():
    gc.collect()
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
def once():
    with open_engine(model, name) as engine:
        engine.run({"x": np.zeros((64, 512), np.float32)})
for _ in range(10):
    once()
before = resident()
for _ in range(40):
    once()
answer = resident() - before
""",
    )
    assert grown < 16, "40 loads of a megabyte of weights"


@every
def test_the_model_s_directory_is_left_alone(row: Row) -> None:
    model = row.affine("batch")
    before = {path.name: path.stat().st_mtime_ns for path in model.path.iterdir()}
    with row.open(model) as engine:
        engine.run({"x": numbers(1, 4)})
    assert {path.name: path.stat().st_mtime_ns for path in model.path.iterdir()} == before
    model.verify()


@having("package")
def test_telemetry_is_off_before_the_runtime_is_imported(row: Row) -> None:
    seen = in_a_child(
        row,
        row.affine("batch"),
        f"""
import os
class Watch:
    def find_spec(self, wanted, path=None, target=None):
        if wanted == package:
            answer.append({{key: os.environ.get(key) for key in {list(row.environment)!r}}})
answer = []
sys.meta_path.insert(0, Watch())
open_engine(model, name).close()
""",
    )
    assert seen == [row.environment]


@having("package")
def test_a_runtime_neither_calls_out_nor_leaves_files_at_home(row: Row, tmp_path: Path) -> None:
    called = in_a_child(
        row,
        row.affine("batch"),
        """
import time
import numpy as np
answer = []
out = {"socket.connect", "socket.getaddrinfo"}
sys.addaudithook(lambda event, args: answer.append(event) if event in out else None)
with open_engine(model, name) as engine:
    engine.run({"x": np.zeros((1, 4), np.float32)})
time.sleep(0.3)
""",
        HOME=str(tmp_path),
        CI="",
    )
    assert called == []
    assert list(tmp_path.iterdir()) == []


# --- ONNX Runtime's own: weights in a file beside the file


def external(location: str, **beside: bytes) -> Model:
    """An affine model whose weights lie in another file; ``beside`` are further files its manifest names."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = onnx_affine("batch")
    proto = onnx.load(str(model.file))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(WEIGHTS.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return Model.create(model.manifest, {"model.onnx": proto.SerializeToString(), **beside})


def test_weights_beside_the_file_are_found_and_checked() -> None:
    model = external("weights", weights=WEIGHTS.tobytes())
    with open_engine(model, "onnxruntime") as engine:
        np.testing.assert_allclose(
            engine.run({"x": numbers(1, 4)})["y"], expected(numbers(1, 4)), rtol=1e-5, atol=1e-6
        )
    (model.path / "weights").write_bytes(WEIGHTS.tobytes()[::-1])
    with pytest.raises(ModelError, match="SHA-256"):
        model.verify()


def test_weights_that_are_missing_or_cut_short() -> None:
    with pytest.raises(ModelError, match="keeps weights in 'weights', which its manifest does not name"):
        open_engine(external("weights"), "onnxruntime")
    with pytest.raises(ModelError, match="cannot load"):
        open_engine(external("weights", weights=WEIGHTS.tobytes()[:-1]), "onnxruntime")


def test_weights_cannot_be_read_from_outside_the_directory(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(WEIGHTS.tobytes())
    for location in (str(secret), "../secret.bin", "weights/../../secret.bin"):
        model = external(location, weights=b"")
        inner = model.save(tmp_path / "model")
        with pytest.raises(ModelError, match="does not name"):
            open_engine(inner, "onnxruntime")


@pytest.mark.parametrize(
    "entry",
    [
        b"\n\x08location\x12\x07weights\x12\x06hidden",
        b"\n\x88\x00location\x12\x06hidden",
        b"\x12\x06hidden\n\x08location",
        b"\n\x08location\x12\x18*/_ORT_MEM_ADDR_/*hidden",
    ],
)
def test_a_stranger_s_way_of_writing_hides_no_file(tmp_path: Path, entry: bytes) -> None:
    """The file lies there, and ONNX Runtime would take it (the last of two values), but no manifest vouches for it."""
    onnx = pytest.importorskip("onnx")
    model = external("weights", weights=WEIGHTS.tobytes())
    proto = onnx.load(str(model.file), load_external_data=False)
    tensor = proto.graph.initializer[0]
    del proto.graph.initializer[0], tensor.external_data[0]
    odd = tensor.SerializeToString() + b"\x6a" + bytes([len(entry)]) + entry
    graph = b"\x2a" + bytes([len(odd)]) + odd
    raw = proto.SerializeToString() + b"\x3a" + bytes([len(graph)]) + graph  # protobuf joins the two graphs
    content = {"model.onnx": raw, "weights": WEIGHTS.tobytes()}
    made = Model.create(model.manifest, content, tmp_path / "m")
    (made.path / "hidden").write_bytes(WEIGHTS.tobytes())
    with pytest.raises(ModelError, match=r"hidden', which its manifest does not name"):
        open_engine(made, "onnxruntime")
    manifest = msgspec.structs.replace(made.manifest, files={**made.manifest.files, "hidden": "0" * 64})
    if b"*" not in entry:
        open_engine(Model(made.path, manifest), "onnxruntime").close()
