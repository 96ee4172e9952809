"""Convert an exported float32 backbone to float16 or int8, and compare its logits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from headkit.adapters.compat import (
    drop_unused_initializers,
    give_quantization_a_logger,
    to_float16,
)
from headkit.adapters.errors import (
    DataError,
    DependencyMissing,
    ExportError,
    ParityError,
    first_line,
)
from headkit.adapters.files import scratch_folder
from headkit.export.graph.description.names import LEVEL_PREFIX
from headkit.export.runtimes.onnxruntime import open_session

try:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
except ImportError as missing:
    raise DependencyMissing.for_feature("a reduced precision", "onnxruntime") from missing

Array = np.ndarray[Any, Any]

QUANTIZED = ("Conv", "MatMul", "Gemm", "Relu", "Clip")
"""Operators that become int8, with the two that bound the range of a convolution's output.

All other operators stay float32: quantized residual sums and norms make transformers much worse and
hardly faster.
"""
LARGEST_INT8 = 127
_ADVICE = {
    "fp16": "keep fp32",
    "int8": "calibrate with more images like those that the model will see, or use fp16 or fp32",
}


@dataclass(frozen=True)
class Cost:
    """Differences that a reduced precision makes on held-out images.

    Attributes:
        images: Number of images that were compared.
        agreement: Share of images whose largest logit belongs to the same class as before.
        mean_difference: Mean absolute difference of logits, relative to the largest absolute logit
            before; infinite if a logit is not finite.
        max_difference: Largest absolute difference of logits, on the same scale.
        accuracy_before: Share of correct classes in float32; None if the classes are unknown.
        accuracy_after: Share of correct classes in the reduced precision; None likewise.
    """

    images: int
    agreement: float
    mean_difference: float
    max_difference: float
    accuracy_before: float | None = None
    accuracy_after: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the attributes; infinite values become None, because JSON has no infinity."""
        return {
            name: value if value is None or math.isfinite(value) else None
            for name, value in asdict(self).items()
        }


