from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from onnx import numpy_helper
from torch import Tensor, nn

from farthing.engines.base import open_engine
from farthing.errors import ConfigError, UnsupportedError
from farthing.forge import graph
from farthing.forge.apply import apply
from farthing.forge.cache import Cache
from farthing.forge.fuse import Fuse
from farthing.forge.prune.unstructured import UnstructuredPrune
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.recipe import Step
from farthing.target import Target
from farthing.task import Task

SHORT = Schedule(epochs=4, batch=64, lr=5e-3, bf16=False)
THIS = Target.detect()


@pytest.fixture(scope="module")
def plain(cnn: Model, digits_task: Task) -> Model:
    return Fuse()(cnn, THIS, digits_task)


def weights(model: Model) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of layers, outputs by the rest."""
    stored = graph.load(model.file).graph.initializer
    return {t.name: numpy_helper.to_array(t) for t in stored if len(t.dims) > 1}


def zeros(arrays: dict[str, np.ndarray[Any, Any]]) -> float:
    return sum(int((a == 0).sum()) for a in arrays.values()) / sum(a.size for a in arrays.values())


def zipped(model: Model) -> int:
    room = io.BytesIO()
    with zipfile.ZipFile(room, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(model.file, "model.onnx")
    return len(room.getvalue())


def accuracy(model: Model, task: Task) -> float:
    split = task.split("validation")
    with open_engine(model) as engine:
        found = engine.run({"image": split.inputs[""]})["logits"]
    return float((found.argmax(1) == split.labels).mean())


def test_half_the_weights_are_zero_in_the_file(plain: Model, digits_task: Task, tmp_path: Path) -> None:
    options = {"schedule": {"epochs": 6, "batch": 64, "lr": 5e-3, "bf16": False}}
    step = Step(use="prune.unstructured.v1", options=options)
    sparse, _ = apply([step], plain, THIS, digits_task, Cache(tmp_path))
    for name, array in weights(sparse).items():
        assert zeros({name: array}) == pytest.approx(0.5, abs=0.01), name
    assert zipped(sparse) < 0.72 * zipped(plain)
    assert accuracy(sparse, digits_task) >= accuracy(plain, digits_task) - 0.03
    assert graph.load(sparse.file).graph.node == graph.load(plain.file).graph.node, "only numbers change"


def test_the_whole_network_is_ranked_together(plain: Model, digits_task: Task) -> None:
    sparse = UnstructuredPrune(final=0.8, ranking="global", schedule=SHORT)(plain, THIS, digits_task)
    shares = {name: zeros({name: array}) for name, array in weights(sparse).items()}
    assert zeros(weights(sparse)) == pytest.approx(0.8, abs=0.01)
    assert max(shares.values()) - min(shares.values()) > 0.05


def test_two_of_four_neighbours_stay(plain: Model, digits_task: Task) -> None:
    sparse = UnstructuredPrune(pattern="2:4", schedule=SHORT)(plain, THIS, digits_task)
    seen = 0
    for array in weights(sparse).values():
        table = np.moveaxis(array, 1, -1).reshape(len(array), -1)
        if table.shape[1] % 4 == 0:
            runs = (table.reshape(-1, 4) != 0).sum(1)
            assert (runs <= 2).all()
            assert (runs == 2).mean() > 0.95
            seen += 1
    assert seen == 3, "the first convolution has nine inputs and stays dense"


def test_recurrent_layers_get_sparse_and_what_stays_dense_is_said(digits: tuple[Any, Any]) -> None:
    from farthing.forge.convert import convert
    from farthing.task import Split

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.last = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.last(self.read(x)[0][:, -1])
            return found

    x, y = digits
    rows = x[:300, 0]
    torch.manual_seed(0)
    model = convert(Reader(), name="rows", example=rows[:2]).model
    task = Task("rows", {"train": Split({"": rows}, y[:300])}, "top1")
    told: list[str] = []
    workshop = Workshop(listener=lambda event: told.append(event.text))
    options = UnstructuredPrune(pattern="16x1", schedule=replace(SHORT, epochs=2))
    sparse = options.within(workshop)(model, THIS, task)
    shares = sorted(zeros({name: array}) for name, array in weights(sparse).items())
    assert shares == pytest.approx([0.0, 0.0, 0.5, 0.5], abs=0.01), "biases and the last layer stay"
    assert any(text.startswith("1 of 3 stay dense, their weights do not fit 16x1: ") for text in told)


def test_blocks_go_together(plain: Model, digits_task: Task) -> None:
    sparse = UnstructuredPrune(pattern="8x1", final=0.5, schedule=SHORT)(plain, THIS, digits_task)
    array = next(a for a in weights(sparse).values() if a.shape[:2] == (32, 16))
    table = np.moveaxis(array, 1, -1).reshape(32, -1)
    alive = (table != 0).reshape(4, 8, -1).any(1)
    assert alive.mean() == pytest.approx(0.5, abs=0.02)
    assert zeros({"": table}) == pytest.approx(0.5, abs=0.02)


def test_a_training_of_one_step_prunes_too_and_one_that_is_too_short_is_refused(
    plain: Model, digits_task: Task
) -> None:
    whole = Schedule(epochs=1, batch=2000, lr=1e-3, bf16=False)
    sparse = UnstructuredPrune(schedule=whole)(plain, THIS, digits_task)
    assert zeros(weights(sparse)) == pytest.approx(0.5, abs=0.01)
    for options in ({"begin": 100}, {"end": 100}):
        with pytest.raises(ConfigError, match=r"to 100, and the training has 64 in all \(0..63\): lower"):
            UnstructuredPrune(schedule=SHORT, **options)(plain, THIS, digits_task)


def test_skipped_nodes_stay_dense_and_unknown_ones_are_named(plain: Model, digits_task: Task) -> None:
    last = graph.load(plain.file).graph.node[-1]
    sparse = UnstructuredPrune(skip=(last.name,), schedule=SHORT)(plain, THIS, digits_task)
    assert zeros({"": weights(sparse)[last.input[1]]}) < 0.01
    with pytest.raises(UnsupportedError, match=r"no layer 'gone' to skip: it has"):
        UnstructuredPrune(skip=("gone",), schedule=SHORT)(plain, THIS, digits_task)


def test_denormal_weights_are_flushed(plain: Model, digits_task: Task) -> None:
    proto = graph.load(plain.file)
    for tensor in proto.graph.initializer:
        if len(tensor.dims) == 1:
            array = numpy_helper.to_array(tensor).copy()
            array[0] = 1e-40
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    model = Model.create(plain.manifest, {"model.onnx": graph.save_bytes(proto)})
    sparse = UnstructuredPrune(schedule=replace(SHORT, epochs=1, lr=1e-12), norms=False)(
        model, THIS, digits_task
    )
    for tensor in graph.load(sparse.file).graph.initializer:
        array = np.abs(numpy_helper.to_array(tensor))
        assert not ((array > 0) & (array < 1e-30)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"final": 1.0}, "shares with"),
        ({"initial": 0.6}, "shares with"),
        ({"begin": 9, "end": 3}, "begin is a step"),
        ({"frequency": 0}, "frequency is"),
        ({"power": 0}, "power is above 0"),
        ({"pattern": "4:2"}, "pattern is empty"),
        ({"pattern": "0x3"}, "pattern is empty"),
        ({"pattern": "many"}, "pattern is empty"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UnstructuredPrune(**options)


def test_a_pattern_that_fits_no_layer_is_refused(plain: Model, digits_task: Task) -> None:
    with pytest.raises(UnsupportedError, match="no layer whose weights fit the pattern 7x11"):
        UnstructuredPrune(pattern="7x11", schedule=SHORT)(plain, THIS, digits_task)
