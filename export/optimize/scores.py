"""Rewrites of the constants that are added to the scores of attention."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx

from .fuse import unscaled
from .graph import Graph, Mismatch, check

MAX_MERGED = 2**19
"""Numbers of a constant that two smaller ones are merged to: more would make the file larger."""
NEARLY_NONE = 80
"""A mask hides if it sets scores further apart than this and than other constants can undo."""
NONE = 1000
"""Scores that lie this far apart: the lower one's probability is zero in every precision."""

_UNSCALED = ("Add", "Reshape")


def merge_biases(graph: Graph) -> None:
    """Add one constant instead of two, where a reshape of the first axis lies between them.

    Such are the position bias of all windows and the mask of each.
    """
    for node in graph.nodes_of_type("Add"):
        with suppress(Mismatch):
            graph.replace(node, *_merged(graph, node))


def _merged(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    inner, second_name = graph.operands(node)
    reshape = graph.only(inner, "Reshape")
    value, first_name = graph.operands(graph.only(reshape.input[0], "Add"))
    first, second = graph.constant(first_name), graph.constant(second_name)
    before, after = graph.shape(value), graph.shape(inner)
    check(graph.shape(reshape.input[0]) == before and graph.shape(node.output[0]) == after)
    check(len(after) == len(before) + 1 and after[2:] == before[1:])
    check(first.ndim < len(before) or first.shape[0] == 1)
    own = first.reshape(first.shape[1:]) if first.ndim == len(before) else first
    check(np.prod(np.broadcast_shapes(own.shape, second.shape)) <= MAX_MERGED)
    name = graph.new_name(f"{node.output[0]}_unbiased")
    return [
        graph.make("Reshape", [value, reshape.input[1]], name),
        graph.make("Add", [name, graph.add_constant("bias", own + second)], node.output[0]),
    ]


def mask_wholly(graph: Graph) -> None:
    """Let a mask that nearly hides keys from queries hide them wholly.

    Behind the usual mask of -100, ONNX Runtime's kernels for AVX-512 make subnormal probabilities,
    such as 1e-44, by which Intel's processors multiply ten times slower than by zero; those for
    AVX2 make zeros. The logits are the same unless a hidden key's product with the query leads that
    of all others by more than 60, which sets the mask aside. Scores with a factor above 1 or one
    for each head are left alone: where it is learned, as in Swin Transformer V2, scores may lie as
    far apart as the mask.
    """
    for node in graph.nodes_of_type("Softmax"):
        with suppress(Mismatch):
            _mask_wholly(graph, node)


def _mask_wholly(graph: Graph, softmax: onnx.NodeProto) -> None:
    name = softmax.input[0]
    sizes = graph.shape(name)
    check(graph.is_over_last_axis(softmax))
    masks = []
    while (node := graph.only(name, "Add", "Reshape", "Mul", "MatMul")).op_type in _UNSCALED:
        if node.op_type == "Reshape":
            name = node.input[0]
            check(graph.shape(name)[-1] == sizes[-1])
        else:
            name, added = graph.operands(node)
            masks.append((node, added))
    product, factor = unscaled(graph, name)
    graph.only(product, "MatMul")
    check(abs(factor) <= 1)
    arrays = [graph.constant(added) for _, added in masks]
    check(all(a.shape[-1:] == sizes[-1:] and np.isfinite(a).all() for a in arrays))
    spreads = [np.ptp(array, -1).max() for array in arrays]
    for k, ((node, added), mask) in enumerate(zip(masks, arrays, strict=True)):
        highest = mask.max(-1, keepdims=True)
        below = highest - mask
        others = sum(spreads[:k] + spreads[k + 1 :])
        hidden = (below > NEARLY_NONE + others) & (below < NONE)
        if hidden.any():
            whole = np.where(hidden, highest - NONE, mask).astype(mask.dtype)
            place = list(node.input).index(added)
            node.input[place] = graph.add_constant("mask", whole)
