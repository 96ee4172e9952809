"""Find the classifier of a timm model, and replace it.

No architecture's classifier is assumed: ``reset_classifier`` is called on a structural copy of the
model, and the modules that it creates are the classifier. ``get_classifier`` must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import timm
from torch import Tensor, nn

from headkit.adapters.compat import num_writes, pooling_to_keep
from headkit.adapters.errors import ContractError, first_line

from .encoders import add_classifier_methods
from .level_head import LEVEL_HEAD, level_head_of, remove_level_head
from .module_copy import all_tensors, copy_structure
from .timm_exceptions import RESET_ARGUMENTS, find_row

_PROBE_CLASSES = 3
_CACHE = "_headkit_classifier"


@dataclass(frozen=True)
class Classifier:
    """The place of the classifier in a model.

    Attributes:
        paths: Paths of its modules in natural order, such as ``head.fc``.
        widths: Width of the input of each module.
        tensors: ``state_dict`` names of its tensors, buffers included; empty if the model has no
            classes.
        num_classes: Length of the logits; 0 if the model has no classifier now.
        unused: ``state_dict`` names of the tensors of the architecture's own classifier, if the
            model has a head over levels: they belong neither to the head nor to the backbone.
    """

    paths: tuple[str, ...]
    widths: tuple[int, ...]
    tensors: tuple[str, ...]
    num_classes: int
    unused: tuple[str, ...] = ()


def find_classifier(model: nn.Module) -> Classifier:
    """Find the classifier of ``model`` without changing the model: the modules of its head.

    It is ``level_head`` if the model has a head over levels, or else the architecture's own
    classifier.

    Raises:
        ContractError: See ``find_own_classifier``.
    """
    own, head = find_own_classifier(model), level_head_of(model)
    if head is None:
        return own
    return Classifier(
        paths=(LEVEL_HEAD,),
        widths=(head.in_features,),
        tensors=tuple(f"{LEVEL_HEAD}.{name}" for name in head.state_dict()),
        num_classes=head.out_features,
        unused=own.tensors,
    )


def find_own_classifier(model: nn.Module) -> Classifier:
    """Find the architecture's own classifier, also in a model with a head over levels.

    For a model without classes, return the place where its classifier would be. A timm encoder
    that has no classifier methods gets them in place: mean pooling and ``head``.

    Raises:
        ContractError: ``get_classifier`` or ``reset_classifier`` is missing, they contradict each
            other, or ``reset_classifier`` makes a change that headkit does not support.
    """
    add_classifier_methods(model)
    tensors = all_tensors(model)
    shapes = tuple((id(tensor), tuple(tensor.shape)) for tensor in tensors.values())
    key = (getattr(model, "num_classes", None), tuple(map(id, model.modules())), shapes)
    cached = vars(model).get(_CACHE)
    if cached is not None and cached[0] == key:
        return cast(Classifier, cached[1])
    classifier = _observe_reset(model)
    vars(model)[_CACHE] = (key, classifier)
    return classifier


def replace_classifier(model: nn.Module, num_classes: int) -> Classifier:
    """Replace the classifier of ``model`` in place by a new one of the same kind.

    With 0 classes, remove the classifier. A head over levels and its hooks go, too.

    Raises:
        ContractError: ``reset_classifier`` changed something else, or did not change the
            classifier as it should.
    """
    remove_level_head(model)
    old_names = set(find_classifier(model).tensors)
    before = {
        name: (tensor, tensor.requires_grad, num_writes(tensor))
        for name, tensor in all_tensors(model).items()
        if name not in old_names
    }
    mode = {path: module.training for path, module in model.named_modules()}
    _reset_classifier(model, num_classes)
    after = all_tensors(model)
    for name, (tensor, requires_grad, version) in before.items():
        if after.get(name) is not tensor or num_writes(tensor) != version:
            raise ContractError(
                f"reset_classifier of {name_of(model)} changes the backbone's {name}"
            )
        if tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)
    now = find_classifier(model)
    stray = set(after) - set(before) - set(now.tensors)
    if now.num_classes != num_classes or bool(now.tensors) != bool(num_classes) or stray:
        raise ContractError(
            f"after reset_classifier({num_classes}), the classifier of {name_of(model)} has "
            f"{now.num_classes} classes and the tensors {', '.join(now.tensors) or 'none'}, "
            f"expected {num_classes} classes"
            + (f"; tensors outside it are new: {', '.join(sorted(stray))}" if stray else "")
        )
    reference = next(iter(tensor for tensor, *_ in before.values() if tensor.is_floating_point()))
    for path in now.paths if num_classes else ():
        module = model.get_submodule(path).to(reference.device, reference.dtype)
        module.train(mode.get(path, model.training))
    return now


def backbone_parameters(model: nn.Module, *, all_names: bool = False) -> dict[str, nn.Parameter]:
    """Return the parameters outside the classifier by name.

    Args:
        model: A timm model.
        all_names: Return a shared parameter under all of its names instead of the first one.
    """
    found = find_classifier(model)
    classifier = {*found.tensors, *found.unused}
    named = model.named_parameters(remove_duplicate=not all_names)
    return {name: parameter for name, parameter in named if name not in classifier}


def classifier_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the classifier's tensors, buffers included, under the model's ``state_dict`` names."""
    names = set(find_classifier(model).tensors)
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


