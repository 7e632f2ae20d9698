"""Pictures in folders and an ONNX file: describe the data, search, and label pictures with the winner.

    python examples/02_own_pictures.py [OUT]

The pictures are real digits of 8 x 8 pixels, written as PNG files here so that there is something to begin with.
With your own, begin at ``describe``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import farthing
from digits_net import write_onnx
from farthing.forge.init import Proposal, propose, take_defaults


def write_pictures(root: Path) -> None:
    """``root/SPLIT/CLASS/NUMBER.png``: a folder for each split, in it one for each class."""
    digits = farthing.find_task("digits")
    for name, split in digits.splits.items():
        for number, (pixels, label) in enumerate(zip(split.inputs[""], split.labels, strict=True)):
            folder = root / name / digits.labels[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(pixels[0] * 255).astype(np.uint8)).save(folder / f"{number}.png")


def describe(pictures: Path, onnx: Path, out: Path) -> Proposal:
    """What ``farthing init --yes`` does: a task file and a complete manifest, and a list of what was only assumed."""
    proposal = propose(pictures, onnx, out, ask=take_defaults)
    for sentence in proposal.found:
        print(f"found:   {sentence}")
    for sentence in proposal.assumed:
        print(f"assumed: {sentence}")
    return proposal


def main(out: Path) -> None:
    """From pictures to labels."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_pictures(place / "pictures")
        write_onnx(place / "digits.onnx")
        proposal = describe(place / "pictures", place / "digits.onnx", place / "work")

        result = farthing.optimize(proposal.model, proposal.task, budget="accuracy_drop<=0.01", out=out)
        print(result.summary.sentence)

        shown = [min(folder.iterdir()) for folder in sorted((place / "pictures" / "test").iterdir())]
        with farthing.load(out) as predictor:
            for path, found in zip(shown, predictor(shown, top=2), strict=True):
                print(
                    f"{path.parent.name}: {found.labels[0]} ({found.scores[0]:.2f}), then {found.labels[1]}"
                )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "best"))
