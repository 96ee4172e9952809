"""Choose the classifier of a head and the levels that it reads, and put it onto a backbone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from headkit.adapters.backbone.classifier import find_classifier, name_of, replace_classifier
from headkit.adapters.backbone.level import LAST
from headkit.adapters.backbone.level_head import level_head_of
from headkit.adapters.backbone.levels import LevelNames, choose_levels, find_levels, level_names
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.backbone.timm_exceptions import COMBINE_LOGITS, find_row
from headkit.adapters.compat import unwrap
from headkit.adapters.errors import ContractError
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.heads.attach import adapt
from headkit.adapters.heads.kinds import Kind

from .linear.solve import LinearMap

AUTO = "auto"
"""Stands for the levels that cross-validation chooses when a head is fitted."""


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


def level_sets(
    model: nn.Module,
    plan: Plan,
    levels: LevelNames,
    kind: Kind | None,
    l2: float | Sequence[float] | None = None,
    *,
    present: Collection[str] | None = None,
) -> tuple[tuple[str, ...], ...]:
    """Return the sets of levels that a head may read, the simplest first; empty for ``last``.

    Args:
        model: The backbone.
        plan: See ``plan_classifier``.
        levels: ``last``, ``auto`` (choose between the last features and all levels), ``all``, or
            names of levels, see ``level_names``.
        kind: The kind of head that the user asked for, if any.
        l2: Strengths of the penalty that the user asked for; ``auto`` is then ``last``.
        present: Names of the levels that come with the user's own features, the only ones among
            which ``auto`` chooses; see ``given_levels``. None: all levels of the model.

    Raises:
        ContractError: The model has no such level, or the head is not linear.
        ValueError: There is no name.
    """
    names = level_names(levels)
    if names == [AUTO] and l2 is not None:
        names = [LAST]
    if names == [LAST]:
        return ()
    linear = plan.linear or find_row(COMBINE_LOGITS, model) is not None
    if names == [AUTO]:
        if kind not in (None, "linear") or not linear:
            return ()
        found = [level.name for level in find_levels(model)]
        found = [name for name in found if present is None or name in present]
        return ((LAST,), (LAST, *found)) if found else ()
    if kind not in (None, "linear"):
        raise ContractError(
            f"kind is {kind!r}, but a head over levels is linear: omit kind (--kind), or pass "
            "levels='last' (--levels last)"
        )
    chosen = [level.name for level in choose_levels(model, names)]
    return ((LAST, *(name for name in chosen if name != LAST)),)


def set_classifier(
    backbone: nn.Module,
    plan: Plan,
    levels: Sequence[str],
    linear: LinearMap,
    examples: LabeledFeatures,
    num_outputs: int,
) -> nn.Module:
    """Put a linear head onto a backbone.

    Args:
        backbone: The frozen model, which carries the head afterwards.
        plan: See ``plan_classifier``.
        levels: Names of the levels that the map reads, in the order of its columns.
        linear: The map.
        examples: Features whose shapes are those of the map's columns.
        num_outputs: Length of the logits.
    """
    if list(levels) == [LAST] and plan.linear:
        model = adapt(backbone, num_outputs, plan.kind)
        shapes = examples.branches_only.shapes
        set_linear(model, linear, [int(np.prod(shape)) for shape in shapes])
        return model
    model = adapt(backbone, num_outputs, levels=list(levels))
    head = level_head_of(unwrap(model))
    if head is None:
        raise ContractError(f"{name_of(model)} does not carry a head over levels")
    with torch.no_grad():
        head.weight.copy_(linear.weight)
        head.bias.copy_(linear.bias)
    return model


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