def to_fp16(backbone: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with weights and arithmetic in float16, half as large.

    Inputs and outputs stay float32. Float16 is for GPUs: on most CPUs ONNX Runtime still computes
    in float32 and is no faster. Constants beyond float16's 65504 are clipped to it; an activation
    beyond it becomes infinite, and ``check_cost`` refuses that. Operators that ONNX Runtime's
    ``convert_float_to_float16`` lists as unsafe stay float32.

    Args:
        backbone: Float32 model with its weights in memory.
    """
    half = to_float16(backbone)
    del half.graph.value_info[:]  # some are wrong next to operators that stay float32
    return onnx.shape_inference.infer_shapes(_restore_interface(half, backbone))


def to_int8(backbone: onnx.ModelProto, batches: Iterable[Array]) -> onnx.ModelProto:
    """Return a copy with convolutions and matrix products in int8, about a quarter as large.

    This is static quantization in the QDQ format. Weights are int8 and symmetric, with a scale per
    output channel. Activations are uint8, with their range on the calibration images (MinMax). The
    first convolution and the pooling of levels stay float32; the biases of the other convolutions
    compensate for the mean shift that rounding their weights causes. Inputs and outputs stay
    float32. Int8 is for Arm processors and for x86 processors with VNNI (AVX2 alone may saturate).

    Sources: ONNX Runtime, "Quantize ONNX models"; Nagel et al. 2019, "Data-Free Quantization
    Through Weight Equalization and Bias Correction" (https://arxiv.org/abs/1906.04721), here with
    means measured on the calibration images.

    Args:
        backbone: Float32 model with its weights in memory.
        batches: Calibration images like those that the model will see: float32 ``pixel_values``
            ``[n, 3, height, width]``, 32 images or more; all are held in memory.

    Raises:
        DataError: There are no images, or their shape or type does not fit the backbone's input.
        ExportError: ONNX Runtime cannot quantize the backbone.
    """
    images = _check_batches(batches, backbone.graph.input[0])
    give_quantization_a_logger()
    with scratch_folder() as folder:
        source, prepared, target = (Path(folder) / f"{n}.onnx" for n in ("in", "prepared", "out"))
        onnx.save(backbone, source)
        try:
            # This folds BatchNorm into convolutions. Symbolic shapes need sympy and add nothing.
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            model = onnx.load(prepared)
            excluded = [*_name_nodes(model.graph), *_find_pooling_of_levels(model.graph)]
            _correct_biases(model, images, Path(folder), skip=excluded)
            onnx.save(model, prepared)
            quantize_static(
                prepared,
                target,
                _CalibrationReader(images, backbone.graph.input[0].name),
                op_types_to_quantize=list(QUANTIZED),
                nodes_to_exclude=excluded,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                # MatMul and Gemm return float32 sums: these are more exact than int8, and faster,
                # because in a transformer the bias and the next operators are float32.
                extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
            )
        except Exception as error:  # onnxruntime's own classes share no root below Exception
            raise ExportError(
                f"ONNX Runtime cannot quantize the backbone: {first_line(error)}; use fp16 or fp32"
            ) from error
        return _restore_interface(onnx.load(target), backbone)


def compare_logits(before: Array, after: Array, targets: Array | None = None) -> Cost:
    """Compare logits of the same held-out images before and after reducing the precision.

    Args:
        before: Logits of the float32 model, ``[images, num_classes]``.
        after: Logits of the reduced model, the same shape.
        targets: True class of each image, integers ``[images]``; None if unknown.

    Raises:
        ValueError: The shapes differ.
        DataError: There are no images.
    """
    if before.ndim != 2 or before.shape != after.shape:
        raise ValueError(
            f"logits have the shape {before.shape} before and {after.shape} after; expected equal"
            " shapes"
        )
    if targets is not None and targets.shape != before.shape[:1]:
        raise ValueError(f"targets are {targets.shape}, expected {before.shape[:1]}")
    if not len(before):
        raise DataError("there are no held-out images to compare on: pass at least one")
    difference = np.abs(after.astype(np.float64) - before) / max(np.abs(before).max(), 1e-12)
    difference[~np.isfinite(difference)] = np.inf
    predicted, expected = after.argmax(1), before.argmax(1)
    usable = np.isfinite(after).all(1)
    return Cost(
        images=len(before),
        agreement=float(np.mean((predicted == expected) & usable)),
        mean_difference=float(difference.mean()),
        max_difference=float(difference.max()),
        accuracy_before=None if targets is None else float(np.mean(expected == targets)),
        accuracy_after=None if targets is None else float(np.mean((predicted == targets) & usable)),
    )


def check_cost(cost: Cost, max_cost: float, precision: str) -> None:
    """Raise if a precision costs too much.

    Args:
        cost: The measured cost.
        max_cost: Largest accepted loss of accuracy, or of agreement if the accuracy is unknown, as
            a share of the images: 0.02 is two percent.
        precision: ``fp16`` or ``int8``, for the message.

    Raises:
        ParityError: The loss is larger, or logits are not finite.
    """
    advice = f"{_ADVICE.get(precision, 'keep fp32')}, or allow more with max_cost"
    if not math.isfinite(cost.max_difference):
        raise ParityError(
            f"{precision} gives NaN or infinite logits for some of the {cost.images} images; "
            "use another precision"
        )
    if cost.accuracy_before is None or cost.accuracy_after is None:
        loss = 1 - cost.agreement
        effect = f"changes the class of {loss:.1%} of {cost.images} images"
    else:
        loss = cost.accuracy_before - cost.accuracy_after
        effect = (
            f"lowers the accuracy on {cost.images} images from {cost.accuracy_before:.1%} "
            f"to {cost.accuracy_after:.1%}"
        )
    if loss > max_cost + 1e-9:  # binary floats do not hold every share exactly
        raise ParityError(f"{precision} {effect}; the limit is {max_cost:.1%}; {advice}")


class _CalibrationReader(CalibrationDataReader):  # type: ignore[misc]
    """Batches of images in the interface of ONNX Runtime's calibration."""

    def __init__(self, batches: Iterable[Array], name: str) -> None:
        self.feeds = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.feeds, None)


