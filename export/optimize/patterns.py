"""Small patterns that several rewrites look for."""

from __future__ import annotations

from contextlib import suppress

import onnx

from .graph import Graph, Mismatch, attribute, check


def match_linear(graph: Graph, name: str) -> tuple[onnx.NodeProto, str | None]:
    """Match the output of a linear layer; return its MatMul and the name of its bias, or None."""
    with suppress(Mismatch):
        return graph.sole_use_producer(name, "MatMul"), None
    product, bias = graph.value_and_constant(graph.sole_use_producer(name, "Add"))
    return graph.sole_use_producer(product, "MatMul"), bias


def match_scale(graph: Graph, name: str) -> tuple[str, float]:
    """Return the value that a constant number multiplies, and that number; 1 if there is none."""
    with suppress(Mismatch):
        value, number = graph.value_and_constant(graph.sole_use_producer(name, "Mul"))
        check(graph.constant(number).size == 1)
        return value, float(graph.constant(number).ravel()[0])
    return name, 1.0


def is_over_last_axis(graph: Graph, softmax: onnx.NodeProto) -> bool:
    """Return True if a Softmax makes probabilities that add up to 1 along the last axis."""
    rank = len(graph.shape(softmax.output[0]))
    return attribute(softmax, "axis", -1) in (-1, rank - 1)


def swaps_last_axes(transpose: onnx.NodeProto) -> bool:
    """Return True if a Transpose only swaps the last two axes of three or more."""
    perm = list(attribute(transpose, "perm", ()))
    rank = len(perm)
    return rank > 2 and perm == [*range(rank - 2), rank - 1, rank - 2]
