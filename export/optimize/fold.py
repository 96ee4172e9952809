"""Rewrites that put constant factors and norms into the weights of the layer beside them."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx

from .fuse import linear
from .graph import Graph, Mismatch, attribute, check


def fold_norm(graph: Graph) -> None:
    """Put a BatchNormalization in front of a convolution without padding into its weights.

    ONNX Runtime itself folds only those behind a convolution.
    """
    for node in graph.nodes_of_type("BatchNormalization"):
        with suppress(Mismatch):
            _fold_norm(graph, node)


def _fold_norm(graph: Graph, node: onnx.NodeProto) -> None:
    check(len(node.output) == 1 and not attribute(node, "training_mode", 0))
    conv = graph.reader(node.output[0], "Conv")
    check(attribute(conv, "group", 1) == 1)
    check(attribute(conv, "auto_pad", b"NOTSET") == b"NOTSET")
    check(not any(attribute(conv, "pads", ())))
    scale, shift, mean, variance = (graph.constant(name) for name in node.input[1:])
    given = graph.constant(conv.input[1])
    weight = given.astype(np.float64)
    factor = scale / np.sqrt(variance.astype(np.float64) + attribute(node, "epsilon", 1e-5))
    bias = np.tensordot(weight.sum(tuple(range(2, weight.ndim))), shift - mean * factor, 1)
    if len(conv.input) > 2 and conv.input[2]:
        bias = bias + graph.constant(conv.input[2])
    weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 2))
    folded = graph.make(
        "Conv",
        [
            node.input[0],
            graph.add_constant("folded_weight", weight.astype(given.dtype)),
            graph.add_constant("folded_bias", bias.astype(given.dtype)),
        ],
        conv.output[0],
    )
    folded.attribute.extend(conv.attribute)
    graph.replace(conv, folded)


def fold_scale(graph: Graph) -> None:
    """Put constant factors of channels behind a linear layer into its weights.

    Such is the layer scale of CaiT (https://arxiv.org/abs/2103.17239). ONNX Runtime itself folds
    only those behind a convolution.
    """
    for node in graph.nodes_of_type("Mul"):
        with suppress(Mismatch):
            _fold_scale(graph, node)


def _fold_scale(graph: Graph, node: onnx.NodeProto) -> None:
    value, factor_name = graph.operands(node)
    factor, sizes = graph.constant(factor_name), graph.shape(value)
    check(node.output[0] not in graph.outputs and graph.shape(node.output[0]) == sizes)
    check(factor.size > 1 and factor.ndim <= len(sizes))
    axis = len(sizes) - factor.ndim + int(np.argmax(factor.shape))
    check(factor.size == sizes[axis])
    last = graph.only(value, "MatMul", "Add", "Transpose")
    layer = value
    if last.op_type == "Transpose":
        perm = attribute(last, "perm", ())
        check(perm)
        axis, layer = perm[axis], last.input[0]
    check(axis == len(sizes) - 1)
    product, bias = linear(graph, layer)
    weight = graph.constant(product.input[1])
    check(weight.ndim == 2)
    factors = factor.ravel().astype(np.float64)
    if bias is not None:
        added = graph.made_by(layer, "Add")
        shift = graph.constant(bias)
        check(shift.shape == factors.shape)
        scaled = graph.add_constant("scaled_bias", (shift * factors).astype(shift.dtype))
        added.input[list(added.input).index(bias)] = scaled
    scaled = graph.add_constant("scaled_weight", (weight * factors).astype(weight.dtype))
    product.input[1] = scaled
    last.output[0] = node.output[0]
    graph.replace(node)
