"""Tune backbones as ``headkit tune`` does, with the random changes of the networks' images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headkit.adapters.backbone.levels import find_levels
from headkit.adapters.data.holdout import Mask
from headkit.adapters.fitting.classifier import AUTO, level_sets, plan_classifier
from headkit.adapters.fitting.fit_head import HeadFit, fit_head
from headkit.adapters.heads.tasks import get_task
from headkit.adapters.tuning.choice import compare, make_parts
from headkit.adapters.tuning.methods import DEFAULT_METHODS, RATES
from headkit.adapters.tuning.training import Batches
from headkit.adapters.tuning.tuner import Candidate, Recipe, Tuner

from . import backbones, network
from .augment import augment
from .clock import Clock
from .features import extract
from .heads import label_features
from .scores import score
from .sets import ImageSet

HEAD = "head"
"""Name of the choice that nothing is tuned."""
CANDIDATES = {str(one): one for one in (Candidate(m, RATES[m][-1]) for m in DEFAULT_METHODS)}


class SetImages:
    """The images of a set, see ``headkit.adapters.tuning.tuner.TuningImages``."""

    def __init__(self, images: ImageSet, backbone: nn.Module) -> None:
        self._images, self._normalize = images, network.Normalize(backbone)

    def batches(self, chosen: Tensor, batch_size: int, seed: int) -> Batches:
        """Return the batches on which ``network`` trains, too."""
        if batch_size != network.BATCH_SIZE:
            raise ValueError(f"batch_size is {batch_size}, expected {network.BATCH_SIZE}")
        return partial(self._from_step, np.flatnonzero(chosen.numpy()), seed)

    def _from_step(
        self, chosen: np.ndarray[Any, Any], seed: int, first: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if first:
            raise ValueError(f"the first step is {first}, expected 0: there are no checkpoints")
        generator = torch.Generator().manual_seed(seed)
        while True:
            for batch in network.batches(chosen, 1000, generator):
                pixels = network.as_float(self._images.pixels[batch])
                changed = augment(pixels, self._images.flips, generator)
                yield self._normalize(changed), torch.from_numpy(self._images.targets[batch])

    def unchanged(self, chosen: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Yield images in order, as ``features`` sees them."""
        pixels = self._images.pixels[chosen.numpy()]
        for start in range(0, len(pixels), batch_size):
            yield self._normalize(network.as_float(pixels[start : start + batch_size]))


def measure(
    images: ImageSet, backbone: str, training: Mask, draw: int, chosen: str | None
) -> dict[str, Any]:
    """Tune a backbone on the training images unless that is worse, and score it on the others.

    Args:
        images: A set of classes.
        backbone: Architecture, see ``backbones.load``.
        training: ``[N]``, True for each training image.
        draw: Seed of the choice, the batches and the augmentation.
        chosen: A name of ``CANDIDATES``, or ``HEAD``. If None, images that are left out choose.

    Returns:
        The scores, what was chosen, the number of trained values, and the time from pixels to the
        result. The time of a choice is included.
    """
    model = backbones.load(backbone)
    extracted = extract(images, backbone)
    examples = label_features(extracted.levels, images, find_levels(model))
    plan = plan_classifier(model, None)
    task = get_task(images.task)
    how = HeadFit(
        plan,
        level_sets(model, plan, AUTO, None),
        images.num_outputs,
        images.task,
        None,
        None,
        draw,
    )
    blocks, nothing = torch.arange(len(examples)), torch.zeros(len(examples), dtype=torch.bool)

    def put_head(copied: nn.Module, rows: Tensor) -> None:
        fit_head(copied, examples.select(rows), blocks, nothing, how)

    features_seconds = extracted.cpu_seconds * int(training.sum())
    clock = Clock()
    tuner = Tuner(model, SetImages(images, model), put_head, task, Recipe(), seed=draw)
    among = torch.from_numpy(training)
    steps, losses = tuner.recipe.num_steps(int(training.sum())), {}
    if chosen is None:
        parts = make_parts(examples.y, blocks, among, task, draw)
        found = compare(tuner, parts, examples.y, list(CANDIDATES.values()), steps)
        chosen = HEAD if found.best is None else str(found.best)
        losses = {HEAD if one is None else str(one): loss for one, loss in found.losses.items()}
    last = Clock()
    tuned = (
        tuner.start(among)
        if chosen == HEAD
        else tuner.train(among, CANDIDATES[chosen], steps, chosen)
    )
    times, last_training = clock.read(), last.read()
    logits = tuned.predict(~among).numpy()
    return {
        **score(images, logits, images.targets[~training]),
        "num_train": int(training.sum()),
        "num_test": int((~training).sum()),
        "chosen": chosen,
        "losses": {name: round(loss, 5) for name, loss in losses.items()},
        "num_values": sum(one.numel() for one in tuned.trainable.trained().values()),
        "steps": steps,
        "threads": torch.get_num_threads(),
        "features_cpu_seconds": round(features_seconds, 3),
        "cpu_seconds": round(features_seconds + times["cpu_seconds"], 3),
        "seconds": times["seconds"],
        "last_training": last_training,
    }
