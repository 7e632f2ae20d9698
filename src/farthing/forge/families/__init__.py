"""Families of small networks as plain data: what they cost is arithmetic, and torch is needed only to build one."""

from __future__ import annotations

from farthing.forge.families.architecture import FAMILIES, Architecture, Family, Stage
from farthing.forge.families.layers import Block, Cost, Layer, Shape, cost_of

__all__ = ["FAMILIES", "Architecture", "Block", "Cost", "Family", "Layer", "Shape", "Stage", "cost_of"]
