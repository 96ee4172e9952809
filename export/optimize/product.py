"""Rewrites of matrix products and convolutions: less is copied around them for the same numbers."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx
from numpy.typing import NDArray

from .fuse import linear
from .graph import MICROSOFT, Array, Graph, Mismatch, attribute, check, is_integer

MAX_RESIZE = 16_384
"""Numbers of the matrix that does the work of a Resize: with more, the Resize is faster."""


def split_projection(graph: Graph) -> None:
    """Compute queries, keys and values by a linear layer each, instead of cutting up one output.

    Of the packed output each part would be copied out before it is transposed.
    """
    for node in graph.nodes_of_type("Transpose"):
        with suppress(Mismatch):
            _split(graph, node)


def _split(graph: Graph, turned: onnx.NodeProto) -> None:
    reshape = graph.only(turned.input[0], "Reshape")
    product, bias = linear(graph, reshape.input[0])
    weight = graph.constant(product.input[1])
    added = None if bias is None else graph.constant(bias)
    shape = graph.shape(reshape.output[0])
    check(all(is_integer(size) for size in shape[1:]))
    sizes = [int(size) for size in shape[1:]]
    perm = list(attribute(turned, "perm", ()))
    if perm == [2, 0, 3, 1, 4]:
        tokens, three, heads, width = sizes
        check(three == 3)
        columns = np.arange(3 * heads * width).reshape(3, -1)
        ends = _entries(graph, graph.readers(turned.output[0]))
    elif perm == [0, 2, 1, 3]:
        tokens, heads, width = sizes
        check(width % 3 == 0)
        width //= 3
        numbers = np.arange(3 * heads * width).reshape(heads, 3, width)
        columns = numbers.transpose(1, 0, 2).reshape(3, -1)
        cut = graph.reader(turned.output[0], "Split")
        check(attribute(cut, "axis", 0) in (3, -1))
        parts = [graph.shape(name) for name in cut.output]
        check(len(parts) == 3 and all(part[-1] == width for part in parts))
        ends = [(cut, name) for name in cut.output]
    else:
        raise Mismatch
    check(weight.ndim == 2 and weight.shape[1] == columns.size)
    check(added is None or added.shape == (columns.size,))
    _, key, value = (output for _, output in ends)
    biases: list[Array | None] = [None if added is None else added[own] for own in columns]
    if added is not None:
        with suppress(Mismatch):
            _end_in_softmax(graph, key)
            biases[1] = None
        with suppress(Mismatch):
            _add_behind(graph, value, added[columns[2]])
            biases[2] = None
    split = graph.add_integers("heads_apart", [-1, tokens, heads, width])
    made: dict[int, list[onnx.NodeProto]] = {}
    for own, bias_of, (end, output) in zip(columns, biases, ends, strict=True):
        matrix = graph.add_constant("projection", np.ascontiguousarray(weight[:, own]))
        last = graph.new_name(f"{output}_projected")
        nodes = [graph.make("MatMul", [product.input[0], matrix], last)]
        if bias_of is not None:
            last, given = graph.new_name(f"{output}_biased"), last
            nodes.append(graph.make("Add", [given, graph.add_constant("bias", bias_of)], last))
        apart = graph.new_name(f"{output}_heads")
        nodes.append(graph.make("Reshape", [last, split], apart))
        nodes.append(graph.make("Transpose", [apart], output, perm=[0, 2, 1, 3]))
        made.setdefault(id(end), []).extend(nodes)
    for end in {id(end): end for end, _ in ends}.values():
        graph.replace(end, *made[id(end)])


def _end_in_softmax(graph: Graph, key: str) -> None:
    """Check that keys do nothing but make the scores of a softmax.

    A bias of the keys then adds the same number to all scores of a query, which changes nothing.
    """
    turn = graph.reader(key, "Transpose")
    check(_swaps(turn))
    node = graph.reader(turn.output[0], "MatMul")
    check(node.input[1] == turn.output[0])
    while node.op_type != "Softmax":
        name = node.output[0]
        last = graph.shape(name)[-1]
        node = graph.reader(name, "Add", "Mul", "Reshape", "Softmax")
        if node.op_type == "Mul":
            factor = next(other for other in node.input if other != name)
            check(graph.constant(factor).size == 1)
        elif node.op_type == "Reshape":
            check(is_integer(last) and graph.shape(node.output[0])[-1] == last)
    check(graph.is_over_last_axis(node))


def _add_behind(graph: Graph, value: str, bias: Array) -> None:
    """Add a bias of the values to that of the linear layer behind the attention.

    The probabilities of a query add up to 1: each average of the values has this bias.
    """
    average = graph.reader(value, "MatMul")
    check(average.input[1] == value)
    check(graph.is_over_last_axis(graph.only(average.input[0], "Softmax")))
    turn = graph.reader(average.output[0], "Transpose", perm=[0, 2, 1, 3])
    joined = graph.reader(turn.output[0], "Reshape")
    check(graph.shape(joined.output[0])[-1] == len(bias))
    product = graph.reader(joined.output[0], "MatMul")
    check(product.input[0] == joined.output[0])
    added = graph.reader(product.output[0], "Add")
    weight = graph.constant(product.input[1])
    place = 1 - list(added.input).index(product.output[0])
    old = graph.constant(added.input[place])
    check(weight.ndim == 2 and old.shape == (weight.shape[1],))
    new = old + bias.astype(np.float64) @ weight.astype(np.float64)
    added.input[place] = graph.add_constant("bias", new.astype(old.dtype))


def _entries(graph: Graph, cuts: list[onnx.NodeProto]) -> list[tuple[onnx.NodeProto, str]]:
    """The nodes that pick entries 0, 1 and 2 of the first axis."""
    found = {}
    for cut in cuts:
        check(cut.domain == "" and cut.op_type == "Slice")
        axis, entries = graph.window(cut)
        squeeze = graph.reader(cut.output[0], "Squeeze")
        check(graph.integers(squeeze, 1) == [0])
        check(axis == 0 and len(entries) == 1)
        found[entries[0]] = (squeeze, squeeze.output[0])
    check(sorted(found) == [0, 1, 2] and len(cuts) == 3)
    return [found[index] for index in range(3)]


def fuse_transposes(graph: Graph) -> None:
    """Let FusedMatMul read operands as if they were transposed, and swap them to write so.

    ONNX Runtime would merge such a Transpose with one in front of it to a slow one. The operator:
    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
    """
    for node in graph.nodes_of_type("MatMul"):
        with suppress(Mismatch):
            _fuse_transposes(graph, node)


def _fuse_transposes(graph: Graph, node: onnx.NodeProto) -> None:
    check(all(graph.constant_or_none(name) is None for name in node.input))
    check(graph.floats.issuperset(node.input))
    check(len({len(graph.shape(name)) for name in node.input}) == 1)
    operands = []
    for name in node.input:
        operands.append((name, 0))
        with suppress(Mismatch):
            turn = graph.only(name, "Transpose")
            check(_swaps(turn))
            operands[-1] = (turn.input[0], 1)
    end = node
    with suppress(Mismatch):
        turn = graph.reader(node.output[0], "Transpose")
        check(_swaps(turn))
        end = turn
        operands = [(name, 1 - turned) for name, turned in reversed(operands)]
    (a, turned_a), (b, turned_b) = operands
    check(end is not node or turned_a or turned_b)
    graph.replace(
        end,
        graph.make(
            "FusedMatMul",
            [a, b],
            end.output[0],
            domain=MICROSOFT,
            transA=turned_a,
            transB=turned_b,
        ),
    )


def _swaps(node: onnx.NodeProto) -> bool:
    """Whether a Transpose swaps the last two axes of three or more, and does nothing else."""
    perm = list(attribute(node, "perm", ()))
    rank = len(perm)
    return rank > 2 and perm == [*range(rank - 2), rank - 1, rank - 2]


def multiply_to_resize(graph: Graph, opset: int) -> None:
    """Resize small images by a product with a constant matrix: resizing is linear."""
    for node in graph.nodes_of_type("Resize"):
        with suppress(Mismatch):
            graph.replace(node, *_resize(graph, node, opset))


def _resize(graph: Graph, node: onnx.NodeProto, opset: int) -> list[onnx.NodeProto]:
    before, after = graph.shape(node.input[0], 4), graph.shape(node.output[0], 4)
    check(all(is_integer(size) for size in (*before[1:], *after[1:])) and before[1] == after[1])
    channels, height, width, high, wide = (int(size) for size in (*before[1:], *after[2:]))
    check(height * width * high * wide <= MAX_RESIZE and node.input[0] in graph.floats)
    check(not attribute(node, "axes") and len(node.input) > 2 and not node.input[1])
    check(attribute(node, "keep_aspect_ratio_policy", b"stretch") == b"stretch")
    if node.input[2]:  # else sizes are given, of which ONNX Runtime makes these scales itself
        scales = graph.constant(node.input[2])
        check(scales.shape == (4,))
        check(np.allclose(scales, [1, 1, high / height, wide / width], rtol=1e-6, atol=0))
    matrix = _matrix_of(node, (height, width), (high, wide), opset)
    name, output = node.input[0], node.output[0]
    flat = graph.add_integers("pixels_flat", [-1, channels, height * width])
    back = graph.add_integers("pixels_back", [-1, channels, high, wide])
    row, product = graph.new_name(f"{output}_flat"), graph.new_name(f"{output}_product")
    return [
        graph.make("Reshape", [name, flat], row),
        graph.make("MatMul", [row, graph.add_constant("resize", matrix)], product),
        graph.make("Reshape", [product, back], output),
    ]


def _matrix_of(
    node: onnx.NodeProto, size: tuple[int, int], asked: tuple[int, int], opset: int
) -> Array:
    """What ONNX Runtime's Resize makes of images one pixel of which is 1: ``[from, to]``."""
    import onnxruntime as ort

    pixels = size[0] * size[1]
    alone = onnx.helper.make_node("Resize", ["x", "", "", "sizes"], ["y"])
    alone.attribute.extend(node.attribute)
    graph = onnx.helper.make_graph(
        [alone],
        "resize",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, pixels, *size])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, pixels, *asked])],
        [onnx.numpy_helper.from_array(np.array([1, pixels, *asked]), "sizes")],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(model.SerializeToString(), options)
    except Exception as error:  # onnxruntime's own classes share no root below Exception
        raise Mismatch from error
    ones = np.eye(pixels, dtype=np.float32).reshape(1, pixels, *size)
    found: NDArray[np.float32] = session.run(None, {"x": ones})[0]
    return found.reshape(pixels, -1)
