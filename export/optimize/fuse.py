"""Rewrites that put one operator of ONNX Runtime in the place of several of ONNX."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import onnx

from .graph import MICROSOFT, Array, Graph, Mismatch, Shape, attribute, check

MIN_FUSED_TOKENS = 96
"""With fewer tokens ONNX Runtime's separate operators are as fast as its fused attention."""
FUSED_WIDTH = 16
"""The fused attention is slower where the width of a head is not a multiple of this."""


def fuse_attention(graph: Graph) -> None:
    """Put Attention in place of a packed projection to q, k, v and ``softmax(q @ k.T + b) @ v``.

    The operator: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
    """
    for node in graph.nodes_of_type("Reshape"):
        with suppress(Mismatch):
            graph.replace(node, _attention(graph, node))


def _attention(graph: Graph, end: onnx.NodeProto) -> onnx.NodeProto:
    """Match from the Reshape that puts the heads side by side back to the projection."""
    heads_last = graph.only(end.input[0], "Transpose", perm=[0, 2, 1, 3])
    product = graph.only(heads_last.input[0], "MatMul")
    softmax = graph.only(product.input[0], "Softmax")
    check(graph.is_over_last_axis(softmax))
    scores, bias = softmax.input[0], ""
    with suppress(Mismatch):
        scores, bias = graph.operands(graph.only(scores, "Add"))
    scores, scale = unscaled(graph, scores)
    matmul = graph.only(scores, "MatMul")
    query, query_scale = unscaled(graph, matmul.input[0])
    key_turned, key_scale = unscaled(graph, matmul.input[1])
    key = graph.only(key_turned, "Transpose", perm=[0, 1, 3, 2]).input[0]
    packed, *others = (_entry(graph, n, k) for k, n in enumerate((query, key, product.input[1])))
    check(others == [packed, packed] and graph.reads[packed] == 3)
    heads_first = graph.made_by(packed, "Transpose", perm=[2, 0, 3, 1, 4])
    reshape = graph.only(heads_first.input[0], "Reshape")
    projection, projection_bias = linear(graph, reshape.input[0])
    batch, tokens, three, heads, width = graph.shape(reshape.output[0], 5)
    if not (isinstance(tokens, int) and isinstance(heads, int) and isinstance(width, int)):
        raise Mismatch
    check(three == 3 and tokens >= MIN_FUSED_TOKENS and width % FUSED_WIDTH == 0)
    check(graph.shape(projection.input[0], 3)[:2] == (batch, tokens))
    check(graph.shape(end.output[0]) == (batch, tokens, heads * width))
    check(graph.weights(projection.input[1])[1:] == (3 * heads * width,))
    if projection_bias is None:
        zeros = np.zeros(3 * heads * width, np.float32)
        projection_bias = graph.add_constant("attention_no_bias", zeros)
    check(graph.shape(projection_bias) == (3 * heads * width,))
    inputs = [*projection.input, projection_bias]
    if bias:
        check(graph.constant(bias).shape == (1, heads, tokens, tokens))
        inputs += ["", "", bias]
    return graph.make(
        "Attention",
        inputs,
        end.output[0],
        domain=MICROSOFT,
        num_heads=heads,
        scale=scale * query_scale * key_scale,
    )


def unscaled(graph: Graph, name: str) -> tuple[str, float]:
    """What is multiplied by a constant number, and the number; 1 if it is not."""
    with suppress(Mismatch):
        factor, number = graph.operands(graph.only(name, "Mul"))
        check(graph.constant(number).size == 1)
        return factor, float(graph.constant(number).ravel()[0])
    return name, 1.0


def _entry(graph: Graph, name: str, index: int) -> str:
    """The value whose entry ``index`` of the first axis this is."""
    squeeze = graph.only(name, "Squeeze")
    part = graph.only(squeeze.input[0], "Slice")
    check(graph.integers(squeeze, 1) == [0])
    check(graph.window(part) == (0, range(index, index + 1)))
    packed: str = part.input[0]
    return packed


def linear(graph: Graph, name: str) -> tuple[onnx.NodeProto, str | None]:
    """The MatMul of a linear layer, and its bias if it has one."""
    with suppress(Mismatch):
        return graph.only(name, "MatMul"), None
    product, bias = graph.operands(graph.only(name, "Add"))
    return graph.only(product, "MatMul"), bias


@dataclass(frozen=True)
class _Rotary:
    """What is rotated and by which angles.

    Attributes:
        source: name of the value, ``[batch, heads, tokens, width]``.
        cos: ``[tokens, width / 2]``.
        sin: likewise.
        interleaved: neighbours are pairs; else the first half is paired with the second.
    """

    source: str
    cos: Array
    sin: Array
    interleaved: bool


