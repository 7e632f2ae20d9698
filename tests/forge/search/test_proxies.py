"""What untrained networks show, against what can be worked out by hand, and without a trace left in them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from farthing.forge.nets import resnet8
from farthing.forge.search.proxies import PROXIES, Proxy, naswot, score, snip, synflow
from farthing.forge.training.losses import CrossEntropy
from farthing.forge.training.samples import Batch

LOSS = CrossEntropy()


def batch(inputs: torch.Tensor, labels: list[int] | None = None) -> Batch:
    truth = torch.tensor(labels if labels is not None else [n % 2 for n in range(len(inputs))])
    return Batch((inputs,), truth, torch.arange(len(inputs)))


def linear(*weights: list[list[float]]) -> nn.Sequential:
    layers = []
    for weight in weights:
        layer = nn.Linear(len(weight[0]), len(weight), bias=False)
        layer.weight.data = torch.tensor(weight)
        layers.append(layer)
    return nn.Sequential(*layers)


def test_synflow_sums_over_all_paths() -> None:
    """Two layers of weights (1, -2) and (3, 4): paths of strength 3, 4, 6 and 8 ... each counted once a layer."""
    net = linear([[1.0, -2.0]], [[3.0], [-4.0]])
    paths = (1 + 2) * (3 + 4)
    assert synflow(net, batch(torch.zeros(1, 2)), LOSS) == pytest.approx(math.log(2 * paths))


def test_snip_is_what_the_loss_hangs_on() -> None:
    net, given = linear([[0.5, 0.0], [0.0, 0.25]]), batch(torch.tensor([[1.0, 2.0]]), [1])
    p = torch.softmax(torch.tensor([0.5, 0.5]), 0)  # both logits are 0.5
    expected = 0.5 * 1.0 * float(p[0]) + 0.25 * 2.0 * (1 - float(p[1]))
    assert snip(net, given, LOSS) == pytest.approx(math.log(expected))


def test_naswot_tells_samples_apart_by_their_rectifiers() -> None:
    net = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]))
    apart = naswot(net, batch(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])), LOSS)
    near = naswot(net, batch(torch.tensor([[1.0, 1.0], [1.0, -1.0]])), LOSS)
    assert apart == pytest.approx(math.log(4 * 4 - 0))  # they agree in none of four
    assert near == pytest.approx(math.log(4 * 4 - 2 * 2))


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_network_is_as_before_afterwards(proxy: Proxy) -> None:
    torch.manual_seed(0)
    net = resnet8().eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    given = batch(torch.randn(8, 1, 16, 16))
    found = score(proxy, net, given, LOSS)
    assert math.isfinite(found)
    assert score(proxy, net, given, LOSS) == found
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())
    assert not net.training
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert all(parameter.grad is None for parameter in net.parameters())
