"""Multinomial logistic regression with L2 on fixed features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

VARIANCE_FLOOR = 0.1
"""Share of the mean variance of all features that is added to each one's."""


@dataclass(frozen=True)
class Linear:
    """A linear map of features to logits: ``features @ weight.T + bias``.

    Attributes:
        weight: ``[num_classes, num_features]``, float64.
        bias: ``[num_classes]``, float64.
    """

    weight: Tensor
    bias: Tensor


def logistic_regression(
    features: Tensor,
    targets: Tensor,
    num_classes: int,
    *,
    l2: float = 1e-3,
    tolerance: float = 1e-6,
    max_iterations: int = 500,
) -> Linear:
    """Fit multinomial logistic regression by L-BFGS (Liu and Nocedal, 1989), in float64.

    Minimizes ``mean(cross entropy) + l2 / 2 * ||W||²``, where ``W`` acts on standardized features
    and the bias is free. scikit-learn's ``LogisticRegression(C)`` on them has the same minimum for
    ``l2 = 1 / (C * N)``. Standardized is ``(x - mean) / sqrt(variance + VARIANCE_FLOOR * mean
    variance)``: from a few images, the variance of a feature that hardly varies is too small by
    chance, and dividing by it alone would make noise loud. The standardization is folded back: the
    result takes the features as they are. A feature that never varies gets no weight.

    Args:
        features: ``[N, num_features]``.
        targets: ``[N]``, class indices below ``num_classes``.
        num_classes: number of classes; those without an example get the logit of an unlikely one.
        l2: strength of the penalty, above 0 so that the minimum is unique.
        tolerance: largest entry of the gradient at the end.
        max_iterations: of L-BFGS.
    """
    if l2 <= 0:
        raise ValueError(f"l2 is {l2}, expected a positive strength")
    x = features.to(torch.float64)
    mean, variance = x.mean(0), x.var(0, correction=0)
    floor = VARIANCE_FLOOR * variance.mean()
    inverse = torch.where(variance > 0, (variance + floor).rsqrt(), 0)
    x = (x - mean) * inverse
    parameters = torch.zeros(num_classes, x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        weight, bias = parameters[:, :-1], parameters[:, -1]
        loss = cross_entropy(x @ weight.T + bias, targets) + l2 / 2 * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    weight = parameters.detach()[:, :-1] * inverse
    return Linear(weight=weight, bias=parameters.detach()[:, -1] - weight @ mean)
