"""Choose the classifier of a head, and train it on features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import find_classifier, replace_classifier
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.backbone.timm_exceptions import COMBINE_LOGITS, find_row
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.heads.attach import adapt
from headkit.adapters.heads.kinds import Kind
from headkit.adapters.heads.tasks import TaskName, get_task

from .adamw import train
from .linear.solve import STRENGTHS, LinearMap, solve


@dataclass(frozen=True)
class Plan:
    """The kind of classifier, and how it is trained.

    Attributes:
        kind: Kind of head, see ``adapt``.
        linear: True if the classifier is a linear map, whose best weights ``solve`` computes.
    """

    kind: Kind
    linear: bool


def plan_classifier(model: nn.Module, kind: Kind | None) -> Plan:
    """Choose the classifier of a head.

    Args:
        model: The backbone.
        kind: Kind of head, see ``adapt``. If None, the architecture's own classifier if that is
            linear or the architecture computes its logits in a special way, else ``linear``.
    """
    if find_row(COMBINE_LOGITS, model) is not None:
        # The logits are not the mean of the classifier's modules, so no linear map yields them.
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
    class_weights: Tensor | Literal["balanced"] | None,
    l2: float | Sequence[float] | None,
    seed: int,
) -> tuple[nn.Module, dict[str, Any]]:
    """Put a new classifier onto a backbone and train it.

    Args:
        backbone: The frozen model, which carries the classifier afterwards.
        plan: See ``plan_classifier``.
        examples: Features and targets to train on.
        validation: Features and targets that determine the best strength, or rate and epoch.
        num_outputs: Length of the logits.
        task: What the logits mean.
        class_weights: Weight of each class ``[num_outputs]``, or ``balanced``.
        l2: Strengths of the penalty of a linear classifier, see ``solve``.
        seed: Seed of the initial weights and of the order of training.

    Returns:
        The model, and the chosen values: ``l2`` and ``var_smoothing``, or ``learning_rate`` and
        ``epochs``.
    """
    if class_weights == "balanced":
        class_weights = get_task(task).balanced_weights(examples.y, num_outputs)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = adapt(backbone, num_outputs, plan.kind)
    if not plan.linear:
        result = train(model, examples, validation, task, class_weights=class_weights, seed=seed)
        return model, {"learning_rate": result.rate, "epochs": result.epochs}
    solution = solve(
        examples.x,
        examples.y,
        num_outputs,
        task=task,
        x_val=None if validation is None else validation.x,
        y_val=None if validation is None else validation.y,
        class_weights=class_weights,
        l2=STRENGTHS if l2 is None else l2,
    )
    set_linear(model, solution.linear, [int(np.prod(shape)) for shape in examples.shapes])
    return model, {"l2": solution.l2, "var_smoothing": solution.var_smoothing}


@torch.no_grad()
def set_linear(model: nn.Module, linear: LinearMap, widths: list[int]) -> None:
    """Set the weights of the classifier's modules so that their mean is one linear map.

    Module ``i`` reads branch ``i`` modulo the number of branches, see ``forward.classify``.

    Args:
        model: A model with a linear classifier.
        linear: A map of the concatenated branches.
        widths: Number of features of each branch.
    """
    paths = find_classifier(model).paths
    parts = torch.split(linear.weight, widths, 1)
    for number, path in enumerate(paths):
        branch = number % len(parts)
        num_sharing = len(range(branch, len(paths), len(parts)))
        module = model.get_submodule(path)
        weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
        weight.copy_((parts[branch] * len(paths) / num_sharing).view_as(weight))
        bias.copy_(linear.bias)
