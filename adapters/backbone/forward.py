"""Split ``model(x)`` into two steps: features and their classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, overload

import torch
from torch import Tensor, nn

from headkit.adapters.backbone.level import LevelNames
from headkit.adapters.compat import unwrap
from headkit.adapters.errors import ContractError

from .classifier import Classifier, find_classifier, name_of, replace_classifier
from .forward_record import (
    Features,
    ForwardRecord,
    drop_repeated,
    explain_unpooled,
    record_forward,
)
from .level_head import without_level_head
from .levels import LAST, Level, LevelRecorder, choose_levels, last_row
from .module_copy import copy_structure
from .timm_exceptions import COMBINE_LOGITS, find_row

TOLERANCE = 1e-5
"""Largest difference between ``classify(features(x))`` and ``model(x)``, divided by the largest
absolute logit."""


@overload
def features(model: nn.Module, x: Any, levels: None = None) -> Features: ...


@overload
def features(model: nn.Module, x: Any, levels: LevelNames) -> dict[str, Tensor]: ...


def features(
    model: nn.Module, x: Any, levels: LevelNames | None = None
) -> Features | dict[str, Tensor]:
    """Return the exact input of the classifier: pre-logits, after pooling and norm.

    Each call compares the classifier's output with the model's own logits. An architecture that
    headkit does not support raises an error and never returns wrong numbers.

    Args:
        model: A timm model, which may be compiled or wrapped. Heads are trained on the features
            that it returns in eval mode.
        x: Normalized images ``[batch, channels, height, width]``, or another input that the
            architecture takes.
        levels: Names of levels to return from the same forward pass, in a sequence or separated by
            commas, or ``all`` for all of them; ``headkit.levels(model)`` lists them, and its items
            can stand for their names.

    Returns:
        ``[batch, num_features]`` for most architectures, ``[batch, num_features, 1, 1]`` if the
        classifier is a convolution, ``[batch, tokens, num_features]`` if its input is tokens, and a
        tuple of such tensors if the inputs of its branches differ.

        With ``levels``, a dict: ``last`` is the classifier's input as one row ``[batch, width]``,
        and each level's name stands for its vector ``[batch, width]``.

    Raises:
        ContractError: The features are not pooled, the classifier's outputs are not the logits, or
            the model has no such level.
        ValueError: ``x`` has no images, or ``levels`` is empty.
    """
    model = unwrap(model)
    if isinstance(x, Tensor) and x.shape[:1] == (0,):
        # Most transformers cannot run no images.
        raise ValueError(f"x has the shape {list(x.shape)}, expected at least one image")
    chosen = () if levels is None else choose_levels(model, levels)
    plain = model if levels is None else without_level_head(model)
    entered, vectors = _features(plain, x, chosen)
    return entered if levels is None else {LAST: last_row(entered), **vectors}


def _features(
    model: nn.Module, x: Any, levels: Sequence[Level]
) -> tuple[Features, dict[str, Tensor]]:
    """Return the classifier's input and the vectors of levels, both of one forward pass."""
    classifier = find_classifier(model)
    with LevelRecorder(model, levels) as recorder:
        record = record_forward(model, classifier, x)
    problem = _find_problem(model, classifier, record)
    if problem and not classifier.num_classes:
        # Some models skip the classifier if they have no classes: use a copy with one class.
        return _features(_with_one_class(model), x, levels)
    if problem:
        raise ContractError(f"{name_of(model)}: {problem}")
    return drop_repeated(classifier, record), recorder.vectors()


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
    logits: call ``features`` once before. The vectors of levels follow in the given order. A model
    without classes needs a classifier first.
    """

    def __init__(self, model: nn.Module, levels: Sequence[Level] = ()) -> None:
        super().__init__()
        self.model = model
        self._classifier = find_classifier(model)
        self._levels = tuple(levels)

    def forward(self, x: Any) -> tuple[Tensor, ...]:
        """Return the classifier's inputs for images ``[batch, channels, height, width]``.

        The vectors ``[batch, width]`` of the levels follow.
        """
        with LevelRecorder(self.model, self._levels) as recorder:
            record = record_forward(self.model, self._classifier, x)
        inputs = drop_repeated(self._classifier, record)
        branches = (inputs,) if isinstance(inputs, Tensor) else inputs
        return (*branches, *recorder.vectors().values())


class ClassifierModule(nn.Module):
    """The second step of ``model(x)`` as a module for ``torch.export``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._classifier = find_classifier(model)

    def forward(self, *features: Tensor) -> Tensor:
        """Return the logits ``[batch, num_classes]`` of what ``Backbone`` returned."""
        return _classify(self.model, self._classifier, features)


def _find_problem(model: nn.Module, classifier: Classifier, record: ForwardRecord) -> str | None:
    """Return how the model breaks the contract, or None if the classifier returns its result."""
    if not isinstance(record.result, Tensor):
        return (
            f"it returns a {type(record.result).__name__}, expected logits: it has auxiliary "
            "outputs or is in train mode"
        )
    tokens = find_row(COMBINE_LOGITS, model) is not None
    for tensor in (*(() if tokens else record.inputs.values()), record.result):
        if tensor.ndim != 2 and tensor.shape[2:] != (1, 1):
            return explain_unpooled(tensor)
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


def _with_one_class(model: nn.Module) -> nn.Module:
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=[cast(Any, device) for device in devices]):
        with_one_class = copy_structure(model, share_tensors=True)
        replace_classifier(with_one_class, 1)
    return with_one_class
