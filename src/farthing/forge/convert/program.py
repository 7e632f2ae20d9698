"""A ``torch.export`` program as a source: already a graph, exported by the exporter made for it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import onnx
import torch
from numpy.typing import NDArray
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from farthing.errors import ModelError, UnsupportedError, require
from farthing.forge.convert.archive import checked_program
from farthing.forge.convert.recognise import FORWARD_ERRORS, first_line
from farthing.forge.convert.source import as_tensors, exporting, forwarding, tidy
from farthing.forge.convert.trace import Recorder, Step, to_numpy

Array = NDArray[Any]
LOWEST_OPSET = 18  # below it this exporter falls back by itself


def load(path: Path, data: bytes) -> torch.export.ExportedProgram:
    """Load a program from a file that was checked to hold nothing that would run while loading.

    Raises:
        ModelError: refused, damaged, or from a torch whose format this one does not read.
    """
    clean = checked_program(path, data)
    try:
        program = torch.export.load(io.BytesIO(clean))
    except (*FORWARD_ERRORS, SyntaxError) as error:
        raise ModelError(
            f"{path} is not a program this torch {torch.__version__} can load: {first_line(error)}"
        ) from error
    vars(program)["_guards_code"] = []  # text that torch would compile and run
    return program


class ProgramSource:
    """An exported program.

    Args:
        program: the program.

    Raises:
        UnsupportedError: its inputs are not plain tensors.
    """

    kind: ClassVar[str] = "torch.export"

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.program = program
        self.names = tuple(str(name) for name in program.graph_signature.user_inputs)
        specs = [spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
        if any(
            not hasattr(spec.arg, "name") or isinstance(getattr(spec.arg, "value", None), (int, str))
            for spec in specs
        ):
            raise UnsupportedError("the program has inputs that are no tensors: export it with tensors only")
        shapes = [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder"][
            -len(specs) :
        ]
        self.batch = next((size[0] for size in shapes if len(size) and isinstance(size[0], int)), None)

    def example(self) -> list[Array] | None:
        """The example inputs the program was exported with, if it keeps them."""
        if self.program.example_inputs is None:
            return None
        leaves = pytree.tree_leaves(self.program.example_inputs)
        return [to_numpy(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def run(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """See `Source.run`."""
        with forwarding("the program", inputs), torch.no_grad():
            return self._user_outputs(
                _Named(self.program.graph_module, None).run(*self._lifted(as_tensors(inputs)))
            )

    def export(
        self, inputs: Sequence[Array], opset: int, dynamic: bool
    ) -> tuple[onnx.ModelProto, tuple[str, ...]]:
        """See `Source.export`; which axes are free was settled when the program was made."""
        require("onnxscript", "forge")
        if dynamic and self.batch is not None:
            raise ModelError(f"the program was exported for a batch of {self.batch}")
        level = max(opset, LOWEST_OPSET)
        with exporting():
            made = torch.onnx.export(
                self.program, (), dynamo=True, external_data=False, opset_version=level, verbose=False
            )
        if made is None:
            raise ModelError("the export to ONNX gave nothing")
        return tidy(made.model_proto), () if level == opset else (
            f"opset {level} instead of {opset}, the lowest here",
        )

    def steps(self, inputs: Sequence[Array]) -> list[Step]:
        """See `Source.steps`."""
        tensors = as_tensors(inputs)
        recorder = Recorder(tensors)
        with torch.no_grad(), recorder:
            _Named(self.program.graph_module, recorder).run(*self._lifted(tensors))
        return recorder.steps

    def _lifted(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        """The graph's own inputs: weights, buffers and constants, then what the user feeds."""
        fed = iter(tensors)
        stored = {**self.program.constants, **self.program.state_dict}
        specs = self.program.graph_signature.input_specs
        return [
            next(fed) if spec.kind is InputKind.USER_INPUT else stored[str(spec.target)] for spec in specs
        ]

    def _user_outputs(self, results: Sequence[Any]) -> tuple[Array, ...]:
        wanted = set(self.program.graph_signature.user_outputs)
        names = [getattr(spec.arg, "name", None) for spec in self.program.graph_signature.output_specs]
        kept = [value for name, value in zip(names, results, strict=True) if name in wanted]
        return tuple(to_numpy(value) for value in kept if isinstance(value, torch.Tensor))


class _Named(torch.fx.Interpreter):
    """Runs a graph node by node and tells a recorder which module each node came from."""

    def __init__(self, module: torch.fx.GraphModule, recorder: Recorder | None) -> None:
        super().__init__(module)
        self._recorder = recorder

    def run_node(self, n: torch.fx.Node) -> Any:
        if self._recorder is None:
            return super().run_node(n)
        stack = list((n.meta.get("nn_module_stack") or {}).values())
        path, kind = stack[-1] if stack else ("", "")
        kind = kind if isinstance(kind, str) else kind.__qualname__
        where = f"module {path!r} ({kind.rpartition('.')[2]})" if path else "the program itself"
        self._recorder.scope.append(f"{where}, node {n.name!r}")
        try:
            return super().run_node(n)
        finally:
            self._recorder.scope.pop()
