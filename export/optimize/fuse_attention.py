"""Fuse self-attention into ONNX Runtime's Attention operator."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx

from .graph import MICROSOFT, Graph, Mismatch, check
from .patterns import is_over_last_axis, match_linear, match_scale

MIN_FUSED_TOKENS = 96
"""With fewer tokens ONNX Runtime's separate operators are as fast as its fused attention."""
FUSED_WIDTH = 16
"""The fused attention is slower if the width of a head is not a multiple of this."""


def fuse_attention(graph: Graph) -> None:
    """Replace a packed projection to q, k, v and ``softmax(q @ k.T + bias) @ v`` by Attention."""
    for node in graph.nodes_of_type("Reshape"):
        with suppress(Mismatch):
            graph.replace(node, _match_attention(graph, node))


def _match_attention(graph: Graph, end: onnx.NodeProto) -> onnx.NodeProto:
    """Match backwards from the Reshape that joins the heads to the projection."""
    heads_last = graph.sole_use_producer(end.input[0], "Transpose", perm=[0, 2, 1, 3])
    product = graph.sole_use_producer(heads_last.input[0], "MatMul")
    softmax = graph.sole_use_producer(product.input[0], "Softmax")
    check(is_over_last_axis(graph, softmax))
    scores, bias = softmax.input[0], ""
    with suppress(Mismatch):
        scores, bias = graph.value_and_constant(graph.sole_use_producer(scores, "Add"))
    scores, scale = match_scale(graph, scores)
    matmul = graph.sole_use_producer(scores, "MatMul")
    query, query_scale = match_scale(graph, matmul.input[0])
    transposed_key, key_scale = match_scale(graph, matmul.input[1])
    key = graph.sole_use_producer(transposed_key, "Transpose", perm=[0, 1, 3, 2]).input[0]
    parts = (query, key, product.input[1])
    packed, *others = (_match_entry(graph, name, k) for k, name in enumerate(parts))
    check(others == [packed, packed] and graph.num_reads[packed] == 3)
    heads_first = graph.producer(packed, "Transpose", perm=[2, 0, 3, 1, 4])
    reshape = graph.sole_use_producer(heads_first.input[0], "Reshape")
    projection, projection_bias = match_linear(graph, reshape.input[0])
    batch, tokens, three, heads, width = graph.shape(reshape.output[0], 5)
    if not (isinstance(tokens, int) and isinstance(heads, int) and isinstance(width, int)):
        raise Mismatch
    check(three == 3 and tokens >= MIN_FUSED_TOKENS and width % FUSED_WIDTH == 0)
    check(graph.shape(projection.input[0], 3)[:2] == (batch, tokens))
    check(graph.shape(end.output[0]) == (batch, tokens, heads * width))
    check(graph.weight_shape(projection.input[1])[1:] == (3 * heads * width,))
    if projection_bias is None:
        zeros = np.zeros(3 * heads * width, np.float32)
        projection_bias = graph.add_constant("attention_no_bias", zeros)
    check(graph.shape(projection_bias) == (3 * heads * width,))
    inputs = [*projection.input, projection_bias]
    if bias:
        check(graph.constant(bias).shape == (1, heads, tokens, tokens))
        inputs += ["", "", bias]
    return graph.make_node(
        "Attention",
        inputs,
        end.output[0],
        domain=MICROSOFT,
        num_heads=heads,
        scale=scale * query_scale * key_scale,
    )


def _match_entry(graph: Graph, name: str, index: int) -> str:
    """Match entry ``index`` of a value's first axis; return the name of that value."""
    squeeze = graph.sole_use_producer(name, "Squeeze")
    part = graph.sole_use_producer(squeeze.input[0], "Slice")
    check(graph.integers(squeeze, 1) == [0])
    check(graph.slice_range(part) == (0, range(index, index + 1)))
    packed: str = part.input[0]
    return packed
