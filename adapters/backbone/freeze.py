"""Freeze a backbone so that training changes only the classifier."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import dropout

from headkit.adapters.compat import has_forward_pre_hook, unwrap

from .classifier import find_classifier


def freeze(model: nn.Module) -> nn.Module:
    """Freeze the backbone in place, and return the model in eval mode.

    Parameters outside the classifier no longer require gradients. ``model.train()`` puts only the
    classifier into training mode: the backbone's BatchNorm statistics keep their values, and its
    dropout and stochastic depth stay off. timm's ``drop_rate`` acts on the classifier's input.
    """
    given, model = model, unwrap(model)
    classifier = find_classifier(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name in classifier.tensors)
    if hasattr(model, "set_distilled_training"):
        cast(Any, model).set_distilled_training(False)  # one tensor of logits
    for path in classifier.paths if classifier.num_classes else ():
        _add_dropout(model.get_submodule(path), float(getattr(model, "drop_rate", 0.0) or 0.0))
    # The model keeps timm's own class, so this is not a method of a subclass. A copied or unpickled
    # partial of a module-level function refers to the copied model; a closure would not.
    model.train = partial(_train_classifier_only, model)  # type: ignore[method-assign]
    return given.eval()


def _train_classifier_only(model: nn.Module, mode: bool = True) -> nn.Module:
    type(model).train(model, False)
    classifier = find_classifier(model)
    for path in classifier.paths if classifier.num_classes else ():
        model.get_submodule(path).train(mode)
    return model


def _add_dropout(classifier: nn.Module, rate: float) -> None:
    """Drop features in front of the classifier: timm's own dropout stays off with the backbone."""
    has_own = any(isinstance(part, nn.Dropout) for part in classifier.modules())
    if rate and not has_own and not has_forward_pre_hook(classifier, _drop):
        classifier.register_forward_pre_hook(partial(_drop, rate))


def _drop(rate: float, classifier: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (dropout(args[0], rate, classifier.training), *args[1:])
