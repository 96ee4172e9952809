"""Rewrites of the constants that are added to the scores of attention."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx

from .optimize_fuse import unscaled
from .optimize_graph import Graph, Mismatch, attribute, check

MAX_MERGED = 2**19
"""Numbers of a constant that two smaller ones are merged to: more would make the file larger."""
NEARLY_NONE = 87
"""Scores that lie further apart, by the constant: ``exp(-87)`` is close to the smallest normal."""
NONE = 1000
"""Scores that lie this far apart: the lower one's probability is zero in every precision."""

_UNSCALED = ("Add", "Reshape")


def merge_biases(graph: Graph) -> None:
    """Add one constant instead of two, where a reshape of the first axis lies between them.

    Such are the position bias of all windows and the mask of each.
    """
    for node in graph.of("Add"):
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
    name = f"{node.output[0]}_unbiased"
    return [
        graph.make("Reshape", [value, reshape.input[1]], name),
        graph.make("Add", [name, graph.add_constant("bias", own + second)], node.output[0]),
    ]


def mask_wholly(graph: Graph) -> None:
    """Let a mask that nearly hides keys from queries hide them wholly.

    Behind the usual mask of -100, ONNX Runtime's kernels for AVX-512 make subnormal probabilities,
    such as 1e-44, by which Intel's processors multiply ten times slower than by zero; those for
    AVX2 make zeros. Sums with normal numbers are the same either way. Scores with a factor for each
    head are left alone: where it is learned, as in Swin Transformer V2, scores may lie as far apart
    as the mask.
    """
    for node in graph.of("Softmax"):
        with suppress(Mismatch):
            _mask_wholly(graph, node)


def _mask_wholly(graph: Graph, softmax: onnx.NodeProto) -> None:
    name = softmax.input[0]
    sizes = graph.shape(name)
    check(attribute(softmax, "axis", -1) in (-1, len(sizes) - 1))
    masks = []
    while (node := graph.only(name, "Add", "Reshape", "Mul", "MatMul")).op_type in _UNSCALED:
        if node.op_type == "Reshape":
            name = node.input[0]
            check(graph.shape(name)[-1] == sizes[-1])
        else:
            name, added = graph.operands(node)
            masks.append((node, added))
    product, _ = unscaled(graph, name)
    graph.only(product, "MatMul")
    for node, added in masks:
        mask = graph.constant(added)
        check(mask.shape[-1:] == sizes[-1:] and np.isfinite(mask).all())
        highest = mask.max(-1, keepdims=True)
        below = highest - mask
        hidden = (below > NEARLY_NONE) & (below < NONE)
        if hidden.any():
            whole = np.where(hidden, highest - NONE, mask).astype(mask.dtype)
            place = list(node.input).index(added)
            node.input[place] = graph.add_constant("mask", whole)
