"""The table of exceptions: what some of timm's classes do otherwise, as data.

Everything else about a classifier is observed (``classifier.locate``). Rows are found by the name
of a class or of one it inherits from. A row that goes out of date shows up as a ``ContractError``:
each call of ``features`` compares what the classifier gives with what the model gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from headkit.adapters.compat import model_arguments

Row = TypeVar("Row")
Outputs = Mapping[str, Tensor]
"""What each module of the classifier returned, by its path."""


def _weighted(outputs: Outputs, prefix: str, weights: Tensor) -> Tensor:
    shares = weights.softmax(-1)
    stages = [share * outputs[f"{prefix}.{stage}"] for stage, share in enumerate(shares.unbind())]
    return torch.stack(stages).sum(0)


def _efficientvim_distilled(model: Any, outputs: Outputs) -> Tensor:
    own = _weighted(outputs, "heads", model.weights)
    return (own + _weighted(outputs, "heads_dist", model.weights_dist)) / 2


LOGITS: dict[str, Callable[[Any, Outputs], Tensor]] = {
    # get_classifier() returns head alone; aux_head sees every patch token and enters eval logits.
    "VOLO": lambda _, outputs: outputs["head"] + 0.5 * outputs["aux_head"].max(1)[0],
    # One classifier per stage, mixed by weights that reset_classifier keeps: backbone.
    "EfficientViM": lambda model, outputs: _weighted(outputs, "heads", model.weights),
    "EfficientViMDistilled": _efficientvim_distilled,
}
"""Model class -> how the outputs of several modules become logits; elsewhere their mean."""

POOLED_AFTER: dict[str, tuple[Any, ...]] = {
    # CLIP's attention pooling projects all tokens and then takes the first.
    "AttentionPool2d": (slice(None), 0),
}
"""Class of the module around a classifier that pools behind it -> the part that it keeps."""


def _distillation(model: Any) -> dict[str, Any]:
    # While another kind of head is on the model, its last reset_classifier tells.
    told = model_arguments(model).get("distillation", False)
    return {"distillation": getattr(model.head, "distillation", told)}


RESET: dict[str, Callable[[Any], dict[str, Any]]] = {
    # Without it the default would drop the distillation classifier.
    "RepVit": _distillation,
    "IFormer": _distillation,
}
"""Model class -> further arguments of reset_classifier that keep the kind of classifier."""

ENCODERS: dict[str, str | None] = {
    # The pooler's second output tells valid tokens from padding; the encoder drops it.
    "Gemma4VitEncoder": "pooler",
    "Qwen3VitEncoder": None,
    "DeepseekVitEncoder": None,
    "MobileNetV5Encoder": None,
}
"""Classes without a classifier -> the module whose second output masks tokens, if there is one."""


def exception_for(table: Mapping[str, Row], module: nn.Module) -> Row | None:
    """Return the row of ``table`` for the class of ``module``, or for one it inherits from."""
    return next((table[name] for name in class_names(module) if name in table), None)


def class_names(module: nn.Module) -> list[str]:
    """Return the names of the class of ``module`` and of those it inherits from, in that order."""
    return [parent.__name__ for parent in type(module).__mro__]
