"""A head as an estimator of scikit-learn, on features or on images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headkit.adapters.backbone.level import LAST, LevelNames, level_names
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.data.memory.open import open_inputs
from headkit.adapters.errors import DependencyMissing
from headkit.adapters.features.duplicates import number_copies
from headkit.adapters.features.extract import ExtractedFeatures
from headkit.adapters.features.given import digest_rows, given_levels
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.features.transform import View
from headkit.adapters.fitting.adamw import predict_logits
from headkit.adapters.fitting.classifier import AUTO, level_sets, plan_classifier
from headkit.adapters.fitting.fit_head import HeadFit, fit_head
from headkit.adapters.fitting.fit_linear import LinearFit, fit_linear
from headkit.adapters.heads.attach import head_of
from headkit.adapters.heads.kinds import Kind
from headkit.adapters.heads.tasks import DEFAULT, get_task

from .extraction import get_backbone, open_extraction
from .training.checks import check_arguments, check_penalty

DependencyMissing.check("sklearn", "HeadClassifier", "scikit-learn>=1.6")

from sklearn.base import BaseEstimator, ClassifierMixin  # noqa: E402
from sklearn.utils import check_random_state  # noqa: E402
from sklearn.utils.class_weight import compute_class_weight  # noqa: E402
from sklearn.utils.multiclass import check_classification_targets  # noqa: E402
from sklearn.utils.validation import (  # noqa: E402
    check_is_fitted,
    column_or_1d,
    validate_data,
)

Array = NDArray[np.float64]


class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """A head as a classifier of scikit-learn.

    Without a backbone, it takes features, float ``[N, num_features]``, and is a logistic regression
    whose penalty is chosen by cross-validation, see ``fit_linear``. With a backbone, it also
    takes images: an array uint8 ``[N, height, width, 3]`` or ``[N, height, width]``, or a list of
    paths, Pillow images, bytes or arrays. Their features are kept in the cache of ``fit``, so cross
    validation computes the features of each image once. The fitted attribute ``head_`` is then the
    head, which can be saved and exported.

    The head of images is the one that ``fit`` trains. But this class measures nothing, so the head
    has no metrics and the temperature 1.

    Args:
        backbone: None for features; or a timm entry point, or a timm model, which is not changed.
        kind: See ``fit``. It needs a backbone.
        levels: What a linear head reads of images, see ``fit``. Features have no levels.
        l2: See ``fit``. Of several strengths, the best one in cross validation is used.
        class_weight: ``balanced``, or weights by class; other classes weigh 1.
        weights: See ``fit``.
        remap: See ``fit``.
        runtime: See ``fit``.
        precision: See ``fit``.
        executor: See ``fit``.
        cache: See ``fit``.
        batch_size: See ``fit``.
        workers: See ``fit``.
        max_unreadable: Largest share of the training images that may be skipped as unreadable. To
            predict, every image must be readable.
        random_state: Seed of everything that is random, see ``seed`` of ``fit``.

    Attributes:
        classes_: The classes, in ascending order.
        n_features_in_: Number of features, if the classifier was fitted to features.
        coef_: Weights, float64 ``[num_classes, num_features]``; without a backbone.
        intercept_: Biases, float64 ``[num_classes]``; without a backbone.
        l2_: The strength of the penalty; for a linear head.
        head_: The head; with a backbone.
        model_: The model with the head; with a backbone.
        runtime_: Name of the runtime of the backbone; with a backbone.
    """

    def __init__(
        self,
        backbone: str | nn.Module | None = None,
        *,
        kind: Kind | None = None,
        levels: LevelNames = AUTO,
        l2: float | Sequence[float] | None = None,
        class_weight: Literal["balanced"] | Mapping[Any, float] | None = None,
        weights: str | Path | None = None,
        remap: bool = False,
        runtime: str = "auto",
        precision: str = "fp32",
        executor: str = "local",
        cache: bool | str | Path = True,
        batch_size: int = 16,
        workers: int | None = None,
        max_unreadable: float = 0.05,
        random_state: Any = 0,
    ) -> None:
        self.backbone = backbone
        self.kind = kind
        self.levels = levels
        self.l2 = l2
        self.class_weight = class_weight
        self.weights = weights
        self.remap = remap
        self.runtime = runtime
        self.precision = precision
        self.executor = executor
        self.cache = cache
        self.batch_size = batch_size
        self.workers = workers
        self.max_unreadable = max_unreadable
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> HeadClassifier:  # noqa: N803 - scikit-learn's name
        """Train the head.

        Args:
            X: Features, or images if there is a backbone.
            y: Classes ``[N]``, text or numbers.

        Raises:
            ValueError: The features or the classes are not valid, there is only one class, or a
                parameter is out of its range.
            DataError: The images are not valid, or too many cannot be read.
            ContractError: The architecture does not have these levels, or does not support this
                kind of head.
        """
        if self.backbone is None:
            if self.kind not in (None, "linear"):
                raise ValueError(f"kind is {self.kind!r}, which needs a backbone: pass backbone")
            if level_names(self.levels) not in ([AUTO], [LAST]):
                raise ValueError(
                    f"levels is {self.levels!r}, which needs a backbone: pass backbone"
                )
            X, y = validate_data(self, X, y, dtype=np.float64)  # noqa: N806
            self._fit_features(X, self._encode(y))
        else:
            y = column_or_1d(y, warn=True)
            dataset = open_inputs(X, np.zeros(len(y), np.int64), "X")
            self._fit_images(replace(dataset, targets=self._encode(y)), X)
        return self

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return the most likely class of each row or image, ``[N]``."""
        logits = self._logits(X)
        found: NDArray[Any] = self.classes_[logits.argmax(1)]
        return found

    def predict_proba(self, X: Any) -> Array:  # noqa: N803
        """Return the probabilities, float64 ``[N, num_classes]`` in the order of ``classes_``."""
        return np.asarray(get_task(DEFAULT).scores(self._logits(X)))

    def decision_function(self, X: Any) -> Array:  # noqa: N803
        """Return the logits, float64 ``[N, num_classes]``.

        For two classes, return the logit of the second minus that of the first, ``[N]``.
        """
        logits = self._logits(X)
        return logits if logits.shape[1] > 2 else logits[:, 1] - logits[:, 0]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.backbone is not None:
            tags.input_tags.three_d_array = True
            tags.input_tags.string = True
        return tags

    def _encode(self, y: NDArray[Any]) -> NDArray[np.int64]:
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has only one class, {self.classes_[0]}: a classifier needs at least two classes"
            )
        return codes.astype(np.int64)

    def _class_weights(self, codes: NDArray[np.int64]) -> torch.Tensor | None:
        if self.class_weight is None:
            return None
        y = self.classes_[codes]
        weight = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        return torch.from_numpy(weight)

    def _fit_features(self, x: Array, codes: NDArray[np.int64]) -> None:
        rows = torch.from_numpy(x.astype(np.float32))
        images = torch.arange(len(rows))
        examples = LabeledFeatures(
            rows, torch.from_numpy(codes), [rows.shape[1:]], images, images >= 0
        )
        how = LinearFit(
            (),
            get_task(DEFAULT),
            len(self.classes_),
            self._class_weights(codes),
            self.l2,
            self._choose_seed(),
        )
        _, copies = np.unique(digest_rows([x]), return_inverse=True)
        fitted = fit_linear(examples, torch.from_numpy(copies.reshape(-1)), images < 0, how)
        self.coef_ = fitted.linear.weight.numpy()
        self.intercept_ = fitted.linear.bias.numpy()
        self.l2_ = fitted.choices["l2"]

    def _fit_images(self, dataset: ImageDataset, values: Any) -> None:
        check_arguments(
            holdout=None,
            l2=self.l2,
            kind=self.kind,
            thresholds=None,
            views=1,
            batch_size=self.batch_size,
            workers=self.workers,
        )
        if dataset.features is not None:
            validate_data(self, values, dtype=np.float64)  # sets n_features_in_
        model = get_backbone(self.backbone, self.weights, self.remap, {})
        if isinstance(self.backbone, nn.Module):
            model = copy_structure(model, share_tensors=True)
        plan = plan_classifier(model, self.kind)
        present = given_levels([dataset])
        sets = level_sets(model, plan, self.levels, self.kind, self.l2, present=present)
        check_penalty(self.l2, plan, sets)
        self.runtime_ = self.runtime
        self._levels = [name for one in sets for name in one]
        with self._extract(model, dataset, self._levels, self.max_unreadable) as extracted:
            examples = LabeledFeatures.from_views([extracted])
            weights = self._class_weights(examples.y.numpy())
            how = HeadFit(
                plan, sets, len(self.classes_), DEFAULT, weights, self.l2, self._choose_seed()
            )
            held = torch.zeros(len(examples), dtype=torch.bool)
            fitted = fit_head(model, examples, number_copies(extracted), held, how)
        self.model_ = fitted.model
        if "l2" in fitted.choices:
            self.l2_ = fitted.choices["l2"]
        metrics = {"num_train": len(examples), "num_val": 0, **fitted.choices}
        self.head_ = head_of(self.model_, [str(name) for name in self.classes_], metrics=metrics)

    def _choose_seed(self) -> int:
        if isinstance(self.random_state, Integral):
            return int(self.random_state)  # the seed of ``fit``
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _logits(self, values: Any) -> Array:
        check_is_fitted(self)
        if self.backbone is None:
            x = validate_data(self, values, dtype=np.float64, reset=False)
            return np.asarray(x @ self.coef_.T + self.intercept_)
        dataset = open_inputs(values, None, "X")
        # As in the fit, so that each fold of a cross validation finds what another one computed.
        levels = self._levels
        if dataset.features is not None:
            levels = [level.name for level in self.head_.levels]
            if hasattr(self, "n_features_in_"):
                validate_data(self, values, dtype=np.float64, reset=False)
        with self._extract(self.model_, dataset, levels, 0.0) as extracted:
            logits = predict_logits(self.model_, LabeledFeatures.from_views([extracted]))
        return np.asarray(logits.numpy())

    @contextmanager
    def _extract(
        self,
        model: nn.Module,
        dataset: ImageDataset,
        levels: Sequence[str],
        max_unreadable: float,
    ) -> Iterator[ExtractedFeatures]:
        with open_extraction(
            model,
            [(dataset, View())],
            runtime=self.runtime_,
            precision=self.precision,
            executor=self.executor,
            cache=self.cache,
            batch_size=self.batch_size,
            workers=self.workers,
            max_unreadable=max_unreadable,
            levels=levels,
        ) as extraction:
            extracted = extraction(dataset)
            # Predictions must not depend on how many images are predicted at once.
            self.runtime_ = extraction.runtime.name
            yield extracted