def num_features(model: nn.Module) -> int:
    """Return the width of the input of the architecture's own classifier.

    If its modules have inputs of different widths, return the sum of the widths. timm's attribute
    ``num_features`` sometimes differs.
    """
    widths = find_own_classifier(model).widths
    return widths[0] if len(set(widths)) == 1 else sum(widths)


def name_of(model: nn.Module) -> str:
    """Return the name of a model for messages: its architecture and its class."""
    cfg = getattr(model, "pretrained_cfg", None)
    architecture = cfg.get("architecture") if isinstance(cfg, dict) else None
    kind = type(model).__name__
    return f"{architecture} ({kind})" if architecture else kind


def _observe_reset(model: nn.Module) -> Classifier:
    """Call ``reset_classifier`` on a copy of ``model``, and find what it replaces."""
    name = name_of(model)
    probe = copy_structure(model, share_tensors=False)
    remove_level_head(probe)
    tensors, modules = all_tensors(probe), dict(probe.named_modules(remove_duplicate=False))
    _reset_classifier(probe, _PROBE_CLASSES)
    new_tensors, new_modules = all_tensors(probe), dict(probe.named_modules(remove_duplicate=False))
    kept = {id(tensor) for tensor in new_tensors.values()}
    old = {id(tensor) for tensor in tensors.values()}
    removed = [n for n, tensor in tensors.items() if id(tensor) not in kept]
    created = [n for n, tensor in new_tensors.items() if id(tensor) not in old]
    if not created:
        raise ContractError(f"reset_classifier({_PROBE_CLASSES}) of {name} creates no tensor")
    moved = [n for n, t in tensors.items() if id(t) in kept and new_tensors.get(n) is not t]
    if moved:
        raise ContractError(
            f"reset_classifier of {name} moves {', '.join(moved)}, or the classifier shares "
            "tensors with the backbone"
        )
    _check_agreement(probe, new_modules, set(created))

    # The classifier that the model has; if it has none, the one that it would get.
    names, candidates, other_modules = (
        (removed, modules, new_modules) if removed else (created, new_modules, modules)
    )
    stays = {id(module) for module in other_modules.values()}
    parts: list[tuple[str, nn.Module]] = []
    for path, module in candidates.items():
        outermost = path and id(module) not in stays and id(candidates[_parent(path)]) in stays
        if outermost and _has_tensors(module):
            parts += _find_called_modules(path, module)
    parts.sort(key=lambda part: _natural_key(part[0]))
    outside = [n for n in names if not n.startswith(tuple(f"{path}." for path, _ in parts))]
    if outside:
        raise ContractError(
            f"reset_classifier of {name} creates {', '.join(outside)} outside any new module"
        )
    persistent = set(model.state_dict().keys())
    return Classifier(
        paths=tuple(path for path, _ in parts),
        widths=tuple(_input_width(module, name) for _, module in parts),
        tensors=tuple(n for n in removed if n in persistent),
        num_classes=_count_classes(parts, cast(Any, model).num_classes, name) if removed else 0,
    )


