"""The user's images for a reduced precision: some to calibrate with, others to measure its cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from headkit.adapters.errors import DataError, ExportError
from headkit.adapters.images import ImageLike, list_images, open_image
from headkit.export.graph.forms import Heads
from headkit.export.graph.metadata import ModelInfo, logits_name
from headkit.export.predict.predictor import batched
from headkit.export.preprocess.pillow import Preprocess
from headkit.export.runtimes.onnxruntime import open_session

from .reduce import check, cost, to_fp16, to_int8

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
        calibration: to find the ranges of activations with.
        held_out: to measure with.
        preprocess: what is applied to each.
    """

    calibration: Sequence[ImageLike]
    held_out: Sequence[ImageLike]
    preprocess: Preprocess

    @classmethod
    def load(cls, images: ImageLike | Iterable[ImageLike], preprocess: Preprocess) -> Images:
        """Halve the images in turn, so that each class folder is in both halves.

        Raises:
            DataError: there are fewer than ``MIN_IMAGES``.
        """
        listed = list_images(images)
        if len(listed) < MIN_IMAGES:
            raise DataError(
                f"a reduced precision needs at least {MIN_IMAGES} images to calibrate and to "
                f"measure it: found {len(listed)}"
            )
        return cls(
            _spread(listed[::2], MAX_CALIBRATION), _spread(listed[1::2], MAX_HELD_OUT), preprocess
        )

    def batches(self, images: Sequence[ImageLike]) -> Iterator[Array]:
        """Yield ``pixel_values`` float32 ``[n, 3, height, width]``."""
        for some in batched(images, _BATCH):
            yield np.stack([self.preprocess(open_image(image)) for image in some])

    def targets(self, label_names: Sequence[str]) -> Array | None:
        """Return the class of each held-out image, where folders are named after classes."""
        folders = [Path(i).parent.name if isinstance(i, str | Path) else "" for i in self.held_out]
        if not set(folders) <= set(label_names) or len(set(label_names)) < len(label_names):
            return None
        return np.array([label_names.index(folder) for folder in folders])


def reduce(backbone: onnx.ModelProto, precision: str, images: Images) -> onnx.ModelProto:
    """Return a copy of a float32 backbone in another precision.

    Raises:
        ExportError: ONNX Runtime cannot convert it.
    """
    if precision == "fp16":
        return to_fp16(backbone)
    return to_int8(backbone, images.batches(images.calibration))


def measured(
    before: Path,
    after: Path,
    info: ModelInfo,
    heads: Heads,
    images: Images,
    max_cost: float,
) -> ModelInfo:
    """Measure on held-out images what the precision of ``info`` costs each head.

    Args:
        before: the same model in float32.
        after: the one in the reduced precision.
        info: of ``after``.
        heads: of both.
        images: their held-out half is used.
        max_cost: share of images whose class may change, or of accuracy that may be lost where
            the images lie in folders named after the classes.

    Returns:
        The description with the cost of each head.

    Raises:
        ParityError: it costs more.
    """
    names = [logits_name(name) for name in heads]
    sessions = [open_session(before), open_session(after)]
    runs = [
        [session.run(names, {"pixel_values": pixels}) for session in sessions]
        for pixels in images.batches(images.held_out)
    ]
    found = {}
    for number, one in enumerate(info.heads):
        before_logits, after_logits = (
            np.concatenate([run[which][number] for run in runs]) for which in range(len(sessions))
        )
        found[one.name] = cost(before_logits, after_logits, images.targets(one.label_names))
        check(found[one.name], max_cost, info.precision)
    return replace(info, cost={name: measured.to_json() for name, measured in found.items()})


def check_measurable(heads: Heads) -> None:
    """Tell at once whether the cost of a precision can be measured with these heads.

    Raises:
        ExportError: there is none, or one that is not for multiclass.
    """
    if not heads or any(head.task != "multiclass" for head in heads.values()):
        raise ExportError(
            "what a precision costs is measured by the class of images: that takes heads for "
            "multiclass, and not the form 'backbone'"
        )


def _spread(images: Sequence[ImageLike], at_most: int) -> Sequence[ImageLike]:
    """Some of many, from the first to the last."""
    if len(images) <= at_most:
        return images
    return [images[int(at)] for at in np.linspace(0, len(images) - 1, at_most)]
