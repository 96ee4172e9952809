"""Rewrites of what only moves tokens: shifted and windowed in one step, padded by nothing."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from .graph import Array, Graph, Mismatch, check, is_integer

_MOVES = {"Concat", "Identity", "Reshape", "Slice", "Transpose"}
_MAX_NODES = 16
_MAX_NUMBERS = 2**23
"""Of the array that is sent through the nodes to see where tokens go."""


def drop_padding(graph: Graph) -> None:
    """Leave out padding by nothing, which ONNX Runtime would copy for."""
    for node in graph.nodes_of_type("Pad"):
        with suppress(Mismatch):
            check(not any(graph.integers(node, 1)))
            graph.replace(node, graph.make("Identity", [node.input[0]], node.output[0]))


def gather_tokens(graph: Graph) -> None:
    """Pick tokens by one Gather, where shifting and windowing them takes several copies.

    Nodes that only move numbers, from one value to another, are looked at together: an array of
    indices is sent through them. If each image's tokens come out whole, only in another order, one
    Gather with this order does the same.
    """
    orders: dict[tuple[object, ...], Array | None] = {}
    taken: set[int] = set()
    for end in reversed(list(graph.nodes)):
        if id(end) not in taken and _moves(end):
            with suppress(Mismatch):
                source, nodes = _region(graph, end)
                graph.replace(end, *_gathered(graph, source, nodes, end, orders))
                taken.update(map(id, nodes))


def _moves(node: onnx.NodeProto) -> bool:
    return node.domain == "" and node.op_type in _MOVES


def _region(graph: Graph, end: onnx.NodeProto) -> tuple[str, list[onnx.NodeProto]]:
    """The nodes that ``end`` is made by from one value, in order; something else reads on."""
    readers = graph.readers(end.output[0])
    check(not readers or not all(map(_moves, readers)))
    wanted, nodes = {end.output[0]}, list[onnx.NodeProto]()
    place = next(k for k, node in enumerate(graph.nodes) if node is end)
    for node in reversed(graph.nodes[: place + 1]):
        if not wanted.intersection(node.output) or not _moves(node):
            continue
        nodes.append(node)
        check(len(nodes) <= _MAX_NODES)
        wanted.update(name for name in node.input if graph.constant_or_none(name) is None)
    made = {name for node in nodes for name in node.output}
    inside = set(map(id, nodes))
    sources = wanted - made
    check(len(sources) == 1 and any(node.op_type == "Concat" for node in nodes))
    for name in made - set(end.output):
        check(name not in graph.outputs and all(id(n) in inside for n in graph.readers(name)))
        check(len(graph.readers(name)) == graph.reads[name])
    return sources.pop(), nodes[::-1]


def _gathered(
    graph: Graph,
    source: str,
    nodes: list[onnx.NodeProto],
    end: onnx.NodeProto,
    orders: dict[tuple[object, ...], Array | None],
) -> list[onnx.NodeProto]:
    before, after = graph.shape(source), graph.shape(end.output[0])
    check(len(before) > 2 and len(after) > 2)
    check(all(is_integer(size) for size in (*before[1:], *after[1:])) and before[-1] == after[-1])
    inner = [[int(size) for size in shape[1:]] for shape in (before, after)]
    channels = inner[0][-1]
    tokens = max(int(np.prod(shape[:-1])) for shape in inner)
    check(2 * tokens * channels <= _MAX_NUMBERS)
    key = (tuple(inner[0]), tuple(inner[1]), *_described(graph, source, nodes))
    if key not in orders:
        orders[key] = None
        with suppress(Mismatch):
            orders[key] = _order(graph, source, nodes, inner, tokens)
    order = orders[key]
    if order is None:
        raise Mismatch
    output = end.output[0]
    apart = graph.add_integers("tokens_apart", [-1, tokens, channels])
    back = graph.add_integers("tokens_back", [-1, *inner[1]])
    order_name = graph.add_integers("token_order", order.tolist())
    row, moved = graph.new_name(f"{output}_apart"), graph.new_name(f"{output}_gathered")
    return [
        graph.make("Reshape", [source, apart], row),
        graph.make("Gather", [row, order_name], moved, axis=1),
        graph.make("Reshape", [moved, back], output),
    ]


def _described(graph: Graph, source: str, nodes: list[onnx.NodeProto]) -> list[tuple[object, ...]]:
    """What nodes do, with numbers instead of the names of the values that they do it to."""
    numbers = {source: 0}
    found: list[tuple[object, ...]] = []
    for node in nodes:
        given: list[object] = []
        for name in node.input:
            array = graph.constant_or_none(name)
            given.append(numbers.get(name) if array is None else (array.shape, array.tobytes()))
        attributes = sorted(part.SerializeToString() for part in node.attribute)
        found.append((node.op_type, *attributes, *given))
        for name in node.output:
            numbers[name] = len(numbers)
    return found


def _order(
    graph: Graph, source: str, nodes: list[onnx.NodeProto], inner: list[list[int]], tokens: int
) -> Array:
    """Where each token comes from: ``[tokens]``, the same in each image."""
    channels = inner[0][-1]
    numbers = np.arange(2 * tokens * channels, dtype=np.int64)
    check(all(tokens * channels % int(np.prod(shape)) == 0 for shape in inner))
    values: dict[str, Array] = {source: numbers.reshape(-1, *inner[0])}
    for node in nodes:
        given = {n: values[n] if n in values else graph.constant(n) for n in node.input if n}
        try:
            found = ReferenceEvaluator(node).run(None, given)
        except Exception as error:  # the nodes do not take two images: sizes are fixed otherwise
            raise Mismatch from error
        values.update(zip(node.output, map(np.asarray, found), strict=True))
    indices = values[nodes[-1].output[0]]
    check(indices.size == numbers.size)
    indices = indices.reshape(2, tokens, channels)
    order = indices[0, :, 0] // channels
    whole = order[:, None] * channels + np.arange(channels)
    check(np.array_equal(indices[0], whole))
    check(np.array_equal(indices[1], whole + tokens * channels))
    return np.asarray(order)
