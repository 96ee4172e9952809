"""Kinds of heads besides the architecture's own classifier: linear, mlp and cosine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, normalize

from headkit.adapters.backbone.classifier import (
    classifier_tensors,
    find_classifier,
    name_of,
    replace_classifier,
)
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.errors import ContractError

Kind = Literal["own", "linear", "mlp", "cosine"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def _one_row(x: Tensor) -> Tensor:
    """Features of a convolutional classifier come as ``[batch, num_features, 1, 1]``."""
    return x.flatten(1) if x.shape[2:] == (1, 1) else x


class LinearClassifier(nn.Linear):
    """``features @ weight.T + bias``."""

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, in_features]`` to ``[batch, num_classes]``."""
        return super().forward(_one_row(x))


class MlpClassifier(nn.Module):
    """One hidden layer with GELU: ``fc2(gelu(fc1(features)))``."""

    def __init__(self, in_features: int, num_classes: int, hidden: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden or in_features)
        self.fc2 = nn.Linear(hidden or in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, in_features]`` to ``[batch, num_classes]``."""
        return cast(Tensor, self.fc2(gelu(self.fc1(_one_row(x)))))


class CosineClassifier(nn.Module):
    """``scale * cos(features, weight)``, after Gidaris and Komodakis, 2018 (arXiv:1804.09458)."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        self.scale = nn.Parameter(torch.tensor(10.0))
        nn.init.trunc_normal_(self.weight, std=in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, in_features]`` to ``[batch, num_classes]``."""
        return self.scale * linear(normalize(_one_row(x), dim=-1), normalize(self.weight, dim=-1))


_MADE: dict[str, type[LinearClassifier | MlpClassifier | CosineClassifier]] = {
    "linear": LinearClassifier,
    "mlp": MlpClassifier,
    "cosine": CosineClassifier,
}


def default_kind(model: nn.Module) -> Kind:
    """Return ``own``, or ``linear`` where the own classifier has hidden layers and is larger."""
    probe = copy_structure(model, share_tensors=False)
    found = replace_classifier(probe, 3)
    matrices = [probe.get_parameter(n) for n in found.tensors if n.endswith("weight")]
    hidden = any(m.ndim >= 2 and m.shape[0] != 3 for m in matrices)
    return "linear" if hidden else "own"


def install_classifier(
    model: nn.Module,
    kind: Kind,
    num_classes: int,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Put a new classifier of ``kind`` onto ``model``, in place.

    Args:
        model: a timm model.
        kind: ``own`` or one of this module's. ``linear`` is ``own`` where that is an ``nn.Linear``.
        num_classes: length of the logits.
        tensors: of the head that will be loaded; tells the width of a hidden layer.

    Raises:
        ContractError: see ``replace_classifier``; or the kind is not known.
    """
    if kind not in KINDS:
        raise ContractError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    found = replace_classifier(model, num_classes)
    own = [model.get_submodule(path) for path in found.paths]
    if kind == "own" or (kind == "linear" and all(type(module) is nn.Linear for module in own)):
        return
    for path, width in zip(found.paths, found.widths, strict=True):
        old = model.get_submodule(path)
        like = next(old.parameters())
        hidden = None if tensors is None else tensors.get(f"{path}.fc1.weight")
        new = (
            MlpClassifier(width, num_classes, hidden.shape[0])
            if kind == "mlp" and hidden is not None
            else _MADE[kind](width, num_classes)
        )
        model.set_submodule(path, new.to(like.device, like.dtype).train(old.training))
    now = find_classifier(model)
    if now.paths != found.paths:
        raise ContractError(
            f"{name_of(model)} cannot take a {kind} head: its classifier moves from "
            f"{', '.join(found.paths)} to {', '.join(now.paths)}"
        )


def detect_kind(model: nn.Module) -> Kind:
    """Tell what kind of head ``model`` carries."""
    modules = [model.get_submodule(path) for path in find_classifier(model).paths]
    for kind, made in _MADE.items():
        if all(isinstance(module, made) for module in modules):
            return cast(Kind, kind)
    probe = copy_structure(model, share_tensors=False)
    replace_classifier(probe, find_classifier(model).num_classes)
    own = {name: tensor.shape for name, tensor in classifier_tensors(probe).items()}
    carried = {name: tensor.shape for name, tensor in classifier_tensors(model).items()}
    if own == carried:
        return "own"
    if all(isinstance(module, nn.Linear) for module in modules):
        return "linear"
    raise ContractError(
        f"the classifier of {name_of(model)} is of no kind that a head file can name: "
        f"{', '.join(type(module).__name__ for module in modules)}"
    )
