"""Create the models that the checks use: on the meta device, or for the smallest input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import replace_classifier
from headkit.adapters.backbone.forward import features
from headkit.adapters.backbone.freeze import freeze
from headkit.adapters.backbone.load import create_model
from headkit.adapters.compat import input_config
from headkit.adapters.errors import ContractError

from .random_weights import randomize_head

CLASSES = 7
"""Number of classes of the models."""
_SMALL_INPUT = 128
_SMALL_FIXED_INPUTS = (112, 224)
"""Input sizes to try with architectures of a fixed size: multiples of their patches of 14, 16 and
32 pixels."""


def create_on_meta(name: str, **kwargs: Any) -> nn.Module:
    """Return an architecture without weights."""
    return create_model(name, pretrained=False, device="meta", **kwargs)


def create(name: str, **kwargs: Any) -> nn.Module:
    """Return an architecture with random weights of a fixed seed, in eval mode."""
    torch.manual_seed(0)
    return create_model(name, pretrained=False, **kwargs).eval()


def prepare_smallest_input(name: str) -> tuple[nn.Module, Tensor, Any, dict[str, Any]]:
    """Return a frozen model with ``CLASSES`` classes, a batch, its features, and timm's options.

    The images are smaller than the architecture's own input size if it accepts that. If its input
    size is fixed, timm's option ``img_size`` builds it for the smaller images.
    """
    current = input_config(create_on_meta(name))
    channels, height, width = current["input_size"]
    attempts: list[tuple[dict[str, Any], tuple[int, int]]] = []
    if current["fixed_input_size"]:
        attempts += [
            ({"img_size": size}, (size, size))
            for size in _SMALL_FIXED_INPUTS
            if size < min(height, width)
        ]
    elif min(height, width) > _SMALL_INPUT:
        attempts.append(({}, (_SMALL_INPUT, _SMALL_INPUT)))
    attempts.append(({}, (height, width)))
    for number, (options, size) in enumerate(attempts, 1):
        x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(2))
        try:
            model = create(name, **options)
            replace_classifier(model, CLASSES)
            freeze(model)
            randomize_head(model)
            with torch.no_grad():
                return model, x, features(model, x), options
        except Exception:
            if number == len(attempts):
                raise
    raise AssertionError("unreachable")


def expect(condition: bool, message: str) -> None:
    """Raise ``ContractError`` with a message unless a condition holds."""
    if not condition:
        raise ContractError(message)
