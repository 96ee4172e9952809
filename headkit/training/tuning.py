"""Tune a backbone on opened data: choose, measure, and train on all images."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headkit.adapters.backbone.delta.delta import Delta
from headkit.adapters.backbone.delta.merge import merge_delta
from headkit.adapters.backbone.fingerprint import backbone_info
from headkit.adapters.backbone.level_head import level_head_of, without_level_head
from headkit.adapters.backbone.preprocessing import preprocessing, timm_cfg
from headkit.adapters.errors import DataError
from headkit.adapters.features.disk_space import CHECKPOINTS
from headkit.adapters.features.extract import ExtractedFeatures
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.features.transform import View
from headkit.adapters.files import cache_folder
from headkit.adapters.fitting.adamw import predict_logits
from headkit.adapters.fitting.fit_head import SHARE, fit_head
from headkit.adapters.fitting.measured import Measured, without_recall
from headkit.adapters.fitting.out_of_fold import Fitted, OutOfFold
from headkit.adapters.fitting.thresholds import F1
from headkit.adapters.heads.attach import adapt
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.tasks import get_task
from headkit.adapters.tuning.batches import Augmentation, DataImages
from headkit.adapters.tuning.choice import compare, make_parts
from headkit.adapters.tuning.training import Progress as TrainingProgress
from headkit.adapters.tuning.tuner import Candidate, Recipe, Tuned, Tuner

from .build import build_head, fit_alone
from .data import Training

logger = logging.getLogger("headkit")


class Tuning:
    """One call of ``tune``, after its data were read.

    Args:
        training: The backbone, the images and their features.
        recipe: How to tune.
        candidates: What to try.
        augmentation: Random changes of training images.
    """

    def __init__(
        self,
        training: Training,
        recipe: Recipe,
        candidates: Sequence[Candidate],
        augmentation: Augmentation,
    ) -> None:
        self.training, self.recipe, self.candidates = training, recipe, candidates
        self.augmentation = augmentation
        options = training.options
        extracted = training.extracted
        self.y = torch.from_numpy(extracted.targets)
        self.base = without_level_head(training.backbone)
        workers = training.extraction.workers
        images = DataImages(
            training.source,
            extracted.numbers,
            self.y,
            preprocessing(self.base),
            self.augmentation,
            device=next(self.base.parameters()).device,
            seed=options.seed,
            workers=os.cpu_count() or 1 if workers is None else workers,
        )
        identity = self._identify()
        self.checkpoints: Path | None = None
        if training.extraction.cache is not False:
            folder = cache_folder(training.extraction.cache) / CHECKPOINTS
            name = timm_cfg(self.base)["architecture"]
            self.checkpoints = folder / f"{name}-{identity[:24]}"
        self.tuner = Tuner(
            self.base,
            images,
            self._put_head,
            get_task(training.source.task),
            self.recipe,
            class_weights=self._class_weights,
            seed=options.seed,
            checkpoints=self.checkpoints,
            identity=identity,
            progress=self._report if training.extraction.progress else None,
        )

    def run(self) -> Head:
        """Choose, measure, and train on all images. Remove the checkpoints after that."""
        head = self._run()
        if self.checkpoints is not None:
            for path in self.checkpoints.parent.glob(f"{self.checkpoints.name}.*"):
                path.unlink(missing_ok=True)
        return head

    def _run(self) -> Head:
        training, every = self.training, torch.ones(len(self.y), dtype=torch.bool)
        held = ~every
        if "val" not in training.others:
            share = training.options.holdout or SHARE
            held = training.choose_images(share)
        rest = ~held
        steps = self.recipe.num_steps(len(every))
        task, seed = get_task(training.source.task), training.options.seed
        parts = make_parts(self.y, training.blocks, rest, task, seed)
        if not parts:
            raise DataError(
                f"{training.source.name} has too few images per class: tuning needs two or more of "
                "a class, one to train on and one to choose by"
            )
        choice = compare(self.tuner, parts, self.y, self.candidates, steps)
        inner = torch.stack([held for _, held in parts]).any(0)
        best = choice.best
        facts: dict[str, Any] = {
            "method": None if best is None else best.method,
            "losses": {
                "head" if one is None else str(one): round(loss, 4)
                for one, loss in choice.losses.items()
            },
        }
        if best is None:
            return self._keep_head(facts)
        of_held, of_head = choice.logits[best], choice.logits[None]
        if bool(held.any()):
            fewer = self.recipe.num_steps(int(rest.sum()))
            tuned = self.tuner.train(rest, best, fewer, f"{best}, to measure")
            of_held, of_head = tuned.predict(held), self.tuner.start(rest).predict(held)
            inner = held
        facts |= {"rate": best.rate, "steps": steps, "head": self._measure(of_head, inner)}
        tuned = self.tuner.train(every, best, steps, f"{best}, on all images")
        changed = tuned.trainable.trained()
        # A learning rate may be too small for float32, or too large for the last training.
        if not changed or not all(bool(one.isfinite().all()) for one in changed.values()):
            return self._keep_head({**facts, "method": None})
        facts["num_values"] = sum(one.numel() for one in changed.values())
        model = self._merge(tuned, facts)
        if "val" in training.others:
            facts["head"] = self._measure_head(every, "val")
        out = OutOfFold(inner.nonzero()[:, 0], of_held, 1)
        with self._extract(model) as others:
            return build_head(training, Fitted(model, {}, out), others, {"tuning": facts})

    def _keep_head(self, facts: dict[str, Any]) -> Head:
        """Return the head without changes, measured as ``fit`` does."""
        logger.info("tuning gained nothing on held-out images, so the result is the head alone")
        return fit_alone(self.training, {"tuning": facts})

    def _merge(self, tuned: Tuned, facts: dict[str, Any]) -> nn.Module:
        """Put the changes and the head onto the backbone of the caller."""
        model, trainable = self.training.backbone, tuned.trainable
        levels = level_head_of(trainable.model)
        changed = {name: one.numpy() for name, one in trainable.trained().items()}
        recipe = {**asdict(self.recipe), "rate": facts["rate"], "steps": facts["steps"]}
        recipe |= {"seed": self.training.options.seed, "augmentation": asdict(self.augmentation)}
        base = backbone_info(model).fingerprint
        merge_delta(model, Delta(facts["method"], base, changed, recipe))
        if levels is None:
            adapt(model, self.training.how.num_outputs, self.training.how.plan.kind)
        else:
            names = [level.name for level in levels.levels]
            adapt(model, self.training.how.num_outputs, levels=names)
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in trainable.head.items():
                own[name].copy_(value)
        return model

    @contextmanager
    def _extract(self, model: nn.Module) -> Iterator[dict[str, ExtractedFeatures]]:
        """Extract the features of the images that measure the head, with the tuned backbone."""
        apart, head = self.training.apart, level_head_of(model)
        levels = [] if head is None else [level.name for level in head.levels]
        requests = [(source, View()) for source in apart.values()]
        with self.training.extraction.open(model, requests, levels) as extract:
            yield {name: extract(source) for name, source in apart.items()}

    def _put_head(self, model: nn.Module, chosen: Tensor) -> None:
        """Put a head onto a backbone that is fitted to the chosen images."""
        training = self.training
        examples = training.examples.select(chosen[training.examples.images])
        nothing = torch.zeros_like(chosen)
        fit_head(model, examples, training.blocks, nothing, training.how)

    def _class_weights(self, chosen: Tensor) -> Tensor | None:
        weights, how = self.training.how.class_weights, self.training.how
        if isinstance(weights, str):
            return get_task(how.task).balanced_weights(self.y[chosen], how.num_outputs)
        return weights

    def _measure(self, logits: Tensor, rows: Tensor) -> dict[str, Any]:
        """Return the metrics of a head whose temperature the same images choose."""
        measured = Measured(logits, self.y[rows])
        return without_recall(measured.metrics_of_choices(self.training.source.task, self._goal))

    def _measure_head(self, every: Tensor, name: str) -> dict[str, Any]:
        """Return the metrics of the head without changes on the images of ``apart``."""
        examples = LabeledFeatures.from_views([self.training.others[name]])
        logits = predict_logits(self.tuner.start(every).trainable.model, examples)
        measured = Measured(logits, examples.y)
        return without_recall(measured.metrics_of_choices(self.training.source.task, self._goal))

    @property
    def _goal(self) -> str | float:
        goal = self.training.options.thresholds
        return F1 if goal is None else goal

    def _identify(self) -> str:
        """Return a digest of everything that the result depends on but the recipe."""
        extracted, how = self.training.extracted, self.training.how
        digest = hashlib.sha256(backbone_info(self.base).fingerprint.encode())
        digest.update(extracted.pixel_digests.tobytes())
        digest.update(np.ascontiguousarray(extracted.targets).tobytes())
        weights = how.class_weights
        shown = weights.tolist() if isinstance(weights, Tensor) else weights
        facts = (how.plan, how.sets, shown, how.l2, how.seed, asdict(self.augmentation))
        digest.update(repr(facts).encode())
        return digest.hexdigest()

    def _report(self, name: str, one: TrainingProgress) -> None:
        report, images = self.training.extraction.progress, self.recipe.batch_size
        if report is not None:
            report(name, images * one.step, images * one.steps)
