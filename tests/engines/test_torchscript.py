"""TorchScript's own: threads of the process, what scripts do to their inputs, archives that are none."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rows import BIAS, WEIGHTS, spec
from rows.torchscript import affine, inner_state, script, weights_alone

from farthing.engines.base import open_engine
from farthing.errors import EngineError, FeedError, ModelError
from farthing.model import Model
from farthing.options import EngineOptions

torch = pytest.importorskip("torch")

X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
ONE_IN, ONE_OUT = [spec("x", "batch", 4)], [spec("y", "batch", 4)]


def test_the_process_s_own_number_of_threads_stays() -> None:
    before = torch.get_num_threads()
    with open_engine(affine("batch"), options=EngineOptions(threads=2)) as engine:
        engine.run({"x": X})
        assert torch.get_num_threads() == before
        seen = []

        def elsewhere() -> None:
            own = torch.get_num_threads()
            engine.run({"x": X})
            seen.append(torch.get_num_threads() == own)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert seen == [True]


def test_engines_with_other_counts_take_turns() -> None:
    before = torch.get_num_threads()
    engines = [open_engine(affine("batch"), options=EngineOptions(threads=count)) for count in (1, 2, 3)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda i: engines[i % 3].run({"x": X})["y"], range(60)))
    for answer in answers:
        np.testing.assert_allclose(answer, X @ WEIGHTS + BIAS, atol=1e-6)
    assert torch.get_num_threads() == before


def test_a_script_that_writes_into_its_input() -> None:
    x = X.copy()
    with open_engine(
        script("def forward(self, x: Tensor) -> Tensor:\n    return x.mul_(2)", ONE_IN, ONE_OUT)
    ) as e:
        np.testing.assert_allclose(e.run({"x": x})["y"], 2 * X)
    np.testing.assert_array_equal(x, X)


def test_a_result_is_the_caller_s_even_if_it_is_a_constant_or_the_state() -> None:
    constant = script(
        "def forward(self, x: Tensor) -> Tensor:\n    return self.w",
        ONE_IN,
        [spec("y", 4, 3, batch_axis=None)],
        w=WEIGHTS,
    )
    for model, x in ((constant, X), (inner_state(), X[:1])):
        with open_engine(model) as engine:
            first = engine.run({"x": x})["y"]
            kept = first.copy()
            first[:] = 99
            again = engine.run({"x": x})["y"]
            assert np.abs(again).max() < 50
            if not engine.stateful:
                np.testing.assert_array_equal(again, kept)


def test_results_within_results_and_plain_numbers() -> None:
    code = """
def forward(self, x: Tensor, scale: int) -> Tuple[Dict[str, Tensor], List[Tensor], float]:
    return {"double": x * 2, "none": x - x}, [x + scale], 0.5
