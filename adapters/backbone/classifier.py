"""Find the classifier of a timm model, and replace it.

What the classifier is, is observed and not assumed: ``reset_classifier`` is called on a structural
copy of the model, and whatever it creates anew is the classifier. ``get_classifier`` has to agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

from torch import Tensor, nn

from headkit.adapters.compat import num_writes
from headkit.adapters.errors import ContractError

from .encoders import give_classifier
from .module_copy import all_tensors, copy_structure
from .timm_exceptions import RESET, exception_for

_PROBE_CLASSES = 3
_CACHE = "_headkit_classifier"


@dataclass(frozen=True)
class Classifier:
    """Where the classifier sits in a model.

    Attributes:
        paths: its modules, by name, in natural order.
        widths: width of what enters each of them.
        tensors: ``state_dict`` names of its tensors, buffers included; none without classes.
        num_classes: length of the logits; 0 if the model has no classifier now.
    """

    paths: tuple[str, ...]
    widths: tuple[int, ...]
    tensors: tuple[str, ...]
    num_classes: int


def find_classifier(model: nn.Module) -> Classifier:
    """Find the classifier of ``model``, which stays as it is.

    A model without classes is told where its classifier would sit. An encoder of timm that has no
    classifier interface gains one in place: mean pooling and ``head``.

    Raises:
        ContractError: ``get_classifier`` or ``reset_classifier`` is missing, they contradict each
            other, or ``reset_classifier`` does something that is not understood.
    """
    give_classifier(model)
    tensors = all_tensors(model)
    shapes = tuple((id(tensor), tuple(tensor.shape)) for tensor in tensors.values())
    key = (getattr(model, "num_classes", None), tuple(map(id, model.modules())), shapes)
    cached = vars(model).get(_CACHE)
    if cached is not None and cached[0] == key:
        return cast(Classifier, cached[1])
    found = _observe(model)
    vars(model)[_CACHE] = (key, found)
    return found


def replace_classifier(model: nn.Module, num_classes: int) -> Classifier:
    """Give ``model`` a new classifier of its own kind, in place; 0 classes take it away.

    Raises:
        ContractError: ``reset_classifier`` changed anything else, or not what it should.
    """
    found = find_classifier(model)
    own = set(found.tensors)
    before = {
        name: (tensor, tensor.requires_grad, num_writes(tensor))
        for name, tensor in all_tensors(model).items()
        if name not in own
    }
    mode = {path: module.training for path, module in model.named_modules()}
    _reset(model, num_classes)
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
            f"reset_classifier({num_classes}) of {name_of(model)} leaves {now.num_classes} classes "
            f"with {', '.join(now.tensors) or 'no tensors'}"
            + (f" and the new tensors {', '.join(sorted(stray))}" if stray else "")
        )
    reference = next(iter(tensor for tensor, *_ in before.values() if tensor.is_floating_point()))
    for path in now.paths if num_classes else ():
        module = model.get_submodule(path).to(reference.device, reference.dtype)
        module.train(mode.get(path, model.training))
    return now


def classifier_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the classifier's tensors, buffers included, under the model's ``state_dict`` names."""
    own = set(find_classifier(model).tensors)
    return {name: tensor for name, tensor in model.state_dict().items() if name in own}


def num_features(model: nn.Module) -> int:
    """Return the width of what enters the classifier.

    Where its modules take different widths, their sum. timm's ``num_features`` is not always it.
    """
    widths = find_classifier(model).widths
    return widths[0] if len(set(widths)) == 1 else sum(widths)


def name_of(model: nn.Module) -> str:
    """Return how messages call a model: its architecture and its class."""
    cfg = getattr(model, "pretrained_cfg", None)
    architecture = cfg.get("architecture") if isinstance(cfg, dict) else None
    kind = type(model).__name__
    return f"{architecture} ({kind})" if architecture else kind


