"""Choose between a head and tuned backbones by images that none of them saw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headkit.adapters.fitting.folds import make_folds
from headkit.adapters.fitting.metrics import fit_temperature
from headkit.adapters.fitting.selection import losses_of_rows, weights_of_parts
from headkit.adapters.heads.tasks import Task

from .tuner import Candidate, Tuner

SHARE_OF_STEPS = 0.5
"""Share of the steps that each learning rate gets while they are compared."""
ENOUGH = 50
"""Number of images that decide, if there are so many."""
CLEARLY = 1.0
"""Standard errors by which a tuned backbone must be better than the head."""


@dataclass(frozen=True)
class Choice:
    """What images that were left out say.

    Attributes:
        best: The best candidate; None if the head without tuning is as good.
        losses: Mean loss of each candidate after temperature scaling; None stands for the head.
        logits: Logits of the images by candidate, float64 ``[n, num_outputs]``.
    """

    best: Candidate | None
    losses: Mapping[Candidate | None, float]
    logits: Mapping[Candidate | None, Tensor]


def compare(
    tuner: Tuner,
    parts: Sequence[tuple[Tensor, Tensor]],
    y: Tensor,
    candidates: Sequence[Candidate],
    steps: int,
) -> Choice:
    """Tune as each candidate says, and compare the results to the head.

    Args:
        tuner: What tunes.
        parts: See ``make_parts``.
        y: Targets of all images.
        candidates: What to try.
        steps: Number of batches of a whole training.
    """
    fewer = max(1, round(SHARE_OF_STEPS * steps))
    logits: dict[Candidate | None, list[Tensor]] = {None: []}
    for number, (chosen, held) in enumerate(parts, 1):
        logits[None].append(tuner.start(chosen).predict(held))
        for one in candidates:
            name = f"{one}, part {number} of {len(parts)}" if len(parts) > 1 else str(one)
            tuned = tuner.train(chosen, one, fewer, name)
            logits.setdefault(one, []).append(tuned.predict(held))
    order = torch.cat([held.nonzero()[:, 0] for _, held in parts]).argsort()
    rows = torch.stack([held for _, held in parts]).any(0)
    together = {one: torch.cat(found)[order] for one, found in logits.items()}
    return choose(together, y[rows], tuner.task)


def make_parts(
    y: Tensor, blocks: Tensor, among: Tensor, task: Task, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Choose the images that decide between candidates.

    A fifth of the images is left out. If that is fewer than ``ENOUGH``, further fifths are left out
    in turn, because few images decide by chance.

    Args:
        y: Targets of all images.
        blocks: Number of each image's block, int64 ``[N]``; images of a block are copies.
        among: ``[N]``, True for the images to choose from.
        task: The kind of targets.
        seed: Seed of the choice.

    Returns:
        The images to train on and those to compare on, ``[N]``, True for each of them, several
        times; no image is compared on twice. Nothing if no image can be left out.
    """
    rows = among.nonzero()[:, 0]
    folds = make_folds(y[rows], blocks[rows], task, seed)
    parts: list[tuple[Tensor, Tensor]] = []
    count = 0
    for fold in sorted(set(folds.of_row.tolist()) - {-1}):
        held = torch.zeros_like(among)
        held[rows[folds.of_row == fold]] = True
        parts.append((among & ~held, held))
        count += int(held.sum())
        if count >= ENOUGH:
            break
    return parts


def choose(logits: Mapping[Candidate | None, Tensor], y: Tensor, task: Task) -> Choice:
    """Choose a candidate by the loss of held-out images; None stands for the head.

    Logits that are not finite never win. The losses are those after temperature scaling, because
    the final head is calibrated, too.

    Args:
        logits: Logits of the images by candidate, float64 ``[n, num_outputs]``.
        y: Their targets.
        task: The kind of targets.
    """
    weights = weights_of_parts(y, task)
    losses = {}
    for candidate, one in logits.items():
        if bool(one.isfinite().all()):
            scaled = one / fit_temperature(one, y, task.name)
            losses[candidate] = losses_of_rows(scaled, y, task) @ weights
    means = {candidate: float(found.mean()) for candidate, found in losses.items()}
    best = min(means, key=lambda candidate: means[candidate])
    if best is not None and not is_clearly_less(losses[best], losses[None]):
        best = None
    return Choice(best, means, logits)


def is_clearly_less(losses: Tensor, others: Tensor) -> bool:
    """Return True if losses are lower than others by at least ``CLEARLY`` standard errors."""
    gain = others - losses
    error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else math.inf
    mean = float(gain.mean())
    return mean > 0 and mean >= CLEARLY * error