def _check_batches(batches: Iterable[Array], pixel_values: onnx.ValueInfoProto) -> list[Array]:
    dims = [d.dim_value for d in pixel_values.type.tensor_type.shape.dim]
    listed = [batch for batch in batches if len(batch)]
    for batch in listed:
        fits = batch.ndim == len(dims) and all(
            size in (0, actual) for size, actual in zip(dims, batch.shape, strict=True)
        )
        if batch.dtype != np.float32 or not fits:
            raise DataError(
                f"calibration images are {batch.dtype} {list(batch.shape)}, "
                f"expected float32 {[size or 'n' for size in dims]}"
            )
    if not listed:
        raise DataError("int8 needs calibration images, found none; pass 32 or more of your own")
    return listed


def _name_nodes(graph: onnx.GraphProto) -> list[str]:
    """Name the unnamed nodes; return a list with the name of the first convolution, if any."""
    for index, node in enumerate(graph.node):
        node.name = node.name or f"node_{index}"
    return [node.name for node in graph.node if node.op_type == "Conv"][:1]


def _find_pooling_of_levels(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes that only the levels need, not the features."""
    needed = {one.name for one in graph.output if not one.name.startswith(LEVEL_PREFIX)}
    others = []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            others.append(node.name)
        else:
            needed.update(node.input)
    return others


def _correct_biases(
    model: onnx.ModelProto, images: Sequence[Array], folder: Path, skip: Sequence[str]
) -> None:
    """Subtract the mean shift that int8 weights cause from each convolution's bias."""
    weights = {t.name: t for t in model.graph.initializer}
    convolutions = [
        node
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.name not in skip
        and all(name in weights for name in node.input[1:])
    ]
    means = _channel_means(model, sorted({node.input[0] for node in convolutions}), images, folder)
    for node in convolutions:
        weight = numpy_helper.to_array(weights[node.input[1]]).astype(np.float64)
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        error = _rounding_error(weight).reshape(*weight.shape[:2], -1).sum(2)
        mean = np.repeat(means[node.input[0]].reshape(groups, -1), len(weight) // groups, axis=0)
        bias = -(error * mean).sum(1)
        if len(node.input) == 3:
            bias += numpy_helper.to_array(weights[node.input[2]])
        name = f"{node.name}_corrected_bias"
        model.graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), name))
        node.input[2:] = [name]
    drop_unused_initializers(model)


def _rounding_error(weight: Array) -> Array:
    """Return int8 weights minus float weights, ``[out, in / groups, …]``; one scale per row."""
    largest = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True)
    scale = np.where(largest > 0, largest, 1) / LARGEST_INT8
    return np.asarray(np.round(weight / scale) * scale - weight)


def _channel_means(
    model: onnx.ModelProto, names: Sequence[str], images: Sequence[Array], folder: Path
) -> dict[str, Array]:
    """Return the mean of each tensor over images and pixels, ``[channels]``."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for name in names:
        mean = f"{name}_channel_mean"
        probe.graph.node.append(helper.make_node("GlobalAveragePool", [name], [mean]))
        probe.graph.output.append(helper.make_tensor_value_info(mean, onnx.TensorProto.FLOAT, None))
    onnx.save(probe, folder / "probe.onnx")
    session = open_session(folder / "probe.onnx")
    outputs = [f"{name}_channel_mean" for name in names]
    totals: list[Any] = [0.0] * len(names)
    for batch in images if names else ():
        means = session.run(outputs, {model.graph.input[0].name: batch})
        totals = [t + m.reshape(*m.shape[:2]).sum(0) for t, m in zip(totals, means, strict=True)]
    count = sum(len(batch) for batch in images)
    return {name: np.asarray(t) / count for name, t in zip(names, totals, strict=True)}


def _restore_interface(model: onnx.ModelProto, backbone: onnx.ModelProto) -> onnx.ModelProto:
    """Copy the backbone's interface and metadata to the model; drop opsets that it does not use."""
    for field in ("input", "output"):
        del getattr(model.graph, field)[:]
        getattr(model.graph, field).extend(getattr(backbone.graph, field))
    del model.metadata_props[:]
    model.metadata_props.extend(backbone.metadata_props)
    used = {node.domain for part in (model.graph, *model.functions) for node in part.node}
    kept = [o for o in model.opset_import if o.domain in used | {""}]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    model.producer_name = backbone.producer_name
    model.producer_version = backbone.producer_version
    return model
