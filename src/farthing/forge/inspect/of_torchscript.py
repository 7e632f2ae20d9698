"""TorchScript archives: what is in the program, and how long each of its operators takes."""

from __future__ import annotations

import io
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from farthing.anatomy import Layer, Placed
from farthing.engines.archive import checked_script
from farthing.engines.torchscript import runtime
from farthing.errors import ModelError
from farthing.forge.inspect.facts import (
    RUNS,
    Array,
    Inspection,
    Stored,
    Subject,
    batch,
    ranked,
    share_of_zeros,
    weights,
)

WARM = 3  # the profiling executor rewrites the program in its first runs
_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError)
_UNCOUNTED = {"aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu", "aten::einsum"}


def look(subject: Subject) -> Inspection:
    """See `farthing.forge.inspect.inspect`."""
    torch = runtime()
    clean = checked_script(subject.path, subject.path.read_bytes())
    try:
        module = torch.jit.load(io.BytesIO(clean), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        said = next(iter(str(error).strip().splitlines()), "unreadable")
        raise ModelError(f"torch cannot read {subject.path}: {said}") from error
    manifest = subject.manifest
    stored = _stored(module)
    kinds = _kinds(module)
    found = Inspection(
        name=subject.name,
        format="torchscript",
        size_bytes=subject.size_bytes,
        inputs=manifest.inputs if manifest else (),
        outputs=manifest.outputs if manifest else (),
        operators=dict(kinds.most_common()),
        nodes=sum(kinds.values()),
        parameters=sum(part.numbers for part in stored.values()),
        weights=weights(stored.values()),
        layers=_layers(module, stored),
        zeros=share_of_zeros(stored.values()),
        runtime=f"torch {torch.__version__}",
        providers=("cpu", *(["cuda"] if torch.cuda.is_available() else [])),
    )
    if manifest is None and subject.feeds is None:
        return msgspec.structs.replace(
            found, notes=("not run: a TorchScript file says no shapes; give a model directory",)
        )
    fed, reason = subject.fed(found.inputs)
    if reason:
        return msgspec.structs.replace(found, notes=(f"not run: {reason}",))
    return _run(torch, module, found, fed)


def _stored(module: Any) -> dict[str, Stored]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        name: Stored(
            t.numel(),
            str(t.dtype).removeprefix("torch."),
            t.numel() * t.element_size(),
            int((t == 0).sum()) if t.dim() > 1 and t.is_floating_point() else None,
        )
        for name, t in tensors.items()
    }


def _kinds(module: Any) -> Counter[str]:
    """Operators of the program with its submodules inlined, inner ones included; what only moves values is not."""
    found: Counter[str] = Counter()
    left = [module.inlined_graph] if hasattr(module, "forward") else []
    while left:
        for node in left.pop().nodes():
            left += [*node.blocks()]
            if not node.kind().startswith("prim::") or node.kind() in {"prim::If", "prim::Loop"}:
                found[node.kind()] += 1
    return found


def _layers(module: Any, stored: Mapping[str, Stored]) -> tuple[Layer, ...]:
    """Submodules by the bytes of their own parameters and buffers."""
    kinds = {name: part.original_name for name, part in module.named_modules()}
    totals: dict[tuple[str, str], Counter[str]] = {}
    for name, part in stored.items():
        owner = name.rpartition(".")[0]
        key = (owner or "the module itself", kinds.get(owner, ""))
        totals.setdefault(key, Counter())[part.dtype] += part.bytes
    return ranked(totals)


def _run(torch: Any, module: Any, found: Inspection, feeds: Mapping[str, Array]) -> Inspection:
    """Work and times; the program is run as it is saved, without what an engine freezes and fuses."""
    arguments = [torch.from_numpy(feeds[spec.name].copy()) for spec in found.inputs if spec.name in feeds]
    notes = ["nodes are those of the file: the engine freezes and fuses some of them"]
    try:
        with torch.no_grad():
            work = _macs(module, arguments, found)
            placement = _placed(module, arguments)
    except _FAILURES as error:
        said = str(error).strip().splitlines()
        return msgspec.structs.replace(
            found, notes=(f"not run: {said[-1] if said else type(error).__name__}",)
        )
    if isinstance(work, str):
        notes.append(f"multiply-accumulates not counted: {work}")
    return msgspec.structs.replace(
        found,
        macs=None if isinstance(work, str) else work // batch(found.inputs, feeds),
        placement=placement,
        notes=tuple(notes),
    )


def _macs(module: Any, arguments: Sequence[Any], found: Inspection) -> int | str:
    """Multiply-accumulates of convolutions and matrix products, counted as torch runs them; or why they are not."""
    from torch.utils.flop_counter import FlopCounterMode

    missing = sorted(_UNCOUNTED & found.operators.keys())
    if missing:
        return f"the operator {missing[0]} is not counted"
    with FlopCounterMode(display=False) as counter:
        module(*arguments)
    return int(counter.get_total_flops()) // 2


def _placed(module: Any, arguments: Sequence[Any]) -> tuple[Placed, ...]:
    """The operators that the program calls, in order, with their median times."""
    for _ in range(WARM):
        module(*arguments)
    runs = [_profiled(module, arguments) for _ in range(RUNS)]
    names = [name for name, _, _ in runs[-1]]
    alike = [run for run in runs if [name for name, _, _ in run] == names]
    return tuple(
        Placed(
            node=f"{name}_{place}",
            operator=name,
            provider="cpu",
            microseconds=statistics.median(run[place][1] for run in alike),
        )
        for place, (name, _, _) in enumerate(runs[-1])
    )


def _profiled(module: Any, arguments: Sequence[Any]) -> list[tuple[str, float, float]]:
    """Name, microseconds and start of each operator that the program itself calls."""
    from torch.autograd import profiler_legacy

    legacy: Any = profiler_legacy
    with legacy.profile() as profile:  # the newer one talks on standard error
        module(*arguments)
    calls = [
        (event.name, float(event.cpu_time_total), float(event.time_range.start))
        for event in profile.function_events or ()
        if event.cpu_parent is None or not event.cpu_parent.name.startswith("aten::")
    ]
    return sorted((call for call in calls if call[0].startswith("aten::")), key=lambda call: call[2])
