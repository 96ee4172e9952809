"""Kinds of heads: the architecture's own classifier, linear, mlp and cosine."""

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


def _flatten(x: Tensor) -> Tensor:
    """Drop the two axes of length 1 that the features of a convolutional classifier have."""
    return x.flatten(1) if x.shape[2:] == (1, 1) else x


class LinearClassifier(nn.Linear):
    """A linear classifier: ``features @ weight.T + bias``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, num_classes]`` of features ``[batch, in_features]``."""
        return super().forward(_flatten(x))


class MlpClassifier(nn.Module):
    """A classifier with one hidden layer and GELU: ``fc2(gelu(fc1(features)))``."""

    def __init__(self, in_features: int, num_classes: int, hidden: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden or in_features)
        self.fc2 = nn.Linear(hidden or in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, num_classes]`` of features ``[batch, in_features]``."""
        return cast(Tensor, self.fc2(gelu(self.fc1(_flatten(x)))))


class CosineClassifier(nn.Module):
    """A cosine classifier: ``scale * cos(features, weight)``.

    The source is Gidaris and Komodakis, 2018 (arXiv:1804.09458).
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, num_classes
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        self.scale = nn.Parameter(torch.tensor(10.0))
        nn.init.trunc_normal_(self.weight, std=in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, num_classes]`` of features ``[batch, in_features]``."""
        return self.scale * linear(normalize(_flatten(x), dim=-1), normalize(self.weight, dim=-1))


_CLASSIFIERS: dict[str, type[LinearClassifier | MlpClassifier | CosineClassifier]] = {
    "linear": LinearClassifier,
    "mlp": MlpClassifier,
    "cosine": CosineClassifier,
}


def default_kind(model: nn.Module) -> Kind:
    """Return ``linear`` if the own classifier has hidden layers and is larger, else ``own``."""
    probe = copy_structure(model, share_tensors=False)
    classifier = replace_classifier(probe, 3)
    matrices = [probe.get_parameter(n) for n in classifier.tensors if n.endswith("weight")]
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
        model: A timm model.
        kind: One of ``KINDS``. If the architecture's own classifier is an ``nn.Linear``, ``linear``
            means ``own``.
        num_classes: Length of the logits.
        tensors: Tensors of the head that will be loaded; they determine the width of a hidden
            layer.

    Raises:
        ContractError: See ``replace_classifier``; or the kind is unknown.
    """
    if kind not in KINDS:
        raise ContractError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    classifier = replace_classifier(model, num_classes)
    own = [model.get_submodule(path) for path in classifier.paths]
    if kind == "own" or (kind == "linear" and all(type(module) is nn.Linear for module in own)):
        return
    for path, width in zip(classifier.paths, classifier.widths, strict=True):
        old = model.get_submodule(path)
        like = next(old.parameters())
        hidden = None if tensors is None else tensors.get(f"{path}.fc1.weight")
        new = (
            MlpClassifier(width, num_classes, hidden.shape[0])
            if kind == "mlp" and hidden is not None
            else _CLASSIFIERS[kind](width, num_classes)
        )
        model.set_submodule(path, new.to(like.device, like.dtype).train(old.training))
    now = find_classifier(model)
    if now.paths != classifier.paths:
        raise ContractError(
            f"{name_of(model)} does not support heads of kind {kind!r}: its classifier moves from "
            f"{', '.join(classifier.paths)} to {', '.join(now.paths)}"
        )


def detect_kind(model: nn.Module) -> Kind:
    """Return the kind of head that ``model`` carries."""
    modules = [model.get_submodule(path) for path in find_classifier(model).paths]
    for kind, classifier in _CLASSIFIERS.items():
        if all(isinstance(module, classifier) for module in modules):
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
        f"the classifier of {name_of(model)} is of an unknown kind "
        f"({', '.join(type(module).__name__ for module in modules)}), expected one of "
        f"{', '.join(KINDS)}"
    )
