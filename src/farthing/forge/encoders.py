"""Encoders of text in PyTorch, defined here so that tests and benchmarks need no model hub."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Layer(nn.Module):
    """Attention of each token to all that are not hidden, then a wider layer; both beside a short cut, then normed.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, as BERT arranges it.
    """

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.each = heads, width // heads
        self.query, self.key, self.value = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.mixed, self.norm1 = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.wide, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        query, key, value = (self._apart(layer(x)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(self.each) + hidden
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.mixed(mixed))
        y: Tensor = self.norm2(x + self.narrow(functional.gelu(self.wide(x))))
        return y

    def _apart(self, x: Tensor) -> Tensor:
        """(n, tokens, width) as (n, heads, tokens, width of one)."""
        return x.reshape(x.shape[0], x.shape[1], self.heads, self.each).transpose(1, 2)


class Encoder(nn.Module):
    """BERT (Devlin et al. 2018, https://arxiv.org/abs/1810.04805) with a sentence's mean as its answer, of length 1.

    Takes token numbers and a mask, whole numbers (n, tokens), 1 where a token counts; gives (n, width). The usual
    training of sentence embeddings: Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084.
    """

    def __init__(
        self,
        words: int = 30522,
        layers: int = 6,
        width: int = 384,
        heads: int = 12,
        inner: int = 1536,
        length: int = 512,
    ) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(words, width), nn.Embedding(2, width)
        self.places = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        x = self.norm(self.words(tokens) + self.kinds.weight[0] + self.places(places))
        counts = mask.to(x.dtype)
        hidden = (1 - counts[:, None, None, :]) * -1e4
        for layer in self.layers:
            x = layer(x, hidden)
        mean = (x * counts[..., None]).sum(1) / counts.sum(1, keepdim=True).clamp(min=1)
        return functional.normalize(mean, dim=1)
