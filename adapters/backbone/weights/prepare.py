"""Decide what of a checkpoint an architecture gets: the whole backbone, or an error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import classifier_tensors, replace_classifier
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.errors import ContractError

from .convert import Converted, Create, convert
from .match import Match, Wanted, explain, match_names, shorten
from .read import Checkpoint
from .remap import rename_by_position

_HINT = "if only the names differ, remap=True (--remap) assigns the tensors by position"
_HINT_SHAPE = (
    "pass the arguments that the file was trained with, such as in_chans or img_size; timm "
    "converts the tensors to in_chans and img_size only if you pass them"
)
_CLASSIFIER = re.compile(r"(?:^|[._])(?:head|fc|classifier|cls|logits|linear)")
_QUOTED = re.compile(r'"([^"]+)"')
_PROBE = "headkit_unexpected"
"""Name of a tensor that no architecture has."""


@dataclass(frozen=True)
class Prepared:
    """What to load.

    Attributes:
        tensors: The tensors of the backbone and, if it is kept, of the classifier.
        num_classes: Number of classes to create the architecture with; None for its default.
        kept: Whether the file's classifier is kept.
        left_out: The file's tensors at the place of the classifier, if it is not kept.
        notes: What was recognized, converted or left out.
        untrained: Why the classifier will be random; empty if it will not be.
    """

    tensors: Mapping[str, Tensor]
    num_classes: int | None
    kept: bool
    notes: tuple[str, ...]
    untrained: str = ""
    left_out: Mapping[str, Tensor] = field(default_factory=dict)


def prepare(
    name: str,
    checkpoint: Checkpoint,
    create: Create,
    arguments: Mapping[str, Any],
    *,
    remap: bool,
) -> Prepared:
    """Match a checkpoint with an architecture, exactly and completely.

    Args:
        name: The architecture, for messages.
        checkpoint: The tensors.
        create: Creates the architecture with the user's arguments other than ``num_classes``.
        arguments: The user's arguments of ``timm.create_model``.
        remap: Match by position instead of by name.

    Raises:
        WeightsError: The names or shapes of the backbone do not agree, even after timm's own
            conversions. The message says what is missing and what was found.
    """
    requested = arguments.get("num_classes")
    given = {} if requested is None else {"num_classes": requested}
    model = create(pretrained=False, device="meta", **given)
    wanted = Wanted.of(model, name)
    if remap:
        checkpoint = rename_by_position(wanted, model, checkpoint)
    match = match_names(wanted, checkpoint)
    if not match.agrees:
        match = _convert(wanted, match, checkpoint, create, arguments)
    notes = [*_describe(match, checkpoint), *match.notes]
    tensors = dict(match.backbone)
    found = fitting_num_classes(model, match.classifier)
    if found is not None and requested in (None, found):
        return Prepared({**tensors, **match.classifier}, found, True, tuple(notes))
    left_out, why = dict(match.classifier), _describe_left_out(match, found)
    untrained = why or "the file has no classifier"
    if requested == 0:
        notes += [why] if why else []
        return Prepared(tensors, 0, False, tuple(notes), left_out=left_out)
    if requested is None:
        notes.append(why or "it has no classifier")
        if _has_same_backbone_without_classes(create, wanted):
            notes.append("the model has no classes")
            return Prepared(tensors, 0, False, tuple(notes), left_out=left_out)
        notes.append("the classifier is random until it is trained")
    else:
        notes += [why] if why else []
        notes.append(f"the classifier of {requested} classes is random until it is trained")
    return Prepared(tensors, requested, False, tuple(notes), untrained, left_out)


def fitting_num_classes(model: nn.Module, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes with which the own classifier of ``model`` has these tensors.

    Returns:
        None if the own classifier has other tensors for every number of classes.
    """
    shapes = _shapes(tensors)
    for number in sorted({tensor.shape[0] for tensor in tensors.values() if tensor.ndim}):
        probe = copy_structure(model, share_tensors=False)
        try:
            replace_classifier(probe, number)
        except ContractError:
            continue
        if _shapes(classifier_tensors(probe)) == shapes:
            return number
    return None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {n: tuple(t.shape) for n, t in tensors.items() if not n.endswith("num_batches_tracked")}


def _has_same_backbone_without_classes(create: Create, wanted: Wanted) -> bool:
    """Return True if the architecture can be created without classes, with the same backbone."""
    try:
        model = create(pretrained=False, device="meta", num_classes=0)
        without = Wanted.of(model, wanted.name)
    except Exception:  # timm's own errors, of any kind
        return False
    return {name: t.shape for name, t in without.backbone.items()} == {
        name: t.shape for name, t in wanted.backbone.items()
    }


def _convert(
    wanted: Wanted,
    match: Match,
    checkpoint: Checkpoint,
    create: Create,
    arguments: Mapping[str, Any],
) -> Match:
    """Return the match after timm's own conversions.

    Raises:
        WeightsError: There is none.
    """
    if match.names_agree:
        converted = _reshape(wanted, match, create, arguments)
        if converted is None:
            raise explain(wanted, match, checkpoint, _HINT_SHAPE)
        return converted
    for prefix, tensors in _views(checkpoint):
        renamed = _rename(wanted, prefix, tensors, create, arguments.get("num_classes"))
        if renamed is not None:
            return renamed
    raise explain(wanted, match, checkpoint, _HINT)


