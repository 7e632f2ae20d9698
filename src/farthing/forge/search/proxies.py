"""Zero-cost proxies: what an untrained network shows, on one batch, of how well it will learn.

How far each can be trusted is a matter of measurement; `benchmarks/proxies.py` holds them against trained networks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from farthing.forge.training.losses import Loss
from farthing.forge.training.samples import Batch

Proxy = Literal["snip", "synflow", "naswot"]
PROXIES: tuple[Proxy, ...] = get_args(Proxy)


def score(proxy: Proxy, module: nn.Module, batch: Batch, loss: Loss) -> float:
    """A proxy's score; more is better. The module is as before afterwards.

    Args:
        proxy: which one: `snip`, `synflow` or `naswot`.
        module: an untrained network.
        batch: real samples; `synflow` looks at their shape only.
        loss: of its outputs; `snip` alone asks it.
    """
    with _as_before(module):
        return _SCORES[proxy](module, batch, loss)


def snip(module: nn.Module, batch: Batch, loss: Loss) -> float:
    """How much the loss hangs on the weights of a network: the logarithm of the sum of |weight x gradient|.

    Lee et al. 2019, https://arxiv.org/abs/1810.02340; as a proxy: Abdelfattah et al. 2021,
    https://arxiv.org/abs/2101.08134.
    """
    module.train()
    return _saliency(module, loss([module(*batch.inputs)], batch))


def synflow(module: nn.Module, batch: Batch, loss: Loss) -> float:
    """How much signal all paths through a network carry together: the same sum, of what comes out for an input of ones.

    All weights are replaced by their magnitudes (Tanaka et al. 2020, https://arxiv.org/abs/2006.05467).
    """
    module.eval().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.abs_()
    ones = [torch.ones(1, *given.shape[1:], dtype=torch.float64) for given in batch.inputs]
    return _saliency(module, module(*ones).sum())


def naswot(module: nn.Module, batch: Batch, loss: Loss) -> float:
    """How differently the samples of a batch switch the rectifiers of a network on and off.

    The logarithm of the determinant of the kernel that counts, for each pair of samples, in how many rectifiers they
    agree (Mellor et al. 2021, https://arxiv.org/abs/2006.04647).
    """
    count = len(batch)
    kernel = torch.zeros(count, count, dtype=torch.float64)

    def note(part: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        on = (result.reshape(count, -1) > 0).double()
        kernel.add_(on @ on.T + (1 - on) @ (1 - on).T)

    rectifiers = [part for part in module.modules() if isinstance(part, nn.ReLU | nn.ReLU6)]
    hooks = [part.register_forward_hook(note) for part in rectifiers]
    try:
        with torch.no_grad():
            module.train()(*batch.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return float(torch.linalg.slogdet(kernel)[1])


def _saliency(module: nn.Module, value: Tensor) -> float:
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(value, parameters)
    sums = [(p.detach() * g).abs().sum().double() for p, g in zip(parameters, gradients, strict=True)]
    return float(torch.stack(sums).sum().clamp_min(1e-300).log())


@contextlib.contextmanager
def _as_before(module: nn.Module) -> Iterator[None]:
    """Weights, running statistics, types and modes are put back afterwards."""
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    training = module.training
    try:
        yield
    finally:
        module.float().train(training)
        module.load_state_dict(kept)


_SCORES: dict[Proxy, Callable[[nn.Module, Batch, Loss], float]] = {
    "snip": snip,
    "synflow": synflow,
    "naswot": naswot,
}
