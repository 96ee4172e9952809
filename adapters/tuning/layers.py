"""Find the layers of a backbone whose outputs are linear in the rows of their weights.

A layer counts only after a test on real tensors. Standardized weights, experts and layers whose
weights are read without a call of the layer therefore need no list of exceptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import find_classifier

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
TOLERANCE = 1e-4
"""Largest difference of scaled outputs from those of scaled rows, relative to the largest value."""


@dataclass(frozen=True)
class Layer:
    """A linear layer or a convolution that the backbone calls once in a forward pass.

    Attributes:
        path: Path of the module.
        groups: Number of groups of a convolution; 1 for others.
        before_norm: True if the output goes to a BatchNorm, whose statistics stay. A scale of the
            rows is then a change that the norm's own parameters can make.
    """

    path: str
    groups: int
    before_norm: bool


@dataclass
class _Calls:
    count: int = 0
    output: Any = None
    faithful: bool = False


@torch.no_grad()
def find_layers(model: nn.Module, images: Tensor) -> tuple[Layer, ...]:
    """Return the layers that can take a scale of their rows or a product of low rank.

    Args:
        model: The model, in eval mode. It is not changed.
        images: A few images as the model expects them, ``[B, channels, height, width]``.
    """
    classifier = find_classifier(model)
    own = {name.rpartition(".")[0] for name in (*classifier.tensors, *classifier.unused)}
    candidates = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, LINEAR) and path not in own
    }
    calls = {path: _Calls() for path in candidates}
    normed: set[int] = set()
    handles = [
        module.register_forward_hook(partial(_observe, calls[path]))
        for path, module in candidates.items()
    ]
    handles += [
        module.register_forward_pre_hook(partial(_note_input, normed))
        for module in model.modules()
        if isinstance(module, BATCH_NORMS)
    ]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(
        Layer(
            path,
            int(getattr(candidates[path], "groups", 1)),
            id(call.output) in normed,
        )
        for path, call in calls.items()
        if call.count == 1 and call.faithful
    )


def _observe(call: _Calls, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    call.count += 1
    call.output = output  # kept alive, so that no other tensor gets its id
    if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
        call.faithful = _is_linear_in_rows(module, args[0])


def _note_input(normed: set[int], _module: nn.Module, args: tuple[Any, ...]) -> None:
    normed.update(map(id, args[:1]))


def _is_linear_in_rows(module: nn.Module, x: Tensor) -> bool:
    """Return True if scaled rows of a random weight scale the channels of the output."""
    own = cast(Any, module)
    weight, bias = own.weight.data, own.bias
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(weight.shape, generator=generator).to(weight)
    factors = torch.linspace(0.5, 2, len(weight)).to(weight)
    try:
        own.bias, own.weight.data = None, random
        plain = own.forward(x)
        own.weight.data = random * along(factors, 0, weight.ndim)
        scaled = own.forward(x)
    finally:
        own.weight.data, own.bias = weight, bias
    expected = plain * along(factors, channel_axis(module), plain.ndim)
    largest = expected.abs().max()
    return bool(largest > 0) and bool((scaled - expected).abs().max() <= TOLERANCE * largest)


def along(vector: Tensor, axis: int, num_axes: int) -> Tensor:
    """Return a vector as a tensor of ``num_axes`` axes that varies along one of them."""
    shape = [1] * num_axes
    shape[axis] = -1
    return vector.view(shape)


def channel_axis(module: nn.Module) -> int:
    """Return the axis of a layer's output that has a value per row of its weight."""
    dimensions = {nn.Conv1d: 2, nn.Conv2d: 3, nn.Conv3d: 4}
    return next((-n for kind, n in dimensions.items() if isinstance(module, kind)), -1)