"""
    outputs = [spec(name, "batch", 4) for name in ("double", "none", "more")]
    inputs = [*ONE_IN, spec("scale", dtype="int32", batch_axis=None, role="parameter")]
    model = script(code, inputs, [*outputs, spec("half", dtype="float64", batch_axis=None)])
    with open_engine(model) as engine:
        answer = engine.run({"x": X, "scale": np.array(3, np.int32)})
    np.testing.assert_allclose(answer["double"], X * 2)
    np.testing.assert_allclose(answer["more"], X + 3)
    assert answer["half"] == 0.5


def test_a_network_too_deep_for_pictures_of_one_pixel() -> None:
    """The trial at opening tries larger sizes of free axes before it says that the file does not run."""
    code = "def forward(self, x: Tensor) -> Tensor:\n    return torch.max_pool2d(x, 8)"
    model = script(code, [spec("x", "batch", 3, "height", "width")], [spec("y", "batch", 3, "h", "w")])
    with open_engine(model) as engine:
        assert engine.run({"x": np.zeros((1, 3, 16, 24), np.float32)})["y"].shape == (1, 3, 2, 3)
        with pytest.raises(EngineError, match="Output size is too small"):
            engine.run({"x": np.zeros((1, 3, 4, 4), np.float32)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (weights_alone, "is not TorchScript"),
        (lambda: script_that("torch.save(x, 'out')"), "reaches files"),
        (lambda: script_that("torch.from_file('/etc/passwd')"), "reaches files"),
    ],
)
def test_what_is_not_opened(content: Callable[[], bytes], message: str) -> None:
    model = affine("batch")
    with pytest.raises(ModelError, match=message):
        open_engine(Model.create(model.manifest, {"m.pt": content()}))


def script_that(statement: str) -> bytes:
    """An archive whose code says this, though no exporter wrote it."""
    model, changed = affine("batch"), io.BytesIO()
    with zipfile.ZipFile(model.file) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            code = old.read(name)
            if "code/" in name:
                code = code.replace(b"    return ", f"    _ = {statement}\n    return ".encode())
            new.writestr(name, code)
    return changed.getvalue()


def test_a_saved_module_is_not_unpickled(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(4, 3), tmp_path / "m.pt")
    with pytest.raises(ModelError, match="is not TorchScript"):
        open_engine(Model.create(affine("batch").manifest, {"m.pt": tmp_path / "m.pt"}))


def test_inputs_are_counted() -> None:
    model = script("def forward(self, a: Tensor, b: Tensor) -> Tensor:\n    return a + b", ONE_IN, ONE_OUT)
    with pytest.raises(ModelError, match=r"the script takes \['a', 'b'\]"):
        open_engine(model)


def test_devices_are_refused() -> None:
    with pytest.raises(EngineError, match="no providers, not \\['cuda'\\]"):
        open_engine(affine("batch"), options=EngineOptions(providers=("cuda",)))


def test_a_stream_keeps_its_sizes() -> None:
    code = """
def forward(self, x: Tensor) -> Tensor:
    self.h = self.h * 0.5 + x.mean()
    return x + self.h
"""
    with open_engine(script(code, ONE_IN, ONE_OUT, h=np.zeros(1, np.float32))) as engine:
        assert engine.stateful
        engine.run({"x": X})
        with pytest.raises(FeedError, match="began with inputs of"):
            engine.run({"x": X[:2]})
        engine.session().run({"x": X[:2]})


def test_constants_are_folded_and_the_numbers_stay() -> None:
    module = torch.jit.trace(
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval(), torch.zeros(1, 3, 8, 8)
    )
    content = io.BytesIO()
    torch.jit.save(module, content)
    manifest = affine("batch").manifest
    manifest = msgspec.structs.replace(
        manifest, inputs=(spec("x", "batch", 3, 8, 8),), outputs=(spec("y", "batch", 4, 6, 6),)
    )
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    with open_engine(Model.create(manifest, {"m.pt": content.getvalue()})) as engine, torch.no_grad():
        np.testing.assert_allclose(engine.run({"x": x})["y"], module(torch.from_numpy(x)).numpy(), atol=1e-5)


def test_an_error_in_a_script_leaves_the_process_alive() -> None:
    """An error inside a function that freezing inlined: its name is looked for in order to quote it."""
    code = """
def inner(self, x: Tensor, step: int) -> Tensor:
    if step < 1:
        return x[:, ::step]
    return x

def forward(self, x: Tensor, step: int) -> Tensor:
    return self.inner(x, step) + self.inner(x * 2, step)
"""
    inputs = [*ONE_IN, spec("step", dtype="int64", batch_axis=None, role="parameter")]
    model, other = script(code, inputs, ONE_OUT), affine("batch")
    for _ in range(3):
        with open_engine(other) as before, open_engine(model) as engine:
            before.run({"x": X})
            for _ in range(3):
                with pytest.raises(EngineError, match="slice step must be positive"):
                    engine.run({"x": X, "step": np.array(0)})
            np.testing.assert_allclose(engine.run({"x": X, "step": np.array(1)})["y"], 3 * X)
