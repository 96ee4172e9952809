"""Find the levels of a timm model.

The levels are what timm's ``forward_intermediates`` returns, and each one is named after the module
whose output it is. The search calls the model's structural copy on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import (
    find_classifier,
    find_own_classifier,
    name_of,
    num_features,
    replace_classifier,
)
from headkit.adapters.backbone.forward_record import (
    drop_repeated,
    explain_unpooled,
    record_forward,
)
from headkit.adapters.backbone.level import ALL, LAST, Level, LevelNames, level_names
from headkit.adapters.backbone.level_head import LEVEL_HEAD, remove_level_head
from headkit.adapters.backbone.module_copy import all_tensors, copy_structure
from headkit.adapters.backbone.timm_exceptions import DROPPED_RELU, class_names
from headkit.adapters.compat import input_config, unwrap
from headkit.adapters.errors import ContractError, first_line

from .layout import to_map
from .pooling import pooled_width
from .provenance import RELU, Output, Trace, trace

_MAX_MAPS = 6
"""Of more maps, one at the end of each quarter is kept."""
_SMALL_EDGE = 96
"""Edge of the images, a multiple of most patches, for models that the meta device cannot run."""
_CACHE = "_headkit_levels"


@dataclass(frozen=True)
class FoundLevels:
    """The levels of a model.

    Attributes:
        levels: The levels, in the order in which timm returns them. Empty if there are none.
        last: The features that enter the architecture's own classifier.
        reason: Why there are no levels. Empty if there are some.
    """

    levels: tuple[Level, ...]
    last: Level
    reason: str = ""


def find_levels(model: nn.Module) -> tuple[Level, ...]:
    """Return the levels of ``model`` without the last features, in timm's order.

    They are what timm's ``forward_intermediates`` returns, without the deepest one, which becomes
    the last features. If it returns more than six, they are three of them, at a quarter, a half and
    three quarters of the depth. A model may have none.
    """
    return examine_levels(model).levels


def last_level(model: nn.Module) -> Level:
    """Return the level of the last features: what enters the classifier, as one row.

    Raises:
        ContractError: The features are not pooled.
    """
    return examine_levels(model).last


def choose_levels(model: nn.Module, names: LevelNames) -> tuple[Level, ...]:
    """Return levels of ``model`` by name, in the order of the model.

    Args:
        model: A timm model.
        names: Names of levels, see ``level_names``; ``last`` is one of them, and ``all`` stands for
            what ``find_levels`` returns.

    Raises:
        ContractError: The model has no such level.
        ValueError: There is no name.
    """
    wanted = level_names(names)
    found = examine_levels(model)
    if ALL in wanted:
        if not found.levels:
            raise ContractError(f"{name_of(unwrap(model))} has no levels: {found.reason}")
        wanted.remove(ALL)
        wanted.extend(level.name for level in found.levels)
    existing = {level.name: level for level in (found.last, *found.levels)}
    unknown = [name for name in wanted if name not in existing]
    if unknown:
        raise ContractError(
            f"{name_of(unwrap(model))} has no level {', '.join(map(repr, unknown))}, expected some "
            f"of {', '.join(existing)}" + (f"; {found.reason}" if found.reason else "")
        )
    return tuple(level for name, level in existing.items() if name in wanted)


def vector_levels(model: nn.Module, names: LevelNames) -> tuple[Level, ...]:
    """Return what ``choose_levels`` returns, without ``last``: a module's output gives a vector.

    Without names, nothing is searched.

    Raises:
        ContractError: See ``choose_levels``.
    """
    if not names:
        return ()
    return tuple(level for level in choose_levels(model, names) if level.name != LAST)


def examine_levels(model: nn.Module) -> FoundLevels:
    """Return the levels of ``model``, or why it has none.

    The result is kept on the model, so the next call for the same model is quick.

    Raises:
        ContractError: The features that enter the classifier are not pooled.
    """
    model = unwrap(model)
    key = _describe_backbone(model)
    cached = vars(model).get(_CACHE)
    if cached is not None and cached[0] == key:
        return cast(FoundLevels, cached[1])
    found = _examine(model)
    vars(model)[_CACHE] = (key, found)
    return found


def _describe_backbone(model: nn.Module) -> tuple[Any, ...]:
    """Return what the levels depend on. Another classifier makes no difference."""
    classifier = (*find_own_classifier(model).paths, LEVEL_HEAD)
    inside = tuple(f"{path}." for path in classifier)
    modules = (
        id(module)
        for path, module in model.named_modules()
        if path not in classifier and not path.startswith(inside)
    )
    tensors = (
        (id(tensor), tuple(tensor.shape))
        for name, tensor in all_tensors(model).items()
        if not name.startswith(inside)
    )
    return tuple(modules), tuple(tensors), tuple(input_config(model)["input_size"])


def _examine(model: nn.Module) -> FoundLevels:
    on_meta = any(tensor.is_meta for tensor in model.parameters())
    try:
        return _examine_copy(model, share_tensors=False)
    except RuntimeError as error:
        if on_meta:
            last = Level(LAST, num_features(model))
            return FoundLevels((), last, f"timm needs values to run it: {first_line(error)}")
    # Some models read values of tensors, which the meta device does not have.
    return _examine_copy(model, share_tensors=True)


@torch.no_grad()
def _examine_copy(model: nn.Module, *, share_tensors: bool) -> FoundLevels:
    probe = copy_structure(model, share_tensors=share_tensors).eval()
    remove_level_head(probe)
    with torch.random.fork_rng(devices=[]):
        if not find_classifier(probe).num_classes:
            replace_classifier(probe, 1)
    reference = next(t for t in probe.parameters() if t.is_floating_point())
    config = input_config(model)
    size = tuple(config["input_size"])
    if share_tensors and not config["fixed_input_size"]:
        size = (size[0], *(min(edge, _SMALL_EDGE) for edge in size[1:]))
    x = torch.zeros(1, *size, device=reference.device, dtype=reference.dtype)
    classifier = find_classifier(probe)
    whole = trace(probe, lambda: record_forward(probe, classifier, x))
    last = Level(LAST, last_row(drop_repeated(classifier, whole.result)).shape[1])
    if not hasattr(probe, "forward_intermediates"):
        return FoundLevels((), last, "timm's class has no forward_intermediates")
    try:
        levels = tuple(_levels_of(probe, x, whole.calls))
    except ContractError as error:
        return FoundLevels((), last, str(error))
    return FoundLevels(levels, last)


def last_row(features: Tensor | Sequence[Tensor]) -> Tensor:
    """Return what ``features(model, x)`` returned as one row ``[batch, width]``.

    The row holds every branch of the shape ``[batch, channels]`` or ``[batch, channels, 1, 1]``.
    The tokens that enter the auxiliary classifier of volo are left out.

    Raises:
        ContractError: No branch is pooled.
    """
    branches = [features] if isinstance(features, Tensor) else list(features)
    pooled = [b.flatten(1) for b in branches if b.ndim == 2 or tuple(b.shape[2:]) == (1, 1)]
    if not pooled:
        raise ContractError(explain_unpooled(branches[0]))
    return torch.cat(pooled, 1) if len(pooled) > 1 else pooled[0]


def _levels_of(model: nn.Module, x: Tensor, calls: dict[str, int]) -> Iterator[Level]:
    ignored = (RELU,) if not DROPPED_RELU.isdisjoint(class_names(model)) else ()
    method = cast(Any, model).forward_intermediates
    try:
        inside = trace(model, lambda: method(x, intermediates_only=True), ignored)
    except Exception as error:
        if x.is_meta and isinstance(error, RuntimeError):
            raise  # it may run on real tensors
        message = f"forward_intermediates fails: {type(error).__name__}: {first_line(error)}"
        raise ContractError(message) from error
    maps = list(inside.result)
    if len(maps) < 2:
        raise ContractError("forward_intermediates returns no map before the deepest one")
    numbers = _choose(len(maps))
    found = [_find_level(model, inside, calls, number, maps[number], x) for number in numbers]
    shared = len({level.name for level in found}) < len(found)
    for level in found:
        name = f"{level.name}:{level.item}" if shared and level.item is not None else level.name
        yield Level(name, level.width, level.layout, level.prefix, level.item)


def _choose(count: int) -> list[int]:
    """Return the positions of the levels among ``count`` maps.

    The deepest map is left out. The last features have most of what it tells, and a model that
    needs only its class token computes the other tokens of the last block for nothing else.
    """
    if count <= _MAX_MAPS:
        return [*range(count - 1)]
    return [-(-count * quarter // 4) - 1 for quarter in (1, 2, 3)]


def _find_level(
    model: nn.Module, inside: Trace, calls: dict[str, int], number: int, found: Tensor, x: Tensor
) -> Level:
    """Return the level of the module that computed ``found``, or of the outermost around it."""
    if found.ndim != 4:
        raise ContractError(
            f"forward_intermediates returns a tensor of the shape {list(found.shape)}, expected "
            "[batch, channels, height, width]"
        )
    fitting: list[Level] = []
    for output, own, places in inside.candidates(found):
        if inside.calls[output.path] == calls.get(output.path) == 1:
            fitting.extend(_fitting_levels(model, output, own, places, x))
    if not fitting:
        raise ContractError(
            f"no module returns what forward_intermediates returns as number {number}, a tensor of "
            f"the shape {list(found.shape)}"
        )
    # Modules that return their input, such as Identity, may follow the one that computed it.
    origin = f"{fitting[-1].name}."
    around = [level for level in fitting if origin.startswith(f"{level.name}.")]
    return min(around, key=lambda level: level.name.count("."))


def _fitting_levels(
    model: nn.Module, output: Output, own: Tensor, places: Tensor, x: Tensor
) -> Iterator[Level]:
    """Yield a level for each layout in which a module's output is the map.

    Args:
        model: The model.
        output: The output of the module.
        own: A number for each element of the output.
        places: The same number for each element of the map.
        x: The images.
    """
    channels, rows, columns = places.shape[1:]
    for layout in ("NCHW", "NHWC") if own.ndim == 4 else ("NLC", "reroll") if own.ndim == 3 else ():
        prefix = max(0, own.shape[1] - rows * columns) if layout == "NLC" else 0
        level = Level(output.path, pooled_width(channels, prefix), layout, prefix, output.item)
        if layout == "reroll" and not hasattr(model, "reroll"):
            continue
        size = (int(x.shape[2]), int(x.shape[3]))
        try:
            level_map, _ = to_map(
                model, level, [own] * 100 if level.item is not None else own, size
            )
        except (ContractError, RuntimeError):
            continue
        if level_map.shape == places.shape and torch.equal(level_map, places):
            yield level
