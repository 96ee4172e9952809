"""Reorder tokens by one Gather instead of several copies, and remove empty padding."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from .graph import Array, Graph, Mismatch, check, is_static

_MOVES_DATA = {"Concat", "Identity", "Reshape", "Slice", "Transpose"}
_MAX_NODES = 16
_MAX_NUMBERS = 2**23
"""Size of the largest array of indices that is computed to see where tokens go."""


def remove_zero_padding(graph: Graph) -> None:
    """Remove each Pad that adds no elements; ONNX Runtime would copy the value."""
    for node in graph.nodes_of_type("Pad"):
        with suppress(Mismatch):
            check(not any(graph.integers(node, 1)))
            graph.replace(node, graph.make_node("Identity", [node.input[0]], node.output[0]))


def gather_tokens(graph: Graph) -> None:
    """Replace nodes that only reorder tokens, such as shift and window partition, by one Gather.

    The rewrite collects connected nodes that only move numbers, from one value to another, and
    sends an array of indices through them. If the result holds each image's tokens whole and only
    in another order, one Gather with this order replaces the nodes.
    """
    orders: dict[tuple[object, ...], Array | None] = {}
    replaced: set[int] = set()
    for end in reversed(list(graph.nodes)):
        if id(end) not in replaced and _moves_data(end):
            with suppress(Mismatch):
                source, nodes = _collect_moves(graph, end)
                graph.replace(end, *_gather_nodes(graph, source, nodes, end, orders))
                replaced.update(map(id, nodes))


def _moves_data(node: onnx.NodeProto) -> bool:
    return node.domain == "" and node.op_type in _MOVES_DATA


def _collect_moves(graph: Graph, end: onnx.NodeProto) -> tuple[str, list[onnx.NodeProto]]:
    """Collect the data-moving nodes from one value to ``end``.

    Returns:
        The name of that value, and the nodes in the order in which they run. A node that computes
        something reads the output of ``end``.
    """
    readers = graph.readers(end.output[0])
    check(not readers or not all(map(_moves_data, readers)))
    needed, nodes = {end.output[0]}, list[onnx.NodeProto]()
    place = next(k for k, node in enumerate(graph.nodes) if node is end)
    for node in reversed(graph.nodes[: place + 1]):
        if not needed.intersection(node.output) or not _moves_data(node):
            continue
        nodes.append(node)
        check(len(nodes) <= _MAX_NODES)
        needed.update(name for name in node.input if graph.constant_or_none(name) is None)
    written = {name for node in nodes for name in node.output}
    inside = set(map(id, nodes))
    sources = needed - written
    check(len(sources) == 1 and any(node.op_type == "Concat" for node in nodes))
    for name in written - set(end.output):
        check(name not in graph.outputs and all(id(n) in inside for n in graph.readers(name)))
        check(len(graph.readers(name)) == graph.num_reads[name])
    return sources.pop(), nodes[::-1]


def _gather_nodes(
    graph: Graph,
    source: str,
    nodes: list[onnx.NodeProto],
    end: onnx.NodeProto,
    orders: dict[tuple[object, ...], Array | None],
) -> list[onnx.NodeProto]:
    before, after = graph.shape(source), graph.shape(end.output[0])
    check(len(before) > 2 and len(after) > 2)
    check(all(is_static(size) for size in (*before[1:], *after[1:])) and before[-1] == after[-1])
    sizes = [[int(size) for size in shape[1:]] for shape in (before, after)]
    channels = sizes[0][-1]
    tokens = max(int(np.prod(shape[:-1])) for shape in sizes)
    check(2 * tokens * channels <= _MAX_NUMBERS)
    key = (tuple(sizes[0]), tuple(sizes[1]), *_structure(graph, source, nodes))
    if key not in orders:
        orders[key] = None
        with suppress(Mismatch):
            orders[key] = _token_order(graph, source, nodes, sizes, tokens)
    order = orders[key]
    if order is None:
        raise Mismatch
    output = end.output[0]
    flat = graph.add_integers("tokens_apart", [-1, tokens, channels])
    back = graph.add_integers("tokens_back", [-1, *sizes[1]])
    order_name = graph.add_integers("token_order", order.tolist())
    row, gathered = graph.new_name(f"{output}_apart"), graph.new_name(f"{output}_gathered")
    return [
        graph.make_node("Reshape", [source, flat], row),
        graph.make_node("Gather", [row, order_name], gathered, axis=1),
        graph.make_node("Reshape", [gathered, back], output),
    ]


def _structure(graph: Graph, source: str, nodes: list[onnx.NodeProto]) -> list[tuple[object, ...]]:
    """Return a key that is equal for nodes that do the same to values of other names."""
    numbers = {source: 0}
    structure: list[tuple[object, ...]] = []
    for node in nodes:
        inputs: list[object] = []
        for name in node.input:
            array = graph.constant_or_none(name)
            inputs.append(numbers.get(name) if array is None else (array.shape, array.tobytes()))
        attributes = sorted(part.SerializeToString() for part in node.attribute)
        structure.append((node.op_type, *attributes, *inputs))
        for name in node.output:
            numbers[name] = len(numbers)
    return structure


def _token_order(
    graph: Graph, source: str, nodes: list[onnx.NodeProto], sizes: list[list[int]], tokens: int
) -> Array:
    """Return the old position of each token, ``[tokens]``; it is the same in every image."""
    channels = sizes[0][-1]
    numbers = np.arange(2 * tokens * channels, dtype=np.int64)
    check(all(tokens * channels % int(np.prod(shape)) == 0 for shape in sizes))
    values: dict[str, Array] = {source: numbers.reshape(-1, *sizes[0])}
    for node in nodes:
        feed = {n: values[n] if n in values else graph.constant(n) for n in node.input if n}
        try:
            results = ReferenceEvaluator(node).run(None, feed)
        except Exception as error:  # the nodes do not accept two images: they fix other sizes
            raise Mismatch from error
        values.update(zip(node.output, map(np.asarray, results), strict=True))
    indices = values[nodes[-1].output[0]]
    check(indices.size == numbers.size)
    indices = indices.reshape(2, tokens, channels)
    order = indices[0, :, 0] // channels
    whole_tokens = order[:, None] * channels + np.arange(channels)
    check(np.array_equal(indices[0], whole_tokens))
    check(np.array_equal(indices[1], whole_tokens + tokens * channels))
    return np.asarray(order)
