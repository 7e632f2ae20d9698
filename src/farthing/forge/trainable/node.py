"""One operator of an ONNX graph as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import onnx
from onnx import helper

from farthing.errors import UnsupportedError

AFTER = "passes that need no training, such as quantize.static.v1, still take the model"


@dataclass(frozen=True)
class Node:
    """One operator.

    Attributes:
        kind: its ONNX type; of another domain than ONNX's own ``domain.type``.
        name: its name in the file.
        inputs, outputs: names of tensors; one left out is empty.
        attributes: as in ONNX; text as str.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @classmethod
    def of(cls, node: onnx.NodeProto) -> Node:
        """The operator that a node of a file states."""
        attributes: dict[str, Any] = {}
        for attribute in node.attribute:
            value = helper.get_attribute_value(attribute)
            attributes[attribute.name] = value.decode() if isinstance(value, bytes) else value
        kind = node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}"
        return cls(kind, node.name, tuple(node.input), tuple(node.output), attributes)

    def refuse(self, why: str) -> NoReturn:
        """Raise the UnsupportedError of an operator that cannot be trained."""
        raise UnsupportedError(
            f"operator {self.kind} (node {self.name!r}) has no trainable form: {why}; {AFTER}"
        )

    def input(self, place: int) -> str:
        """The name of an input; empty if it is left out."""
        return self.inputs[place] if place < len(self.inputs) else ""

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or what stands for it."""
        return self.attributes.get(name, default)
