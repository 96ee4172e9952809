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
"""First opset whose Resize has ``antialias``; Pillow always antialiases."""

# Pillow ignores weights outside the image and uses the cubic coefficient -0.5.
_RESIZE: dict[str, dict[str, Any]] = {
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5, "antialias": 1, "exclude_outside": 1},
    "bilinear": {"mode": "linear", "antialias": 1, "exclude_outside": 1},
}
_INTERPOLATIONS = (*_RESIZE, "nearest")


class _GraphBuilder:
    """A graph under construction; a call adds a node and returns the name of its output."""

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

    def to_double(self, value: str) -> str:
        return self("Cast", value, to=TensorProto.DOUBLE)

    def round_to_int(self, value: str) -> str:
        """Round to int64, halves to the even neighbor like Python's ``round``."""
        return self("Cast", self("Round", value), to=TensorProto.INT64)


def preprocessing_model(preprocess: Preprocess, opset: int) -> onnx.ModelProto:
    """Build a model that resizes, crops and normalizes a batch of images of one size.

    The input is ``image`` uint8 ``[batch, height, width, channels]``; all dimensions but the
    channels are dynamic. The output is ``pixel_values`` float32 ``[batch, channels, H, W]`` with
    the static ``H`` and ``W`` of ``preprocess``. All other names begin with ``preprocess/``.

    ``nearest`` computes Pillow's pixels bit for bit. ``bicubic`` and ``bilinear`` use ONNX Resize
    with ``antialias`` on uint8. ONNX Runtime's weights are float32 and Pillow's are float64, so a
    value close to a half can be rounded to the other side. Most pixels are equal; the others differ
    by one grey level, about one in ten million by two.

    Args:
        preprocess: The transform that the graph computes.
        opset: Version of the default operator set, 18 or later; use that of the model that this
            model will be merged with.

    Raises:
        ExportError: ONNX has no operator that computes this interpolation like Pillow, or the opset
            is too old.
    """
    if preprocess.interpolation not in _INTERPOLATIONS:
        raise ExportError(
            f"interpolation {preprocess.interpolation!r} cannot be part of an ONNX model, "
            f"expected one of {', '.join(_INTERPOLATIONS)}; export without preprocessing"
        )
    if opset < MIN_OPSET:
        raise ExportError(f"preprocessing needs opset {MIN_OPSET} or later, found {opset}")
    graph = _GraphBuilder()
    size = graph("Shape", "image", start=1, end=3)
    resized = _resized_size(graph, preprocess, size)
    if preprocess.interpolation == "nearest":
        pixels = _resize_nearest(graph, "image", size, resized)
    else:
        pixels = _resize(graph, _RESIZE[preprocess.interpolation], "image", size, resized)
    pixels = _crop(graph, preprocess, pixels, resized)
    pixels = graph("Transpose", pixels, perm=[0, 3, 1, 2])
    pixels = graph("Cast", pixels, to=TensorProto.FLOAT)
    _normalize(graph, preprocess, _pad(graph, preprocess, pixels, resized))
    return _model(graph, preprocess, opset, ["batch", "height", "width", preprocess.channels])


def normalizing_model(preprocess: Preprocess, opset: int) -> onnx.ModelProto:
    """Build a model that normalizes a batch of resized and cropped images.

    The input is ``image`` uint8 ``[batch, channels, H, W]``; the output is that of
    ``preprocessing_model``.
    """
    graph = _GraphBuilder()
    _normalize(graph, preprocess, graph("Cast", "image", to=TensorProto.FLOAT))
    return _model(
        graph,
        preprocess,
        opset,
        ["batch", preprocess.channels, preprocess.height, preprocess.width],
    )


def _target_size(preprocess: Preprocess) -> tuple[int, int]:
    """Return the height and width that the scaled image fits into or covers."""
    return (
        math.floor(preprocess.height / preprocess.crop_pct),
        math.floor(preprocess.width / preprocess.crop_pct),
    )


def _resized_size(graph: _GraphBuilder, preprocess: Preprocess, size: str) -> str:
    """Compute height and width after scaling, int64 ``[2]``, like ``Preprocess.resize``."""
    target = _target_size(preprocess)
    if preprocess.crop_mode == "squash":
        return graph.constant(target, np.int64)
    if preprocess.crop_mode != "border" and target[0] == target[1]:
        # The shorter edge becomes the target; the longer edge is truncated to an integer.
        scaled = graph("Mul", size, graph.constant(target, np.int64))
        return graph("Div", scaled, graph("ReduceMin", size))
    edges = graph.to_double(size)
    ratios = graph("Div", edges, graph.constant(target, np.float64))
    fitting = "ReduceMax" if preprocess.crop_mode == "border" else "ReduceMin"
    resized = graph.round_to_int(graph("Div", edges, graph(fitting, ratios)))
    # An edge has at least one pixel; with `border` it can round to 0.
    return graph("Max", resized, graph.constant([1], np.int64))


