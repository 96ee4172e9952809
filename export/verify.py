"""Run an exported model in ONNX Runtime and compare it with torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear

from headkit.adapters.backbone.forward import classify, features
from headkit.adapters.errors import ExportError, ParityError, first_line
from headkit.adapters.heads.attach import attach
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.tasks import get_task
from headkit.adapters.images.pixels import MODES
from headkit.export.graph.description.names import (
    LEVEL_BIAS,
    LEVEL_WEIGHT,
    level_output,
    logits_name,
    probabilities_name,
)
from headkit.export.graph.heads_in_graph import Heads
from headkit.export.graph.metadata import ModelInfo
from headkit.export.preprocess.pillow import Preprocess
from headkit.export.runtimes.onnxruntime import open_session

VERIFIED_BATCHES = (1, 3, 8)
TOLERANCE = 1e-4
"""Largest accepted difference between ONNX Runtime and torch, relative to the largest value."""
PIXEL_TOLERANCE = 1 / 255
"""Largest accepted mean difference of preprocessed pixels, as a share of their range."""

Array = np.ndarray[Any, Any]


@torch.no_grad()
def verify(
    path: Path,
    model: nn.Module,
    info: ModelInfo,
    heads: Heads,
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> dict[int, float]:
    """Compare every output with torch on random images at each of ``VERIFIED_BATCHES``.

    Args:
        path: Path of a model that takes ``pixel_values``.
        model: The backbone with the head. If there are several heads, they are attached in turn.
        info: Description of the exported model.
        heads: Heads by name, as in ``info``.
        tolerance: Largest accepted difference.
        seed: Seed of the images.

    Returns:
        Per batch size, the largest difference relative to the largest value of that output.

    Raises:
        ParityError: A difference is above ``tolerance`` or not a number.
        ExportError: ONNX Runtime cannot read or run the file.
    """
    session = open_session(path)
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    size = info.backbone["pretrained_cfg"]["input_size"]
    images = {n: random_images(n, size, generator) for n in VERIFIED_BATCHES}
    entering = {batch: features(model, pixels.to(device)) for batch, pixels in images.items()}
    levels = [level.name for level in info.levels]
    rows = {
        batch: features(model, pixels.to(device), levels)
        for batch, pixels in images.items()
        if levels or any(head.levels for head in heads.values())
    }
    outputs = {batch: _run(session, pixels.numpy(), batch) for batch, pixels in images.items()}
    differences = dict.fromkeys(VERIFIED_BATCHES, 0.0)

    def compare(batch: int, name: str, expected: Tensor) -> None:
        difference = _difference(outputs[batch][name], expected.cpu().numpy(), batch)
        if not difference <= tolerance:
            raise ParityError(
                f"at batch {batch} ONNX Runtime and torch differ in {name} by {difference:.1e} "
                f"times the largest value; the limit is {tolerance:.0e}; no file was written"
            )
        differences[batch] = max(differences[batch], difference)

    if info.form == "backbone":
        for batch, tensors in entering.items():
            values = (tensors,) if isinstance(tensors, Tensor) else tensors
            for name, tensor in zip(info.features, values, strict=True):
                compare(batch, name, tensor)
            for level in info.levels:
                compare(batch, level_output(level), rows[batch][level.name])
    for name, head in heads.items():
        if len(heads) > 1 and not head.levels:
            attach(model, head, force=True)
        for batch, tensors in entering.items():
            logits = (
                _classify_levels(head, rows[batch]) if head.levels else classify(model, tensors)
            )
            compare(batch, logits_name(name), logits)
            if info.probabilities:
                probabilities = get_task(head.task).tensor_scores(logits, head.temperature)
                compare(batch, probabilities_name(name), probabilities)
    return differences


def _classify_levels(head: Head, levels: Mapping[str, Tensor]) -> Tensor:
    """Return the logits of a head over levels ``[batch, num_classes]``."""
    row = torch.cat([levels[level.name] for level in head.levels], 1)
    weight, bias = (
        torch.from_numpy(np.asarray(head.tensors[name], np.float32)).to(row.device)
        for name in (LEVEL_WEIGHT, LEVEL_BIAS)
    )
    return linear(row, weight, bias)


def random_images(number: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return normalized images ``[number, *size]`` that differ by more than noise.

    Every other image, from the first on, is noise. The others also have patches of color, like
    photos, because many networks average noise away.
    """
    noise = torch.randn(number, *size, generator=generator)
    patches = torch.randn(number, size[0], 4, 4, generator=generator)
    patches = interpolate(patches, size=tuple(size[1:]), mode="bicubic")
    patched = torch.arange(number).view(-1, 1, 1, 1) % 2 == 1
    return torch.where(patched, 0.5 * noise + patches, noise)


