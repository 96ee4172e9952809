"""Split ``model(x)`` into what enters the classifier and what the classifier makes of it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from headkit.adapters.errors import ContractError

from .classifier import Classifier, find_classifier, name_of, replace_classifier
from .module_copy import copy_structure
from .timm_exceptions import LOGITS, POOLED_AFTER, exception_for

Features = Tensor | tuple[Tensor, ...]
"""What enters the classifier: one tensor, or one per branch where branches differ."""

TOLERANCE = 1e-5
"""Largest difference of ``classify(features(x))`` from ``model(x)``, over the largest logit."""


def features(model: nn.Module, x: Any) -> Features:
    """Return exactly what enters the classifier: pre-logits, after pooling and norm.

    Each call compares what the classifier makes of them with the logits of the model itself, so
    that an architecture that is not understood is an error and not wrong numbers.

    Args:
        model: a timm model, in eval mode for the numbers that a head is trained on.
        x: images ``[batch, channels, height, width]``, normalized, or another input that the
            architecture takes.

    Returns:
        ``[batch, num_features]`` for most architectures, ``[batch, num_features, 1, 1]`` where the
        classifier is a convolution, ``[batch, tokens, num_features]`` where it sees tokens, and a
        tuple of such tensors where its branches see different ones.

    Raises:
        ContractError: the features are not pooled, or the classifier's outputs are not the logits.
    """
    found = find_classifier(model)
    trace = _trace(model, found, x)
    problem = _problem(model, found, trace)
    if problem and not found.num_classes:
        # Some models leave the classifier out when they have no classes: ask a copy that has one.
        return _features_without_classes(model, x)
    if problem:
        raise ContractError(f"{name_of(model)}: {problem}")
    return _distinct(found, trace)


def classify(model: nn.Module, features: Features) -> Tensor:
    """Return the logits ``[batch, num_classes]`` of what ``features`` returned.

    In eval mode ``classify(model, features(model, x))`` equals ``model(x)``.

    Raises:
        ContractError: the model has no classes, or its classifier takes other features.
    """
    found = find_classifier(model)
    if not found.num_classes:
        raise ContractError(f"{name_of(model)} has no classes: adapt it to a number of classes")
    given = (features,) if isinstance(features, Tensor) else tuple(features)
    return _classify(model, found, given)


def _classify(model: nn.Module, found: Classifier, given: tuple[Tensor, ...]) -> Tensor:
    if not given or len(found.paths) % len(given):
        raise ContractError(
            f"{len(given)} feature tensors for the {len(found.paths)} modules of the classifier of "
            f"{name_of(model)}"
        )
    outputs = {}
    for number, (path, width) in enumerate(zip(found.paths, found.widths, strict=True)):
        entering = given[number % len(given)]
        if width not in (entering.shape[1], entering.shape[-1]):
            raise ContractError(
                f"{path} of {name_of(model)} takes {width} features, "
                f"these have the shape {list(entering.shape)}"
            )
        outputs[path] = model.get_submodule(path)(entering)
    return _logits(model, found, outputs)


class Backbone(nn.Module):
    """The first half of ``model(x)`` as a module: what ``torch.export`` needs.

    Returns what ``features`` returns, always as a tuple, without comparing it with the logits: call
    ``features`` once before. A model without classes has to be given some first.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._found = find_classifier(model)

    def forward(self, x: Any) -> tuple[Tensor, ...]:
        """Images ``[batch, channels, height, width]`` to the tensors that enter the classifier."""
        entered = _distinct(self._found, _trace(self.model, self._found, x))
        return (entered,) if isinstance(entered, Tensor) else entered


