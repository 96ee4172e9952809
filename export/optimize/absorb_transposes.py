"""Absorb transposes of operands and results into ONNX Runtime's FusedMatMul operator."""

from __future__ import annotations

from contextlib import suppress

import onnx

from .graph import MICROSOFT, Graph, Mismatch, check
from .patterns import swaps_last_axes


def absorb_transposes(graph: Graph) -> None:
    """Replace each MatMul with a Transpose before or after it by FusedMatMul.

    FusedMatMul reads operands as if they were transposed. A transposed result is the product of the
    transposed operands in the other order. Without this rewrite ONNX Runtime merges such a
    Transpose with a preceding one into a slow Transpose.
    """
    for node in graph.nodes_of_type("MatMul"):
        with suppress(Mismatch):
            _absorb_transposes(graph, node)


def _absorb_transposes(graph: Graph, node: onnx.NodeProto) -> None:
    check(all(graph.constant_or_none(name) is None for name in node.input))
    check(graph.float_values.issuperset(node.input))
    check(len({len(graph.shape(name)) for name in node.input}) == 1)
    operands = []
    for name in node.input:
        operands.append((name, 0))
        with suppress(Mismatch):
            transpose = graph.sole_use_producer(name, "Transpose")
            check(swaps_last_axes(transpose))
            operands[-1] = (transpose.input[0], 1)
    end = node
    with suppress(Mismatch):
        transpose = graph.sole_reader(node.output[0], "Transpose")
        check(swaps_last_axes(transpose))
        end = transpose
        operands = [(name, 1 - transposed) for name, transposed in reversed(operands)]
    (a, trans_a), (b, trans_b) = operands
    check(end is not node or trans_a or trans_b)
    graph.replace(
        end,
        graph.make_node(
            "FusedMatMul",
            [a, b],
            end.output[0],
            domain=MICROSOFT,
            transA=trans_a,
            transB=trans_b,
        ),
    )
