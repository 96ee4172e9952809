"""Record what enters and leaves the classifier in a forward pass of the whole model."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from headkit.adapters.compat import uncompiled
from headkit.adapters.errors import ContractError

from .classifier import Classifier, name_of
from .timm_exceptions import POOLED_PART, find_row

Features = Tensor | tuple[Tensor, ...]
"""The input of the classifier: one tensor, or one per branch if the branches' inputs differ."""


@dataclass
class ForwardRecord:
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


def record_forward(model: nn.Module, classifier: Classifier, x: Any) -> ForwardRecord:
    """Call ``model`` with ``x`` and record what its classifier takes and returns.

    Raises:
        ContractError: The model does not call a module of its classifier exactly once with a single
            tensor, the module returns something else than a tensor, or it fails because the
            features are not pooled.
    """
    record = ForwardRecord()
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
        try:
            record.result = uncompiled(model)(x)
        except RuntimeError as error:
            failed = [t for path, t in record.inputs.items() if path not in record.outputs]
            if any(tensor.ndim != 2 for tensor in failed):
                raise ContractError(f"{name_of(model)}: {explain_unpooled(failed[0])}") from error
            raise
    return record


def explain_unpooled(features: Tensor) -> str:
    """Return what to say of features that are not pooled."""
    return (
        f"the features have the shape {list(features.shape)}, expected [batch, channels], so they "
        "are not pooled: create the model with a global_pool other than ''"
    )


def drop_repeated(classifier: Classifier, record: ForwardRecord) -> Features:
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