class ClassifierOf(nn.Module):
    """The second half of ``model(x)`` as a module: what ``torch.export`` needs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._found = find_classifier(model)

    def forward(self, *features: Tensor) -> Tensor:
        """What ``Backbone`` returned to the logits ``[batch, num_classes]``."""
        return _classify(self.model, self._found, features)


@dataclass
class _Trace:
    """One forward pass: what entered and left each module of the classifier, and the logits."""

    given: dict[str, Tensor] = field(default_factory=dict)
    entered: dict[str, Tensor] = field(default_factory=dict)
    left: dict[str, Tensor] = field(default_factory=dict)
    result: Any = None


def _trace(model: nn.Module, found: Classifier, x: Any) -> _Trace:
    trace = _Trace()
    modules = dict(model.named_modules(remove_duplicate=False))

    def observe(path: str, stack: ExitStack) -> None:
        around = modules[path.rpartition(".")[0]]
        kept = exception_for(POOLED_AFTER, around) or (...,)

        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if path in trace.given or len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
                raise ContractError(
                    f"{name_of(model)}: its classifier {path} is not called once, with one tensor"
                )
            trace.given[path] = args[0]
            trace.entered[path] = args[0][kept].clone()  # a classifier may work in place

        def leave(_module: nn.Module, _args: Any, out: Any) -> None:
            if not isinstance(out, Tensor):
                raise ContractError(
                    f"{name_of(model)}: the classifier {path} returns a {type(out).__name__}, "
                    "expected a tensor; call the model in eval mode"
                )
            trace.left[path] = out[kept].clone()

        module = modules[path]
        stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(leave).remove)

    with ExitStack() as stack:
        for path in found.paths:
            if path in modules:  # without classes there may be no such module
                observe(path, stack)
        trace.result = model(x)
    return trace


def _problem(model: nn.Module, found: Classifier, trace: _Trace) -> str | None:
    if not isinstance(trace.result, Tensor):
        return (
            f"it returns a {type(trace.result).__name__} and not logits: it has auxiliary outputs "
            "or is in train mode"
        )
    tokens = exception_for(LOGITS, model) is not None
    for tensor in (trace.result, *(() if tokens else trace.entered.values())):
        if tensor.ndim != 2 and tensor.shape[2:] != (1, 1):
            return (
                f"the features are not pooled, their shape is {list(tensor.shape)}: "
                "create it with a global_pool other than ''"
            )
    unused = [path for path in found.paths if path not in trace.left]
    if unused:
        return f"its classifier {', '.join(unused)} is not called in a forward pass"
    logits, result = _logits(model, found, trace.left), trace.result.flatten(1)
    if logits.shape != result.shape:
        return f"its classifier gives {list(logits.shape)}, the model {list(result.shape)}"
    if result.is_meta:
        return None
    scale = result.detach().abs().amax().nan_to_num(1.0, posinf=1.0).item()
    # Half precision keeps fewer digits than the tolerance asks for.
    tolerance = max(TOLERANCE, 4 * torch.finfo(result.dtype).eps)
    if not torch.allclose(logits, result, rtol=0, atol=tolerance * scale, equal_nan=True):
        return "what its classifier gives is not what the model gives: something acts behind it"
    return None


def _logits(model: nn.Module, found: Classifier, outputs: dict[str, Tensor]) -> Tensor:
    outputs = {
        path: out.flatten(1) if out.shape[2:] == (1, 1) else out for path, out in outputs.items()
    }
    if len(found.paths) == 1:
        return outputs[found.paths[0]]
    combine = exception_for(LOGITS, model)
    if combine is not None:
        return combine(model, outputs)
    return torch.stack([outputs[path] for path in found.paths]).mean(0)


def _distinct(found: Classifier, trace: _Trace) -> Features:
    """One tensor per branch, without repetition where all branches see the same in turn."""
    distinct: list[str] = []
    for path in found.paths:
        if all(trace.given[path] is not trace.given[other] for other in distinct):
            distinct.append(path)
    in_turn = all(
        trace.given[path] is trace.given[distinct[number % len(distinct)]]
        for number, path in enumerate(found.paths)
    )
    kept = tuple(trace.entered[path] for path in (distinct if in_turn else found.paths))
    return kept[0] if len(kept) == 1 else kept


def _features_without_classes(model: nn.Module, x: Any) -> Features:
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=[cast(Any, device) for device in devices]):
        with_one = copy_structure(model, share_tensors=True)
        replace_classifier(with_one, 1)
    return features(with_one, x)
