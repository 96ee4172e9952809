"""Compare sets of levels and strengths by images that were left out, and choose the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from headkit.adapters.features.rows import Rows, SelectedRows
from headkit.adapters.heads.tasks import Task

from .linear.solve import default_strength

WITHIN = 2.0
"""Standard errors by which a larger set of levels may be worse than a smaller one and still win.

With few images, the comparison is mostly chance. In the study ``accuracy``, all levels were the
better bet on average."""


@dataclass(frozen=True)
class Candidate:
    """Features that a head may read.

    Attributes:
        levels: Names of the levels, in the order of the columns.
        x: Their vectors side by side, float32 ``[N, width]``.
        var_smoothing: Share of the mean variance that is added to the variance of each feature.
    """

    levels: tuple[str, ...]
    x: Tensor | Rows
    var_smoothing: float

    def select(self, mask: Tensor) -> Tensor | Rows:
        """Return the rows for which ``mask`` ``[N]`` is True."""
        return self.x[mask] if isinstance(self.x, Tensor) else SelectedRows(self.x, mask)


@dataclass(frozen=True)
class LeftOut:
    """Losses of images that were left out together.

    Attributes:
        folds: The folds that were left out.
        rows: Numbers of the rows ``[M]`` that the heads could predict.
        losses: Losses of each candidate, float64 ``[strengths, M, parts]``, see ``losses_of_rows``.
    """

    folds: tuple[int, ...]
    rows: Tensor
    losses: tuple[Tensor, ...]


@dataclass(frozen=True)
class Choice:
    """The candidate and strength of a head.

    Attributes:
        candidate: Number of the candidate.
        strength: Number of the strength.
        losses: The mean loss of each candidate at its best strength; empty if nothing was left out.
    """

    candidate: int
    strength: int
    losses: tuple[float, ...] = ()


def choose(
    left_out: Sequence[LeftOut],
    of_row: Tensor,
    strengths: Sequence[float],
    candidates: int,
    weights: Tensor,
    without: int | None = None,
) -> Choice:
    """Choose a candidate and a strength.

    The best strength of a candidate is the one with the least mean loss. The winner is the last
    candidate that is at most ``WITHIN`` standard errors worse than every other.

    Args:
        left_out: Losses of images that were left out.
        of_row: The fold of each row, int64 ``[N]``.
        strengths: The strengths.
        candidates: Number of the candidates, the simplest first.
        weights: Weights of the parts of a loss ``[parts]``, float64, see ``weights_of_parts``.
        without: A fold that must not influence the choice. Only heads that did not see the fold
            count, and its images do not. Default: all images count.
    """
    usable = [one for one in left_out if without is None or without in one.folds]
    kept = [of_row[one.rows] != (-1 if without is None else without) for one in usable]
    rows = torch.cat(
        [one.rows[mask] for one, mask in zip(usable, kept, strict=True)] or [of_row[:0]]
    )
    if not len(rows):
        return Choice(candidates - 1, strengths.index(default_strength(strengths, len(of_row))))
    # An image may have been left out several times; its losses are averaged.
    images, place = torch.unique(rows, return_inverse=True)
    times = torch.bincount(place)
    found: list[tuple[int, Tensor]] = []
    for number in range(candidates):
        losses = torch.cat(
            [one.losses[number][:, mask] @ weights for one, mask in zip(usable, kept, strict=True)],
            1,
        )
        mean = losses.new_zeros(len(losses), len(images)).index_add_(1, place, losses) / times
        best = int(mean.mean(1).argmin())
        found.append((best, mean[best]))
    chosen = max(
        number
        for number, (_, losses) in enumerate(found)
        if all(_is_close(losses, other) for _, other in found)
    )
    return Choice(chosen, found[chosen][0], tuple(float(losses.mean()) for _, losses in found))


def losses_of_rows(logits: Tensor, y: Tensor, task: Task) -> Tensor:
    """Return the parts of the loss of each image, by which heads are compared, ``[N, parts]``.

    For classes, the only part is the log loss. For labels, it is the mean of their log losses. For
    numbers, the parts are the squared errors of the outputs.

    Args:
        logits: ``[N, num_outputs]``, float64.
        y: Targets, see ``Task``.
        task: The kind of targets.
    """
    if task.exclusive:
        return cross_entropy(logits, y.long(), reduction="none")[:, None]
    y = y.double()
    if task.has_classes:
        return (softplus(logits) - y * logits).mean(1, keepdim=True)
    return (logits - y).square()


def weights_of_parts(y: Tensor, task: Task) -> Tensor:
    """Return the weights of the parts of a loss, float64 ``[parts]``, see ``losses_of_rows``.

    The squared error of an output is measured in units of the variance of its targets ``y``. An
    output that does not vary has the weight 0.
    """
    if task.has_classes:
        return torch.ones(1, dtype=torch.float64)
    y = y.double()
    variance = y.var(0, correction=0)
    rounding = torch.finfo(torch.float64).eps * y.abs().amax(0)
    inverse = torch.where(variance > (4 * rounding).square(), 1 / variance, 0.0)
    return inverse / len(inverse)


def _is_close(losses: Tensor, others: Tensor) -> bool:
    worse = losses - others
    if not bool(worse.any()):
        return True
    error = float(worse.std()) / len(worse) ** 0.5 if len(worse) > 1 else math.inf
    return float(worse.mean()) <= WITHIN * error
