"""ONNX Runtime: what of it is its own."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from rows import spec
from rows.onnxruntime import onnx_model

from farthing.engines.base import open_engine
from farthing.errors import EngineError

if not importlib.util.find_spec("onnxruntime"):
    pytest.skip("onnxruntime is not installed", allow_module_level=True)


def test_a_failure_is_raised_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    x, at = spec("x", 3, batch_axis=None), spec("at", 1, dtype="int64", batch_axis=None)
    model = onnx_model([("Gather", ["x", "at"], ["y"])], [x, at], [spec("y", 1, batch_axis=None)])
    with open_engine(model) as engine, pytest.raises(EngineError, match="indices element out of data bounds"):
        engine.run({"x": np.zeros(3, np.float32), "at": np.array([7])})
    assert capfd.readouterr().err == ""
