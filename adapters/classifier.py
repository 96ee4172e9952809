"""Find the classifier of a timm model and split ``model(x)`` into features and logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import ContractError

Features = Tensor | tuple[Tensor, ...]
"""What enters the classifier: one tensor, or one per branch where there are several."""


@dataclass(frozen=True)
class Classifier:
    """Where the classifier sits in a model.

    Attributes:
        paths: names of its modules in the model; the logits are the mean of their outputs.
    """

    paths: tuple[str, ...]

    def modules(self, model: nn.Module) -> list[nn.Module]:
        """Return the modules themselves."""
        return [model.get_submodule(path) for path in self.paths]


def locate(model: nn.Module) -> Classifier:
    """Find what ``get_classifier()`` returns among the modules of ``model``, by identity.

    Raises:
        ContractError: the model has no ``get_classifier``, or returns what is not a part of it.
    """
    get_classifier = getattr(model, "get_classifier", None)
    if not callable(get_classifier):
        raise ContractError(
            f"{type(model).__name__} has no get_classifier(), expected a timm model"
        )
    names = {module: name for name, module in model.named_modules(remove_duplicate=False)}
    paths = []
    for module in _leaves(get_classifier()):
        if module not in names:
            raise ContractError(
                f"get_classifier() of {type(model).__name__} returns a "
                f"{type(module).__name__} that is no part of the model"
            )
        paths.append(names[module])
    if not paths:
        raise ContractError(f"get_classifier() of {type(model).__name__} returns no module")
    return Classifier(tuple(paths))


def _leaves(returned: object) -> Iterator[nn.Module]:
    if isinstance(returned, tuple | list | nn.ModuleList):
        for member in returned:
            yield from _leaves(member)
    elif isinstance(returned, nn.Module):
        yield returned


def classifier_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the classifier's tensors, buffers included, under the model's ``state_dict`` names."""
    prefixes = tuple(f"{path}." for path in locate(model).paths)
    return {name: value for name, value in model.state_dict().items() if name.startswith(prefixes)}


def features(model: nn.Module, x: Tensor) -> Features:
    """Return exactly what enters the classifier: pre-logits, after pooling and norm.

    Args:
        model: a timm model, in eval mode for the numbers that a head is trained on.
        x: images ``[batch, channels, height, width]``, normalized.

    Returns:
        ``[batch, num_features]`` for most architectures, ``[batch, num_features, 1, 1]`` where the
        classifier is a convolution, a tuple of such tensors where there are several classifiers.

    Raises:
        ContractError: a module of the classifier was not used, or more than once.
    """
    classifier = locate(model)
    entered: dict[str, Tensor] = {}
    handles = []
    for path, module in zip(classifier.paths, classifier.modules(model), strict=True):

        def keep(_: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
            if path in entered:
                raise ContractError(
                    f"the classifier {path} is used more than once in a forward pass"
                )
            entered[path] = args[0]

        handles.append(module.register_forward_pre_hook(keep))
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    unused = [path for path in classifier.paths if path not in entered]
    if unused:
        raise ContractError(
            f"the classifier {', '.join(unused)} of {type(model).__name__} "
            "is not used in a forward pass"
        )
    branches = tuple(entered[path] for path in classifier.paths)
    return branches[0] if len(branches) == 1 else branches


def classify(model: nn.Module, features: Features) -> Tensor:
    """Return the logits ``[batch, num_classes]`` of what ``features`` returned.

    In eval mode ``classify(model, features(model, x))`` equals ``model(x)``.
    """
    branches = (features,) if isinstance(features, Tensor) else features
    modules = locate(model).modules(model)
    if len(branches) != len(modules):
        raise ContractError(
            f"features have {len(branches)} branches, the classifier has {len(modules)}"
        )
    outputs = [module(branch) for module, branch in zip(modules, branches, strict=True)]
    logits = outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)
    return logits.flatten(1)
