"""Choices that do not depend on what a training is worth."""

from dataclasses import replace
from typing import Any

import torch

from headkit.adapters.heads.tasks import Task
from headkit.adapters.tuning.choice import Choice, choose


def take_the_first(logits: Any, y: torch.Tensor, task: Task) -> Choice:
    """Choose a candidate, whatever it is worth."""
    return replace(choose(logits, y, task), best=next(one for one in logits if one is not None))


def take_the_head(logits: Any, y: torch.Tensor, task: Task) -> Choice:
    """Choose the head without changes, whatever the candidates are worth."""
    return replace(choose(logits, y, task), best=None)
