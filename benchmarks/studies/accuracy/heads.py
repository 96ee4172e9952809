"""Heads on frozen features: from features and targets of training images to logits of the others.

Each head is a ``Method``, so that another one takes a function and a row in ``contenders``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from headkit.adapters.backbone.level import LAST, Level
from headkit.adapters.backbone.levels import find_levels
from headkit.adapters.data.holdout import Mask
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.fitting.adamw import predict_logits
from headkit.adapters.fitting.classifier import Plan
from headkit.adapters.fitting.fit_head import HeadFit, fit_head
from headkit.adapters.fitting.fit_linear import LinearFit, fit_linear
from headkit.adapters.fitting.linear.solve import STRENGTHS, solve
from headkit.adapters.fitting.out_of_fold import apply_linear
from headkit.adapters.heads.tasks import get_task

from . import backbones
from .clock import Clock
from .features import extract
from .scores import score
from .sets import Array, ImageSet

Method = Callable[[Mapping[str, Array], ImageSet, str, Mask, int], Array]
"""A function that takes the levels of all images by name, the images, the
backbone's architecture, the mask ``[N]`` of the training images and a seed. It returns the logits
of the other images, ``[M, outputs]``. It may read the targets of the training images alone."""

PROJECTED = 4096
"""Number of random features; a head on them is about as large as a head over all levels."""
NEIGHBORS = (1, 3, 5, 9, 15, 25)
FOLDS = 5


def measure(
    method: Method, images: ImageSet, backbone: str, training: Mask, seed: int
) -> dict[str, Any]:
    """Fit a head to the training images, and score it on the others.

    Returns:
        The scores, and the time from pixels to the head: ``features_cpu_seconds`` is the share of
        the training images in the extraction; ``cpu_seconds`` includes it.
    """
    extracted = extract(images, backbone)
    clock = Clock()
    logits = method(extracted.levels, images, backbone, training, seed)
    fitting = clock.read()["cpu_seconds"]
    features = round(extracted.cpu_seconds * int(training.sum()), 3)
    return {
        **score(images, logits, images.targets[~training]),
        "num_train": int(training.sum()),
        "num_test": int((~training).sum()),
        "features_cpu_seconds": features,
        "cpu_seconds": round(features + fitting, 3),
        "threads": torch.get_num_threads(),
    }


def last_features(
    levels: Mapping[str, Array], images: ImageSet, _backbone: str, training: Mask, _seed: int
) -> Array:
    """Solve for a linear head on the last features; cross-validation chooses its strength."""
    x, y = torch.from_numpy(levels[LAST]), torch.from_numpy(images.targets)
    solution = solve(x[training], y[training], images.num_outputs, task=images.task)
    logits = x[~training].double() @ solution.linear.weight.T + solution.linear.bias
    return logits.numpy()


def over_levels(
    levels: Mapping[str, Array], images: ImageSet, backbone: str, training: Mask, seed: int
) -> Array:
    """Fit a linear head over the levels that ``fit`` chooses by default."""
    found = find_levels(backbones.load(backbone))
    sets = ((LAST,), (LAST, *(level.name for level in found)))
    return _fit(label_features(levels, images, found), images, sets, training, seed)


def projection(
    levels: Mapping[str, Array], images: ImageSet, backbone: str, training: Mask, seed: int
) -> Array:
    """Fit as ``over_levels`` does, to a random projection of all levels and the ReLU of it.

    The projection is that of RanPAC (arXiv:2307.02251), the same in all draws. The levels are
    standardized on the training images, and each one has the same say.
    """
    names = [LAST, *(level.name for level in find_levels(backbones.load(backbone)))]
    generator = torch.Generator().manual_seed(0)
    projected = torch.zeros(len(images.targets), PROJECTED)
    for name in names:
        x = torch.from_numpy(levels[name])
        deviation, mean = torch.std_mean(x[training], 0)
        x = torch.where(deviation > 0, (x - mean) / deviation, 0)
        random = torch.randn(x.shape[1], PROJECTED, generator=generator)
        projected += x @ random / x.shape[1] ** 0.5
    examples = label_features({LAST: projected.relu().numpy()}, images, ())
    return _fit(examples, images, ((LAST,),), training, seed)


def _fit(
    examples: LabeledFeatures,
    images: ImageSet,
    sets: tuple[tuple[str, ...], ...],
    training: Mask,
    seed: int,
) -> Array:
    how = LinearFit(sets, get_task(images.task), images.num_outputs, seed=seed)
    chosen = examples.select(torch.from_numpy(training))
    fitted = fit_linear(chosen, torch.arange(len(examples)), None, how)
    others = examples.select(torch.from_numpy(~training))
    return apply_linear(fitted.linear, others.row(fitted.levels)).numpy()


def mlp(
    levels: Mapping[str, Array], images: ImageSet, backbone: str, training: Mask, seed: int
) -> Array:
    """Train headkit's ``mlp`` head by AdamW; a held-out fifth chooses rate and epochs."""
    examples = label_features(levels, images, ())
    chosen = examples.select(torch.from_numpy(training))
    plan = Plan("mlp", linear=False)
    how = HeadFit(plan, (), images.num_outputs, images.task, None, None, seed)
    blocks = torch.arange(len(examples))
    fitted = fit_head(
        backbones.load(backbone), chosen, blocks, torch.zeros_like(blocks, dtype=torch.bool), how
    )
    return predict_logits(fitted.model, examples.select(torch.from_numpy(~training))).numpy()


def label_features(
    levels: Mapping[str, Array], images: ImageSet, chosen: Sequence[Level]
) -> LabeledFeatures:
    """Return last features and levels of all images."""
    parts = [torch.from_numpy(levels[name]) for name in (LAST, *(one.name for one in chosen))]
    count = len(parts[0])
    return LabeledFeatures(
        torch.cat(parts, 1),
        torch.from_numpy(images.targets),
        [part.shape[1:] for part in parts],
        torch.arange(count),
        torch.ones(count, dtype=torch.bool),
        tuple(chosen),
    )


def neighbors(
    levels: Mapping[str, Array], images: ImageSet, _backbone: str, training: Mask, _seed: int
) -> Array:
    """Vote among the nearest images by cosine; cross-validation chooses their number."""
    from sklearn.neighbors import KNeighborsClassifier

    x, y = levels[LAST], images.targets
    smallest_fit = int(training.sum()) * (FOLDS - 1) // FOLDS
    numbers = [number for number in NEIGHBORS if number <= smallest_fit]
    search = _grid_search(
        KNeighborsClassifier(metric="cosine"), {"n_neighbors": numbers}, images.balanced
    )
    return np.asarray(search.fit(x[training], y[training]).predict_proba(x[~training]))


def logistic_regression(
    levels: Mapping[str, Array], images: ImageSet, _backbone: str, training: Mask, _seed: int
) -> Array:
    """Search scikit-learn's logistic regression on standardized features for the best strength."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = levels[LAST], images.targets
    values = [1 / (l2 * int(training.sum())) for l2 in STRENGTHS]
    search = _grid_search(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": values},
        images.balanced,
    )
    return np.asarray(search.fit(x[training], y[training]).predict_proba(x[~training]))


def _grid_search(estimator: Any, grid: Mapping[str, Any], balanced: bool) -> Any:
    """Return scikit-learn's grid search by the score that the study reports."""
    from sklearn.model_selection import GridSearchCV

    scoring = "balanced_accuracy" if balanced else "accuracy"
    return GridSearchCV(estimator, grid, scoring=scoring, cv=FOLDS, error_score="raise")
