"""Calibration of a ridge regression's predictions: labels get the best factor and shift."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from headkit.adapters.fitting.kernel.scores import LEAST_FACTOR, UNIT, calibrate, losses
from headkit.adapters.heads.tasks import get_task

LABELS = get_task("multilabel")


def _predictions(slope: float, shares: list[float], images: int = 300) -> tuple[Tensor, Tensor]:
    """Return predictions around the share of each label, and labels that follow them by ``slope``.

    Predictions of a regression that has learned little stay close to the share of the images that
    have the label.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images, len(shares), generator=generator, dtype=torch.float64)
    share = torch.tensor(shares, dtype=torch.float64)
    p = (torch.logit(share) + slope * noise).sigmoid()
    y = torch.rand(images, len(shares), generator=generator, dtype=torch.float64) < p
    return share + 0.1 * noise, y.double()


@pytest.mark.parametrize("slope", [0.1, 0.5, 2.0, 5.0])
def test_labels_of_any_share_get_the_minimum_of_the_log_loss(slope: float) -> None:
    prediction, y = _predictions(slope, [0.97, 0.75, 0.5, 0.25, 0.02])
    found = calibrate(prediction, y, LABELS)
    theta = torch.stack([found.factor, found.shift]).requires_grad_()
    z = prediction * theta[0] + theta[1]
    loss = binary_cross_entropy_with_logits(z, y, reduction="sum")
    start = torch.tensor([UNIT, -UNIT / 2], dtype=torch.float64)[:, None]
    loss = loss + 1e-2 / 2 * (theta - start).square().sum()
    (gradient,) = torch.autograd.grad(loss, theta)
    assert float(gradient[:, found.factor > LEAST_FACTOR].abs().max()) < 1e-6
    assert float(gradient[1].abs().max()) < 1e-6


@pytest.mark.parametrize("images", [8, 40, 300])
def test_predictions_that_are_worse_than_none_keep_the_order_of_the_images(images: int) -> None:
    prediction, y = _predictions(-5.0, [0.75, 0.5, 0.25], images)
    found = calibrate(prediction, y, LABELS)
    logits = found.logits(prediction)
    assert torch.equal(logits.argsort(0), prediction.argsort(0))
    shares = y.mean(0)
    constant = -(shares * shares.log() + (1 - shares) * (1 - shares).log()).mean()
    assert float(losses(prediction, y, LABELS, found).mean()) < 1.2 * float(constant)
