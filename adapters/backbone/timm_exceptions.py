"""Exceptions for timm families whose classifier does not work like the others: tables of rows.

The key of a row is the name of a timm class, and not the class, so that headkit works with a timm
that lacks it. ``find_classifier`` observes everything else about a classifier. An outdated row
shows up as a ``ContractError``: each call of ``features`` compares the classifier's output with the
model's own logits.

To add an exception for a new timm family:

1. Choose the table by what differs. ``COMBINE_LOGITS``: the logits are not the mean of what the
   classifier's modules return. ``POOLED_PART``: the module around the classifier pools after it.
   ``RESET_ARGUMENTS``: ``reset_classifier`` needs arguments to keep the kind of classifier.
   ``ENCODERS``: the class has neither ``get_classifier`` nor ``reset_classifier``.
   ``DROPPED_RELU`` and ``SCALED_SIZE`` are about levels.
2. Add one row, with a comment that says what the class does.
3. Test the row in ``tests/adapters/backbone``. In ``test_missing_timm_classes.py``, list the
   architectures of the class in ``OF_CLASS``, and add the row to the test that expects a
   ``ContractError`` without it. In ``test_timm_exceptions.py``, add one architecture to ``ROWS``,
   or for an encoder to ``test_encoders_without_a_classifier_get_one``.
4. Run ``pytest tests/adapters/backbone`` and, with the names of the architectures,
   ``headkit coverage --only NAMES --structure --numeric --out build/new_family.jsonl``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from headkit.adapters.compat import model_arguments

Row = TypeVar("Row")
Outputs = Mapping[str, Tensor]
"""Output of each module of the classifier, by the module's path."""


def _weighted_sum(outputs: Outputs, prefix: str, weights: Tensor) -> Tensor:
    shares = weights.softmax(-1)
    stages = [share * outputs[f"{prefix}.{stage}"] for stage, share in enumerate(shares.unbind())]
    return torch.stack(stages).sum(0)


def _combine_distilled_efficientvim(model: Any, outputs: Outputs) -> Tensor:
    classes = _weighted_sum(outputs, "heads", model.weights)
    return (classes + _weighted_sum(outputs, "heads_dist", model.weights_dist)) / 2


COMBINE_LOGITS: dict[str, Callable[[Any, Outputs], Tensor]] = {
    # get_classifier() returns head alone. aux_head sees every patch token; eval logits include it.
    "VOLO": lambda _, outputs: outputs["head"] + 0.5 * outputs["aux_head"].max(1)[0],
    # One classifier per stage. Their weights belong to the backbone: reset_classifier keeps them.
    "EfficientViM": lambda model, outputs: _weighted_sum(outputs, "heads", model.weights),
    "EfficientViMDistilled": _combine_distilled_efficientvim,
}
"""Model class -> function from the outputs of several modules to logits. Default: their mean."""

POOLED_PART: dict[str, tuple[Any, ...]] = {
    # CLIP's attention pooling projects all tokens and then takes the first one.
    "AttentionPool2d": (slice(None), 0),
}
"""Class of the module around a classifier, if it pools after it -> index of the part it keeps."""


def _keep_distillation(model: Any) -> dict[str, Any]:
    # Another kind of head lacks the attribute: use the model's arguments in timm.
    default = model_arguments(model).get("distillation", False)
    return {"distillation": getattr(model.head, "distillation", default)}


RESET_ARGUMENTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    # By default, reset_classifier drops the distillation classifier.
    "RepVit": _keep_distillation,
    "IFormer": _keep_distillation,
}
"""Model class -> function that returns additional arguments of ``reset_classifier``, with which it
keeps the kind of classifier."""

ENCODERS: dict[str, str | None] = {
    # The pooler's second output masks padding; the encoder drops it.
    "Gemma4VitEncoder": "pooler",
    "Qwen3VitEncoder": None,
    "DeepseekVitEncoder": None,
    "MobileNetV5Encoder": None,
}
"""Encoder class without a classifier -> path of the module whose second output is the mask of valid
tokens, or None if the encoder has no such module. A subclass needs a row of its own."""


DROPPED_RELU = frozenset({"Xception", "NASNetALarge", "PNASNet5Large"})
"""Classes whose ``forward_intermediates`` applies a functional ReLU to the output of a module. The
level is the module's output, without the ReLU, which a forward hook can read."""

SCALED_SIZE: dict[str, Callable[[Any], tuple[int, int]]] = {
    # CrossViT scales its images itself.
    "CrossVit": lambda model: tuple(model.img_size),
}
"""Model class -> function that returns the height and width to which the model scales any image."""


def find_row(table: Mapping[str, Row], module: nn.Module) -> Row | None:
    """Return the row for the class of ``module`` or its nearest base class, or None."""
    return next((table[name] for name in class_names(module) if name in table), None)


def class_names(module: nn.Module) -> list[str]:
    """Return the names of the class of ``module`` and of its base classes, nearest first."""
    return [parent.__name__ for parent in type(module).__mro__]
