"""A TorchScript module as a source: run, traced to ONNX, and looked into through its inlined graph."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import onnx
import torch
from numpy.typing import NDArray

from farthing.engines.archive import checked_script
from farthing.errors import ModelError
from farthing.forge.convert.module import trace_export
from farthing.forge.convert.recognise import first_line
from farthing.forge.convert.source import as_tensors, flat, forwarding
from farthing.forge.convert.trace import Step, to_numpy

Array = NDArray[Any]
_torch: Any = torch  # what we use of its graphs is not typed


def load(path: Path, data: bytes) -> torch.jit.ScriptModule:
    """Load a TorchScript archive, on the CPU. No Python of the file runs; see `checked_script`.

    Raises:
        ModelError: refused, or damaged.
    """
    clean = checked_script(path, data)
    try:
        return cast(torch.jit.ScriptModule, _torch.jit.load(io.BytesIO(clean), map_location="cpu"))
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path} is not TorchScript that torch {torch.__version__} can load: {first_line(error)}"
        ) from error


class ScriptSource:
    """A script module in evaluation mode.

    Args:
        module: the module; its training flags are as before after every call.
        count: how many inputs it is fed.
    """

    kind: ClassVar[str] = "torchscript"

    def __init__(self, module: torch.jit.ScriptModule, count: int) -> None:
        self.module = module
        forward: Any = module.forward
        names = [argument.name for argument in forward.schema.arguments][1:]
        if count > len(names):
            raise ModelError(
                f"the script takes {len(names)} inputs ({', '.join(names)}), the example has {count}"
            )
        self.names = tuple(names[:count])

    def run(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """See `Source.run`."""
        return flat(self._result(inputs))

    def _result(self, inputs: Sequence[Array]) -> Any:
        training = self.module.training
        self.module.eval()
        try:
            with forwarding("the script", inputs), torch.no_grad():
                return self.module(*as_tensors(inputs))
        finally:
            self.module.train(training)

    def export(
        self, inputs: Sequence[Array], opset: int, dynamic: bool
    ) -> tuple[onnx.ModelProto, tuple[str, ...]]:
        """See `Source.export`; the tracing exporter is used, which keeps the script's conditions and loops."""
        return trace_export(self.module, as_tensors(inputs), self.names, self._result(inputs), opset, dynamic)

    def steps(self, inputs: Sequence[Array]) -> list[Step]:
        """See `Source.steps`; what happens inside a condition or loop counts as one operator."""
        graph: Any = self.module.inlined_graph.copy()
        _torch._C._jit_pass_remove_mutation(graph)
        paths = _attribute_paths(graph)
        fed = {value.debugName() for value in list(graph.inputs())[1:]}
        nodes = [node for node in graph.nodes() if node.kind() != "prim::GetAttr" and _tensor_outputs(node)]
        results = [value for node in nodes for value in _tensor_outputs(node)]
        for _ in list(graph.outputs()):
            graph.eraseOutput(0)
        packed = graph.insertNode(graph.create("prim::TupleConstruct", results))
        packed.output().setType(_torch._C.TupleType([value.type() for value in results]))
        graph.registerOutput(packed.output())
        function = _torch._C._create_function_from_graph("forward", graph)
        with torch.no_grad():
            computed = iter(function(self.module._c, *as_tensors(inputs)))
        values = [tuple(to_numpy(next(computed)) for _ in _tensor_outputs(node)) for node in nodes]
        return _linked(nodes, values, fed, paths)


def _tensor_outputs(node: Any) -> list[Any]:
    kind = _torch._C.TensorType.get()
    return [value for value in node.outputs() if value.type().isSubtypeOf(kind)]


def _attribute_paths(graph: Any) -> dict[str, str]:
    """Value name -> dotted path of the attribute of the module that it is."""
    paths = {next(graph.inputs()).debugName(): ""}
    for node in graph.nodes():
        if node.kind() == "prim::GetAttr":
            owner = paths.get(node.input().debugName(), "")
            paths[node.output().debugName()] = f"{owner}.{node.s('name')}".lstrip(".")
    return paths


def _linked(
    nodes: Sequence[Any], values: Sequence[tuple[Array, ...]], fed: set[str], paths: dict[str, str]
) -> list[Step]:
    """Steps with their parents, through nodes that give no tensor (lists, numbers) as well; constants are left out."""
    makers: dict[str, set[int]] = {name: {-1} for name in fed}
    steps: list[Step] = []
    for node, computed in zip(nodes, values, strict=True):
        parents = {parent for value in node.inputs() for parent in _makers(value, makers)}
        for value in node.outputs():
            makers[value.debugName()] = {len(steps)} if parents else set()
        if parents:
            steps.append(Step(_name(node, paths), computed, tuple(sorted(parents - {-1}))))
    return steps


def _makers(value: Any, known: dict[str, set[int]]) -> set[int]:
    """Numbers of the steps that a value comes from; -1 stands for the inputs."""
    name = value.debugName()
    if name not in known:
        known[name] = set()
        known[name] = {maker for inner in value.node().inputs() for maker in _makers(inner, known)}
    return known[name]


def _name(node: Any, paths: dict[str, str]) -> str:
    kind = node.kind().replace("::", ".")
    scope = node.scopeName().rpartition("/")[2].removeprefix("__module.").rpartition("::")[2]
    owned = next(
        (
            paths[value.debugName()].rpartition(".")[0]
            for value in node.inputs()
            if paths.get(value.debugName())
        ),
        "",
    )
    where = owned or scope
    return f"operator {kind} of module {where!r}" if where else f"operator {kind} of the script itself"