def verify_runs(path: Path, info: ModelInfo, heads: Heads, *, seed: int = 0) -> None:
    """Run a model in a reduced precision at each batch size and check its outputs for consistency.

    Torch has no reference for its numbers.

    Raises:
        ParityError: An output has another shape, logits are not finite, or probabilities do not
            follow from the logits.
        ExportError: ONNX Runtime cannot read or run the file.
    """
    session = open_session(path)
    size = info.backbone["pretrained_cfg"]["input_size"]
    generator = torch.Generator().manual_seed(seed)
    for batch in VERIFIED_BATCHES:
        pixels = torch.randn(batch, *size, generator=generator)
        outputs = _run(session, pixels.numpy(), batch)
        for name, head in heads.items():
            logits = outputs[logits_name(name)]
            if logits.shape != (batch, head.num_classes) or not np.isfinite(logits).all():
                raise ParityError(
                    f"in {info.precision} at batch size {batch}, {logits_name(name)} has the shape "
                    f"{list(logits.shape)}, expected {[batch, head.num_classes]} without NaN or "
                    "infinite values; no file was written"
                )
            if info.probabilities:
                task = get_task(head.task)
                expected = task.tensor_scores(torch.from_numpy(logits), head.temperature).numpy()
                difference = _difference(outputs[probabilities_name(name)], expected, batch)
                if not difference <= TOLERANCE:
                    raise ParityError(
                        f"in {info.precision}, the output {probabilities_name(name)} differs from "
                        f"the scores of its logits by {difference:.1e}, expected at most "
                        f"{TOLERANCE:.0e}; no file was written"
                    )


def verify_preprocessing(
    whole: Path, preprocessing: Path, model: Path, preprocess: Preprocess, *, tolerance: float
) -> float:
    """Compare the graph's pixels with Pillow's, and the whole model with its two parts in turn.

    Args:
        whole: Path of the model from ``image`` to the outputs.
        preprocessing: Path of the model from ``image`` to ``pixel_values``.
        model: Path of the model from ``pixel_values`` to the outputs.
        preprocess: The same preprocessing with Pillow.
        tolerance: Largest accepted difference between the whole and its parts.

    Returns:
        The mean absolute difference of pixels, as a share of their range.

    Raises:
        ParityError: That difference is above ``PIXEL_TOLERANCE``, or the outputs of the whole
            differ from those of its parts.
    """
    photo = Image.fromarray(_random_photo(640, 480)).convert(MODES[preprocess.channels])
    image = np.asarray(photo).reshape(photo.height, photo.width, preprocess.channels)
    (pixels,) = open_session(preprocessing).run(["pixel_values"], {"image": image[None]})
    expected = preprocess(photo)
    spread = np.asarray(preprocess.std, np.float32)[:, None, None]
    difference = float(np.abs((pixels[0] - expected) * spread).mean())
    if not difference <= PIXEL_TOLERANCE:
        raise ParityError(
            f"the graph's pixels differ from Pillow's by {difference:.1e} of their range on "
            f"average; the limit is {PIXEL_TOLERANCE:.1e}; no file was written"
        )
    in_turn, at_once = (
        session.run(None, feed)
        for session, feed in (
            (open_session(model), {"pixel_values": pixels}),
            (open_session(whole), {"image": image[None]}),
        )
    )
    worst = max(_difference(a, b, 1) for a, b in zip(at_once, in_turn, strict=True))
    if not worst <= tolerance:
        raise ParityError(
            f"with preprocessing in the graph the outputs differ by {worst:.1e} times the largest "
            f"value; the limit is {tolerance:.0e}; no file was written"
        )
    return difference


def _random_photo(width: int, height: int, seed: int = 0) -> Array:
    """Return smooth colors with edges: noise alone would hide errors of a resize in shapes."""
    blocks = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    size = (width, height)
    return np.asarray(Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC))


def _run(session: ort.InferenceSession, pixels: Array, batch: int) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, {"pixel_values": pixels}), strict=True))
    except Exception as error:  # onnxruntime's own classes share no root below Exception
        raise ExportError(
            f"ONNX Runtime failed at batch size {batch}: {first_line(error)}"
        ) from error


def _difference(actual: Array, expected: Array, batch: int) -> float:
    if actual.shape != expected.shape:
        raise ParityError(
            f"at batch size {batch}, ONNX Runtime returns the shape {list(actual.shape)}, but "
            f"torch returns {list(expected.shape)}; no file was written"
        )
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-12))