def _observe(model: nn.Module) -> Classifier:
    name = name_of(model)
    probe = copy_structure(model, share_tensors=False)
    tensors, modules = all_tensors(probe), dict(probe.named_modules(remove_duplicate=False))
    _reset(probe, _PROBE_CLASSES)
    new_tensors, new_modules = all_tensors(probe), dict(probe.named_modules(remove_duplicate=False))
    kept = {id(tensor) for tensor in new_tensors.values()}
    old = {id(tensor) for tensor in tensors.values()}
    gone = [n for n, tensor in tensors.items() if id(tensor) not in kept]
    made = [n for n, tensor in new_tensors.items() if id(tensor) not in old]
    if not made:
        raise ContractError(f"reset_classifier({_PROBE_CLASSES}) of {name} creates no tensor")
    moved = [n for n, t in tensors.items() if id(t) in kept and new_tensors.get(n) is not t]
    if moved:
        raise ContractError(
            f"reset_classifier of {name} moves {', '.join(moved)}, or the classifier shares "
            "tensors with the backbone"
        )
    _check_agreement(probe, new_modules, set(made))

    # The classifier that the model has, or else the one that it would get.
    own, named, stays = (
        (gone, modules, {id(module) for module in new_modules.values()})
        if gone
        else (made, new_modules, {id(module) for module in modules.values()})
    )
    found: list[tuple[str, nn.Module]] = []
    for path, module in named.items():
        outermost = path and id(module) not in stays and id(named[_parent(path)]) in stays
        if outermost and _has_tensors(module):
            found += _narrow(path, module)
    found.sort(key=lambda item: _natural(item[0]))
    outside = [n for n in own if not n.startswith(tuple(f"{path}." for path, _ in found))]
    if outside:
        raise ContractError(
            f"reset_classifier of {name} creates {', '.join(outside)} outside any new module"
        )
    persistent = set(model.state_dict().keys())
    return Classifier(
        paths=tuple(path for path, _ in found),
        widths=tuple(_width(module, name) for _, module in found),
        tensors=tuple(n for n in gone if n in persistent),
        num_classes=int(cast(Any, model).num_classes) if gone else 0,
    )


def _check_agreement(probe: nn.Module, modules: dict[str, nn.Module], made: set[str]) -> None:
    """What get_classifier returns must be in the model and part of what reset_classifier made."""
    paths = {id(module): path for path, module in modules.items()}
    returned = list(_flatten(cast(Any, probe).get_classifier()))
    if not returned:
        raise ContractError(f"get_classifier of {name_of(probe)} returns no module")
    for module in returned:
        path = paths.get(id(module))
        if path is None:
            raise ContractError(
                f"get_classifier of {name_of(probe)} returns a {type(module).__name__} "
                "that is no part of the model"
            )
        own = {f"{path}.{name}" for name in all_tensors(module)}
        if not own or own - made:
            raise ContractError(
                f"get_classifier of {name_of(probe)} returns {path}, but reset_classifier "
                f"creates {', '.join(sorted(made))}"
            )


def _reset(model: nn.Module, num_classes: int) -> None:
    arguments = exception_for(RESET, model)
    further = arguments(model) if arguments else {}
    cast(Any, model).reset_classifier(num_classes, **further)


def _flatten(returned: object) -> Iterator[nn.Module]:
    if isinstance(returned, tuple | list | nn.ModuleList):
        for member in returned:
            yield from _flatten(member)
    elif isinstance(returned, nn.Module):
        yield returned


def _narrow(path: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """From a replaced module to those called in forward: into lists, down single children."""
    if any(True for _ in chain(module.parameters(recurse=False), module.buffers(recurse=False))):
        return [(path, module)]
    children = [(f"{path}.{n}", c) for n, c in module.named_children() if _has_tensors(c)]
    if len(children) == 1 or isinstance(module, nn.ModuleList):
        return [found for child in children for found in _narrow(*child)]
    return [(path, module)]


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in chain(module.parameters(), module.buffers()))


def _width(module: nn.Module, name: str) -> int:
    for part in module.modules():
        for attribute in ("in_features", "in_channels", "num_features"):
            width = getattr(part, attribute, None)
            if isinstance(width, int):
                return width
    raise ContractError(f"the classifier {type(module).__name__} of {name} tells no input width")


def _natural(path: str) -> list[tuple[int, int, str]]:
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in path.split(".")]


def _parent(path: str) -> str:
    return path.rpartition(".")[0]
