"""Small backbones with random weights."""

from typing import Any

import torch

import headkit
from headkit.benchmarks.coverage.random_weights import randomize_constants

SMALL = "test_resnet"
"""A timm architecture of 0.5 M parameters with BatchNorm, input 160 x 160."""


def random_backbone(architecture: str = SMALL, seed: int = 0) -> Any:
    """A frozen backbone with the weights that timm starts training from."""
    torch.manual_seed(seed)
    return headkit.load_backbone(architecture, pretrained=False)


def active_backbone(architecture: str = SMALL, seed: int = 0) -> Any:
    """A frozen backbone in which every branch has an effect.

    timm starts the last scale of many branches at zero.
    """
    model = random_backbone(architecture, seed)
    randomize_constants(model)
    return model
