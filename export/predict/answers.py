"""Answer what the heads of a model say about a batch of images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from headkit.adapters.images.pixel_rule import PixelRule

from .batches import ReadImage
from .loaded_heads import LoadedHead
from .scores import Prediction, Result, check_logits, compute_scores, select_top

Array = np.ndarray[Any, Any]
Run = Callable[[Array, Sequence[LoadedHead]], list[Array]]
"""Takes a batch for the model and heads; returns the logits of each head."""


OnError = Literal["raise", "return", "skip"]
"""What to do about an image that cannot be read."""

logger = logging.getLogger("headkit")


@dataclass(frozen=True)
class Answer:
    """An image, and its predictions by the name of the head; none if it cannot be read."""

    image: ReadImage
    predictions: dict[str, list[Prediction]]


def answer(
    images: Sequence[ReadImage], heads: Sequence[LoadedHead], top_k: int, run: Run
) -> Iterator[Answer]:
    """Yield the predictions for each image of a batch.

    Raises:
        ExportError: ONNX Runtime cannot run the model.
    """
    readable = [image for image in images if image.error is None]
    found: list[dict[str, list[Prediction]]] = [{} for _ in readable]
    for batch, some_heads in _batches(readable, heads):
        for head, logits in zip(some_heads, run(batch, some_heads), strict=True):
            scores = compute_scores(head.info.description, check_logits(head.info, logits))
            for of_image, row in zip(found, scores, strict=True):
                of_image[head.info.name] = select_top(head.info, row, top_k)
    left = iter(found)
    for image in images:
        of_image = next(left) if image.error is None else {}
        names = (head.info.name for head in heads)
        yield Answer(image, {name: of_image[name] for name in names if of_image})


def to_results(answers: Iterable[Answer], on_error: OnError) -> Iterator[Result]:
    """Yield the results of answers; see ``Predictor.stream``."""
    number = skipped = 0
    for number, one in enumerate(answers, 1):  # noqa: B007 - used after the loop
        for name, predictions in one.predictions.items():
            yield Result(one.image.name, name, predictions)
        if one.image.error is None:
            continue
        skipped += 1
        if on_error == "raise":
            raise one.image.error
        if on_error == "return":
            yield Result(one.image.name, "", [], one.image.reason)
    if skipped and on_error == "skip":
        logger.warning("%d of %d images could not be read and were skipped", skipped, number)


def _batches(
    images: Sequence[ReadImage], heads: Sequence[LoadedHead]
) -> list[tuple[Array, list[LoadedHead]]]:
    """Return batches for the model, each with the heads that take it.

    The rules of all heads give the same pixels for most images: then one batch serves all heads.
    """
    batches: list[tuple[Array, list[LoadedHead]]] = []
    by_rule: dict[PixelRule, list[LoadedHead]] = {}
    for head in heads if images else ():
        by_rule.setdefault(head.pixels, []).append(head)
    for rule, some_heads in by_rule.items():
        batch = np.stack([image.pixels[rule] for image in images])
        same = next((heads for other, heads in batches if np.array_equal(other, batch)), None)
        if same is None:
            batches.append((batch, some_heads))
        else:
            same.extend(some_heads)
    return batches