def _check_agreement(probe: nn.Module, modules: dict[str, nn.Module], created: set[str]) -> None:
    """Raise unless ``get_classifier`` returns modules that ``reset_classifier`` created."""
    paths = {id(module): path for path, module in modules.items()}
    returned = list(_flatten(cast(Any, probe).get_classifier()))
    if not returned:
        raise ContractError(f"get_classifier of {name_of(probe)} returns no module")
    for module in returned:
        path = paths.get(id(module))
        if path is None:
            raise ContractError(
                f"get_classifier of {name_of(probe)} returns a {type(module).__name__} "
                "that is not part of the model"
            )
        names = {f"{path}.{name}" for name in all_tensors(module)}
        if not names or names - created:
            raise ContractError(
                f"get_classifier of {name_of(probe)} returns {path}, but reset_classifier "
                f"creates {', '.join(sorted(created))}"
            )


def _reset_classifier(model: nn.Module, num_classes: int) -> None:
    arguments_for = find_row(RESET_ARGUMENTS, model)
    arguments = pooling_to_keep(model) | (arguments_for(model) if arguments_for else {})
    try:
        cast(Any, model).reset_classifier(num_classes, **arguments)
    except AttributeError as error:  # as in timm before 1.0.29, from no classes to some
        raise ContractError(
            f"reset_classifier of {name_of(model)} fails in timm {timm.__version__}: "
            f"{first_line(error)}; install timm>=1.0.29, or create it with another num_classes"
        ) from error


def _flatten(returned: object) -> Iterator[nn.Module]:
    if isinstance(returned, tuple | list | nn.ModuleList):
        for member in returned:
            yield from _flatten(member)
    elif isinstance(returned, nn.Module):
        yield returned


def _find_called_modules(path: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules inside a replaced module that ``forward`` calls, with their paths.

    Descend into each member of a ``ModuleList``, and into a child that alone has tensors.
    """
    if any(True for _ in chain(module.parameters(recurse=False), module.buffers(recurse=False))):
        return [(path, module)]
    children = [(f"{path}.{n}", c) for n, c in module.named_children() if _has_tensors(c)]
    if len(children) == 1 or isinstance(module, nn.ModuleList):
        return [part for child in children for part in _find_called_modules(*child)]
    return [(path, module)]


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in chain(module.parameters(), module.buffers()))


def _input_width(module: nn.Module, name: str) -> int:
    for part in module.modules():
        for attribute in ("in_features", "in_channels", "num_features"):
            width = getattr(part, attribute, None)
            if isinstance(width, int):
                return width
    raise ContractError(
        f"the classifier of {name} is a {type(module).__name__} of unknown input width, expected a "
        "module with in_features, in_channels or num_features"
    )


def _count_classes(parts: list[tuple[str, nn.Module]], declared: int, name: str) -> int:
    """Return the number of logits of the classifier's modules.

    A model's attribute ``num_classes`` keeps its value if somebody assigns a module by hand.
    """
    counts = {path: _output_width(module) for path, module in parts}
    known = {count for count in counts.values() if count is not None}
    if len(known) > 1:
        raise ContractError(
            f"the modules of the classifier of {name} return different numbers of logits: "
            f"{', '.join(f'{path} {count}' for path, count in counts.items())}; replace all of them"
        )
    return known.pop() if known else int(declared)


def _output_width(module: nn.Module) -> int | None:
    for part in reversed(list(module.modules())):
        for attribute in ("out_features", "out_channels"):
            width = getattr(part, attribute, None)
            if isinstance(width, int):
                return width
    return None


def _natural_key(path: str) -> list[tuple[int, int, str]]:
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in path.split(".")]


def _parent(path: str) -> str:
    return path.rpartition(".")[0]
