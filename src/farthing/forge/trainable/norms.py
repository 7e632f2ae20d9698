"""Batch normalization put behind convolutions for training, and folded into them again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from farthing.errors import TaskError
from farthing.forge.trainable.binding import Binding
from farthing.forge.trainable.trying import evaluating

NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.ConvTranspose1d: nn.BatchNorm1d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.ConvTranspose3d: nn.BatchNorm3d,
}
BACK = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
WEIGHTED = (*NORMS, *BATCH_NORMS, nn.Linear, nn.LSTM, nn.GRU, nn.RNN)


def insert(
    module: fx.GraphModule, bindings: Sequence[Binding], batches: Iterable[Sequence[Tensor]], linear: bool
) -> dict[str, str]:
    """Put a BatchNorm behind layers that lack one, in place; see `Trainable.insert_norms`.

    Returns:
        Name of each such layer -> name of its new norm.
    """
    places = [made for made in module.graph.nodes if _lacks(module, made, bindings, linear)]
    if not places:
        return {}
    measured = _measured(module, [str(made.target) for made in places], batches)
    added = {}
    for made in places:
        name = str(made.target)
        norm = f"{name}_norm"
        module.add_module(norm, _norm(module.get_submodule(name), *measured[name]))
        with module.graph.inserting_after(made):
            after = module.graph.call_module(norm, (made,))
        made.replace_all_uses_with(after, delete_user_cb=lambda user, after=after: user is not after)
        added[name] = norm
    module.recompile()
    return added


def _lacks(module: fx.GraphModule, made: fx.Node, bindings: Sequence[Binding], linear: bool) -> bool:
    """Whether a call is one of a layer that could use a norm, has none, and before another layer."""
    layer = _layer(module, made)
    dense = linear and isinstance(layer, nn.Linear) and len(made.meta["sizes"]) == 2
    if not (type(layer) in NORMS or dense):
        return False
    own = [binding for binding in bindings if f"{made.target}.weight" in binding.places]
    shared = any(sum(other.tensor == binding.tensor for other in bindings) > 1 for binding in own)
    followed = any(isinstance(_layer(module, user), BATCH_NORMS) for user in made.users)
    return not shared and not followed and _before_another(module, made)


def _layer(module: fx.GraphModule, made: fx.Node) -> nn.Module | None:
    return module.get_submodule(str(made.target)) if made.op == "call_module" else None


def _before_another(module: fx.GraphModule, made: fx.Node) -> bool:
    """Whether what a layer gives reaches another layer with weights."""
    seen, ahead = {made}, list(made.users)
    while ahead:
        user = ahead.pop()
        if isinstance(_layer(module, user), WEIGHTED):
            return True
        if user not in seen:
            seen.add(user)
            ahead += user.users
    return False


def _measured(
    module: fx.GraphModule, names: Sequence[str], batches: Iterable[Sequence[Tensor]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of each channel that some layers give, in evaluation mode."""
    found = {name: _Channels() for name in names}
    handles = [module.get_submodule(name).register_forward_hook(found[name].note) for name in names]
    try:
        with evaluating(module):
            for inputs in batches:
                module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not all(each.count for each in found.values()):
        raise TaskError("there are no samples to measure the statistics of batch normalization on")
    return {name: (each.mean, each.squares / each.count) for name, each in found.items()}


class _Channels:
    """Mean and variance of each channel, batch after batch (Chan, Golub and LeVeque 1979, "Updating formulae").

    Attributes:
        count: numbers of a channel so far.
        mean, squares: of each channel, the mean, and the sum of squared distances from it; float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(1, dtype=torch.float64)

    def note(self, _layer: nn.Module, _args: object, result: Tensor) -> None:
        """Take in what a layer gives, (n, channels, ...)."""
        flat = result.detach().double().movedim(1, 0).flatten(1)
        before, more = self.count, flat.shape[1]
        self.count += more
        gap = flat.mean(1) - self.mean
        own = flat.var(1, correction=0) * more
        self.squares = self.squares + own + gap**2 * (before * more / self.count)
        self.mean = self.mean + gap * (more / self.count)


def _norm(layer: nn.Module, mean: Tensor, variance: Tensor) -> nn.Module:
    """A norm that changes nothing in evaluation mode: it scales by what it divides by, and adds what it subtracts."""
    kind: Any = NORMS.get(type(layer), nn.BatchNorm1d)
    norm = kind(len(mean))
    weight: Any = layer.weight
    with torch.no_grad():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(torch.sqrt(variance + norm.eps))
        norm.bias.copy_(mean)
    made: nn.Module = norm.to(weight.dtype)
    return made.eval()


def folded(module: fx.GraphModule, norms: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights and biases of layers with their inserted norms folded in, by the names of the parameters."""
    state: dict[str, Tensor] = {}
    for name, norm_name in norms.items():
        layer, norm = module.get_submodule(name), module.get_submodule(norm_name)
        state[f"{name}.weight"], state[f"{name}.bias"] = _fold(layer, norm)
    return state


def _fold(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = layer.weight.detach().double()
    if isinstance(layer, BACK):
        inputs, each, *kernel = weight.shape
        grouped = weight.reshape(layer.groups, inputs // layer.groups, each, *kernel)
        factors = scale.reshape(layer.groups, 1, each, *(1 for _ in kernel))
        weight = (grouped * factors).reshape(weight.shape)
    else:
        weight = weight * scale.reshape(-1, *(1 for _ in weight.shape[1:]))
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.detach().double()
    bias = (bias - norm.running_mean.double()) * scale + norm.bias.double()
    return weight.to(layer.weight.dtype).detach(), bias.to(layer.weight.dtype).detach()
