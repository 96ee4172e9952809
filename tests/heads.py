"""Heads with random tensors: of no particular backbone, and for a given model."""

from typing import Any

import numpy as np
from torch import nn

import headkit
from headkit.adapters.backbone.info import BackboneInfo
from headkit.adapters.backbone.level import Level
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.kinds import Kind


def random_head(num_classes: int = 3, **changes: object) -> Head:
    """A linear head on five features of a ResNet-50 that does not exist."""
    generator = np.random.default_rng(0)
    head = Head(
        tensors={
            "fc.weight": generator.normal(size=(num_classes, 5)).astype(np.float32),
            "fc.bias": np.zeros(num_classes, np.float32),
        },
        architecture="resnet50",
        num_classes=num_classes,
        num_features=5,
        backbone=BackboneInfo("a1_in1k", "hub:timm/resnet50.a1_in1k", 23_508_032, "0" * 64),
        pretrained_cfg={
            "input_size": [3, 224, 224],
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "interpolation": "bicubic",
            "crop_pct": 0.95,
            "crop_mode": "center",
        },
        label_names=tuple(f"class {i}" for i in range(num_classes)),
    )
    return head.with_changes(**changes)


def level_head(num_classes: int = 3, **changes: object) -> Head:
    """A head over the last features and two levels of a ResNet-50 that does not exist."""
    generator = np.random.default_rng(1)
    levels = (Level("last", 5), Level("layer1", 12, "NCHW"), Level("blocks.2", 14, "NLC", 1, 0))
    head = random_head(
        num_classes,
        levels=levels,
        kind="linear",
        tensors={
            "level_head.weight": generator.normal(size=(num_classes, 31)).astype(np.float32),
            "level_head.bias": generator.normal(size=num_classes).astype(np.float32),
        },
    )
    return head.with_changes(**changes)


def scored_head(seed: int = 0, **changes: object) -> Head:
    """A linear head of two classes whose tensors and accuracy follow from the seed."""
    generator = np.random.default_rng(seed)
    head = Head(
        tensors={
            "fc.weight": generator.normal(size=(2, 4)).astype(np.float32),
            "fc.bias": np.zeros(2, np.float32),
        },
        architecture="resnet18",
        num_classes=2,
        num_features=4,
        backbone=BackboneInfo("a1_in1k", "hub:timm/resnet18.a1_in1k", 11_000_000, "0" * 64),
        pretrained_cfg={
            "input_size": [3, 8, 8],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
        },
        label_names=("no", "yes"),
        metrics={"accuracy": 0.5 + seed / 100, "recall": [0.5, 0.5]},
        created="2026-01-01T00:00:00+00:00",
    )
    return head.with_changes(**changes)


def head_for(model: nn.Module, num_classes: int, kind: Kind | None = None, **metadata: Any) -> Head:
    """A head for ``model`` with random tensors; the model gets the same classifier."""
    headkit.adapt(model, num_classes, kind=kind)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return headkit.head_of(model, **metadata)
