"""Check the levels of one architecture: which there are, and whether they are what timm returns."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, relu

from headkit.adapters.backbone.forward import features
from headkit.adapters.backbone.freeze import freeze
from headkit.adapters.backbone.levels import Level, examine_levels, to_map
from headkit.adapters.backbone.timm_exceptions import DROPPED_RELU, class_names
from headkit.adapters.errors import ContractError
from headkit.export.exporter import export

from .models import create, create_on_meta, expect, prepare_smallest_input
from .random_weights import randomize_weights, relative_difference

_TOLERANCE = 1e-5
"""Largest difference between a vector and its definition, divided by the largest value."""


def levels(name: str) -> dict[str, Any]:
    """Find the levels of an architecture, on the meta device where timm can run it there.

    Returns:
        ``levels``: the levels as in a head file. ``last``: the width of the last features.
        ``reason``: why there are no levels; empty if there are some.
    """
    found = examine_levels(create_on_meta(name))
    if found.reason:
        found = examine_levels(create(name))
    return {
        "levels": [level.to_json() for level in found.levels],
        "last": found.last.width,
        "reason": found.reason,
    }


def level_maps(name: str) -> dict[str, Any]:
    """Check the levels of an architecture on real tensors: random weights, two images.

    The map of each level equals what ``forward_intermediates`` returns, bit for bit, or becomes
    equal through the ReLU that timm applies to it. The vectors agree with their definition. One
    pass with levels has the logits of the model, bit for bit.

    Returns:
        ``levels``: the number of levels. ``difference``: the largest difference between a vector
        and its definition, relative to the largest value. ``input``: the size of the images.

    Raises:
        ContractError: A part of this does not hold, or there are no levels.
    """
    model, x, _, _ = prepare_smallest_input(name)
    found = examine_levels(model)
    expect(bool(found.levels), f"there are no levels: {found.reason}")
    with torch.no_grad():
        expected = _choose(cast(Any, model).forward_intermediates(x, intermediates_only=True))
        maps, logits = _read_maps(model, found.levels, x)
        expect(torch.equal(logits, model(x)), "hooks on the levels change the logits")
        vectors = features(model, x, levels="all")
    with_relu = not DROPPED_RELU.isdisjoint(class_names(model))
    worst = 0.0
    for level, timm_map in zip(found.levels, expected, strict=True):
        level_map, prefix = maps[level.name]
        same = torch.equal(level_map, timm_map)
        same = same or (with_relu and torch.equal(relu(level_map), timm_map))
        expect(same, f"the level {level.name} differs from what forward_intermediates returns")
        reference = _reference(level_map, prefix)
        difference = relative_difference(vectors[level.name], reference)
        expect(
            difference <= _TOLERANCE,
            f"the vector of the level {level.name} differs from its definition by "
            f"{difference:.1e} of the largest value, expected at most {_TOLERANCE:.0e}",
        )
        worst = max(worst, difference)
    return {"levels": len(found.levels), "difference": worst, "input": list(x.shape[1:])}


def level_export(name: str) -> dict[str, Any]:
    """Export a backbone whose outputs are the features and all levels, and compare with torch.

    The weights are random, of a fixed seed, and every branch of the network has an effect.

    Returns:
        ``levels``: the number of levels. ``difference``: the largest difference at batch sizes
        other than the traced one, relative to the largest value of that output. ``bytes``: the size
        of the file.

    Raises:
        ExportError: The export fails, or ONNX Runtime computes other vectors (``ParityError``).
        ContractError: There are no levels, or rounding decides the logits, so that a comparison
            would check nothing.
    """
    model = create(name)
    freeze(model)
    randomize_weights(model)
    with tempfile.TemporaryDirectory() as folder:
        done = export(model, Path(folder) / "model.onnx", "backbone", levels="all")
    return {
        "levels": len(done.info.levels),
        "difference": max(done.difference.values()),
        "bytes": done.num_bytes,
    }


def _choose(maps: list[Tensor]) -> list[Tensor]:
    count = len(maps)
    return maps[:-1] if count <= 6 else [maps[-(-count * k // 4) - 1] for k in (1, 2, 3)]


def _read_maps(
    model: nn.Module, found: tuple[Level, ...], x: Tensor
) -> tuple[dict[str, tuple[Tensor, Tensor | None]], Tensor]:
    """Return the map and the prefix tokens of each level, and the logits, of one forward pass."""
    maps: dict[str, tuple[Tensor, Tensor | None]] = {}
    size = (int(x.shape[2]), int(x.shape[3]))
    with ExitStack() as stack:
        for level in found:

            def keep(_module: nn.Module, _args: Any, out: Any, level: Level = level) -> None:
                level_map, prefix = to_map(model, level, out, size)
                maps[level.name] = level_map.clone(), prefix  # the next module may write into it

            stack.callback(model.get_submodule(level.path).register_forward_hook(keep).remove)
        logits = model(x)
    if len(maps) != len(found):
        raise ContractError("a forward pass does not run the module of each level")
    return maps, logits


def _reference(level_map: Tensor, prefix: Tensor | None) -> Tensor:
    grid = adaptive_avg_pool2d(level_map, 4)
    deviation, _ = torch.std_mean(grid.flatten(2), 2, correction=0)
    parts = [avg_pool2d(grid, 2).flatten(1), grid.flatten(2).amax(2), deviation]
    return torch.cat(parts if prefix is None else [*parts, prefix[:, 0]], 1)
