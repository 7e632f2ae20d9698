"""The nets we define: sizes that are known from elsewhere, and shapes in and out."""

from __future__ import annotations

import pytest
import torch

from farthing.forge import nets


def test_digits_cnn_has_the_classic_size() -> None:
    net = nets.digits_cnn()
    assert nets.parameters(net) == 421_642
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(("channels", "side", "classes"), [(1, 28, 10), (3, 32, 7)])
def test_resnet8(channels: int, side: int, classes: int) -> None:
    net = nets.resnet8(channels, classes)
    assert 76_000 < nets.parameters(net) < 80_000
    assert net(torch.zeros(2, channels, side, side)).shape == (2, classes)


def test_resnet18_has_the_published_size() -> None:
    net = nets.resnet18()
    assert nets.parameters(net) == 11_689_512
    with torch.no_grad():
        assert net.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_settle_keeps_the_mode_and_gives_answers_that_differ() -> None:
    torch.manual_seed(0)
    net = nets.resnet8().eval()
    nets.settle(net, (8, 1, 16, 16))
    assert not net.training
    assert float(net[1].running_var.std()) > 0
    with torch.no_grad():
        logits = net(torch.randn(16, 1, 16, 16))
    assert float(logits.std(dim=0).min()) > 1e-3
