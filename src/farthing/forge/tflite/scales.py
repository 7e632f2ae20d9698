"""Scales and zero points of ONNX Q/DQ nodes, as TFLite's int8 understands them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.forge.tflite.net import Constant, Net, Node, Params

Array = NDArray[Any]
KINDS = {"int8", "uint8", "int32"}


def params_of(net: Net, node: Node) -> tuple[Params, str]:
    """What a QuantizeLinear or DequantizeLinear node says, for int8, and the integer type that ONNX stores.

    A uint8 with zero point z is the int8 of the same number less 128, with zero point z - 128: nothing is rounded.

    Raises:
        UnsupportedError: scales computed at run time, blocks of scales, or types other than 8 bits (32 for constants).
    """
    if node.get("block_size", 0):
        node.refuse("TFLite has no scales for blocks")
    scale, zero, kind = net.constants.get(node.input(1)), net.constants.get(node.input(2)), "uint8"
    if scale is None or (zero is None and node.input(2)):
        node.refuse("its scale is computed when it runs")
    if zero is not None:
        kind = zero.data.dtype.name
    elif node.kind == "DequantizeLinear":
        kind = net.types.get(node.input(0), kind)
    if kind not in KINDS or (kind == "int32" and node.kind == "QuantizeLinear"):
        node.refuse(f"LiteRT computes with int8, not {kind}; quantize to 8 bits")
    scales = scale.data.astype(np.float64).ravel()
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        node.refuse("a scale is not a positive number")
    shift = 128 if kind == "uint8" else 0
    zeros = np.zeros(1, np.int64) if zero is None else zero.data.astype(np.int64).ravel()
    zeros = np.broadcast_to(zeros, scales.shape) - shift
    rank = len(net.shapes.get(node.input(0), ()))
    axis = int(node.get("axis", 1))
    return Params(tuple(scales.tolist()), tuple(zeros.tolist()), axis % rank if rank else 0), kind


def stored(net: Net, node: Node) -> Constant | None:
    """The int8 or int32 constant that a DequantizeLinear node reads; None if it reads no constant."""
    source = net.constants.get(node.input(0))
    if node.kind != "DequantizeLinear" or source is None:
        return None
    params, kind = params_of(net, node)
    data = source.data
    if kind == "uint8":
        data = (data.astype(np.int16) - 128).astype(np.int8)
    if not params.single and (data.ndim == 0 or data.shape[params.axis] != len(params.scale)):
        node.refuse(f"{len(params.scale)} scales do not fit axis {params.axis} of {list(data.shape)}")
    return Constant(data, params)


def quantized_bias(bias: Constant | None, scales: Array) -> Array | None:
    """A bias as int32 at given scales, one a channel; None if it does not fit 32 bits.

    One that is stored at these scales already stays as it is, anything else is rounded to the nearest.
    """
    if bias is None:
        return np.zeros(len(scales), np.int32)
    if bias.params is not None and bias.data.dtype == np.int32 and bias.params.symmetric:
        own = np.broadcast_to(np.asarray(bias.params.scale, np.float64), scales.shape)
        if np.allclose(own, scales, rtol=1e-5, atol=0):
            return bias.data.ravel()
    wanted = np.rint(bias.real.astype(np.float64).ravel() / scales)
    return wanted.astype(np.int32) if np.abs(wanted).max(initial=0) < 2**31 else None
