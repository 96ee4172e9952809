"""Make heads for the studies that need no images."""

from __future__ import annotations

from typing import Any

import numpy as np

from headkit.adapters.backbone.info import BackboneInfo
from headkit.adapters.heads.head import Head


def make_head(seed: int, num_features: int, **changes: Any) -> Head:
    """Make a head of 10 classes with random weights; another seed gives other bytes.

    Args:
        seed: Seed of the weights.
        num_features: Width of its input.
        **changes: Other values of the head, such as ``created``.
    """
    generator = np.random.default_rng(seed)
    return Head(
        tensors={
            "fc.weight": generator.normal(size=(10, num_features)).astype(np.float32),
            "fc.bias": np.zeros(10, np.float32),
        },
        architecture="resnet18",
        num_classes=10,
        num_features=num_features,
        backbone=BackboneInfo("a1_in1k", "hub:timm/resnet18.a1_in1k", 11_176_512, "0" * 64),
        pretrained_cfg={
            "input_size": [3, 224, 224],
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "interpolation": "bicubic",
            "crop_pct": 0.95,
            "crop_mode": "center",
        },
        **changes,
    )