def _resize(
    graph: _GraphBuilder, options: Mapping[str, Any], image: str, size: str, resized: str
) -> str:
    """Scale in two passes on uint8 in the order of Pillow 13.

    Pillow scales the width first, unless the height loses more than twice as many pixels as the
    width. It rounds between the passes, so the order changes pixels. A Resize to the same size only
    copies, so one conditional Resize of the height decides the order.
    """
    first, second = graph.constant([0], np.int64), graph.constant([1], np.int64)
    lost = graph("Sub", size, resized)
    lost_height, lost_width = graph("Gather", lost, first), graph("Gather", lost, second)
    twice = graph("Mul", lost_width, graph.constant([2], np.int64))
    is_tall = graph("Greater", lost_height, graph("Max", twice, graph.constant([0], np.int64)))
    height = graph("Where", is_tall, graph("Gather", resized, first), graph("Gather", size, first))
    image = graph("Resize", image, "", "", height, axes=[1], **options)
    return graph("Resize", image, "", "", resized, axes=[1, 2], **options)


def _resize_nearest(graph: _GraphBuilder, image: str, size: str, resized: str) -> str:
    """Copy the pixel under each new pixel's center.

    Positions are summed step by step in float64 like in Pillow: the rounding error of the sum
    decides a position that is exactly between two pixels.
    """
    steps = graph("Div", graph.to_double(size), graph.to_double(resized))
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


def _crop(graph: _GraphBuilder, preprocess: Preprocess, image: str, resized: str) -> str:
    """Cut out the center along each axis that is longer than the crop."""
    crop = graph.constant((preprocess.height, preprocess.width), np.int64)
    surplus = graph.to_double(graph("Sub", resized, crop))
    start = graph.round_to_int(graph("Div", surplus, graph.constant([2], np.float64)))
    start = graph("Max", start, graph.constant([0], np.int64))
    axes = graph.constant([1, 2], np.int64)
    return graph("Slice", image, start, graph("Add", start, crop), axes)


def _pad(graph: _GraphBuilder, preprocess: Preprocess, pixels: str, resized: str) -> str:
    """Pad ``[batch, channels, height, width]`` along each axis that is shorter than the crop."""
    size = (preprocess.height, preprocess.width)
    is_border = preprocess.crop_mode == "border"
    if not is_border and all(t >= s for t, s in zip(_target_size(preprocess), size, strict=True)):
        return pixels
    missing = graph("Sub", graph.constant(size, np.int64), resized)
    missing = graph("Max", missing, graph.constant([0], np.int64))
    before = graph("Div", missing, graph.constant([2], np.int64))
    pads = graph("Concat", before, graph("Sub", missing, before), axis=0)
    axes = graph.constant([2, 3], np.int64)
    if not is_border:
        return graph("Pad", pixels, pads, "", axes)
    # Pad has one value for all channels. Integers of this size are exact in float32.
    fill = _per_channel(graph, [round(255 * value) for value in preprocess.mean])
    return graph("Add", graph("Pad", graph("Sub", pixels, fill), pads, "", axes), fill)


def _normalize(graph: _GraphBuilder, preprocess: Preprocess, pixels: str) -> str:
    """Do the steps of ``Preprocess.normalize`` in the same order, so that they round alike."""
    pixels = graph("Div", pixels, graph.constant(255, np.float32))
    pixels = graph("Sub", pixels, _per_channel(graph, preprocess.mean))
    return graph("Div", pixels, _per_channel(graph, preprocess.std), output="pixel_values")


def _per_channel(graph: _GraphBuilder, values: Sequence[float]) -> str:
    return graph.constant(np.reshape(values, (1, -1, 1, 1)), np.float32)


def _model(
    graph: _GraphBuilder, preprocess: Preprocess, opset: int, shape: Sequence[int | str]
) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, shape)
    pixel_values = helper.make_tensor_value_info(
        "pixel_values",
        TensorProto.FLOAT,
        ["batch", preprocess.channels, preprocess.height, preprocess.width],
    )
    return helper.make_model(
        helper.make_graph(
            graph.nodes, "preprocess", [image], [pixel_values], initializer=graph.initializers
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=IR_VERSION,
        producer_name="headkit",
    )
