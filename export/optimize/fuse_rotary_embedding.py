"""Fuse rotary position embedding into ONNX Runtime's RotaryEmbedding operator."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import onnx

from .graph import MICROSOFT, Array, Graph, Mismatch, Shape, attribute, check


@dataclass(frozen=True)
class _Rotary:
    """A rotation of queries or keys by an angle per position.

    Attributes:
        source: Name of the value that is rotated, ``[batch, heads, tokens, width]``.
        cos: Cosines of the angles, ``[tokens, width / 2]``.
        sin: Sines of the angles, the same shape.
        interleaved: True if neighboring channels are a pair; False if channel ``i`` of the first
            half pairs with channel ``i`` of the second.
    """

    source: str
    cos: Array
    sin: Array
    interleaved: bool


def fuse_rotary_embedding(graph: Graph) -> None:
    """Replace ``x * cos + rotate_half(x) * sin`` by RotaryEmbedding.

    This is the rotary position embedding of RoFormer (https://arxiv.org/abs/2104.09864) as timm's
    ``apply_rot_embed_cat`` writes it, with or without leading tokens that have no position.
    """
    matched = set()
    for op_type, match in (("Concat", _match_after_prefix), ("Add", _match_rotary)):
        for node in graph.nodes_of_type(op_type):
            if node.output[0] in matched:
                continue
            with suppress(Mismatch):
                rotary = match(graph, node)
                matched.update(node.input)
                inputs = [
                    rotary.source,
                    graph.add_integers("rotary_first_position", [0]),
                    graph.add_constant("rotary_cos", rotary.cos),
                    graph.add_constant("rotary_sin", rotary.sin),
                ]
                options = {"interleaved": int(rotary.interleaved), "domain": MICROSOFT}
                new = graph.make_node("RotaryEmbedding", inputs, node.output[0], **options)
                graph.replace(node, new)


def _match_after_prefix(graph: Graph, node: onnx.NodeProto) -> _Rotary:
    """Match ``Concat(x[:, :, :n], rotary(x[:, :, n:]))``; the first ``n`` tokens get angle 0."""
    check(len(node.input) == 2 and attribute(node, "axis") in (-2, 2))
    rotary = _match_rotary(graph, graph.sole_use_producer(node.input[1], "Add"))
    rest = graph.producer(rotary.source, "Slice")
    prefix = graph.sole_use_producer(node.input[0], "Slice")
    check(prefix.input[0] == rest.input[0])
    tokens = graph.shape(rest.input[0], 4)[2]
    if not isinstance(tokens, int):
        raise Mismatch
    count = tokens - len(rotary.cos)
    check(graph.slice_range(prefix) == (2, range(count)))
    check(graph.slice_range(rest) == (2, range(count, tokens)))
    zeros = np.zeros((count, rotary.cos.shape[1]), np.float32)
    cos, sin = np.concatenate([zeros + 1, rotary.cos]), np.concatenate([zeros, rotary.sin])
    return replace(rotary, source=rest.input[0], cos=cos, sin=sin)


def _match_rotary(graph: Graph, node: onnx.NodeProto) -> _Rotary:
    """Match ``Add(Mul(x, cos), Mul(rotate_half(x), sin))``."""
    products = [graph.sole_use_producer(name, "Mul") for name in node.input]
    pairs = [pair for p in products for pair in itertools.permutations(p.input)]
    factors = [(name, graph.constant_or_none(array)) for name, array in pairs]
    for (source, cos), (rotated, sin) in itertools.permutations(factors, 2):
        if cos is None or sin is None:
            continue
        with suppress(Mismatch):
            shape = graph.shape(source, 4)
            interleaved = _match_rotated_half(graph, rotated, source, shape)
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


def _match_rotated_half(graph: Graph, name: str, source: str, shape: Shape) -> bool:
    """Match a value that holds ``(-b, a)`` for each pair ``(a, b)`` of channels of ``source``.

    Returns:
        True if neighboring channels are a pair, False if the halves are.
    """
    width = shape[3]
    if not isinstance(width, int) or width % 2:
        raise Mismatch
    try:
        reshape = graph.sole_use_producer(name, "Reshape")
    except Mismatch:
        concat = graph.sole_use_producer(name, "Concat")
        check(attribute(concat, "axis") in (-1, 3) and len(concat.input) == 2)
        second, first = concat.input
        pairs = [range(width // 2, width), range(width // 2)]
        interleaved = False
    else:
        concat = graph.sole_use_producer(reshape.input[0], "Concat")
        check(attribute(concat, "axis") in (-1, 4) and graph.shape(name) == shape)
        check(len(concat.input) == 2)
        stacked = [graph.sole_use_producer(part, "Unsqueeze") for part in concat.input]
        check(all(graph.integers(part, 1) in ([-1], [4]) for part in stacked))
        second, first = (part.input[0] for part in stacked)
        pairs = [range(1, width, 2), range(0, width, 2)]
        interleaved = True
    second = graph.sole_use_producer(second, "Neg").input[0]
    check([_match_channels(graph, part, source, width) for part in (second, first)] == pairs)
    return interleaved


def _match_channels(graph: Graph, name: str, source: str, width: int) -> range:
    """Match a value cut from the last of four axes of ``source``; return which channels it has."""
    node = graph.producer(name, "Slice", "Split")
    check(node.input[0] == source)
    if node.op_type == "Slice":
        axis, channels = graph.slice_range(node)
        check(axis == 3)
        return channels
    check(attribute(node, "axis", 0) in (-1, 3) and len(node.output) == 2)
    check(len(node.input) < 2 or graph.integers(node, 1) == [width // 2] * 2)
    start = list(node.output).index(name) * (width // 2)
    return range(start, start + width // 2)
