"""The classifier of a head: which one it is, and its training on features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import find_classifier, replace_classifier
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.backbone.timm_exceptions import LOGITS, exception_for
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.heads.attach import adapt
from headkit.adapters.heads.kinds import Kind
from headkit.adapters.heads.tasks import TaskName, get_task

from .adamw import train
from .linear.solve import STRENGTHS, LinearMap, solve


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Attributes:
        kind: kind of head, see ``adapt``.
        linear: whether the classifier is a linear map, the best weights of which are solved for.
    """

    kind: Kind
    linear: bool


def plan_classifier(model: nn.Module, kind: Kind | None) -> Plan:
    """Choose the classifier of a head.

    Args:
        model: the backbone.
        kind: kind of head, see ``adapt``. Without it the architecture's own classifier if that is
            linear or part of how the architecture makes its logits, else ``linear``.
    """
    if exception_for(LOGITS, model) is not None:
        # Its logits are more than the mean of its modules: no linear map of the features.
        return Plan(kind or "own", linear=False)
    probe = copy_structure(model, share_tensors=False)
    modules = [probe.get_submodule(path) for path in replace_classifier(probe, 2).paths]
    own = all(isinstance(module, nn.Linear | nn.Conv2d) for module in modules)
    if kind is None:
        kind = "own" if own else "linear"
    return Plan(kind, linear=kind == "linear" or (kind == "own" and own))


def train_classifier(
    backbone: nn.Module,
    plan: Plan,
    examples: LabeledFeatures,
    validation: LabeledFeatures | None,
    num_outputs: int,
    task: TaskName,
    weighing: Tensor | Literal["balanced"] | None,
    l2: float | Sequence[float] | None,
    seed: int,
) -> tuple[nn.Module, dict[str, Any]]:
    """Put a new classifier onto a backbone and train it.

    Args:
        backbone: the frozen model, which carries the classifier afterwards.
        plan: see ``plan_classifier``.
        examples: features and targets to train on.
        validation: features and targets on which strengths or epochs are chosen.
        num_outputs: length of the logits.
        task: what the logits mean.
        weighing: weight of each class ``[num_outputs]``, or ``balanced``.
        l2: strengths of the penalty of a linear classifier, see ``solve``.
        seed: seed of the initial weights and of the order of training.

    Returns:
        The model, and what was chosen on the way: ``l2`` and ``var_smoothing``, or
        ``learning_rate`` and ``epochs``.
    """
    if weighing == "balanced":
        weighing = get_task(task).balanced_weights(examples.y, num_outputs)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = adapt(backbone, num_outputs, plan.kind)
    if not plan.linear:
        trained = train(model, examples, validation, task, class_weights=weighing, seed=seed)
        return model, {"learning_rate": trained.rate, "epochs": trained.epochs}
    solution = solve(
        examples.x,
        examples.y,
        num_outputs,
        task=task,
        x_val=None if validation is None else validation.x,
        y_val=None if validation is None else validation.y,
        class_weights=weighing,
        l2=STRENGTHS if l2 is None else l2,
    )
    set_linear(model, solution.linear, [int(np.prod(shape)) for shape in examples.shapes])
    return model, {"l2": solution.l2, "var_smoothing": solution.var_smoothing}


@torch.no_grad()
def set_linear(model: nn.Module, solution: LinearMap, widths: list[int]) -> None:
    """Spread one linear map over the classifier's modules, the mean of which are the logits.

    Module ``i`` sees branch ``i`` modulo their number, see ``forward.classify``.
    """
    paths = find_classifier(model).paths
    parts = torch.split(solution.weight, widths, 1)
    for number, path in enumerate(paths):
        branch = number % len(parts)
        sharing = len(range(branch, len(paths), len(parts)))
        module = model.get_submodule(path)
        weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
        weight.copy_((parts[branch] * len(paths) / sharing).view_as(weight))
        bias.copy_(solution.bias)
