"""Put a head over levels onto a model: hooks collect the levels and return the head's logits.

The architecture's own classifier stays in the model with one class, because its input is the last
features; its output is ignored.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import name_of, replace_classifier
from headkit.adapters.backbone.forward_record import ForwardRecord, drop_repeated
from headkit.adapters.backbone.level import LAST, Level
from headkit.adapters.backbone.level_head import LEVEL_HEAD, LevelHead, put_level_head
from headkit.adapters.backbone.module_copy import part_of_model
from headkit.adapters.backbone.timm_exceptions import POOLED_PART, find_row
from headkit.adapters.errors import ContractError

from .find import last_row
from .layout import level_vector


@dataclass
class LevelRecord:
    """What the hooks collect in a forward pass.

    Attributes:
        model: The model that runs.
        image_size: Height and width of its images; None if its input is something else.
        features: What enters the own classifier.
        vectors: Vector ``[batch, width]`` of each level, by name.
    """

    model: nn.Module
    image_size: tuple[int, int] | None
    features: ForwardRecord = field(default_factory=ForwardRecord)
    vectors: dict[str, Tensor] = field(default_factory=dict)


def install_level_head(model: nn.Module, levels: Sequence[Level], num_classes: int) -> None:
    """Put a new, untrained head over levels onto ``model``, in place.

    ``model(x)`` then returns the logits of ``level_head``. The own classifier gets one class, and
    zeros as its weights.

    Args:
        model: A timm model.
        levels: The levels that the head reads, in the order of the row.
        num_classes: Length of the logits.

    Raises:
        ContractError: See ``replace_classifier``.
    """
    own = replace_classifier(model, 1)
    for name, parameter in model.named_parameters():
        if name in own.tensors:
            nn.init.zeros_(parameter)
    like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    head = LevelHead(levels, num_classes, own)
    head.to(like.device, like.dtype).train(model.training)
    put_level_head(model, head)
    cast(Any, model).num_classes = num_classes
    modules = dict(model.named_modules(remove_duplicate=False))
    for path in own.paths:
        kept = find_row(POOLED_PART, modules[path.rpartition(".")[0]]) or (...,)
        hook = partial(_keep_input, head, path, kept)
        head.handles.append(modules[path].register_forward_pre_hook(hook))
    for level in levels:
        if level.name != LAST:
            keep = partial(_keep_level, head, level)
            head.handles.append(modules[level.path].register_forward_hook(keep))
    head.handles.append(model.register_forward_pre_hook(partial(_start, head)))
    head.handles.append(model.register_forward_hook(partial(_answer, head)))


# A copied or unpickled partial of a module-level function refers to the copied head.


@part_of_model
def _start(head: LevelHead, model: nn.Module, args: tuple[Any, ...]) -> None:
    images = args[0] if args else None
    size = None
    if isinstance(images, Tensor) and images.ndim == 4:
        size = int(images.shape[2]), int(images.shape[3])
    head.records[_thread()] = LevelRecord(model, size)


@part_of_model
def _keep_input(
    head: LevelHead, path: str, kept: tuple[Any, ...], _module: nn.Module, args: tuple[Any, ...]
) -> None:
    record = head.records.get(_thread())
    if record is not None:  # None if somebody calls the module without the model
        if path in record.features.arguments:
            raise _repeated(path)
        record.features.arguments[path] = args[0]
        record.features.inputs[path] = args[0][kept].clone()  # the classifier may work in place


@part_of_model
def _keep_level(head: LevelHead, level: Level, _module: nn.Module, _args: Any, output: Any) -> None:
    record = head.records.get(_thread())
    if record is not None:
        if level.name in record.vectors:
            raise _repeated(level.path)
        record.vectors[level.name] = level_vector(record.model, level, output, record.image_size)


@part_of_model
def _answer(head: LevelHead, model: nn.Module, _args: Any, _output: Any) -> Tensor:
    record = head.records.pop(_thread())
    # In a replica of DataParallel, the module is another than ``head``.
    own_head = cast(LevelHead, model.get_submodule(LEVEL_HEAD))
    parts = []
    for level in own_head.levels:
        if level.name == LAST:
            parts.append(last_row(_last_features(own_head, record)))
        elif level.name in record.vectors:
            parts.append(record.vectors[level.name])
        else:
            raise ContractError(
                f"{name_of(model)} does not call {level.name} in a forward pass, expected one call"
            )
    return cast(Tensor, own_head(torch.cat(parts, 1)))


def _last_features(head: LevelHead, record: LevelRecord) -> Any:
    missing = [path for path in head.own.paths if path not in record.features.arguments]
    if missing:
        raise ContractError(
            f"the model does not call its classifier {', '.join(missing)} in a forward pass, "
            "expected one call"
        )
    return drop_repeated(head.own, record.features)


def _repeated(path: str) -> ContractError:
    return ContractError(f"the model calls {path} twice in a forward pass, expected one call")


def _thread() -> int:
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
