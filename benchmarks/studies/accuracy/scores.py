"""Score the logits of test images as the study reports them."""

from __future__ import annotations

import numpy as np

from headkit.adapters.heads.tasks import get_task

from .sets import Array, ImageSet


def score(images: ImageSet, logits: Array, targets: Array) -> dict[str, float]:
    """Return the scores of logits ``[N, outputs]``; ``score`` is the one that is compared.

    It is the accuracy or the balanced accuracy (the mean recall of the classes) for multiclass, the
    mean average precision for multilabel, and R² for regression.
    """
    task = get_task(images.task)
    if not task.has_classes:
        error = np.abs(logits - targets)
        spread = np.square(targets - targets.mean(0)).sum()
        values = {"score": 1 - np.square(error).sum() / spread, "mae": error.mean()}
    elif not task.exclusive:
        from sklearn.metrics import average_precision_score

        values = {
            "score": average_precision_score(targets, logits, average="macro"),
            "exact_match": ((logits > 0) == (targets > 0)).all(1).mean(),
        }
    else:
        right = logits.argmax(1) == targets
        recalls = [right[targets == label].mean() for label in np.unique(targets)]
        values = {"accuracy": right.mean(), "balanced_accuracy": np.mean(recalls)}
        chosen = "balanced_accuracy" if images.balanced else "accuracy"
        values = {"score": values[chosen], **values}
    return {name: round(float(value), 6) for name, value in values.items()}
