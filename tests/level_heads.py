"""Heads over levels with random tensors, and their logits with timm, hooks and NumPy alone."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

import headkit
from tests.heads import head_for

RESNET_LEVELS = ("act1", "layer1", "layer2", "layer3")
"""Paths of the levels of a ResNet."""


def pooled(level_map: Tensor) -> Tensor:
    """The vector of a level, as docs/head-file.md defines it."""
    grid = adaptive_avg_pool2d(level_map, 4)
    cells = grid.flatten(2)
    deviation = cells.std(2, correction=0)
    return torch.cat([avg_pool2d(grid, 2).flatten(1), cells.amax(2), deviation], 1)


def plain_levels(model: Any, x: Tensor) -> dict[str, Tensor]:
    """The last features and the levels, with timm and hooks alone."""
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _m, _a, out, path=path: found.update({path: pooled(out.clone())})
        )
        for path, module in model.named_modules()
        if path in RESNET_LEVELS
    ]
    with torch.no_grad():
        found["last"] = model.forward_head(model.forward_features(x), pre_logits=True)
    for hook in hooks:
        hook.remove()
    return found


def logits_of(model: Any, head: headkit.Head, x: Tensor) -> Any:
    """Logits of a head over levels, computed with NumPy."""
    found = plain_levels(model, x)
    row = np.concatenate([found[level.name].numpy() for level in head.levels], 1)
    weight, bias = (np.asarray(head.tensors[f"level_head.{n}"]) for n in ("weight", "bias"))
    return row @ weight.T + bias


def over_levels(
    model: nn.Module, names: list[str], num_classes: int, seed: int = 0, **changes: Any
) -> headkit.Head:
    """A head over levels with random tensors."""
    torch.manual_seed(seed)
    levels = {level.name: level for level in headkit.levels(model)}
    chosen = tuple(levels[name] for name in names)
    width = sum(level.width for level in chosen)
    like = head_for(model, num_classes)
    return dataclasses.replace(
        like,
        kind="linear",
        levels=chosen,
        tensors={
            "level_head.weight": torch.randn(num_classes, width).div(width**0.5).numpy(),
            "level_head.bias": torch.randn(num_classes).numpy(),
        },
        **changes,
    )
