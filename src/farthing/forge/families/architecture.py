"""Architecture: a small convolutional network as plain data, in one of four families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from farthing.config import Section
from farthing.errors import ConfigError, require
from farthing.forge.families.layers import Activation, Block, Cost, Layer, Padding, Shape, cost_of

if TYPE_CHECKING:
    from torch import nn

Family = Literal["plain", "dscnn", "resnet", "mobilenet"]
FAMILIES: tuple[Family, ...] = get_args(Family)


class Stage(Section, frozen=True, kw_only=True):
    """Blocks of one width; the first of them strides.

    Attributes:
        width: channels.
        depth: blocks.
        stride: of the first block.
        kernel: side of the windows; odd.
        expansion: how many times wider an inverted residual is inside; 1 in every other family.
        pool: window and stride of a max pooling after the blocks; None for none.
    """

    width: int
    depth: int = 1
    stride: int = 1
    kernel: int = 3
    expansion: int = 1
    pool: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("width", "depth", "stride", "kernel", "expansion"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a stage is a whole number from 1, not {getattr(self, name)}")
        if self.kernel % 2 == 0:
            raise ConfigError(f"kernel of a stage is odd, not {self.kernel}")
        if self.pool and min(self.pool) < 1:
            raise ConfigError(f"pool of a stage is a window and a stride from 1, not {list(self.pool)}")

    def __str__(self) -> str:
        """Width, and what is not 1 (3 for windows): ``24/2 k5 e4 x2`` is stride 2, kernel 5, expansion 4, 2 blocks."""
        stride = f"/{self.stride}" if self.stride != 1 else ""
        kernel = f" k{self.kernel}" if self.kernel != 3 else ""
        expansion = f" e{self.expansion}" if self.expansion != 1 else ""
        depth = f" x{self.depth}" if self.depth != 1 else ""
        pool = f" pool{self.pool[0]}" if self.pool else ""
        return f"{self.width}{stride}{kernel}{expansion}{depth}{pool}"


class Architecture(Section, frozen=True, kw_only=True):
    """A network that turns one sample into a vector of numbers (logits, say).

    The same architecture takes pictures and signals: a sample of shape ``(channels, height, width)`` makes it 2-D, one
    of ``(channels, length)`` 1-D.

    Attributes:
        family: ``plain``: convolutions; ``dscnn``: depthwise and pointwise ones (Zhang et al. 2017, "Hello Edge",
            https://arxiv.org/abs/1711.07128; Howard et al. 2017, https://arxiv.org/abs/1704.04861); ``resnet``: two
            convolutions beside a short cut (He et al. 2015, https://arxiv.org/abs/1512.03385); ``mobilenet``: inverted
            residuals (Sandler et al. 2018, https://arxiv.org/abs/1801.04381).
        stages: the blocks, from input to output.
        stem: plain convolutions before them.
        head: channels of a 1 x 1 convolution after them; 0 for none.
        pooling: ``average`` over all places, or ``flatten``, which keeps them apart.
        hidden: widths of dense layers before the last one.
        norm: batch normalization after every convolution; it is folded away when the model is made ready.
        activation: after every layer that has one.
        padding: as `Layer` says.
    """

    family: Family
    stages: tuple[Stage, ...]
    stem: Stage | None = None
    head: int = 0
    pooling: Literal["average", "flatten"] = "average"
    hidden: tuple[int, ...] = ()
    norm: bool = True
    activation: Activation = "relu"
    padding: Padding = "same"

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("an architecture needs a stage at least")
        if self.family != "mobilenet" and any(stage.expansion != 1 for stage in self.stages):
            raise ConfigError(f"only mobilenet has an expansion; {self.family} takes 1, or leave it out")
        if self.head < 0 or min((1, *self.hidden)) < 1:
            raise ConfigError(
                f"head is a number of channels from 0, hidden of features from 1, not {self.head}, {self.hidden}"
            )

    def __str__(self) -> str:
        """As a table shows it: ``dscnn 16/2, 24/2 k5 x2, average``."""
        stages = ", ".join(map(str, (self.stem, *self.stages) if self.stem else self.stages))
        head = f", {self.head}" if self.head else ""
        return f"{self.family} {stages}{head}, {self.pooling}{''.join(f', {width}' for width in self.hidden)}"

    def blocks(self, shape: Shape, outputs: int) -> tuple[Block, ...]:
        """The blocks of the network for samples of a shape, the classifier last.

        Args:
            shape: of one sample, channels first, without the batch.
            outputs: numbers that come out.

        Raises:
            ConfigError: no shape of a picture or signal, or one that is used up by strides before the end.
        """
        if len(shape) not in {2, 3} or min(shape) < 1 or outputs < 1:
            raise ConfigError(
                "an architecture takes samples of (channels, height, width) or (channels, length) and gives one number "
                f"at least, not {list(shape)} to {outputs}"
            )
        made: list[Block] = []
        for number, stage in enumerate((self.stem, *self.stages) if self.stem else self.stages):
            family = "plain" if self.stem and number == 0 else self.family
            for block in self._stage(family, stage, shape[0]):
                made.append(block)
                shape = block.shape(shape)
        if self.head:
            made.append(Block(body=(self._conv(shape[0], self.head),)))
            shape = made[-1].shape(shape)
        return (*made, self._classifier(shape, outputs))

    def _stage(self, family: Family, stage: Stage, channels: int) -> list[Block]:
        make = {"plain": self._plain, "dscnn": self._separable, "resnet": self._residual}.get(
            family, self._inverted
        )
        strides = (stage.stride, *[1] * (stage.depth - 1))
        widths = (channels, *[stage.width] * (stage.depth - 1))
        made = [make(stage, width, stride) for width, stride in zip(widths, strides, strict=True)]
        if stage.pool:
            window, stride = stage.pool
            pool = Layer(kind="maxpool", kernel=window, stride=stride, padding="even")
            made.append(Block(body=(pool,)))
        return made

    def _plain(self, stage: Stage, channels: int, stride: int) -> Block:
        return Block(body=(self._conv(channels, stage.width, stage.kernel, stride),))

    def _separable(self, stage: Stage, channels: int, stride: int) -> Block:
        depthwise = self._conv(channels, channels, stage.kernel, stride, groups=channels)
        return Block(body=(depthwise, self._conv(channels, stage.width)))

    def _residual(self, stage: Stage, channels: int, stride: int) -> Block:
        first = self._conv(channels, stage.width, stage.kernel, stride)
        second = self._conv(stage.width, stage.width, stage.kernel, activation="none")
        changes = stride != 1 or channels != stage.width
        shortcut = (self._conv(channels, stage.width, 1, stride, activation="none"),) if changes else ()
        return Block(body=(first, second), shortcut=shortcut, activation=self.activation)

    def _inverted(self, stage: Stage, channels: int, stride: int) -> Block:
        inner = channels * stage.expansion
        expand = (self._conv(channels, inner),) if stage.expansion != 1 else ()
        depthwise = self._conv(inner, inner, stage.kernel, stride, groups=inner)
        project = self._conv(inner, stage.width, activation="none")
        same = stride == 1 and channels == stage.width
        return Block(body=(*expand, depthwise, project), shortcut=() if same else None)

    def _conv(
        self,
        channels: int,
        width: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: Activation | None = None,
    ) -> Layer:
        return Layer(
            kind="conv",
            inputs=channels,
            outputs=width,
            kernel=kernel,
            stride=stride,
            groups=groups,
            norm=self.norm,
            activation=self.activation if activation is None else activation,
            padding=self.padding,
        )

    def _classifier(self, shape: Shape, outputs: int) -> Block:
        layers = [Layer(kind=self.pooling)]
        (features,) = layers[0].shape(shape)
        for width in self.hidden:
            layers.append(Layer(kind="dense", inputs=features, outputs=width, activation=self.activation))
            features = width
        return Block(body=(*layers, Layer(kind="dense", inputs=features, outputs=outputs)))

    def cost(self, shape: Shape, outputs: int) -> Cost:
        """Parameters, multiply-accumulates and peak activations, without building anything.

        Raises:
            ConfigError: as `blocks`.
        """
        return cost_of(self.blocks(shape, outputs), shape)

    def build(self, shape: Shape, outputs: int) -> nn.Sequential:
        """The network as a torch module, its weights drawn by torch's generator.

        Args:
            shape: of one sample, channels first, without the batch.
            outputs: numbers that come out of it.

        Returns:
            A module in training mode: (n, ...) float32 to (n, outputs) float32.

        Raises:
            ConfigError: as `blocks`.
            NotInstalled: torch is missing.
        """
        require("torch", "forge")
        from farthing.forge.families.modules import assemble

        return assemble(self.blocks(shape, outputs), shape)
