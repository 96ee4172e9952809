"""Calibrate a reduced precision on some of the user's images and measure its cost on others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from headkit.adapters.errors import DataError, ExportError
from headkit.adapters.heads.tasks import get_task
from headkit.adapters.images.open import ImageLike, ImageReader
from headkit.adapters.images.pixel_rule import CURRENT_RULE, PixelRule
from headkit.adapters.images.sources import list_images
from headkit.export.graph.description.names import logits_name
from headkit.export.graph.heads_in_graph import Heads
from headkit.export.graph.metadata import ModelInfo
from headkit.export.predict.batches import batched
from headkit.export.preprocess.pillow import Preprocess
from headkit.export.runtimes.onnxruntime import open_session

from .reduce import check_cost, compare_logits, to_fp16, to_int8

PRECISIONS = ("fp32", "fp16", "int8")
MAX_COST = 0.02
"""Share of held-out images whose class may change, or of accuracy that may be lost."""
MIN_IMAGES = 16
MAX_CALIBRATION, MAX_HELD_OUT = 128, 1024
_BATCH = 16

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Images:
    """Images in two halves that do not overlap.

    Attributes:
        calibration: Images that int8 takes the ranges of activations from.
        held_out: Images that the cost is measured on.
        preprocess: Transform of each image.
        read: Reader of the images.
    """

    calibration: Sequence[ImageLike]
    held_out: Sequence[ImageLike]
    preprocess: Preprocess
    read: ImageReader

    @classmethod
    def load(
        cls,
        images: ImageLike | Iterable[ImageLike],
        cfg: Mapping[str, Any],
        rule: PixelRule = CURRENT_RULE,
    ) -> Images:
        """Put every other image into each half, so that each class folder is in both halves.

        Args:
            images: A folder, or images, see ``list_images``.
            cfg: Preprocessing of the model, see ``Preprocess.from_cfg``.
            rule: Rule by which image files become pixels.

        Raises:
            DataError: There are fewer than ``MIN_IMAGES``.
        """
        listed = list_images(images)
        if len(listed) < MIN_IMAGES:
            raise DataError(
                "calibrating and measuring a reduced precision needs at least "
                f"{MIN_IMAGES} images, found {len(listed)}"
            )
        return cls(
            _pick_evenly(listed[::2], MAX_CALIBRATION),
            _pick_evenly(listed[1::2], MAX_HELD_OUT),
            Preprocess.from_cfg(cfg),
            ImageReader.for_model(cfg, rule),
        )

    def batches(self, images: Sequence[ImageLike]) -> Iterator[Array]:
        """Yield ``pixel_values`` float32 ``[n, channels, height, width]``."""
        for some in batched(images, _BATCH):
            yield np.stack([self.preprocess(self.read(image)) for image in some])

    def targets(self, label_names: Sequence[str]) -> Array | None:
        """Return the class of each held-out image; None if folders are not named after classes."""
        folders = [Path(i).parent.name if isinstance(i, str | Path) else "" for i in self.held_out]
        if not set(folders) <= set(label_names) or len(set(label_names)) < len(label_names):
            return None
        return np.array([label_names.index(folder) for folder in folders])


def reduce_precision(backbone: onnx.ModelProto, precision: str, images: Images) -> onnx.ModelProto:
    """Return a copy of a float32 backbone in a reduced precision.

    Raises:
        ExportError: ONNX Runtime cannot convert the backbone.
    """
    if precision == "fp16":
        return to_fp16(backbone)
    return to_int8(backbone, images.batches(images.calibration))


def measure_cost(
    before: Path,
    after: Path,
    info: ModelInfo,
    heads: Heads,
    images: Images,
    max_cost: float,
) -> ModelInfo:
    """Measure the cost of a reduced precision for each head, on held-out images.

    Args:
        before: Path of the model in float32.
        after: Path of the model in the reduced precision.
        info: Description of the model ``after``.
        heads: Heads of both models.
        images: Images whose held-out half is used.
        max_cost: Share of images whose class may change; if the images are in folders named after
            the classes, the accuracy that may be lost.

    Returns:
        The description with the cost of each head.

    Raises:
        ParityError: The cost of a head is above ``max_cost``.
    """
    names = [logits_name(name) for name in heads]
    sessions = [open_session(before), open_session(after)]
    runs = [
        [session.run(names, {"pixel_values": pixels}) for session in sessions]
        for pixels in images.batches(images.held_out)
    ]
    costs = {}
    for number, head in enumerate(info.heads):
        before_logits, after_logits = (
            np.concatenate([run[which][number] for run in runs]) for which in range(len(sessions))
        )
        cost = compare_logits(before_logits, after_logits, images.targets(head.label_names))
        check_cost(cost, max_cost, info.precision)
        costs[head.name] = cost.to_json()
    return replace(info, cost=costs)


def check_measurable(heads: Heads) -> None:
    """Raise unless the cost of a precision can be measured with these heads.

    Raises:
        ExportError: There are no heads, or one is not for multiclass.
    """
    if not heads or not all(get_task(head.task).exclusive for head in heads.values()):
        raise ExportError(
            "the cost of fp16 and int8 is measured on predicted classes, which needs multiclass "
            "heads: use precision 'fp32' for other tasks and for the form 'backbone'"
        )


def _pick_evenly(images: Sequence[ImageLike], at_most: int) -> Sequence[ImageLike]:
    """Return at most ``at_most`` images, evenly spaced from the first to the last."""
    if len(images) <= at_most:
        return images
    return [images[int(at)] for at in np.linspace(0, len(images) - 1, at_most)]
