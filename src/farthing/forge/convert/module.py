"""A ``torch.nn.Module`` as a source: traced to ONNX, its operators recorded with the sub-module they belong to."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from farthing.engines.base import BATCH
from farthing.errors import ModelError
from farthing.forge.convert.source import as_tensors, exporting, flat, forwarding, output_names, tidy
from farthing.forge.convert.trace import Recorder, Step, scopes

Array = NDArray[Any]


class ModuleSource:
    """A module in evaluation mode, without gradients. Its training flags are as before after every call.

    Args:
        module: the module.
        count: how many inputs it is fed.

    Raises:
        ModelError: its ``forward`` does not take that many.
    """

    kind: ClassVar[str] = "torch"

    def __init__(self, module: torch.nn.Module, count: int) -> None:
        self.module = module
        self.names = _input_names(module, count)

    def run(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """See `Source.run`."""
        return flat(self._result(inputs))

    def _result(self, inputs: Sequence[Array]) -> Any:
        with forwarding("the model", inputs), _evaluating(self.module), torch.no_grad():
            return self.module(*self._tensors(inputs))

    def _tensors(self, inputs: Sequence[Array]) -> list[torch.Tensor]:
        place = next(iter(self.module.parameters()), torch.empty(0)).device
        return [tensor.to(place) for tensor in as_tensors(inputs)]

    def export(
        self, inputs: Sequence[Array], opset: int, dynamic: bool
    ) -> tuple[onnx.ModelProto, tuple[str, ...]]:
        """See `Source.export`; the tracing exporter is used."""
        return trace_export(
            self.module, self._tensors(inputs), self.names, self._result(inputs), opset, dynamic
        )

    def steps(self, inputs: Sequence[Array]) -> list[Step]:
        """See `Source.steps`."""
        tensors = self._tensors(inputs)
        recorder = Recorder(tensors)
        with _evaluating(self.module), torch.no_grad(), scopes(self.module, recorder), recorder:
            self.module(*tensors)
        return recorder.steps


def trace_export(
    module: torch.nn.Module,
    tensors: Sequence[torch.Tensor],
    names: Sequence[str],
    result: Any,
    opset: int,
    dynamic: bool,
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Export by the tracing exporter of torch; it writes the opset asked for and no external data."""
    buffer = io.BytesIO()
    axes = {name: {0: BATCH} for name, tensor in zip(names, tensors, strict=True) if tensor.ndim}
    with exporting() as fixed, _evaluating(module):
        torch.onnx.export(
            module,
            tuple(tensors),
            cast(Any, buffer),  # the tracing exporter writes to files in memory as well
            dynamo=False,
            opset_version=opset,
            input_names=list(names),
            output_names=output_names(result),
            dynamic_axes=axes if dynamic else None,
        )
    return tidy(onnx.load_model_from_string(buffer.getvalue())), tuple(dict.fromkeys(fixed))


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


def _input_names(module: torch.nn.Module, count: int) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(module.forward).parameters.values())
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    needed = sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)
    open_ended = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    if count < needed or (count > len(names) and not open_ended):
        raise ModelError(
            f"forward of {type(module).__name__} takes {needed} inputs ({', '.join(names)}), "
            f"the example has {count}: give a shape for each"
        )
    return tuple([*names, *(f"input_{i}" for i in range(len(names), count))][:count])


def parameter_dtype(module: torch.nn.Module) -> np.dtype[Any]:
    """The floating-point type a module computes in, from its first parameter; float32 if it has none."""
    first = next((p for p in module.parameters() if p.dtype in {torch.float16, torch.float64}), None)
    return np.dtype("float32" if first is None else str(first.dtype).removeprefix("torch."))
