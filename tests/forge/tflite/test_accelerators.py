"""Targets of the catalogue that compute in integers alone: what a search gives them, inputs and outputs included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farthing.bench import evaluate
from farthing.model import Model
from farthing.task import Task

pytest.importorskip("ai_edge_litert")


@pytest.mark.parametrize(
    ("target", "kind"), [("coral-edge-tpu", "uint8"), ("ethos-u55", "int8"), ("ethos-u65", "int8")]
)
def test_a_search_for_an_accelerator_gives_integers_and_their_own_accuracy(
    target: str, kind: str, search: Any, cnn: Model, digits_task: Task, tmp_path: Path
) -> None:
    budget = "accuracy_drop<=0.02"
    result = search(
        cnn, target=target, engines=(), budget=budget, allow_slower=True, cache=tmp_path / "cache"
    )
    assert result.met, result.summary.sentence
    made = result.winner
    assert made.manifest.format == "tflite"
    specs = [*made.manifest.inputs, *made.manifest.outputs]
    assert [spec.dtype for spec in specs] == [kind] * 2
    assert all(spec.scale for spec in specs)
    winner = result.candidates[result.summary.winner]
    assert winner.engine == "litert"
    assert winner.name.endswith(f"{kind} in and out")
    own, _ = evaluate(made, digits_task, "validation", engine="litert")
    assert winner.accuracy is not None
    assert winner.accuracy.value == own.value, "scored on this very file"


def test_no_tensor_of_such_a_file_is_real(search: Any, cnn: Model, tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    cache = tmp_path / "cache"
    result = search(cnn, target="coral-edge-tpu", engines=(), allow_slower=True, cache=cache)
    found = Interpreter(str(result.winner.file))
    found.allocate_tensors()
    kinds = {np.dtype(tensor["dtype"]).name for tensor in found.get_tensor_details()}
    assert kinds <= {"int8", "uint8", "int32"}, kinds
