"""Small backbones with random weights."""

from typing import Any

import pytest
import timm.models
import torch

import headkit
from headkit.benchmarks.coverage.random_weights import randomize_constants

SMALL = "test_resnet"
"""A timm architecture of 0.5 M parameters with BatchNorm, input 160 x 160."""


SHORT: dict[str, dict[str, Any]] = {
    "levit_128s": {"depth": (1, 1, 1)},
    "dla46x_c": {"levels": [1, 1, 1, 1, 1, 1]},
    "crossvit_tiny_240": {"depth": ([1, 1, 0],)},
}
"""Architectures with a classifier of their own, and the arguments that give them few layers.

The classifier of the first normalizes, that of the second is a convolution, and the third has two,
on features of different widths.
"""


def random_backbone(architecture: str = SMALL, seed: int = 0, **timm_kwargs: Any) -> Any:
    """A frozen backbone with the weights that timm starts training from."""
    torch.manual_seed(seed)
    return headkit.load_backbone(architecture, pretrained=False, **timm_kwargs)


def active_backbone(architecture: str = SMALL, seed: int = 0, **timm_kwargs: Any) -> Any:
    """A frozen backbone in which every branch has an effect.

    timm starts the last scale of many branches at zero.
    """
    model = random_backbone(architecture, seed, **timm_kwargs)
    randomize_constants(model)
    return model


stores_arguments = pytest.mark.skipif(
    not hasattr(timm.models, "get_model_args"),
    reason="before 1.0.31 timm does not store the arguments of a model that headkit did not make",
)
