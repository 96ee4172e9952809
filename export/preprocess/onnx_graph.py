"""timm's eval transform as an ONNX graph, so that an exported model can take raw images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headkit.adapters.errors import ExportError

from .pillow import Preprocess

PREFIX = "preprocess/"
IR_VERSION = 10
MIN_OPSET = 18
"""The first opset whose Resize has ``antialias``, which Pillow always applies."""

# Pillow leaves weights outside the image out and takes -0.5 as the cubic coefficient.
_RESIZE: dict[str, dict[str, Any]] = {
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5, "antialias": 1, "exclude_outside": 1},
    "bilinear": {"mode": "linear", "antialias": 1, "exclude_outside": 1},
}
_INTERPOLATIONS = (*_RESIZE, "nearest")


class _Graph:
    """Nodes and constants under one prefix; each call adds a node and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def __call__(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = f"{PREFIX}{op}_{len(self.nodes)}"
        output = output or f"{name}_output"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def constant(self, values: Any, dtype: type[np.generic]) -> str:
        name = f"{PREFIX}constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def double(self, value: str) -> str:
        return self("Cast", value, to=TensorProto.DOUBLE)

    def rounded(self, value: str) -> str:
        """To int64, a half to the even neighbor as Python's ``round``."""
        return self("Cast", self("Round", value), to=TensorProto.INT64)


def preprocessing_model(preprocess: Preprocess, opset: int) -> onnx.ModelProto:
    """Build a model that resizes, crops and normalizes a batch of images of one size.

    Input ``image`` uint8 ``[batch, height, width, 3]``, all but the channels dynamic; output
    ``pixel_values`` float32 ``[batch, 3, H, W]`` with the static ``H`` and ``W`` of ``preprocess``.
    All other names begin with ``preprocess/``.

    ``nearest`` gives Pillow's pixels bit for bit. ``bicubic`` and ``bilinear`` are ONNX Resize with
    ``antialias`` on uint8: ONNX Runtime's weights are float32 where Pillow's are float64, so a
    value that lies close to a half can be rounded to the other side. Most pixels are equal, others
    differ by one grey level, about one in ten million by two.

    Args:
        preprocess: what the graph shall do.
        opset: of the default ONNX domain, 18 or later: that of the model it will be merged with.

    Raises:
        ExportError: the interpolation has no faithful counterpart in ONNX, or the opset is too old.
    """
    if preprocess.interpolation not in _INTERPOLATIONS:
        raise ExportError(
            f"interpolation {preprocess.interpolation!r} cannot be a part of an ONNX model, "
            f"possible are {', '.join(_INTERPOLATIONS)}; export without preprocessing"
        )
    if opset < MIN_OPSET:
        raise ExportError(f"preprocessing needs opset {MIN_OPSET} or later, found {opset}")
    graph = _Graph()
    size = graph("Shape", "image", start=1, end=3)
    resized = _resized(graph, preprocess, size)
    if preprocess.interpolation == "nearest":
        pixels = _take_nearest(graph, "image", size, resized)
    else:
        pixels = _resize(graph, _RESIZE[preprocess.interpolation], "image", size, resized)
    pixels = _crop(graph, preprocess, pixels, resized)
    pixels = graph("Transpose", pixels, perm=[0, 3, 1, 2])
    pixels = graph("Cast", pixels, to=TensorProto.FLOAT)
    _normalize(graph, preprocess, _pad(graph, preprocess, pixels, resized))
    return _model(graph, preprocess, opset, ["batch", "height", "width", 3])


def normalizing_model(preprocess: Preprocess, opset: int) -> onnx.ModelProto:
    """Build a model that normalizes a batch of images that are resized and cropped already.

    Input ``image`` uint8 ``[batch, 3, H, W]``, output as of ``preprocessing_model``.
    """
    graph = _Graph()
    _normalize(graph, preprocess, graph("Cast", "image", to=TensorProto.FLOAT))
    return _model(graph, preprocess, opset, ["batch", 3, preprocess.height, preprocess.width])


def _targets(preprocess: Preprocess) -> tuple[int, int]:
    """Height and width that the image is scaled to fit or to cover."""
    return (
        math.floor(preprocess.height / preprocess.crop_pct),
        math.floor(preprocess.width / preprocess.crop_pct),
    )


def _resized(graph: _Graph, preprocess: Preprocess, size: str) -> str:
    """Height and width after scaling, int64 ``[2]``: the arithmetic of ``Preprocess.resize``."""
    targets = _targets(preprocess)
    if preprocess.crop_mode == "squash":
        return graph.constant(targets, np.int64)
    if preprocess.crop_mode != "border" and targets[0] == targets[1]:
        # The shorter edge becomes the target, the longer one is cut down to an integer.
        scaled = graph("Mul", size, graph.constant(targets, np.int64))
        return graph("Div", scaled, graph("ReduceMin", size))
    edges = graph.double(size)
    ratios = graph("Div", edges, graph.constant(targets, np.float64))
    fitting = "ReduceMax" if preprocess.crop_mode == "border" else "ReduceMin"
    resized = graph.rounded(graph("Div", edges, graph(fitting, ratios)))
    # A line of pixels keeps its one pixel, which can round to 0 with `border` alone.
    return graph("Max", resized, graph.constant([1], np.int64))


def _resize(graph: _Graph, options: Mapping[str, Any], image: str, size: str, resized: str) -> str:
    """Scale in two passes of uint8, as Pillow does, in the order that Pillow 13 takes.

    Pillow scales the width first, unless the height loses more than twice as many pixels as the
    width; since the values are rounded between the passes, the order shows. Scaling to the size
    that is already there copies, so one node for the height alone decides the order.
    """
    first, second = graph.constant([0], np.int64), graph.constant([1], np.int64)
    lost = graph("Sub", size, resized)
    lost_height, lost_width = graph("Gather", lost, first), graph("Gather", lost, second)
    twice = graph("Mul", lost_width, graph.constant([2], np.int64))
    is_tall = graph("Greater", lost_height, graph("Max", twice, graph.constant([0], np.int64)))
    height = graph("Where", is_tall, graph("Gather", resized, first), graph("Gather", size, first))
    image = graph("Resize", image, "", "", height, axes=[1], **options)
    return graph("Resize", image, "", "", resized, axes=[1, 2], **options)


def _take_nearest(graph: _Graph, image: str, size: str, resized: str) -> str:
    """Take the pixel under each new pixel's center.

    The positions are summed up step by step in float64, because Pillow does it so and a position
    between two pixels falls to the side of its rounding error.
    """
    steps = graph("Div", graph.double(size), graph.double(resized))
    zero, one = graph.constant([0], np.int64), graph.constant([1], np.int64)
    half = graph.constant([0.5], np.float64)
    for axis, index in enumerate((zero, one)):
        step = graph("Gather", steps, index)
        others = graph("Expand", step, graph("Sub", graph("Gather", resized, index), one))
        strides = graph("Concat", graph("Mul", step, half), others, axis=0)
        positions = graph("Floor", graph("CumSum", strides, zero))
        rows = graph("Cast", positions, to=TensorProto.INT64)
        image = graph("Gather", image, rows, axis=axis + 1)
    return image


def _crop(graph: _Graph, preprocess: Preprocess, image: str, resized: str) -> str:
    """Cut the center out along each axis that is longer than the crop."""
    crop = graph.constant((preprocess.height, preprocess.width), np.int64)
    surplus = graph.double(graph("Sub", resized, crop))
    start = graph.rounded(graph("Div", surplus, graph.constant([2], np.float64)))
    start = graph("Max", start, graph.constant([0], np.int64))
    axes = graph.constant([1, 2], np.int64)
    return graph("Slice", image, start, graph("Add", start, crop), axes)


def _pad(graph: _Graph, preprocess: Preprocess, pixels: str, resized: str) -> str:
    """Pad float32 ``[batch, 3, height, width]`` along each axis that is shorter than the crop."""
    size = (preprocess.height, preprocess.width)
    is_border = preprocess.crop_mode == "border"
    if not is_border and all(t >= s for t, s in zip(_targets(preprocess), size, strict=True)):
        return pixels
    missing = graph("Sub", graph.constant(size, np.int64), resized)
    missing = graph("Max", missing, graph.constant([0], np.int64))
    before = graph("Div", missing, graph.constant([2], np.int64))
    pads = graph("Concat", before, graph("Sub", missing, before), axis=0)
    axes = graph.constant([2, 3], np.int64)
    if not is_border:
        return graph("Pad", pixels, pads, "", axes)
    # Pad takes one value for all channels; whole numbers of this size are exact in float32.
    fill = _per_channel(graph, [round(255 * value) for value in preprocess.mean])
    return graph("Add", graph("Pad", graph("Sub", pixels, fill), pads, "", axes), fill)


def _normalize(graph: _Graph, preprocess: Preprocess, pixels: str) -> str:
    """The steps of ``Preprocess.normalize`` in its order, so that the rounding is the same."""
    pixels = graph("Div", pixels, graph.constant(255, np.float32))
    pixels = graph("Sub", pixels, _per_channel(graph, preprocess.mean))
    return graph("Div", pixels, _per_channel(graph, preprocess.std), output="pixel_values")


def _per_channel(graph: _Graph, values: Sequence[float]) -> str:
    return graph.constant(np.reshape(values, (1, -1, 1, 1)), np.float32)


def _model(
    graph: _Graph, preprocess: Preprocess, opset: int, shape: Sequence[int | str]
) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, shape)
    pixel_values = helper.make_tensor_value_info(
        "pixel_values", TensorProto.FLOAT, ["batch", 3, preprocess.height, preprocess.width]
    )
    return helper.make_model(
        helper.make_graph(
            graph.nodes, "preprocess", [image], [pixel_values], initializer=graph.initializers
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=IR_VERSION,
        producer_name="headkit",
    )
