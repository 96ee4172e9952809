"""Resize small images by a matrix product: resizing is linear."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx
from numpy.typing import NDArray

from .graph import Array, Graph, Mismatch, attribute, check, is_static

MAX_MATRIX_NUMBERS = 16_384
"""Size of the largest resize matrix; with more numbers, Resize itself is faster."""


def resize_by_matmul(graph: Graph) -> None:
    """Replace each Resize of a small image by a product with a constant matrix."""
    for node in graph.nodes_of_type("Resize"):
        with suppress(Mismatch):
            graph.replace(node, *_matmul_nodes(graph, node))


def _matmul_nodes(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    before, after = graph.shape(node.input[0], 4), graph.shape(node.output[0], 4)
    check(all(is_static(size) for size in (*before[1:], *after[1:])) and before[1] == after[1])
    channels, height, width = (int(size) for size in before[1:])
    new_height, new_width = (int(size) for size in after[2:])
    check(height * width * new_height * new_width <= MAX_MATRIX_NUMBERS)
    check(node.input[0] in graph.float_values)
    check(not attribute(node, "axes") and len(node.input) > 2 and not node.input[1])
    check(attribute(node, "keep_aspect_ratio_policy", b"stretch") == b"stretch")
    if node.input[2]:  # otherwise the node has sizes, from which ONNX Runtime derives these scales
        scales = graph.constant(node.input[2])
        check(scales.shape == (4,))
        expected = [1, 1, new_height / height, new_width / width]
        check(np.allclose(scales, expected, rtol=1e-6, atol=0))
    matrix = _resize_matrix(node, (height, width), (new_height, new_width), graph.opset)
    name, output = node.input[0], node.output[0]
    flat = graph.add_integers("pixels_flat", [-1, channels, height * width])
    back = graph.add_integers("pixels_back", [-1, channels, new_height, new_width])
    row, product = graph.new_name(f"{output}_flat"), graph.new_name(f"{output}_product")
    return [
        graph.make_node("Reshape", [name, flat], row),
        graph.make_node("MatMul", [row, graph.add_constant("resize", matrix)], product),
        graph.make_node("Reshape", [product, back], output),
    ]


def _resize_matrix(
    node: onnx.NodeProto, size: tuple[int, int], new_size: tuple[int, int], opset: int
) -> Array:
    """Return ``[pixels, new_pixels]``: ONNX Runtime's Resize of each image with a single 1."""
    import onnxruntime as ort

    pixels = size[0] * size[1]
    alone = onnx.helper.make_node("Resize", ["x", "", "", "sizes"], ["y"])
    alone.attribute.extend(node.attribute)
    graph = onnx.helper.make_graph(
        [alone],
        "resize",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, pixels, *size])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, pixels, *new_size])],
        [onnx.numpy_helper.from_array(np.array([1, pixels, *new_size]), "sizes")],
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
    resized: NDArray[np.float32] = session.run(None, {"x": ones})[0]
    return resized.reshape(pixels, -1)
