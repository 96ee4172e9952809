"""Random weights under which no branch is without effect, and rounding decides nothing."""

from __future__ import annotations

import copy
import math
from contextlib import ExitStack
from typing import Any

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import classifier_tensors, find_classifier
from headkit.adapters.errors import ContractError
from headkit.export.verify import random_images

_SPREAD = 1e-3
"""Ten times the tolerance of an export: below it the logits of two images count as the same."""
_ROUNDING = 3e-6
"""A thirtieth of that tolerance: what rounding does then cannot be taken for a fault."""
_CHAOTIC = 5e-5
"""Half of that tolerance: above it float32 itself is no reference."""
_STRENGTHS = (0.25, 0.5, 0.75, 1.0, 0.125, 0.375, 0.625, 0.875)
"""How much of what enters a BatchNorm it is scaled by, in the order in which ``wake`` tries."""


def wake(model: nn.Module) -> tuple[float, float]:
    """Give random weights under which no branch is without effect, in place.

    Args:
        model: frozen, with a classifier.

    Returns:
        How far the logits of two images lie apart, and those of float32 from those of float64, both
        relative to the largest logit.

    Raises:
        ContractError: the logits hardly depend on the image, or so much that rounding decides them.
    """
    stir(model)
    enliven(model)
    size = get_model_input_config(model)["input_size"]
    x = random_images(4, size, torch.Generator().manual_seed(2))
    tried: dict[float, tuple[float, float]] = {}
    for strength in (0.0, *(_STRENGTHS if _norms(model) else ())):
        if strength:
            calm(model, x, strength)
        tried[strength] = _signal(model, x)
        if tried[strength][1] <= _ROUNDING:
            return tried[strength]
    calmest = min(tried, key=lambda strength: tried[strength][1])
    if tried[calmest][1] > _CHAOTIC:
        named = (f"{strength:g}: {a:.1e} and {b:.1e}" for strength, (a, b) in tried.items())
        raise ContractError(
            f"no strength of BatchNorm lets images differ by {_SPREAD:g} and float32 be off by at "
            f"most {_CHAOTIC:g}; tried {', '.join(named)}"
        )
    if calmest:
        calm(model, x, calmest)
    return tried[calmest]


@torch.no_grad()
def stir(model: nn.Module) -> None:
    """Give every tensor of the head values that matter: some start as zeros or ones."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in classifier_tensors(model).items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(1 + 0.2 * noise.abs() if name.endswith("running_var") else 0.1 * noise)
            if name.endswith("weight") and tensor.ndim == 1:
                tensor.add_(1)


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Give random values to what starts as a constant: zero gammas, scales of 1e-6, biases."""
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
def _signal(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """Return how far the logits of two images, and of two precisions, lie apart.

    Both relative to the largest logit. Random weights can let nothing through, or be chaotic.
    Where the images are not told apart, float64, which takes long, is not asked: infinity.
    """
    logits = model(x)
    spread = relative_difference(logits[0], logits[1])
    if not _SPREAD <= spread < math.inf:
        return spread, math.inf
    return spread, relative_difference(logits.double(), copy.deepcopy(model).double()(x.double()))


def asleep(logits: Tensor) -> bool:
    """Tell whether random weights let nothing of an image through."""
    return torch.equal(logits[0], logits[1])


@torch.no_grad()
def calm(model: nn.Module, x: Tensor, strength: float = 1.0) -> None:
    """Let each BatchNorm, one after the other, scale what it gets to a mean square of one.

    Signals of images then survive as in a network with He initialization (arXiv:1502.01852). Their
    means are not subtracted: that makes deep random networks chaotic, so that float32 itself is
    off. Some other mean is. The less ``strength``, the fainter and the less chaotic.
    """
    generator = torch.Generator().manual_seed(4)

    def scale(norm: Any, args: tuple[Tensor, ...]) -> None:
        squares = args[0].transpose(0, 1).flatten(1).square().mean(1)
        # A channel that happens to be silent in this batch would shout in the next.
        squares = squares.clamp(min=0.1 * squares.mean().item())
        norm.running_var.copy_(squares**strength)
        noise = torch.randn(squares.shape, generator=generator)
        norm.running_mean.copy_(0.1 * squares.sqrt() * noise)

    with ExitStack() as stack:
        for norm in _norms(model):
            stack.callback(norm.register_forward_pre_hook(scale).remove)
        model(x)


def _norms(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value; never a NaN."""
    difference = ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
    return difference if math.isfinite(difference) else math.inf
