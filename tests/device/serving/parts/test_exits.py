"""EarlyExit: samples leave where a network is sure, and nothing else changes."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from farthing.bundle import Bundle, Exits
from farthing.device.serving.parts.exits import EarlyExit, open_exits
from farthing.device.serving.service import GRACE, Answer, Request, Service
from farthing.engines.base import Engine, open_engine
from farthing.errors import ConfigError, EngineError, FeedError, ModelError
from farthing.forge.convert import convert
from farthing.forge.cut import cut
from farthing.model import Model, TensorSpec
from farthing.testing import fake_model

torch = pytest.importorskip("torch")  # absent where the lowest versions are run
nn, Tensor = torch.nn, torch.Tensor
Array = NDArray[Any]


class Branchy(nn.Module):
    """Three convolutions, each followed by an exit (as BranchyNet, Teerapittayanon et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 8, 16, 32)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
            for a, b in itertools.pairwise(widths)
        )
        self.heads = nn.ModuleList(nn.Linear(b * side * side, 10) for b, side in ((8, 4), (16, 2), (32, 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scores = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            scores.append(head(x.flatten(1)))
        return tuple(scores)


def train(net: Branchy, x: Tensor, y: Tensor, epochs: int) -> None:
    """All exits together: the sum of their losses."""
    steps = epochs * -(-len(x) // 64)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for _ in range(epochs):
        for picks in torch.split(torch.randperm(len(x)), 64):
            losses = [nn.functional.cross_entropy(scores, y[picks]) for scores in net(x[picks])]
            optimizer.zero_grad()
            torch.autograd.backward(sum(losses))
            optimizer.step()
            schedule.step()


@pytest.fixture(scope="module")
def pictures() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return (data.images[order, None] / 16).astype(np.float32), data.target[order]


@pytest.fixture(scope="module")
def whole(pictures: tuple[Array, Array]) -> Model:
    """A net with three exits."""
    torch.manual_seed(0)
    net = Branchy()
    train(net, torch.from_numpy(pictures[0][:1000]), torch.from_numpy(pictures[1][:1000]), epochs=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return convert(net.eval(), name="branchy", example="1x1x8x8").model


@pytest.fixture(scope="module")
def bundle(whole: Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    names = [spec.name for spec in whole.manifest.outputs]
    return cut(whole, tmp_path_factory.mktemp("exits") / "b", at=names[:2], exits=Exits()).bundle


@pytest.fixture(scope="module")
def engines(bundle: Bundle) -> Iterator[list[Engine]]:
    opened = [open_engine(model) for model in bundle.models.values()]
    yield opened
    for engine in opened:
        engine.close()


@pytest.fixture(scope="module")
def every_exit(whole: Model, pictures: tuple[Array, Array]) -> list[Array]:
    """What each exit says to the test pictures."""
    with open_engine(whole) as engine:
        return list(engine.run({whole.manifest.inputs[0].name: pictures[0][1000:1400]}).values())


def softmax(scores: Array) -> Array:
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def sureness(measure: str, scores: Array) -> Array:
    p = softmax(scores)
    if measure == "confidence":
        return np.asarray(p.max(axis=1))
    return np.asarray(1 + (p * np.log(np.maximum(p, 1e-300))).sum(axis=1) / np.log(10))


def decided(exits: Exits, every: list[Array]) -> Array:
    """Which exit answers each sample, by the plain rule."""
    by = np.full(len(every[0]), len(every) - 1)
    for number in reversed(range(len(every) - 1)):
        by[sureness(exits.measure, every[number]) >= exits.resolved(len(every))[number]] = number
    return by


def test_exits_answer_and_the_last_one_as_the_whole_network(
    bundle: Bundle, every_exit: list[Array], pictures: tuple[Array, Array]
) -> None:
    with open_exits(bundle.path) as service:
        answer = service.answer({service.inputs[0].name: pictures[0][1000:1400]})
        by = decided(Exits(), every_exit)
        (name,) = [spec.name for spec in service.outputs]
        assert list(answer.outputs) == [name]
        assert len(set(by)) == 3, "every exit answers some of them"
        np.testing.assert_allclose(
            answer.outputs[name], np.choose(by[:, None], every_exit), rtol=1e-5, atol=1e-5
        )
        right = (answer.outputs[name].argmax(axis=1) == pictures[1][1000:1400]).mean()
        assert right > 0.9
        stats = service.stats()
        assert stats.exits == tuple(np.bincount(by, minlength=3).tolist())
        assert stats.computed == (400, 400 - stats.exits[0], stats.exits[2])
        counts = [f"exit {i} of 3: {n} samples" for i, n in enumerate(stats.exits, 1)]
        assert answer.reason == ", ".join(counts)


def test_nobody_leaves_early_from_a_network_that_must_be_certain(
    engines: list[Engine], every_exit: list[Array], pictures: tuple[Array, Array]
) -> None:
    """With thresholds out of reach the answer is the whole network's, bit for bit."""
    service = EarlyExit(engines, Exits(measure="entropy", thresholds=(1.0, 1.0)))
    x = pictures[0][1000:1400]
    answer = service.answer({service.inputs[0].name: x})
    np.testing.assert_array_equal(next(iter(answer.outputs.values())), every_exit[2])
    everyone = EarlyExit(engines, Exits(thresholds=(0.0, 0.0)))
    answer = everyone.answer({service.inputs[0].name: x})
    np.testing.assert_array_equal(next(iter(answer.outputs.values())), every_exit[0])
    assert everyone.stats().computed == (400, 0, 0)


@pytest.mark.parametrize("measure", ["confidence", "entropy"])
def test_one_sample_says_why(
    engines: list[Engine], every_exit: list[Array], pictures: tuple[Array, Array], measure: Any
) -> None:
    exits = Exits(measure=measure, thresholds=(0.9, 0.7))
    service = EarlyExit(engines, exits)
    word = "confidence" if measure == "confidence" else "1 - entropy"
    seen = set()
    for row, number in enumerate(decided(exits, every_exit)[:100]):
        answer = service.answer({service.inputs[0].name: pictures[0][1000 + row : 1001 + row]})
        sure = sureness(measure, every_exit[number][row : row + 1])[0]
        assert answer.confidence == pytest.approx(sure, abs=1e-6)
        assert answer.reason.startswith(f"exit {number + 1} of 3: {word} ")
        assert answer.reason.endswith([">= 0.9", ">= 0.7", ", the last"][number])
        shown = float(answer.reason.removesuffix(", the last").split(" >= ")[0].split()[-1])
        assert shown <= sure + 1e-6, "never rounded up"
        if number < 2:
            assert shown >= (0.9, 0.7)[number]
        seen.add(number)
    assert len(seen) == 3


Thresholds = st.tuples(st.floats(0, 1), st.floats(0, 1))


@settings(max_examples=60)
@given(
    thresholds=Thresholds,
    measure=st.sampled_from(["confidence", "entropy"]),
    rows=st.lists(st.integers(0, 399), min_size=1, max_size=12),
    pipeline=st.booleans(),
)
def test_a_sample_is_answered_alike_in_any_company(
    engines: list[Engine],
    every_exit: list[Array],
    pictures: tuple[Array, Array],
    thresholds: tuple[float, float],
    measure: Any,
    rows: list[int],
    pipeline: bool,
) -> None:
    exits = Exits(measure=measure, thresholds=thresholds)
    borrowed = [_Borrowed(engine) for engine in engines]
    with EarlyExit(borrowed, exits, pipeline=pipeline) as service:
        x = pictures[0][1000:1400][rows]
        answer = service.answer({service.inputs[0].name: x})
        found = next(iter(answer.outputs.values()))
        every = [scores[rows] for scores in every_exit]
        by = decided(exits, every)
        np.testing.assert_allclose(found, np.choose(by[:, None], every), rtol=1e-4, atol=1e-4)
        assert sum(service.stats().exits) == len(rows)


@settings(max_examples=40)
@given(low=Thresholds, more=Thresholds, measure=st.sampled_from(["confidence", "entropy"]))
def test_higher_thresholds_never_compute_less(
    engines: list[Engine],
    pictures: tuple[Array, Array],
    low: tuple[float, float],
    more: tuple[float, float],
    measure: Any,
) -> None:
    high = tuple(min(1.0, a + b) for a, b in zip(low, more, strict=True))
    costs = []
    for thresholds in (low, high):
        service = EarlyExit(engines, Exits(measure=measure, thresholds=thresholds))
        service.answer({service.inputs[0].name: pictures[0][1000:1040]})
        costs.append(service.stats().computed)
    assert all(a <= b for a, b in zip(*costs, strict=True))


class _Borrowed(Service):
    """A part that somebody else closes, and that may spoil its scores."""

    name = "borrowed"

    def __init__(self, engine: Engine, spoil: str = "") -> None:
        self.inputs, self.outputs, self._engine, self._spoil = engine.inputs, engine.outputs, engine, spoil
        self.batches: list[int] = []

    def submit(self, request: Request) -> Future[Answer]:
        outputs = dict(self._engine.run(request.feeds))
        self.batches.append(len(next(iter(request.feeds.values()))))
        if self._spoil:
            outputs[self._spoil] = np.full_like(outputs[self._spoil], np.nan)
        future: Future[Answer] = Future()
        future.set_result(Answer(outputs, self.name))
        return future

    def close(self, grace: float = GRACE) -> None: ...


def test_an_exit_that_gives_no_numbers_is_never_sure(
    engines: list[Engine], bundle: Bundle, pictures: tuple[Array, Array]
) -> None:
    parts = [
        _Borrowed(engine, bundle.manifest.outputs[0] if not i else "") for i, engine in enumerate(engines)
    ]
    service = EarlyExit(parts, Exits(thresholds=(0.0, 0.0)))
    service.answer({service.inputs[0].name: pictures[0][:5]})
    assert service.stats().exits == (0, 5, 0)


def test_who_leaves_takes_no_more_time(engines: list[Engine], pictures: tuple[Array, Array]) -> None:
    parts = [_Borrowed(engine) for engine in engines]
    service = EarlyExit(parts)
    service.answer({service.inputs[0].name: pictures[0][1000:1100]})
    stats = service.stats()
    assert [sum(part.batches) for part in parts] == list(stats.computed)
    assert parts[2].batches == [stats.exits[2]]


def test_an_empty_batch_leaves_at_once(engines: list[Engine], pictures: tuple[Array, Array]) -> None:
    service = EarlyExit(engines)
    answer = service.answer({service.inputs[0].name: pictures[0][:0]})
    assert next(iter(answer.outputs.values())).shape == (0, 10)
    assert service.stats().computed == (0, 0, 0)


def test_a_batch_that_is_fixed_goes_on_whole_while_one_sample_does(
    engines: list[Engine], every_exit: list[Array], pictures: tuple[Array, Array]
) -> None:
    parts = [_Borrowed(engine) for engine in engines]
    for part in parts:
        part.inputs, part.outputs = (
            [_fixed(spec) for spec in specs] for specs in (part.inputs, part.outputs)
        )
    service = EarlyExit(parts)
    answer = service.answer({service.inputs[0].name: pictures[0][1000:1040]})
    by = decided(Exits(), [scores[:40] for scores in every_exit])
    expected = np.choose(by[:, None], [scores[:40] for scores in every_exit])
    np.testing.assert_allclose(next(iter(answer.outputs.values())), expected, rtol=1e-4, atol=1e-4)
    assert parts[1].batches == [40]


def _fixed(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=(40, *spec.shape[1:]), batch_axis=0)


def test_what_goes_wrong_is_in_the_future(bundle: Bundle, pictures: tuple[Array, Array]) -> None:
    opened = [open_engine(model) for model in bundle.models.values()]
    with EarlyExit(opened, Exits(thresholds=(1.0, 1.0))) as service:
        assert isinstance(service.submit(Request({})).exception(30), FeedError)
        opened[2].close()
        x = {service.inputs[0].name: pictures[0][:5]}
        assert isinstance(service.submit(Request(x)).exception(30), EngineError)


def ends(*shapes: tuple[int | str, ...]) -> list[_Borrowed]:
    """Parts of a chain x -> f0 -> f1 ..., each with scores of a shape."""
    parts = []
    with open_engine(fake_model()) as engine:
        for number, shape in enumerate(shapes):
            part = _Borrowed(engine)
            taken = "x" if not number else f"f{number - 1}"
            part.inputs = [TensorSpec(name=taken, dtype="float32", shape=("batch", 4), batch_axis=0)]
            scores = TensorSpec(name=f"s{number}", dtype="float32", shape=shape, batch_axis=0)
            features = TensorSpec(name=f"f{number}", dtype="float32", shape=("batch", 4), batch_axis=0)
            part.outputs = [scores, features] if number + 1 < len(shapes) else [scores]
            parts.append(part)
    return parts


@pytest.mark.parametrize(
    ("shapes", "options", "said"),
    [
        ([("batch", 3), ("batch", 4)], {}, "scores of exit 1.* differ in form"),
        ([("batch", 3, 2), ("batch", 3, 2)], {}, r"an exit gives \(samples, classes\)"),
        ([("batch", 1), ("batch", 1)], {}, r"an exit gives \(samples, classes\)"),
        (
            [("batch", 3), ("batch", 3)],
            {"scores": ["s1"]},
            "part 1 must have the scores of one exit, not none",
        ),
        ([("batch", 3), ("batch", 3)], {"scores": ["s0", "f0", "s1"]}, "not s0, f0"),
        ([("batch", 3), ("batch", 3)], {"exits": Exits(thresholds=(0.5, 0.4))}, "2 thresholds for 2 exits"),
    ],
)
def test_parts_that_are_no_exits_are_refused(
    shapes: list[tuple[int | str, ...]], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        EarlyExit(ends(*shapes), **options)


class _Liar(Service):
    """Gives what it was told to give, whatever its outputs say."""

    name = "liar"

    def __init__(self, like: Service, **outputs: Any) -> None:
        self.inputs, self.outputs, self._given = like.inputs, like.outputs, outputs

    def submit(self, request: Request) -> Future[Answer]:
        future: Future[Answer] = Future()
        future.set_result(Answer(self._given, self.name))
        return future

    def close(self, grace: float = GRACE) -> None:
        pass


UNSURE = np.zeros((5, 3), np.float32)


@pytest.mark.parametrize(
    ("number", "outputs", "said"),
    [
        (1, {"s1": UNSURE[:2]}, "part 2 of .* gave 's1' of 2 samples beside 5"),
        (1, {"s1": np.tile(UNSURE, (2, 1))}, "'s1' of 10 samples beside 5"),
        (1, {"s1": UNSURE[:, :1]}, r"'s1' as \[5, 1\], which it declares as \['batch', 3\]"),
        (1, {"s1": np.zeros((5, 7), np.float32)}, r"'s1' as \[5, 7\]"),
        (0, {"s0": np.zeros((5, 3, 2), np.float32)}, r"'s0' as \[5, 3, 2\]"),
        (0, {"s0": np.zeros((5, 0), np.float32)}, r"'s0' as \[5, 0\]"),
        (0, {"s0": UNSURE.tolist()}, "'s0', which is no array of float32"),
        (0, {"s0": UNSURE.astype(np.float64)}, "'s0', which is no array of float32"),
        (0, {"s0": UNSURE, "f0": np.zeros((2, 4), np.float32)}, "'f0' of 2 samples beside 5"),
        (0, {"s0": UNSURE, "f0": np.float32(0)}, "'f0' of no samples beside 5"),
    ],
)
def test_a_part_that_gives_something_else_than_it_says_is_an_error_not_a_hang(
    number: int, outputs: dict[str, Any], said: str
) -> None:
    features = {"f0": np.zeros((5, 4), np.float32)}
    first, second = ends(("batch", 3), ("batch", 3))
    told = [{"s0": UNSURE, **features}, {"s1": UNSURE}]
    told[number] = {**(features if not number else {}), **outputs}
    service = EarlyExit([_Liar(first, **told[0]), _Liar(second, **told[1])])
    error = service.submit(Request({"x": np.zeros((5, 4), np.float32)})).exception(0)
    assert isinstance(error, EngineError)
    assert re.search(said, str(error))
    assert service.stats().running == 0


def test_a_bundle_of_parts_is_no_bundle_of_exits(chain: Bundle, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bundle of parts, not of exits"):
        open_exits(chain)
    again = open_exits(bundle, exits=Exits(thresholds=(0.5, 0.5)), pipeline=True)
    with again:
        assert again.stats().exits == (0, 0, 0)
