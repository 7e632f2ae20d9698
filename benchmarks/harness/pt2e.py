"""torchao's PT2E quantization as a peer: quantized for x86 as its guide does, compiled by Inductor, run as an engine.

Guide: "PyTorch 2 Export Quantization with X86 Backend through Inductor", https://docs.pytorch.org/ao.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from farthing import plugins
from farthing.engines.base import Tensors, check_feeds
from farthing.errors import EngineError, require
from farthing.forge.cache import Cache, key_of
from farthing.forge.trainable import trainable
from farthing.model import Manifest, Model, TensorSpec, checked
from farthing.options import EngineOptions
from farthing.target import Target
from harness import fleet
from harness.fleet import Searched

ENGINE = FORMAT = "inductor"


class Inductor:
    """A package that Inductor compiled ahead of time: one sample a call, one thread, the machine it was made on.

    Its file holds the compiled code beside the weights: it needs PyTorch's libraries, but no other kernels.
    """

    name: ClassVar[str] = ENGINE
    formats: ClassVar[frozenset[str]] = frozenset({FORMAT})
    concurrency: ClassVar[Literal["threads", "serial"]] = "serial"
    stateful: ClassVar[bool] = False
    version = str(torch.__version__)

    def __init__(self, model: Model, options: EngineOptions) -> None:
        if options.threads != 1:
            raise EngineError(f"{FORMAT} packages are compiled for one thread, not {options.threads}")
        self.inputs: Sequence[TensorSpec] = model.manifest.data_inputs
        self.outputs: Sequence[TensorSpec] = model.manifest.outputs
        self._run: Any = torch._inductor.aoti_load_package(str(model.file))

    @classmethod
    def installed(cls) -> str:
        """See `farthing.engines.base.Engine.installed`."""
        return cls.version

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """See `farthing.engines.base.Engine.run`."""
        check_feeds(self.inputs, feeds)
        answers = self._run(*(torch.from_numpy(feeds[spec.name]) for spec in self.inputs))
        answers = answers if isinstance(answers, tuple | list) else [answers]
        return {spec.name: found.numpy() for spec, found in zip(self.outputs, answers, strict=True)}

    def session(self) -> Self:
        """It keeps no state."""
        return self

    def close(self) -> None:
        """Forget the package."""
        self._run = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def quantized(found: Searched) -> Model:
    """What torchao makes of a float model with its default options for x86, compiled.

    Raises:
        NotInstalled: torchao is missing.
        EngineError: it fails; its own words follow.
    """
    ao = require("torchao", "torchao")
    plugins.register("engine", ENGINE, Inductor)
    facts = [
        found.baseline.digest,
        found.task.digest,
        ao.__version__,
        str(torch.__version__),
        Target.detect(),
    ]
    return Cache(found.cache).model(key_of("pt2e", *facts), lambda: _compiled(found))


def _compiled(found: Searched) -> Model:
    samples = [
        tuple(torch.from_numpy(feed[spec.name]) for spec in found.baseline.manifest.data_inputs)
        for feed in fleet.samples(found, found.baseline)
    ]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        place = Path(folder) / "model.pt2"
        try:
            program = torch.export.export(_converted(found.baseline, samples), samples[0])
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(place), inductor_configs={"freezing": True}
            )
        except Exception as error:
            raise EngineError(f"torchao: {type(error).__name__}: {error}") from error
        return Model.create(_facts(found.baseline), {place.name: place})


def _converted(model: Model, samples: Sequence[tuple[torch.Tensor, ...]]) -> torch.nn.Module:
    """The network with its weights in 8 bits, calibrated on samples."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    graph = torch.export.export(trainable(model).module.eval(), samples[0]).module()
    prepared = prepare_pt2e(graph, quantizer)
    for sample in samples:
        prepared(*sample)
    return convert_pt2e(prepared)


def _facts(model: Model) -> Manifest:
    """The manifest of a float model, for a package of one sample a call."""

    def single(spec: TensorSpec) -> TensorSpec:
        return replace(spec, shape=(1, *spec.shape[1:]))

    old = model.manifest
    inputs, outputs = (tuple(map(single, specs)) for specs in (old.inputs, old.outputs))
    return checked(old, format=FORMAT, inputs=inputs, outputs=outputs, files={})
