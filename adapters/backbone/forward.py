"""Split ``model(x)`` into two steps: features and their classification."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from headkit.adapters.compat import uncompiled, unwrap
from headkit.adapters.errors import ContractError

from .classifier import Classifier, find_classifier, name_of, replace_classifier
from .module_copy import copy_structure
from .timm_exceptions import COMBINE_LOGITS, POOLED_PART, find_row

Features = Tensor | tuple[Tensor, ...]
"""The input of the classifier: one tensor, or one per branch if the branches' inputs differ."""

TOLERANCE = 1e-5
"""Largest difference between ``classify(features(x))`` and ``model(x)``, divided by the largest
absolute logit."""


def features(model: nn.Module, x: Any) -> Features:
    """Return the exact input of the classifier: pre-logits, after pooling and norm.

    Each call compares the classifier's output with the model's own logits. An architecture that
    headkit does not support raises an error and never returns wrong numbers.

    Args:
        model: A timm model, which may be compiled or wrapped. Heads are trained on the features
            that it returns in eval mode.
        x: Normalized images ``[batch, channels, height, width]``, or another input that the
            architecture takes.

    Returns:
        ``[batch, num_features]`` for most architectures, ``[batch, num_features, 1, 1]`` if the
        classifier is a convolution, ``[batch, tokens, num_features]`` if its input is tokens, and a
        tuple of such tensors if the inputs of its branches differ.

    Raises:
        ContractError: The features are not pooled, or the classifier's outputs are not the logits.
    """
    model = unwrap(model)
    classifier = find_classifier(model)
    record = _record_forward(model, classifier, x)
    problem = _find_problem(model, classifier, record)
    if problem and not classifier.num_classes:
        # Some models skip the classifier if they have no classes: use a copy with one class.
        return _features_without_classes(model, x)
    if problem:
        raise ContractError(f"{name_of(model)}: {problem}")
    return _drop_repeated(classifier, record)


def classify(model: nn.Module, features: Features) -> Tensor:
    """Return the logits ``[batch, num_classes]`` of features that ``features`` returned.

    In eval mode ``classify(model, features(model, x))`` equals ``model(x)``.

    Raises:
        ContractError: The model has no classes, or its classifier takes other features.
    """
    model = unwrap(model)
    classifier = find_classifier(model)
    if not classifier.num_classes:
        raise ContractError(
            f"{name_of(model)} has no classes: call adapt(model, num_classes) first"
        )
    branches = (features,) if isinstance(features, Tensor) else tuple(features)
    return _classify(model, classifier, branches)


def _classify(model: nn.Module, classifier: Classifier, branches: tuple[Tensor, ...]) -> Tensor:
    if not branches or len(classifier.paths) % len(branches):
        raise ContractError(
            f"got {len(branches)} feature tensors, expected {len(classifier.paths)}, one for each "
            f"classifier module of {name_of(model)}: pass what features(model, x) returns"
        )
    outputs = {}
    for number, (path, width) in enumerate(zip(classifier.paths, classifier.widths, strict=True)):
        branch = branches[number % len(branches)]
        if width not in (branch.shape[1], branch.shape[-1]):
            raise ContractError(
                f"the features have the shape {list(branch.shape)}, but {path} of {name_of(model)} "
                f"takes {width} features: pass what features(model, x) returns"
            )
        outputs[path] = model.get_submodule(path)(branch)
    return _combine_outputs(model, classifier, outputs)


class Backbone(nn.Module):
    """The first step of ``model(x)`` as a module for ``torch.export``.

    It returns what ``features`` returns, always as a tuple, but without the comparison with the
    logits: call ``features`` once before. A model without classes needs a classifier first.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._classifier = find_classifier(model)

    def forward(self, x: Any) -> tuple[Tensor, ...]:
        """Return the classifier's inputs for images ``[batch, channels, height, width]``."""
        record = _record_forward(self.model, self._classifier, x)
        inputs = _drop_repeated(self._classifier, record)
        return (inputs,) if isinstance(inputs, Tensor) else inputs


