"""The module of a head over levels, ``level_head``, and its place in a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .level import Level
from .module_copy import copy_structure

if TYPE_CHECKING:
    from .classifier import Classifier
    from .levels.install import LevelRecord

LEVEL_HEAD = "level_head"
"""Path of the module in a model."""


class LevelHead(nn.Linear):
    """A linear classifier over levels: ``row @ weight.T + bias``.

    The row is the concatenation of the levels' vectors. Hooks of the model collect them, see
    ``levels.install``.

    Attributes:
        levels: The levels in the order of the row.
        own: The architecture's own classifier, whose input is the last features.
        records: What the hooks have collected, by thread: threads may share a model.
        handles: The hooks.
    """

    def __init__(self, levels: Sequence[Level], num_classes: int, own: Classifier) -> None:
        super().__init__(sum(level.width for level in levels), num_classes)
        self.levels, self.own = tuple(levels), own
        self.records: dict[int, LevelRecord] = {}
        self.handles: list[Any] = []

    def forward(self, row: Tensor) -> Tensor:
        """Return logits ``[batch, num_classes]`` of rows ``[batch, in_features]``."""
        return super().forward(row)


def level_head_of(model: nn.Module) -> LevelHead | None:
    """Return the head over levels that ``model`` has, or None."""
    head = dict(model.named_children()).get(LEVEL_HEAD)
    return head if isinstance(head, LevelHead) else None


def put_level_head(model: nn.Module, head: LevelHead) -> None:
    """Make ``head`` a part of ``model``. timm's ``reset_classifier`` then removes it again."""
    setattr(model, LEVEL_HEAD, head)
    # The model keeps timm's own class, see ``freeze``.
    vars(model)["reset_classifier"] = partial(_reset_classifier, model)


def remove_level_head(model: nn.Module) -> None:
    """Remove the head over levels and its hooks in place, if ``model`` has one."""
    head = level_head_of(model)
    if head is None:
        return
    for handle in head.handles:
        handle.remove()
    delattr(model, LEVEL_HEAD)
    vars(model).pop("reset_classifier", None)


def without_level_head(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` with its tensors and its own classifier of one class.

    A model without a head over levels is returned as it is.
    """
    if level_head_of(model) is None:
        return model
    plain = copy_structure(model, share_tensors=True)
    remove_level_head(plain)
    return plain


def _reset_classifier(model: Any, *args: Any, **kwargs: Any) -> Any:
    remove_level_head(model)
    return model.reset_classifier(*args, **kwargs)
