"""Split a packed projection into one linear layer each for queries, keys and values."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx

from .graph import Array, Graph, Mismatch, attribute, check, is_static
from .patterns import is_over_last_axis, match_linear, swaps_last_axes


def split_qkv(graph: Graph) -> None:
    """Compute queries, keys and values by a linear layer each instead of cutting up one output.

    From a packed output, each part would be copied before it is transposed. Biases that change
    nothing (of keys) or fit into the next layer (of values) are left out.
    """
    for node in graph.nodes_of_type("Transpose"):
        with suppress(Mismatch):
            _split_qkv(graph, node)


def _split_qkv(graph: Graph, transpose: onnx.NodeProto) -> None:
    reshape = graph.sole_use_producer(transpose.input[0], "Reshape")
    product, bias_name = match_linear(graph, reshape.input[0])
    weight = graph.constant(product.input[1])
    bias = None if bias_name is None else graph.constant(bias_name)
    shape = graph.shape(reshape.output[0])
    check(all(is_static(size) for size in shape[1:]))
    sizes = [int(size) for size in shape[1:]]
    perm = list(attribute(transpose, "perm", ()))
    if perm == [2, 0, 3, 1, 4]:
        tokens, three, heads, width = sizes
        check(three == 3)
        columns = np.arange(3 * heads * width).reshape(3, -1)
        ends = _match_entries(graph, graph.readers(transpose.output[0]))
    elif perm == [0, 2, 1, 3]:
        tokens, heads, width = sizes
        check(width % 3 == 0)
        width //= 3
        numbers = np.arange(3 * heads * width).reshape(heads, 3, width)
        columns = numbers.transpose(1, 0, 2).reshape(3, -1)
        split = graph.sole_reader(transpose.output[0], "Split")
        check(attribute(split, "axis", 0) in (3, -1))
        parts = [graph.shape(name) for name in split.output]
        check(len(parts) == 3 and all(part[-1] == width for part in parts))
        ends = [(split, name) for name in split.output]
    else:
        raise Mismatch
    check(weight.ndim == 2 and weight.shape[1] == columns.size)
    check(bias is None or bias.shape == (columns.size,))
    _, key, value = (output for _, output in ends)
    biases: list[Array | None] = [None if bias is None else bias[part] for part in columns]
    if bias is not None:
        with suppress(Mismatch):
            _check_keys_end_in_softmax(graph, key)
            biases[1] = None
        with suppress(Mismatch):
            _add_to_next_bias(graph, value, bias[columns[2]])
            biases[2] = None
    heads_apart = graph.add_integers("heads_apart", [-1, tokens, heads, width])
    new: dict[int, list[onnx.NodeProto]] = {}
    for part, part_bias, (end, output) in zip(columns, biases, ends, strict=True):
        matrix = graph.add_constant("projection", np.ascontiguousarray(weight[:, part]))
        projected = graph.new_name(f"{output}_projected")
        nodes = [graph.make_node("MatMul", [product.input[0], matrix], projected)]
        if part_bias is not None:
            biased = graph.new_name(f"{output}_biased")
            constant = graph.add_constant("bias", part_bias)
            nodes.append(graph.make_node("Add", [projected, constant], biased))
            projected = biased
        reshaped = graph.new_name(f"{output}_heads")
        nodes.append(graph.make_node("Reshape", [projected, heads_apart], reshaped))
        nodes.append(graph.make_node("Transpose", [reshaped], output, perm=[0, 2, 1, 3]))
        new.setdefault(id(end), []).extend(nodes)
    for end in {id(end): end for end, _ in ends}.values():
        graph.replace(end, *new[id(end)])


def _check_keys_end_in_softmax(graph: Graph, key: str) -> None:
    """Check that keys have no use but the scores that enter a softmax.

    A bias of the keys then adds the same number to all scores of a query, which changes no
    probability.
    """
    transpose = graph.sole_reader(key, "Transpose")
    check(swaps_last_axes(transpose))
    node = graph.sole_reader(transpose.output[0], "MatMul")
    check(node.input[1] == transpose.output[0])
    while node.op_type != "Softmax":
        name = node.output[0]
        last = graph.shape(name)[-1]
        node = graph.sole_reader(name, "Add", "Mul", "Reshape", "Softmax")
        if node.op_type == "Mul":
            factor = next(other for other in node.input if other != name)
            check(graph.constant(factor).size == 1)
        elif node.op_type == "Reshape":
            check(is_static(last) and graph.shape(node.output[0])[-1] == last)
    check(is_over_last_axis(graph, node))


def _add_to_next_bias(graph: Graph, value: str, bias: Array) -> None:
    """Add the bias of the values, projected, to the bias of the linear layer after the attention.

    The probabilities of a query add up to 1, so each weighted mean of the values contains the bias
    exactly once.
    """
    mean = graph.sole_reader(value, "MatMul")
    check(mean.input[1] == value)
    check(is_over_last_axis(graph, graph.sole_use_producer(mean.input[0], "Softmax")))
    transpose = graph.sole_reader(mean.output[0], "Transpose", perm=[0, 2, 1, 3])
    joined = graph.sole_reader(transpose.output[0], "Reshape")
    check(graph.shape(joined.output[0])[-1] == len(bias))
    product = graph.sole_reader(joined.output[0], "MatMul")
    check(product.input[0] == joined.output[0])
    add = graph.sole_reader(product.output[0], "Add")
    weight = graph.constant(product.input[1])
    place = 1 - list(add.input).index(product.output[0])
    old = graph.constant(add.input[place])
    check(weight.ndim == 2 and old.shape == (weight.shape[1],))
    new = old + bias.astype(np.float64) @ weight.astype(np.float64)
    add.input[place] = graph.add_constant("bias", new.astype(old.dtype))


def _match_entries(graph: Graph, slices: list[onnx.NodeProto]) -> list[tuple[onnx.NodeProto, str]]:
    """Match Slice and Squeeze to entries 0, 1 and 2 of the first axis.

    Returns:
        Per entry, the Squeeze and the name of its output.
    """
    entries = {}
    for node in slices:
        check(node.domain == "" and node.op_type == "Slice")
        axis, kept = graph.slice_range(node)
        squeeze = graph.sole_reader(node.output[0], "Squeeze")
        check(graph.integers(squeeze, 1) == [0])
        check(axis == 0 and len(kept) == 1)
        entries[kept[0]] = (squeeze, squeeze.output[0])
    check(sorted(entries) == [0, 1, 2] and len(slices) == 3)
    return [entries[index] for index in range(3)]
