"""Make an exported float32 backbone smaller and faster: float16 or int8, and what that costs."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from headkit.adapters.errors import (
    DataError,
    DependencyMissing,
    ExportError,
    ParityError,
    first_line,
)
from headkit.export.runtimes.onnxruntime import open_session

try:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from onnxruntime.transformers.float16 import convert_float_to_float16
except ImportError as missing:
    raise DependencyMissing.for_feature("float16 and int8", "onnxruntime") from missing

Array = np.ndarray[Any, Any]

QUANTIZED = ("Conv", "MatMul", "Gemm", "Relu", "Clip")
"""Operators that int8 is for, and the two whose clipping bounds the range of a convolution.

All other operators stay float32: quantized residual sums and norms make transformers much worse and
hardly faster.
"""
LARGEST_INT8 = 127
_ADVICE = {
    "fp16": "keep fp32",
    "int8": "calibrate with more images like those it will see, or use fp16 or fp32",
}


@dataclass(frozen=True)
class Cost:
    """What a reduced precision changes on held-out images.

    Attributes:
        images: how many were compared.
        agreement: share of them whose largest logit is of the same class as before.
        mean_difference: mean of the absolute difference of logits, relative to the largest absolute
            logit before; infinite where a logit is not a number.
        max_difference: the largest such difference.
        accuracy_before: share of correct classes in float32; None where the classes are not known.
        accuracy_after: the same in the reduced precision.
    """

    images: int
    agreement: float
    mean_difference: float
    max_difference: float
    accuracy_before: float | None = None
    accuracy_after: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the attributes; what is infinite becomes None, JSON has no word for it."""
        return {
            name: value if value is None or math.isfinite(value) else None
            for name, value in asdict(self).items()
        }