class ClassifierModule(nn.Module):
    """The second step of ``model(x)`` as a module for ``torch.export``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._classifier = find_classifier(model)

    def forward(self, *features: Tensor) -> Tensor:
        """Return the logits ``[batch, num_classes]`` of what ``Backbone`` returned."""
        return _classify(self.model, self._classifier, features)


@dataclass
class _ForwardRecord:
    """Record of one forward pass.

    Attributes:
        arguments: Argument of each of the classifier's modules, by path.
        inputs: Copy of each argument; if the model pools after the module, of the part it keeps.
        outputs: Copy of each module's output, or of the same part of it.
        result: What the model returned.
    """

    arguments: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    result: Any = None


def _record_forward(model: nn.Module, classifier: Classifier, x: Any) -> _ForwardRecord:
    record = _ForwardRecord()
    modules = dict(model.named_modules(remove_duplicate=False))

    def add_hooks(path: str, stack: ExitStack) -> None:
        parent = modules[path.rpartition(".")[0]]
        kept = find_row(POOLED_PART, parent) or (...,)

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            repeated = path in record.arguments
            if repeated or len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
                raise ContractError(
                    f"{name_of(model)} must call its classifier {path} exactly once per forward "
                    "pass, with a single tensor"
                )
            record.arguments[path] = args[0]
            record.inputs[path] = args[0][kept].clone()  # a classifier may work in place

        def after(_module: nn.Module, _args: Any, out: Any) -> None:
            if not isinstance(out, Tensor):
                raise ContractError(
                    f"{name_of(model)}: the classifier {path} returns a {type(out).__name__}, "
                    "expected a tensor; call the model in eval mode"
                )
            record.outputs[path] = out[kept].clone()

        module = modules[path]
        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(after).remove)

    with ExitStack() as stack:
        for path in classifier.paths:
            if path in modules:  # a model without classes may lack the module
                add_hooks(path, stack)
        record.result = uncompiled(model)(x)
    return record


def _find_problem(model: nn.Module, classifier: Classifier, record: _ForwardRecord) -> str | None:
    """Return how the model breaks the contract, or None if the classifier returns its result."""
    if not isinstance(record.result, Tensor):
        return (
            f"it returns a {type(record.result).__name__}, expected logits: it has auxiliary "
            "outputs or is in train mode"
        )
    tokens = find_row(COMBINE_LOGITS, model) is not None
    for tensor in (record.result, *(() if tokens else record.inputs.values())):
        if tensor.ndim != 2 and tensor.shape[2:] != (1, 1):
            return (
                f"the features have the shape {list(tensor.shape)}, so they are not pooled: "
                "create the model with a global_pool other than ''"
            )
    unused = [path for path in classifier.paths if path not in record.outputs]
    if unused:
        return f"its classifier {', '.join(unused)} is not called in a forward pass"
    logits = _combine_outputs(model, classifier, record.outputs)
    result = record.result.flatten(1)
    if logits.shape != result.shape:
        return (
            f"the output of its classifier has the shape {list(logits.shape)}, but the output of "
            f"the model has {list(result.shape)}; expected equal shapes"
        )
    if result.is_meta:
        return None
    scale = result.detach().abs().amax().nan_to_num(1.0, posinf=1.0).item()
    # Half precision has fewer digits than the tolerance requires.
    tolerance = max(TOLERANCE, 4 * torch.finfo(result.dtype).eps)
    if not torch.allclose(logits, result, rtol=0, atol=tolerance * scale, equal_nan=True):
        return (
            "the output of its classifier differs from the output of the model: the model changes "
            "the logits after the classifier"
        )
    return None


def _combine_outputs(
    model: nn.Module, classifier: Classifier, outputs: dict[str, Tensor]
) -> Tensor:
    """Return the logits ``[batch, num_classes]`` of the outputs of the classifier's modules."""
    outputs = {
        path: out.flatten(1) if out.shape[2:] == (1, 1) else out for path, out in outputs.items()
    }
    if len(classifier.paths) == 1:
        return outputs[classifier.paths[0]]
    combine = find_row(COMBINE_LOGITS, model)
    if combine is not None:
        return combine(model, outputs)
    return torch.stack([outputs[path] for path in classifier.paths]).mean(0)


def _drop_repeated(classifier: Classifier, record: _ForwardRecord) -> Features:
    """Return one input per branch: drop repetitions if the modules cycle through their inputs."""
    arguments = record.arguments
    distinct: list[str] = []
    for path in classifier.paths:
        if all(arguments[path] is not arguments[other] for other in distinct):
            distinct.append(path)
    cyclic = all(
        arguments[path] is arguments[distinct[number % len(distinct)]]
        for number, path in enumerate(classifier.paths)
    )
    kept = tuple(record.inputs[path] for path in (distinct if cyclic else classifier.paths))
    return kept[0] if len(kept) == 1 else kept


def _features_without_classes(model: nn.Module, x: Any) -> Features:
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=[cast(Any, device) for device in devices]):
        with_one_class = copy_structure(model, share_tensors=True)
        replace_classifier(with_one_class, 1)
    return features(with_one_class, x)
