"""Fine-tune a whole network by AdamW, as timm's users do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headkit.adapters.backbone.preprocessing import preprocessing
from headkit.adapters.data.holdout import Mask, holdout

from . import backbones
from .augment import augment
from .clock import Clock
from .scores import score
from .sets import Array, ImageSet

RATES = (1e-4, 3e-4, 1e-3)
"""Learning rates to choose from."""
BATCH_SIZE = 32
EPOCHS, MIN_STEPS = 8, 120
"""Number of passes over the images, but at least so many steps."""
WARM_UP = 0.1
"""Share of the steps in which the learning rate rises."""
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
HELD_OUT = 0.2
"""Share of the training images on which the learning rate is chosen."""
SEARCHED = 0.5
"""Share of the steps that each learning rate gets in the search."""
EVAL_BATCH = 64


def measure(
    images: ImageSet, backbone: str, training: Mask, draw: int, rate: float | None
) -> dict[str, Any]:
    """Fine-tune a network on the training images, and score it on the others.

    Args:
        images: A set of classes.
        backbone: Architecture, see ``backbones.load``.
        training: ``[N]``, True for each training image.
        draw: Seed of the new classifier, the batches and the augmentation.
        rate: Learning rate. If None, it is the one of ``RATES`` whose network has the best score on
            a held-out fifth of the training images, after half of the steps; of equal scores, the
            lowest loss decides. The final network trains on all training images.

    Returns:
        The scores, the learning rate, the number of steps, and the time that training took. The
        time of a chosen rate includes the search.
    """
    clock = Clock()
    chosen = np.flatnonzero(training)
    steps, tried = num_steps(len(chosen)), {}
    fewer = round(SEARCHED * steps)
    if rate is None:
        held = holdout(images.targets[chosen], images.task, HELD_OUT, draw)
        for one in RATES:
            model = _train(images, backbone, chosen[~held], one, fewer, draw)
            logits = predict(model, images.pixels[chosen[held]])
            targets = images.targets[chosen[held]]
            loss = cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets)).item()
            tried[one] = (score(images, logits, targets)["score"], -loss)
        rate = max(tried, key=lambda one: tried[one])
    last = Clock()
    model = _train(images, backbone, chosen, rate, steps, draw)
    values = {**clock.read(), "last_training": last.read()}
    logits = predict(model, images.pixels[~training])
    return {
        **score(images, logits, images.targets[~training]),
        "num_train": len(chosen),
        "num_test": int((~training).sum()),
        "rate": rate,
        "rates": {str(one): [found, round(-loss, 5)] for one, (found, loss) in tried.items()},
        "steps": steps,
        "threads": torch.get_num_threads(),
        **values,
    }


def num_steps(num_images: int) -> int:
    """Return the number of batches on which a network trains."""
    return max(MIN_STEPS, -(-EPOCHS * num_images // BATCH_SIZE))


def _train(
    images: ImageSet, backbone: str, chosen: Array, rate: float, steps: int, seed: int
) -> nn.Module:
    """Train all parameters on the images with the indices ``chosen``."""
    torch.manual_seed(seed)
    model: Any = backbones.load(backbone)
    model.reset_classifier(images.num_outputs)
    model.requires_grad_(True).train().to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=rate, weight_decay=WEIGHT_DECAY)
    warm_up = int(WARM_UP * steps)
    schedule = CosineLRScheduler(
        optimizer,
        steps - warm_up,
        warmup_t=warm_up,
        warmup_lr_init=rate / 100,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    generator = torch.Generator().manual_seed(seed)
    normalize = Normalize(model)
    for step, batch in enumerate(batches(chosen, steps, generator)):
        schedule.step_update(step)
        pixels = augment(as_float(images.pixels[batch]), images.flips, generator)
        targets = torch.from_numpy(images.targets[batch])
        optimizer.zero_grad()
        loss = cross_entropy(model(normalize(pixels)), targets, label_smoothing=LABEL_SMOOTHING)
        torch.autograd.backward(loss)
        optimizer.step()
    trained: nn.Module = model
    return trained


@torch.inference_mode()
def predict(model: nn.Module, pixels: Array) -> Array:
    """Return the logits of uint8 images ``[N, height, width]`` in eval mode."""
    model.eval()
    normalize = Normalize(model)
    parts = [
        model(normalize(as_float(pixels[start : start + EVAL_BATCH])))
        for start in range(0, len(pixels), EVAL_BATCH)
    ]
    return torch.cat(parts).numpy()


class Normalize:
    """Turn gray images ``[B, 1, height, width]`` from 0 to 1 into what a model expects."""

    def __init__(self, model: nn.Module) -> None:
        cfg = preprocessing(model)
        self._mean = torch.tensor(cfg["mean"]).view(3, 1, 1)
        self._std = torch.tensor(cfg["std"]).view(3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Return float ``[B, 3, height, width]``."""
        normalized = (images - self._mean) / self._std
        return normalized.contiguous(memory_format=torch.channels_last)


def as_float(pixels: Array) -> Tensor:
    """Return gray images ``[B, 1, height, width]`` from 0 to 1 of uint8 pixels."""
    return torch.from_numpy(pixels)[:, None].float() / 255


def batches(chosen: Array, steps: int, generator: torch.Generator) -> Iterator[Array]:
    """Yield full batches of indices, from one random order of the images after the other."""
    left = np.empty(0, np.int64)
    for _ in range(steps):
        while len(left) < BATCH_SIZE:
            order = torch.randperm(len(chosen), generator=generator).numpy()
            left = np.concatenate([left, chosen[order]])
        yield left[:BATCH_SIZE]
        left = left[BATCH_SIZE:]
