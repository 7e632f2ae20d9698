"""A pass of your own joins the search: low-rank factorisation of the large linear layers.

    python examples/03_own_pass.py [OUT]

A weight of m x n becomes two, m x r and r x n, from its singular value decomposition (Eckart and Young, 1936). Where r
is small that is fewer multiplications and fewer bytes; whether the accuracy survives, the search measures.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

import farthing
from digits_net import write_onnx
from farthing import Model, Target, Task

LARGE = 1 << 14


def low_rank(model: Model, target: Target, task: Task, rank: int = 16) -> Model:
    """Replace each Gemm with a large weight by two thin ones. The input model is not touched."""
    graph = onnx.load(model.file)
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    nodes = []
    for node in graph.graph.node:
        if node.op_type == "Gemm" and np.prod(weights[node.input[1]].dims) > LARGE:
            nodes += _split(graph, node, numpy_helper.to_array(weights[node.input[1]]), rank)
            graph.graph.initializer.remove(weights[node.input[1]])
        else:
            nodes.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return Model.create(model.manifest, {"model.onnx": graph.SerializeToString()})


def _split(
    graph: onnx.ModelProto, node: onnx.NodeProto, weight: np.ndarray, rank: int
) -> list[onnx.NodeProto]:
    """Two nodes for one: x @ (u @ v) + b as (x @ u) @ v + b."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    left, values, right = np.linalg.svd(weight.T if transposed else weight, full_matrices=False)
    first, second, between = (f"{node.output[0]}_{part}" for part in ("u", "v", "between"))
    graph.graph.initializer.append(numpy_helper.from_array(left[:, :rank] * values[:rank], first))
    graph.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(right[:rank]), second))
    return [
        helper.make_node("Gemm", [node.input[0], first], [between]),
        helper.make_node("Gemm", [between, second, *node.input[2:]], list(node.output)),
    ]


def main(out: Path) -> None:
    """Register the pass and search; its candidates appear among the others."""
    farthing.register("pass", "examples.low-rank.v1", low_rank)
    with tempfile.TemporaryDirectory() as folder:
        model = farthing.convert(write_onnx(Path(folder) / "digits.onnx")).model
        result = farthing.optimize(model, farthing.find_task("digits"), budget="accuracy_drop<=0.01", out=out)
    print(result.summary.sentence)
    for candidate in result.candidates:
        if any(step.use == "examples.low-rank.v1" for step in candidate.steps):
            print(f"{candidate.name}, {candidate.options}: {candidate.verdict}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "best"))
