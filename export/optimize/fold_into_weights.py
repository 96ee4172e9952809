"""Fold a BatchNormalization or a layer scale into the weights of the neighboring layer."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx

from .graph import Graph, Mismatch, attribute, check
from .patterns import match_linear


def fold_batch_norm(graph: Graph) -> None:
    """Fold each BatchNormalization before a convolution without padding into the convolution.

    ONNX Runtime itself folds only a BatchNormalization that follows a convolution.
    """
    for node in graph.nodes_of_type("BatchNormalization"):
        with suppress(Mismatch):
            _fold_batch_norm(graph, node)


def _fold_batch_norm(graph: Graph, norm: onnx.NodeProto) -> None:
    check(len(norm.output) == 1 and not attribute(norm, "training_mode", 0))
    conv = graph.sole_reader(norm.output[0], "Conv")
    check(attribute(conv, "group", 1) == 1)
    check(attribute(conv, "auto_pad", b"NOTSET") == b"NOTSET")
    check(not any(attribute(conv, "pads", ())))
    scale, shift, mean, variance = (graph.constant(name) for name in norm.input[1:])
    original = graph.constant(conv.input[1])
    weight = original.astype(np.float64)
    factor = scale / np.sqrt(variance.astype(np.float64) + attribute(norm, "epsilon", 1e-5))
    bias = np.tensordot(weight.sum(tuple(range(2, weight.ndim))), shift - mean * factor, 1)
    if len(conv.input) > 2 and conv.input[2]:
        bias = bias + graph.constant(conv.input[2])
    weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 2))
    folded = graph.make_node(
        "Conv",
        [
            norm.input[0],
            graph.add_constant("folded_weight", weight.astype(original.dtype)),
            graph.add_constant("folded_bias", bias.astype(original.dtype)),
        ],
        conv.output[0],
    )
    folded.attribute.extend(conv.attribute)
    graph.replace(conv, folded)


def fold_layer_scale(graph: Graph) -> None:
    """Fold each constant factor per channel after a linear layer into the layer's weights.

    An example is the layer scale of CaiT (https://arxiv.org/abs/2103.17239). ONNX Runtime itself
    folds only factors that follow a convolution.
    """
    for node in graph.nodes_of_type("Mul"):
        with suppress(Mismatch):
            _fold_layer_scale(graph, node)


def _fold_layer_scale(graph: Graph, node: onnx.NodeProto) -> None:
    value, factor_name = graph.value_and_constant(node)
    factor, sizes = graph.constant(factor_name), graph.shape(value)
    check(node.output[0] not in graph.outputs and graph.shape(node.output[0]) == sizes)
    check(factor.size > 1 and factor.ndim <= len(sizes))
    axis = len(sizes) - factor.ndim + int(np.argmax(factor.shape))
    check(factor.size == sizes[axis])
    last = graph.sole_use_producer(value, "MatMul", "Add", "Transpose")
    layer = value
    if last.op_type == "Transpose":
        perm = attribute(last, "perm", ())
        check(perm)
        axis, layer = perm[axis], last.input[0]
    check(axis == len(sizes) - 1)
    product, bias = match_linear(graph, layer)
    weight = graph.constant(product.input[1])
    check(weight.ndim == 2)
    factors = factor.ravel().astype(np.float64)
    if bias is not None:
        add = graph.producer(layer, "Add")
        shift = graph.constant(bias)
        check(shift.shape == factors.shape)
        scaled = graph.add_constant("scaled_bias", (shift * factors).astype(shift.dtype))
        add.input[list(add.input).index(bias)] = scaled
    scaled = graph.add_constant("scaled_weight", (weight * factors).astype(weight.dtype))
    product.input[1] = scaled
    last.output[0] = node.output[0]
    graph.replace(node)
