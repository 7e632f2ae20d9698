"""Operators: ONNX's own test cases, and random small graphs held against ONNX Runtime."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.trainable import importing
from farthing.forge.trainable.operators import FORMS

Array = NDArray[Any]
REASONS = (
    "window is dilated",  # pooling
    "rounds sizes up",
    "something is made of its result",  # masks, indices, statistics
    r"torch does not compute it so.*(UInt|uint|non-zero size|by zero)",  # types and sizes that torch lacks
    "mean and variance of what it is fed",
    "drops numbers at inference",
    "is computed when it runs",
    "reduces by",
    "smooths|crops as it resizes",
    "torch's layer has",
    "torch's layer resets",
    "differ in length",
    "not stored",
    "no element type",
    "too old",
)


ROUNDED = {  # ONNX takes the new length before it is rounded down, ONNX Runtime and we after
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}


def cases() -> Iterator[Any]:
    """The cases of one operator that we have, with numbers that torch has."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in collect_testcases(None):
            node = case.model.graph.node[0]
            known = len(case.model.graph.node) == 1 and not node.domain and node.op_type in FORMS
            if case.name in ROUNDED:
                continue
            if known and all(
                isinstance(a, np.ndarray) and a.dtype.kind in "fiub" for a in case.data_sets[0][0]
            ):
                yield case


def module_of(proto: onnx.ModelProto, fed: dict[str, Array]) -> torch.fx.GraphModule:
    """The module of a graph, without the check."""
    graph.name_nodes(proto)
    built = importing.build(proto, list(fed), [value.name for value in proto.graph.output], (fed, fed))
    return torch.fx.GraphModule(built.root, built.graph).eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stored", [False, True], ids=["fed", "stored"])
def test_onnx_own_cases(stored: bool) -> None:
    """What ONNX says each operator gives, with all inputs but the first fed, or stored as weights are."""
    wrong, right = [], 0
    for case in cases():
        inputs, outputs = case.data_sets[0]
        proto = onnx.ModelProto()
        proto.CopyFrom(case.model)
        fed = {}
        for place, (value, array) in enumerate(zip(proto.graph.input, inputs, strict=True)):
            if place and (stored or array.dtype.kind != "f"):
                proto.graph.initializer.append(numpy_helper.from_array(array, value.name))
            else:
                fed[value.name] = array
        try:
            found = module_of(proto, fed)(*(torch.from_numpy(np.array(array)) for array in fed.values()))
        except UnsupportedError as error:
            if not any(re.search(reason, str(error)) for reason in REASONS):
                wrong.append(f"{case.name}: {error}")
            continue
        right += 1
        for mine, array in zip(found, map(np.asarray, outputs), strict=True):
            loose = array.dtype == np.float16
            same = mine.shape == array.shape and mine.detach().numpy().dtype == array.dtype
            if not same or not np.allclose(
                mine.detach().numpy(),
                array,
                rtol=1e-2 if loose else 1e-3,
                atol=1e-3 if loose else 1e-5,
                equal_nan=True,
            ):
                wrong.append(case.name)
    assert not wrong
    assert right > 600
