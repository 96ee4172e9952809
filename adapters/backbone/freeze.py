"""Freeze a backbone, whatever a training loop does to the model."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import dropout

from headkit.adapters.compat import has_forward_pre_hook

from .classifier import find_classifier


def freeze(model: nn.Module) -> nn.Module:
    """Freeze the backbone in place, whatever a training loop does to the model afterwards.

    Parameters outside the classifier stop to require gradients. ``model.train()`` puts only the
    classifier into training mode: BatchNorm statistics of the backbone keep their values, and its
    dropout and stochastic depth stay off; timm's ``drop_rate`` acts on what enters the classifier.
    Returns the model, in eval mode.
    """
    found = find_classifier(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name in found.tensors)
    if hasattr(model, "set_distilled_training"):
        cast(Any, model).set_distilled_training(False)  # logits, and not one per classifier
    for path in found.paths if found.num_classes else ():
        _add_dropout(model.get_submodule(path), float(getattr(model, "drop_rate", 0.0) or 0.0))
    # Not a method of a subclass: the model keeps timm's own class. A partial of a module-level
    # function survives deepcopy and pickling with the copy's own model, a closure does not.
    model.train = partial(_train_classifier_only, model)  # type: ignore[method-assign]
    return model.eval()


def _train_classifier_only(model: nn.Module, mode: bool = True) -> nn.Module:
    type(model).train(model, False)
    found = find_classifier(model)
    for path in found.paths if found.num_classes else ():
        model.get_submodule(path).train(mode)
    return model


def _add_dropout(classifier: nn.Module, rate: float) -> None:
    """Drop features here: timm's own dropout sits in the backbone, which stays in eval mode."""
    has_own = any(isinstance(part, nn.Dropout) for part in classifier.modules())
    if rate and not has_own and not has_forward_pre_hook(classifier, _drop):
        classifier.register_forward_pre_hook(partial(_drop, rate))


def _drop(rate: float, classifier: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (dropout(args[0], rate, classifier.training), *args[1:])