def fuse_rotary(graph: Graph) -> None:
    """Put RotaryEmbedding in place of ``x * cos + turned(x) * sin``.

    This is the rotary position embedding of RoFormer (https://arxiv.org/abs/2104.09864), as timm's
    ``apply_rot_embed_cat`` writes it, with or without tokens in front that have no position.
    """
    matched = set()
    for op_type, match in (("Concat", _prefixed), ("Add", _rotary)):
        for node in graph.nodes_of_type(op_type):
            if node.output[0] in matched:
                continue
            with suppress(Mismatch):
                found = match(graph, node)
                matched.update(node.input)
                inputs = [
                    found.source,
                    graph.add_integers("rotary_first_position", [0]),
                    graph.add_constant("rotary_cos", found.cos),
                    graph.add_constant("rotary_sin", found.sin),
                ]
                kind = {"interleaved": int(found.interleaved), "domain": MICROSOFT}
                graph.replace(node, graph.make("RotaryEmbedding", inputs, node.output[0], **kind))


def _prefixed(graph: Graph, node: onnx.NodeProto) -> _Rotary:
    """Match ``Concat(x[:, :, :n], rotary(x[:, :, n:]))``: the first tokens turn by no angle."""
    check(len(node.input) == 2 and attribute(node, "axis") in (-2, 2))
    rotary = _rotary(graph, graph.only(node.input[1], "Add"))
    rest, prefix = graph.made_by(rotary.source, "Slice"), graph.only(node.input[0], "Slice")
    check(prefix.input[0] == rest.input[0])
    tokens = graph.shape(rest.input[0], 4)[2]
    if not isinstance(tokens, int):
        raise Mismatch
    count = tokens - len(rotary.cos)
    check(graph.window(prefix) == (2, range(count)))
    check(graph.window(rest) == (2, range(count, tokens)))
    still = np.zeros((count, rotary.cos.shape[1]), np.float32)
    cos, sin = np.concatenate([still + 1, rotary.cos]), np.concatenate([still, rotary.sin])
    return replace(rotary, source=rest.input[0], cos=cos, sin=sin)


def _rotary(graph: Graph, node: onnx.NodeProto) -> _Rotary:
    """Match ``Add(Mul(x, cos), Mul(turned(x), sin))``."""
    products = [graph.only(name, "Mul") for name in node.input]
    pairs = [pair for p in products for pair in itertools.permutations(p.input)]
    angles = [(name, graph.constant_or_none(array)) for name, array in pairs]
    for (source, cos), (turned, sin) in itertools.permutations(angles, 2):
        if cos is None or sin is None:
            continue
        with suppress(Mismatch):
            shape = graph.shape(source, 4)
            interleaved = _turned(graph, turned, source, shape)
            half = int(shape[3]) // 2
            parts = [np.s_[0::2], np.s_[1::2]] if interleaved else [np.s_[:half], np.s_[half:]]
            halves = []
            for array in (cos, sin):
                check(array.dtype == np.float32 and array.ndim >= 2)
                check(array.shape == (1,) * (array.ndim - 2) + shape[2:])
                one, other = (array.reshape(array.shape[-2:])[:, part] for part in parts)
                check(np.array_equal(one, other))
                halves.append(np.ascontiguousarray(one))
            return _Rotary(source, halves[0], halves[1], interleaved)
    raise Mismatch


def _turned(graph: Graph, name: str, source: str, shape: Shape) -> bool:
    """Match a value that is ``source`` with its pairs ``(a, b)`` as ``(-b, a)``.

    Returns:
        Whether neighbours are pairs; else the first half is paired with the second.
    """
    width = shape[3]
    if not isinstance(width, int) or width % 2:
        raise Mismatch
    try:
        reshape = graph.only(name, "Reshape")
    except Mismatch:
        concat = graph.only(name, "Concat")
        check(attribute(concat, "axis") in (-1, 3) and len(concat.input) == 2)
        second, first = concat.input
        pairs = [range(width // 2, width), range(width // 2)]
        interleaved = False
    else:
        concat = graph.only(reshape.input[0], "Concat")
        check(attribute(concat, "axis") in (-1, 4) and graph.shape(name) == shape)
        check(len(concat.input) == 2)
        stacked = [graph.only(part, "Unsqueeze") for part in concat.input]
        check(all(graph.integers(part, 1) in ([-1], [4]) for part in stacked))
        second, first = (part.input[0] for part in stacked)
        pairs = [range(1, width, 2), range(0, width, 2)]
        interleaved = True
    second = graph.only(second, "Neg").input[0]
    check([_columns(graph, part, source, width) for part in (second, first)] == pairs)
    return interleaved


def _columns(graph: Graph, name: str, source: str, width: int) -> range:
    """Which entries of the last of four axes of ``source`` make ``name``."""
    node = graph.made_by(name, "Slice", "Split")
    check(node.input[0] == source)
    if node.op_type == "Slice":
        axis, columns = graph.window(node)
        check(axis == 3)
        return columns
    check(attribute(node, "axis", 0) in (-1, 3) and len(node.output) == 2)
    check(len(node.input) < 2 or graph.integers(node, 1) == [width // 2] * 2)
    start = list(node.output).index(name) * (width // 2)
    return range(start, start + width // 2)
