"""A change that training makes to one parameter, and how it starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import backbone_parameters
from headkit.adapters.backbone.delta.delta import DOWN, SCALE, UP, VALUE


@dataclass(frozen=True)
class Change:
    """A change to a parameter.

    Attributes:
        parameter: Name of the parameter.
        operation: ``value``, ``scale`` or ``up``, which comes with ``down``; see ``Delta``.
        rank: Rank of ``up`` and ``down``.
    """

    parameter: str
    operation: str
    rank: int = 0

    def start(self, parameter: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return tensors by operation that change nothing yet.

        ``down`` is random and ``up`` is zero, as in LoRA (Hu et al., 2021, arXiv:2106.09685).
        """
        like: dict[str, Any] = {"dtype": torch.float32, "device": parameter.device}
        if self.operation == VALUE:
            return {VALUE: parameter.detach().to(torch.float32, copy=True)}
        rows = len(parameter)
        if self.operation == SCALE:
            return {SCALE: torch.ones(rows, **like)}
        shape = (self.rank, *parameter.shape[1:])
        inputs = parameter[0].numel()
        down = torch.randn(shape, generator=generator) / inputs**0.5
        return {UP: torch.zeros(rows, self.rank, **like), DOWN: down.to(**like)}


def vectors(model: nn.Module) -> Iterator[str]:
    """Yield the names of the backbone's parameters that are vectors, whatever their shape.

    They are biases, scales and shifts of norms, gains, layer scales and single tokens.
    """
    for name, parameter in backbone_parameters(model).items():
        if parameter.numel() == max(parameter.shape, default=1) and parameter.is_floating_point():
            yield name
