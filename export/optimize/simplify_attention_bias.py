"""Simplify the constants that are added to attention scores: position biases and masks."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx

from .graph import Graph, Mismatch, check
from .patterns import is_over_last_axis, match_scale

MAX_MERGED_NUMBERS = 2**19
"""Size of the largest merged constant; a larger one would make the file larger."""
MIN_MASK = 80
"""A constant masks a score if it lowers it by more than this and than other constants can undo."""
SATURATED_MASK = 1000
"""A score that is lower by this much has probability zero in every precision."""

_KEEPS_SCALE = ("Add", "Reshape")


def merge_attention_biases(graph: Graph) -> None:
    """Add one constant instead of two with a Reshape of the first axis between them.

    In windowed attention these are the position bias of all windows and the mask of each window.
    """
    for node in graph.nodes_of_type("Add"):
        with suppress(Mismatch):
            graph.replace(node, *_merged_nodes(graph, node))


def _merged_nodes(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    reshaped, second_name = graph.value_and_constant(node)
    reshape = graph.sole_use_producer(reshaped, "Reshape")
    add = graph.sole_use_producer(reshape.input[0], "Add")
    value, first_name = graph.value_and_constant(add)
    first, second = graph.constant(first_name), graph.constant(second_name)
    before, after = graph.shape(value), graph.shape(reshaped)
    check(graph.shape(reshape.input[0]) == before and graph.shape(node.output[0]) == after)
    check(len(after) == len(before) + 1 and after[2:] == before[1:])
    check(first.ndim < len(before) or first.shape[0] == 1)
    if first.ndim == len(before):
        first = first.reshape(first.shape[1:])
    check(np.prod(np.broadcast_shapes(first.shape, second.shape)) <= MAX_MERGED_NUMBERS)
    name = graph.new_name(f"{node.output[0]}_unbiased")
    constant = graph.add_constant("bias", first + second)
    return [
        graph.make_node("Reshape", [value, reshape.input[1]], name),
        graph.make_node("Add", [name, constant], node.output[0]),
    ]


def saturate_attention_masks(graph: Graph) -> None:
    """Lower additive masks such as -100 so far that masked probabilities are exactly zero.

    With the usual mask of -100, ONNX Runtime's kernels for AVX-512 compute subnormal probabilities
    such as 1e-44, and Intel's processors multiply by those ten times slower than by zero; the
    kernels for AVX2 compute zeros. The logits stay the same unless a masked key's product with the
    query exceeds all others by more than 60, which overrides the mask.

    Scores with a factor above 1 or with one factor per head stay as they are: if the factor is
    learned, as in Swin Transformer V2, scores may differ by as much as the mask.
    """
    for node in graph.nodes_of_type("Softmax"):
        with suppress(Mismatch):
            _saturate_masks(graph, node)


def _saturate_masks(graph: Graph, softmax: onnx.NodeProto) -> None:
    name = softmax.input[0]
    sizes = graph.shape(name)
    check(is_over_last_axis(graph, softmax))
    adds = []
    while True:
        node = graph.sole_use_producer(name, "Add", "Reshape", "Mul", "MatMul")
        if node.op_type not in _KEEPS_SCALE:
            break
        if node.op_type == "Reshape":
            name = node.input[0]
            check(graph.shape(name)[-1] == sizes[-1])
        else:
            name, constant = graph.value_and_constant(node)
            adds.append((node, constant))
    product, factor = match_scale(graph, name)
    graph.sole_use_producer(product, "MatMul")
    check(abs(factor) <= 1)
    arrays = [graph.constant(constant) for _, constant in adds]
    check(all(a.shape[-1:] == sizes[-1:] and np.isfinite(a).all() for a in arrays))
    ranges = [np.ptp(array, -1).max() for array in arrays]
    for k, ((node, constant), array) in enumerate(zip(adds, arrays, strict=True)):
        highest = array.max(-1, keepdims=True)
        lowered_by = highest - array
        other_ranges = sum(ranges[:k] + ranges[k + 1 :])
        masked = (lowered_by > MIN_MASK + other_ranges) & (lowered_by < SATURATED_MASK)
        if masked.any():
            saturated = np.where(masked, highest - SATURATED_MASK, array).astype(array.dtype)
            place = list(node.input).index(constant)
            node.input[place] = graph.add_constant("mask", saturated)
