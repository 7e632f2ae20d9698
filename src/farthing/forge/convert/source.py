"""What every kind of PyTorch source offers to the converter, and what their exports share."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.jit._trace import TracerWarning
from torch.utils import _pytree as pytree

from farthing.errors import ModelError, UnsupportedError
from farthing.forge.convert.recognise import FORWARD_ERRORS, first_line
from farthing.forge.convert.trace import Step, to_numpy

Array = NDArray[Any]


class Source(Protocol):
    """A network that can be run, exported to ONNX and looked into. Inputs are arrays in the order of ``names``."""

    kind: ClassVar[str]
    names: tuple[str, ...]

    def run(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """Its outputs, in order. Raises ModelError if it fails on these inputs."""
        ...

    def export(
        self, inputs: Sequence[Array], opset: int, dynamic: bool
    ) -> tuple[onnx.ModelProto, tuple[str, ...]]:
        """An ONNX graph, its first axes free if ``dynamic``, and what had to be assumed.

        Raises:
            UnsupportedError: an operator that the exporter does not know.
            ModelError: it fails for another reason.
        """
        ...

    def steps(self, inputs: Sequence[Array]) -> list[Step]:
        """All operators with their values, in the order they run."""
        ...


def as_tensors(inputs: Sequence[Array]) -> list[torch.Tensor]:
    """Arrays as tensors with memory of their own."""
    return [torch.from_numpy(np.array(array, order="C")) for array in inputs]


def flat(result: Any) -> tuple[Array, ...]:
    """The tensors of a module's result, in order; None is left out.

    Raises:
        UnsupportedError: something in it is no tensor.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(result) if leaf is not None]
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            raise UnsupportedError(f"the model returns a {type(leaf).__name__}: only tensors can be exported")
    return tuple(to_numpy(leaf) for leaf in leaves)


def output_names(result: Any) -> list[str]:
    """Names for outputs: the keys of a dict, the fields of a named tuple, else ``output`` or ``output_0`` ..."""
    if isinstance(result, dict) and all(isinstance(value, torch.Tensor) for value in result.values()):
        return [str(key) for key in result]
    fields = getattr(result, "_fields", None)
    if fields and all(isinstance(value, torch.Tensor) for value in result):
        return list(fields)
    count = len(flat(result))
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


@contextlib.contextmanager
def forwarding(what: str, inputs: Sequence[Array]) -> Iterator[None]:
    """Turn what a network raises while it runs into a ModelError that says on which inputs."""
    try:
        yield
    except FORWARD_ERRORS as error:
        shapes = ", ".join(f"{array.dtype.name} {list(array.shape)}" for array in inputs)
        raise ModelError(
            f"{what} fails on inputs {shapes}: {first_line(error)}; give an --example that it takes"
        ) from error


@contextlib.contextmanager
def exporting() -> Iterator[list[str]]:
    """Quiet the exporters, turn their failures into ours, and collect decisions that tracing fixed.

    Raises:
        UnsupportedError: an operator without a translation, named.
        ModelError: any other failure.
    """
    logger, fixed = logging.getLogger("torch.onnx"), list[str]()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(record=True) as seen,
            _graphs_unprinted(),
            _attention_in_full(),
            torch.no_grad(),
        ):
            warnings.simplefilter("always")
            yield fixed
        fixed += [_decision(w) for w in seen if issubclass(w.category, TracerWarning)]
    except torch.onnx.errors.UnsupportedOperatorError as error:
        raise UnsupportedError(f"no translation to ONNX: {first_line(error)}") from error
    except (*FORWARD_ERRORS, torch.onnx.errors.OnnxExporterError) as error:
        missing = "No decompositions registered" in str(error) or "No ONNX function found" in str(error)
        raise (UnsupportedError if missing else ModelError)(
            f"the export to ONNX fails: {first_line(error)}"
        ) from error
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _attention_in_full() -> Iterator[None]:
    """Attention and encoder layers of torch as what they are made of: their fused forms have no translation."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


@contextlib.contextmanager
def _graphs_unprinted() -> Iterator[None]:
    """Keep the tracing exporter from writing its whole graph on standard output, below Python, when it fails.

    Its own switch for that is always on (seen in torch 2.13: it tests a function instead of calling it).
    """
    untyped: Any = torch
    native = untyped._C
    log = getattr(native, "_jit_onnx_log", None)
    native._jit_onnx_log = lambda *words: None
    try:
        yield
    finally:
        native._jit_onnx_log = log


def _decision(warning: warnings.WarningMessage) -> str:
    text = str(warning.message).split(". ", 1)[0]
    return f"{Path(warning.filename).name} line {warning.lineno}: fixed as for the example, whatever the data ({text})"


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Leave out what exporters write beside the graph: source lines, paths, and shapes that may be stale; in place."""
    model.doc_string = ""
    for group in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del group.metadata_props[:]
        group.doc_string = ""
    for function in model.functions:
        for node in (function, *function.node):
            del node.metadata_props[:]
            node.doc_string = ""
    del model.graph.value_info[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    return model
