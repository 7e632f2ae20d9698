"""TorchScript's models: scripted functions of constants, saved as archives."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from farthing.model import Manifest, Model, TensorSpec
from rows import BIAS, DECAY, WEIGHTS, Array, Row, spec

SUPPRESS = """
def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
    order = torch.argsort(scores, descending=True)
    order = order[scores[order] > 0.1]
    kept: List[Tensor] = []
    while order.numel() > 0:
        kept.append(order[:1])
        box, others = boxes[order[:1]], boxes[order[1:]]
        low, high = torch.maximum(box[:, :2], others[:, :2]), torch.minimum(box[:, 2:], others[:, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        area = (box[:, 2:] - box[:, :2]).prod(1) + (others[:, 2:] - others[:, :2]).prod(1)
        order = order[1:][shared / (area - shared) <= 0.5]
    if len(kept) == 0:
        return torch.zeros([0], dtype=torch.long)
    return torch.cat(kept)
"""


def script(
    code: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], **constants: Array
) -> Model:
    """A module of buffers and one method ``forward``, in TorchScript's own words."""
    torch = pytest.importorskip("torch")
    holder = type("Script", (torch.nn.Module,), {})()
    for name, value in constants.items():
        holder.register_buffer(name, torch.from_numpy(np.array(value)))
    module = torch.jit.script(holder)
    module.define(code + "\n")
    content = io.BytesIO()
    torch.jit.save(module, content)
    manifest = Manifest(name="m", format="torchscript", inputs=tuple(inputs), outputs=tuple(outputs))
    return Model.create(manifest, {"m.pt": content.getvalue()})


def affine(batch: int | str) -> Model:
    code = "def forward(self, x: Tensor) -> Tensor:\n    return torch.matmul(x, self.w) + self.b"
    return script(code, [spec("x", batch, 4)], [spec("y", batch, 3)], w=WEIGHTS, b=BIAS)


def large() -> Model:
    code = "def forward(self, x: Tensor) -> Tensor:\n    return torch.matmul(x, self.w)"
    inputs, outputs = [spec("x", "batch", 512)], [spec("y", "batch", 512)]
    return script(code, inputs, outputs, w=np.eye(512, dtype=np.float32))


def stateful(batch: int | str = "batch") -> Model:
    code = f"""
def forward(self, x: Tensor, h: Tensor) -> Tuple[Tensor, Tensor]:
    y = {DECAY} * h + torch.matmul(x, self.w) + self.b
    return y, y
"""
    inputs = [spec("x", batch, 4), spec("h", batch, 3, role="state")]
    outputs = [spec("y", batch, 3), spec("h_next", batch, 3, role="state")]
    return script(code, inputs, outputs, w=WEIGHTS, b=BIAS)


def inner_state() -> Model:
    code = f"""
def forward(self, x: Tensor) -> Tensor:
    self.h.mul_({DECAY}).add_(torch.matmul(x, self.w) + self.b)
    return self.h
"""
    start = np.zeros((1, 3), np.float32)
    return script(code, [spec("x", 1, 4)], [spec("y", 1, 3)], w=WEIGHTS, b=BIAS, h=start)


def identity(dtype: str) -> Model:
    code = "def forward(self, x: Tensor) -> Tensor:\n    return x"
    return script(code, [spec("x", "n", 2, dtype=dtype)], [spec("y", "n", 2, dtype=dtype)])


def unknown() -> Model:
    model = affine(1)
    changed = io.BytesIO()
    with zipfile.ZipFile(model.file) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"torch.matmul(", b"torch.telepathy("))
    return Model.create(model.manifest, {"m.pt": changed.getvalue()})


def weights_alone() -> bytes:
    """What ``torch.save`` writes: a zip as well, but of pickles."""
    torch: Any = pytest.importorskip("torch")
    content = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, content)
    return content.getvalue()


ROW = Row(
    engine="torchscript",
    package="torch",
    pool=True,
    threads=(1, 2, 4),
    affine=affine,
    large=large,
    stateful=stateful,
    fixed_state=lambda: stateful(2),
    inner_state=inner_state,
    identity=identity,
    dtypes=tuple("bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()),
    free=lambda: script(
        "def forward(self, x: Tensor) -> Tensor:\n    return torch.matmul(x, self.w) + self.b",
        [spec("x", "batch", "time", 4)],
        [spec("y", "batch", "time", 3)],
        w=WEIGHTS,
        b=BIAS,
    ),
    two=lambda: script(
        "def forward(self, a: Tensor, b: Tensor) -> Tensor:\n    return a - b",
        [spec("a", "batch", 4), spec("b", "batch", 4)],
        [spec("y", "batch", 4)],
    ),
    parameter=lambda: script(
        "def forward(self, x: Tensor, gain: float) -> Tensor:\n    return x * gain",
        [spec("x", "batch", 4), spec("gain", batch_axis=None, role="parameter")],
        [spec("y", "batch", 4)],
    ),
    suppress=lambda: script(
        SUPPRESS,
        [spec("boxes", "n", 4, batch_axis=None), spec("scores", "n", batch_axis=None)],
        [spec("kept", "k", dtype="int64", batch_axis=None)],
    ),
    unsupported=(unknown,),
    named=False,
)
