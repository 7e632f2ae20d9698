"""What an architecture costs: by arithmetic for every device, by prices of its blocks where these can be measured."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from farthing.config import Section
from farthing.errors import ConfigError, nearest
from farthing.forge.families import Architecture, Block, Shape, cost_of

if TYPE_CHECKING:
    from farthing.forge.search.lookup import Lookup

KILO = 1000.0


class Limits(Section, frozen=True, kw_only=True):
    """What a network may cost at most; None is no limit.

    Attributes:
        macs: multiply-accumulates of one inference.
        parameters: weights and biases.
        activation_kb: peak memory of its activations, 1000 bytes.
        size_kb: of the deployed file (predicted), or of its parameters where no engine is measured, 1000 bytes.
        latency_ms: predicted median time of a call.
    """

    macs: float | None = None
    parameters: float | None = None
    activation_kb: float | None = None
    size_kb: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise ConfigError(f"{name} must be a number above 0, not {limit}")

    def excess(self, estimate: Estimate) -> float:
        """By how much an estimate breaks the limits: the sum of the shares by which it is above each.

        0 if it keeps all of them. A cost that is not known breaks nothing.
        """
        pairs = [(getattr(self, name), getattr(estimate, name)) for name in self.__struct_fields__]
        over = [cost / limit - 1 for limit, cost in pairs if limit is not None and cost is not None]
        return float(sum(share for share in over if share > 0))


def parse_limits(text: str) -> tuple[float | None, dict[str, float]]:
    """Read ``"accuracy_drop<=0.01, size_kb<=16"``: the drop, and the limits by their names.

    Raises:
        ConfigError: an unknown name (the nearest is suggested), another comparison, or not a number.
    """
    names = ("accuracy_drop", *Limits.__struct_fields__)
    found: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = re.fullmatch(r"(\w+)\s*<=\s*(\S+)", part)
        if not match:
            raise ConfigError(f"budget {part!r} is not of the form NAME<=NUMBER, as in size_kb<=16")
        name, number = match.groups()
        if name not in names:
            raise ConfigError(f"no budget of a search is called {name!r}; {nearest(name, names)}")
        if name in found:
            raise ConfigError(f"budget {name} is given twice")
        try:
            found[name] = float(number)
        except ValueError as error:
            raise ConfigError(f"budget {name}: {number!r} is not a number (write 0.01, not 1%)") from error
    return found.pop("accuracy_drop", None), found


class Estimate(Section, frozen=True, kw_only=True):
    """The cost of a network, in the units of `Limits`; ``latency_ms`` is None where no engine is measured."""

    macs: int
    parameters: int
    activation_kb: float
    size_kb: float
    latency_ms: float | None = None

    def __str__(self) -> str:
        time = f"{self.macs:,} MACs" if self.latency_ms is None else f"{1000 * self.latency_ms:.3g} us"
        return f"{time}, {self.size_kb:.3g} kB, {self.parameters:,} parameters"

    @property
    def costs(self) -> tuple[float, float]:
        """What is made small: time (multiply-accumulates where no time is known), and size."""
        return (float(self.macs) if self.latency_ms is None else self.latency_ms, self.size_kb)


class Estimator:
    """Costs of architectures for samples of one shape.

    Args:
        shape: of a sample.
        outputs: of the network.
        lookup: prices of blocks on the device; None counts operations and bytes alone.
        floats: whether it is deployed in float32, not in int8.
    """

    def __init__(
        self, shape: Shape, outputs: int, lookup: Lookup | None = None, floats: bool = False
    ) -> None:
        self.shape, self.outputs = shape, outputs
        self._lookup, self._floats = lookup, floats

    def counted(self, architecture: Architecture) -> Estimate:
        """The cost by arithmetic alone."""
        return self._counted(architecture.blocks(self.shape, self.outputs))

    def priced(self, architecture: Architecture) -> Estimate:
        """The cost with time and size as the device has them; blocks that are not known are measured."""
        blocks = architecture.blocks(self.shape, self.outputs)
        known = self._counted(blocks)
        if self._lookup is None:
            return known
        price = self._lookup.price(blocks, self.shape)
        return Estimate(
            macs=known.macs,
            parameters=known.parameters,
            activation_kb=known.activation_kb,
            size_kb=price.size_bytes / KILO,
            latency_ms=price.milliseconds,
        )

    def _counted(self, blocks: Sequence[Block]) -> Estimate:
        cost = cost_of(blocks, self.shape)
        stored, held = cost.weight_bytes, cost.activation_bytes
        if self._floats:
            stored, held = cost.float_weight_bytes, cost.float_activation_bytes
        return Estimate(
            macs=cost.macs,
            parameters=cost.parameters,
            activation_kb=held / KILO,
            size_kb=stored / KILO,
        )