def to_fp16(backbone: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with weights and arithmetic in float16, of half the size.

    Inputs and outputs stay float32. It is meant for GPUs: on most CPUs ONNX Runtime computes it in
    float32 all the same, no faster. Constants beyond float16's 65504 are cut to it; an activation
    beyond it becomes infinite, which ``check`` refuses. Operators that ONNX Runtime's
    ``convert_float_to_float16`` lists as unsafe stay float32.

    Args:
        backbone: float32, its weights in memory.
    """
    with _quiet():
        half = convert_float_to_float16(backbone, keep_io_types=True)
        ONNXModel(half).topological_sort()  # the casts were put last
    del half.graph.value_info[:]  # some are wrong beside operators that stay float32
    return onnx.shape_inference.infer_shapes(_like(half, backbone))


def to_int8(backbone: onnx.ModelProto, batches: Iterable[Array]) -> onnx.ModelProto:
    """Return a copy whose convolutions and matrix products are int8, of about a quarter the size.

    Static quantization in the QDQ format: weights int8, symmetric, with a scale per output channel;
    activations uint8 with the range seen on the calibration images (MinMax). The first convolution
    stays float32, and biases of the others make up for what rounding their weights shifts. Inputs
    and outputs stay float32. For x86 processors with VNNI (AVX2 without it may saturate) and Arm.

    Sources: ONNX Runtime, "Quantize ONNX models"; Nagel et al. 2019, "Data-Free Quantization
    Through Weight Equalization and Bias Correction" (https://arxiv.org/abs/1906.04721), here with
    means measured on the calibration images.

    Args:
        backbone: float32, its weights in memory.
        batches: calibration images like those it will see, float32 ``pixel_values``
            ``[n, 3, height, width]``, 32 images or more; all are held in memory.

    Raises:
        DataError: there are no images, or they are not what the backbone takes.
        ExportError: ONNX Runtime cannot quantize the backbone.
    """
    images = _checked(batches, backbone.graph.input[0])
    with TemporaryDirectory(prefix="headkit-") as folder, _quiet():
        source, prepared, target = (Path(folder) / f"{n}.onnx" for n in ("in", "prepared", "out"))
        onnx.save(backbone, source)
        try:
            # Folds BatchNorm into convolutions. Symbolic shapes would need sympy, and add nothing.
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            model = onnx.load(prepared)
            first = _name_nodes(model.graph)
            _correct_biases(model, images, Path(folder), skip=first)
            onnx.save(model, prepared)
            quantize_static(
                prepared,
                target,
                _Reader(images, backbone.graph.input[0].name),
                op_types_to_quantize=list(QUANTIZED),
                nodes_to_exclude=first,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                # Float sums of int8 products: more exact than int8 ones, and faster, since the bias
                # and what follows in a transformer are float32.
                extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
            )
        except Exception as error:  # onnxruntime's own classes share no root below Exception
            raise ExportError(
                f"ONNX Runtime cannot quantize the backbone: {first_line(error)}; use fp16 or fp32"
            ) from error
        return _like(onnx.load(target), backbone)


def cost(before: Array, after: Array, targets: Array | None = None) -> Cost:
    """Compare logits of the same held-out images before and after.

    Args:
        before: of the float32 model, ``[images, num_classes]``.
        after: of the smaller model, the same shape.
        targets: the true class of each image, integers ``[images]``, where known.

    Raises:
        ValueError: the shapes differ.
        DataError: there are no images.
    """
    if before.ndim != 2 or before.shape != after.shape:
        raise ValueError(f"logits are {before.shape} before and {after.shape} after")
    if targets is not None and targets.shape != before.shape[:1]:
        raise ValueError(f"targets are {targets.shape}, expected {before.shape[:1]}")
    if not len(before):
        raise DataError("no held-out images to compare on; give at least one")
    difference = np.abs(after.astype(np.float64) - before) / max(np.abs(before).max(), 1e-12)
    difference[~np.isfinite(difference)] = np.inf
    found, expected = after.argmax(1), before.argmax(1)
    usable = np.isfinite(after).all(1)
    return Cost(
        images=len(before),
        agreement=float(np.mean((found == expected) & usable)),
        mean_difference=float(difference.mean()),
        max_difference=float(difference.max()),
        accuracy_before=None if targets is None else float(np.mean(expected == targets)),
        accuracy_after=None if targets is None else float(np.mean((found == targets) & usable)),
    )


def check(cost: Cost, max_cost: float, precision: str) -> None:
    """Refuse a precision that costs too much.

    Args:
        cost: what was measured.
        max_cost: largest loss of accuracy that is accepted, as a share of the images (0.02 for two
            percent); of agreement, where the accuracy is not known.
        precision: ``fp16`` or ``int8``, for the message.

    Raises:
        ParityError: the loss is larger, or logits are not finite.
    """
    advice = f"{_ADVICE.get(precision, 'keep fp32')}, or allow more with max_cost"
    if not math.isfinite(cost.max_difference):
        raise ParityError(
            f"{precision} gives logits that are not finite on some of {cost.images} images, "
            f"expected none; use another precision"
        )
    if cost.accuracy_before is None or cost.accuracy_after is None:
        loss = 1 - cost.agreement
        what = f"changes the class of {loss:.1%} of {cost.images} images"
    else:
        loss = cost.accuracy_before - cost.accuracy_after
        what = (
            f"lowers the accuracy on {cost.images} images from {cost.accuracy_before:.1%} "
            f"to {cost.accuracy_after:.1%}"
        )
    if loss > max_cost + 1e-9:  # shares are not exact in binary
        raise ParityError(f"{precision} {what}, allowed is {max_cost:.1%}; {advice}")


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Batches of images as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: Iterable[Array], name: str) -> None:
        self.feeds = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.feeds, None)


def _checked(batches: Iterable[Array], pixel_values: onnx.ValueInfoProto) -> list[Array]:
    dims = [d.dim_value for d in pixel_values.type.tensor_type.shape.dim]
    listed = [batch for batch in batches if len(batch)]
    for batch in listed:
        fits = batch.ndim == len(dims) and all(
            size in (0, found) for size, found in zip(dims, batch.shape, strict=True)
        )
        if batch.dtype != np.float32 or not fits:
            raise DataError(
                f"calibration images are {batch.dtype} {list(batch.shape)}, "
                f"expected float32 {[size or 'n' for size in dims]}"
            )
    if not listed:
        raise DataError("int8 needs calibration images and got none; give 32 or more of your own")
    return listed


def _name_nodes(graph: onnx.GraphProto) -> list[str]:
    """Name the nodes that have no name, and return that of the first convolution, if any."""
    for index, node in enumerate(graph.node):
        node.name = node.name or f"node_{index}"
    return [node.name for node in graph.node if node.op_type == "Conv"][:1]


def _correct_biases(
    model: onnx.ModelProto, images: Sequence[Array], folder: Path, skip: Sequence[str]
) -> None:
    """Subtract from each convolution's bias the mean shift that int8 weights bring."""
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
        seen = np.repeat(means[node.input[0]].reshape(groups, -1), len(weight) // groups, axis=0)
        bias = -(error * seen).sum(1)
        if len(node.input) == 3:
            bias += numpy_helper.to_array(weights[node.input[2]])
        name = f"{node.name}_corrected_bias"
        model.graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), name))
        node.input[2:] = [name]
    ONNXModel(model).clean_initializers()


def _rounding_error(weight: Array) -> Array:
    """Return int8 weights less float weights ``[out, in / groups, …]``; one scale per row."""
    largest = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True)
    scale = np.where(largest > 0, largest, 1) / LARGEST_INT8
    return np.asarray(np.round(weight / scale) * scale - weight)


def _channel_means(
    model: onnx.ModelProto, names: Sequence[str], images: Sequence[Array], folder: Path
) -> dict[str, Array]:
    """Return each tensor's mean over images and pixels, ``[channels]``."""
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
        found = session.run(outputs, {model.graph.input[0].name: batch})
        totals = [t + f.reshape(*f.shape[:2]).sum(0) for t, f in zip(totals, found, strict=True)]
    count = sum(len(batch) for batch in images)
    return {name: np.asarray(t) / count for name, t in zip(names, totals, strict=True)}


def _like(model: onnx.ModelProto, backbone: onnx.ModelProto) -> onnx.ModelProto:
    """Give the model the backbone's interface and metadata, and only the opsets that it uses."""
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's Python tools off the root logger, and from setting it up for good."""
    root, mute, disabled = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(mute)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.removeHandler(mute)
