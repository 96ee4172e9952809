"""Random weights with which every branch of a network affects the logits, and rounding does not."""

from __future__ import annotations

import copy
import math
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import classifier_tensors, find_classifier
from headkit.adapters.compat import input_config
from headkit.adapters.errors import ContractError
from headkit.export.verify import random_images

_SPREAD = 1e-3
"""Ten times the tolerance of an export: below it the logits of two images count as the same."""
_ROUNDING = 3e-6
"""A thirtieth of that tolerance: below it the effect of rounding cannot be mistaken for a fault."""
_CHAOTIC = 5e-5
"""Half of that tolerance: above it float32 itself is not a usable reference."""
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_STRENGTHS = (0.25, 0.5, 0.75, 1.0, 0.125, 0.375, 0.625, 0.875)
"""Strengths of ``scale_batchnorm_inputs``, in the order in which ``randomize_weights`` tries."""


def randomize_weights(model: nn.Module) -> tuple[float, float]:
    """Give a model random weights, in place, with which every branch affects the logits.

    Args:
        model: A frozen model with a classifier.

    Returns:
        The difference between the logits of two images, and the difference between float32 and
        float64 logits, both relative to the largest logit.

    Raises:
        ContractError: The logits hardly depend on the image, or they depend on it so strongly that
            rounding decides them.
    """
    randomize_head(model)
    randomize_constants(model)
    size = input_config(model)["input_size"]
    x = random_images(4, size, torch.Generator().manual_seed(2))
    tried: dict[float, tuple[float, float]] = {}
    for strength in (0.0, *(_STRENGTHS if _norms(model) else ())):
        if strength:
            scale_batchnorm_inputs(model, x, strength)
        tried[strength] = _measure_sensitivity(model, x)
        if tried[strength][1] <= _ROUNDING:
            return tried[strength]
    best = min(tried, key=lambda strength: tried[strength][1])
    if tried[best][1] > _CHAOTIC:
        measured = (
            f"scale {strength:g} gives a difference of {a:.1e} and an error of {b:.1e}"
            for strength, (a, b) in tried.items()
        )
        raise ContractError(
            "no scale of the BatchNorm inputs makes the logits of two images differ by at least "
            f"{_SPREAD:g} with a float32 error of at most {_CHAOTIC:g}: {'; '.join(measured)}"
        )
    if best:
        scale_batchnorm_inputs(model, x, best)
    return tried[best]


@torch.no_grad()
def randomize_head(model: nn.Module) -> None:
    """Give random values to every tensor of the head, as some of them start as zeros or ones."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in classifier_tensors(model).items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(1 + 0.2 * noise.abs() if name.endswith("running_var") else 0.1 * noise)
            if name.endswith("weight") and tensor.ndim == 1:
                tensor.add_(1)


@torch.no_grad()
def randomize_constants(model: nn.Module) -> None:
    """Give random values to constants of the backbone: gammas of 0, scales of 1e-6, biases."""
    generator = torch.Generator().manual_seed(3)
    head = set(find_classifier(model).tensors)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name in head:
            continue
        if parameter.abs().max() < 1e-3:
            parameter.copy_(0.2 * noise)
        elif parameter.ndim < 2 or parameter.max() == parameter.min():
            parameter.mul_(1 + 0.2 * noise)
    for name, buffer in model.named_buffers():
        noise = torch.randn(buffer.shape, generator=generator)
        if name.endswith("running_mean") and name not in head:
            buffer.add_(0.1 * noise)
        elif name.endswith("running_var") and name not in head:
            buffer.mul_(1 + 0.2 * noise.abs())


@torch.no_grad()
def _measure_sensitivity(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """Return the differences between the logits of two images, and of two precisions.

    Both are relative to the largest logit. With random weights a network can ignore the image, or
    be chaotic. If the logits of the two images count as the same, the second difference is
    infinity: computing it takes long, as it needs float64.
    """
    logits = model(x)
    spread = relative_difference(logits[0], logits[1])
    if not _SPREAD <= spread < math.inf:
        return spread, math.inf
    return spread, relative_difference(logits.double(), copy.deepcopy(model).double()(x.double()))


def ignores_input(logits: Tensor) -> bool:
    """Return True if two different images have the same logits."""
    return torch.equal(logits[0], logits[1])


@torch.no_grad()
def scale_batchnorm_inputs(model: nn.Module, x: Tensor, strength: float = 1.0) -> None:
    """Make each BatchNorm, one after the other, scale its input to a mean square of one.

    Signals of images then survive as in a network with He initialization (arXiv:1502.01852). The
    BatchNorms subtract random means instead of the means of their inputs: subtracting those makes
    deep random networks so chaotic that float32 itself is not accurate.

    Args:
        model: A frozen model.
        x: Images, N x C x H x W, from which the mean squares are computed.
        strength: Exponent of the scaling. A lower strength makes the signal weaker and the network
            less chaotic.
    """
    generator = torch.Generator().manual_seed(4)

    def scale(norm: Any, args: tuple[Tensor, ...]) -> None:
        squares = args[0].transpose(0, 1).flatten(1).square().mean(1)
        # Without a minimum, a channel that is almost zero in this batch could explode in the next.
        squares = squares.clamp(min=0.1 * squares.mean().item())
        norm.running_var.copy_(squares**strength)
        noise = torch.randn(squares.shape, generator=generator)
        norm.running_mean.copy_(0.1 * squares.sqrt() * noise)

    with ExitStack() as stack:
        for norm in _norms(model):
            stack.callback(norm.register_forward_pre_hook(scale).remove)
        model(x)


def _norms(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if isinstance(part, _BATCH_NORMS)]


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected value; infinity for a NaN."""
    difference = ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
    return difference if math.isfinite(difference) else math.inf
