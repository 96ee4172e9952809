"""The tasks: classes, labels or numbers. Each task is an object with the interface ``base.Task``.

Importing this package does not import torch; the methods that compute with tensors do.
"""

from __future__ import annotations

from .base import DEFAULT, Decisions, Task, TaskName
from .multiclass import Multiclass
from .multilabel import Multilabel
from .regression import Regression

__all__ = ["DEFAULT", "TASKS", "Decisions", "Task", "TaskName", "get_task"]

TASKS: dict[str, Task] = {task.name: task for task in (Multiclass(), Multilabel(), Regression())}
"""The tasks by name."""


def get_task(name: str) -> Task:
    """Return the task called ``name``.

    Raises:
        ValueError: There is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"task is {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]
