"""Where a conversion went wrong: the source's inner values, in order, looked for among those of the ONNX graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from farthing.errors import FarthingError
from farthing.forge import graph
from farthing.forge.convert.difference import close

Array = NDArray[Any]


class Step(NamedTuple):
    """One operator that the source ran.

    Attributes:
        name: what to call it in a message, as in ``operator aten.relu of module 'head.act' (ReLU)``.
        values: its tensors.
        parents: numbers of the steps it depends on; empty for those fed by the inputs alone.
    """

    name: str
    values: tuple[Array, ...]
    parents: tuple[int, ...]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every ATen operator that depends on the inputs while it is active.

    Dependence goes by storage: an operator depends on the last ones that wrote to memory it reads, so
    changes in place and views are followed.

    Args:
        inputs: the tensors that are fed.
    """

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.scope: list[str] = []
        self._writers: dict[int, int] = {_storage(tensor): -1 for tensor in inputs}
        self._alive: list[object] = []  # memory must not be used again while we go by its address

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [_storage(t) for t in _tensors((args, kwargs))]
        result = func(*args, **(kwargs or {}))
        written = _tensors(result)
        self._alive += [*_tensors((args, kwargs)), *written]
        parents = {self._writers[place] for place in read if place in self._writers}
        if parents and written:
            where = f" of {self.scope[-1]}" if self.scope else ""
            name = f"operator {str(func).removesuffix('.default')}{where}"
            for tensor in written:
                self._writers[_storage(tensor)] = len(self.steps)
            values = tuple(to_numpy(tensor).copy() for tensor in written)
            self.steps.append(Step(name, values, tuple(sorted(parents - {-1}))))
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    storage: Any = tensor.untyped_storage()
    return int(storage._cdata)


def to_numpy(tensor: torch.Tensor) -> Array:
    """A tensor as a numpy array; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


@contextlib.contextmanager
def scopes(module: torch.nn.Module, recorder: Recorder) -> Iterator[None]:
    """Tell a recorder which sub-module is running, by hooks that are gone afterwards."""
    handles = []
    for name, part in module.named_modules():
        words = (
            f"module {name!r} ({type(part).__name__})"
            if name
            else f"the module itself ({type(part).__name__})"
        )

        def enter(_part: object, _args: object, words: str = words) -> None:
            recorder.scope.append(words)

        def leave(_part: object, _args: object, _result: object) -> None:
            recorder.scope.pop()

        handles += [
            part.register_forward_pre_hook(enter),
            part.register_forward_hook(leave, always_call=True),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def inner_values(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Every tensor that the nodes of an ONNX graph make, computed without the runtime's graph optimisations.

    Raises:
        FarthingError: ONNX Runtime cannot compute them.
    """
    known = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in known]
    return graph.run(model, feeds, extra=names, optimise=False)


def first_difference(
    steps: Sequence[Step], outputs: Sequence[Array], found: Mapping[str, Array], tolerance: float
) -> Step | None:
    """The first step whose value is not among those found, nor anything made from it; None if there is none.

    A step that was merged into a later one leaves no value of its own, but the later one's value is there.
    Steps that no output depends on do not count.
    """
    by_shape: dict[tuple[int, ...], list[Array]] = {}
    for value in found.values():
        by_shape.setdefault(value.shape, []).append(value)
    seen = [_any_found(step.values, by_shape, tolerance) for step in steps]
    telling = [
        hit and any(_varied(value) for value in step.values) for hit, step in zip(seen, steps, strict=True)
    ]
    explained = list(telling)
    needed = [any(_same(value, output) for value in step.values for output in outputs) for step in steps]
    for number in range(len(steps) - 1, -1, -1):
        for parent in steps[number].parents:
            explained[parent] |= explained[number]
            needed[parent] |= needed[number]
    for step, hit, fine, used in zip(steps, seen, explained, needed, strict=True):
        if used and not hit and not fine:
            return step
    return None


def _same(value: Array, output: Array) -> bool:
    return (
        value.shape == output.shape
        and value.dtype == output.dtype
        and np.array_equal(value, output, equal_nan=True)
    )


def _any_found(
    values: Sequence[Array], by_shape: Mapping[tuple[int, ...], list[Array]], tolerance: float
) -> bool:
    return any(close(value, other, tolerance) for value in values for other in by_shape.get(value.shape, []))


def _varied(value: Array) -> bool:
    """Whether a value says something: constant tensors appear anywhere by chance."""
    return value.size > 1 and bool((value != value.flat[0]).any())


def explain(
    steps: Sequence[Step],
    outputs: Sequence[Array],
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
    tolerance: float,
) -> str:
    """A sentence that names the first operator of the source whose result the ONNX graph does not compute."""
    try:
        found = inner_values(model, feeds)
    except FarthingError as error:
        return f"the first differing operator could not be found ({error})"
    step = first_difference(steps, outputs, found, tolerance)
    if step is None:
        return "no single operator differs: rounding adds up, or ONNX Runtime's graph optimisations change the result"
    return f"the first operator that differs is {step.name}"