def _reshape(
    wanted: Wanted, match: Match, create: Create, arguments: Mapping[str, Any]
) -> Match | None:
    """Let timm convert the tensors whose shapes the user's arguments explain."""
    if not all(
        _explains(arguments, name, match.backbone[name], wanted.backbone[name])
        for name in match.reshaped
    ):
        return None
    try:
        converted = convert(create, match.backbone, arguments.get("num_classes"), strict=False)
    except Exception:  # timm's filters fail in many ways on tensors that they do not expect
        return None
    tensors = {**match.backbone, **converted.tensors}
    after = _rematch(wanted, tensors)
    if not after.agrees or any(name not in converted.tensors for name in match.reshaped):
        return None
    notes = [
        f"timm converted {name} from {list(match.backbone[name].shape)} to "
        f"{list(tensors[name].shape)}"
        for name in match.reshaped
    ]
    return replace(
        match,
        backbone=after.backbone,
        reshaped=(),
        notes=(*match.notes, *notes[:3], *([f"and {len(notes) - 3} more"] if notes[3:] else [])),
    )


def _explains(arguments: Mapping[str, Any], name: str, loaded: Tensor, expected: Tensor) -> bool:
    """Return True if the user asked for the shape, so that timm's conversion is intended."""
    given = {key for key, value in arguments.items() if value is not None}
    if "input_size" in (arguments.get("pretrained_cfg_overlay") or {}):
        given |= {"img_size"}
    same_rank = loaded.ndim == expected.ndim
    differing = [
        axis
        for axis in range(expected.ndim)
        if not same_rank or loaded.shape[axis] != expected.shape[axis]
    ]
    if name.endswith(".weight") and expected.ndim == 4 and same_rank:
        return "in_chans" in given if differing == [1] else "patch_size" in given
    return bool(given & {"img_size", "window_size", "patch_size", "class_token", "reg_tokens"})


def _views(checkpoint: Checkpoint) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the larger dictionaries of a checkpoint, and each without its shared first words."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        groups.setdefault(checkpoint.groups.get(name, ""), {})[name] = tensor
    most = max(len(tensors) for tensors in groups.values())
    for tensors in sorted(groups.values(), key=len, reverse=True)[:2]:
        if 2 * len(tensors) < most:
            continue
        names = list(tensors)
        prefix = ""
        for _ in range(4):
            yield prefix, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            word = names[0].removeprefix(prefix).partition(".")[0]
            longer = f"{prefix}{word}."
            if not all(name.startswith(longer) for name in names):
                break
            prefix = longer


def _rename(
    wanted: Wanted,
    prefix: str,
    tensors: Mapping[str, Tensor],
    create: Create,
    requested: int | None,
) -> Match | None:
    """Let timm's filter rename the tensors of another codebase or of an older version."""
    for number in _candidates(wanted, tensors, requested):
        try:
            exact = convert(create, tensors, number, strict=True)
            after = _rematch(wanted, exact.tensors)
            if after.missing:  # timm does not check the names of some architectures
                return None
            if after.agrees and _is_strict(create, tensors, number, exact):
                return replace(after, prefix=prefix, notes=_say_renamed(tensors, exact, wanted))
        except Exception as error:  # see _reshape
            if any(name in wanted.backbone for name in _QUOTED.findall(_missing_keys(error))):
                return None  # another number of classes would not help
    return None


def _missing_keys(error: Exception) -> str:
    """Return torch's list of missing names in an error's message; empty if it has none."""
    return str(error).partition("Missing key(s)")[2].partition("Unexpected key(s)")[0]


def _is_strict(
    create: Create, tensors: Mapping[str, Tensor], num_classes: int | None, converted: Converted
) -> bool:
    """Return True if timm refuses tensors that it does not know, for this architecture."""
    if not converted.unused:
        return True
    try:
        convert(create, {**tensors, _PROBE: torch.zeros(1)}, num_classes, strict=True)
    except Exception:  # see _reshape
        return True
    return False


def _candidates(
    wanted: Wanted, tensors: Mapping[str, Tensor], requested: int | None
) -> list[int | None]:
    """Return the numbers of classes to try: timm checks names strictly only for the right one."""
    rows = [
        tensor.shape[0]
        for name, tensor in tensors.items()
        if tensor.ndim and (wanted.is_classifier(name) or _CLASSIFIER.search(name))
    ]
    numbers: list[int | None] = [requested, *dict.fromkeys(reversed(rows)), 0]
    return list(dict.fromkeys(numbers))[:8]


def _say_renamed(
    tensors: Mapping[str, Tensor], converted: Converted, wanted: Wanted
) -> tuple[str, ...]:
    notes = ["timm converted its tensors to the names of the architecture"]
    reshaped = [
        name
        for name in wanted.backbone
        if name in tensors and tensors[name].shape != converted.tensors[name].shape
    ]
    if reshaped:
        notes.append(f"timm resized {shorten(reshaped)}")
    if converted.unused:
        notes.append(f"timm left out {shorten(converted.unused)}")
    return tuple(notes)


def _rematch(wanted: Wanted, tensors: Mapping[str, Tensor]) -> Match:
    return match_names(wanted, Checkpoint("", tensors, dict.fromkeys(tensors, "")))


def _describe(match: Match, checkpoint: Checkpoint) -> list[str]:
    notes = []
    if match.prefix:
        notes.append(f"read the tensors below {match.prefix.rstrip('.')}")
    if checkpoint.unwrapped:
        notes.append("removed what torch adds to the names of a compiled or wrapped module")
    if match.outside:
        notes.append(f"left out {shorten(match.outside)}")
    return notes


def _describe_left_out(match: Match, found: int | None) -> str:
    if not match.classifier:
        return ""
    kind = "its classifier" if found is None else f"its classifier of {found} classes"
    return f"left out {kind} ({shorten(match.classifier)})"
