"""Find the kind of head of a classifier that somebody put onto a model by hand.

``model.fc = nn.Linear(96, 3)``, with or without a bias, alone or in an ``nn.Sequential`` with
dropout, is a linear head; two linear layers with GELU between them are a head of kind ``mlp``. A
candidate counts only if it gives the logits of the module that it stands for.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import (
    classifier_tensors,
    find_classifier,
    find_own_classifier,
    name_of,
    replace_classifier,
)
from headkit.adapters.backbone.level_head import level_head_of
from headkit.adapters.backbone.load import create_model
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.backbone.preprocessing import timm_cfg
from headkit.adapters.compat import model_arguments
from headkit.adapters.errors import ContractError

from .kinds import KINDS, Kind, detect_kind, install_classifier

_SAMPLES = 16
_USUAL_NAMES = ("fc", "head", "classifier", "heads", "last_linear", "linear")
TOLERANCE = 1e-5
"""Largest difference of the logits, divided by the largest absolute logit."""


def describe_classifier(model: nn.Module) -> tuple[Kind, dict[str, Tensor]]:
    """Return the kind of head that ``model`` carries, and its tensors as a head file names them.

    For a classifier that timm or headkit made, these are the model's own tensors.

    Raises:
        ContractError: The classifier is of no kind that a head file can describe.
    """
    tensors = classifier_tensors(model)
    if not tensors:
        return "own", {}
    if level_head_of(model) is not None:
        return "linear", tensors
    number = find_classifier(model).num_classes
    own = copy_structure(model, share_tensors=False)
    slots = replace_classifier(own, number)
    if all(_same_modules(model, own, path) for path in slots.paths):
        return "own", tensors
    try:
        kind = detect_kind(model)
        probe = copy_structure(model, share_tensors=False)
        install_classifier(probe, kind, number, tensors)
        if all(_same_modules(model, probe, path) for path in slots.paths):
            return kind, tensors
    except ContractError:
        pass  # not of headkit's kinds either
    found = [
        _rebuild(model, own, path, width)
        for path, width in zip(slots.paths, slots.widths, strict=True)
    ]
    kinds = {kind for kind, _ in found}
    if len(kinds) != 1:
        raise _unknown(model, slots.paths[0])
    return kinds.pop(), {name: tensor for _, part in found for name, tensor in part.items()}


def check_place(model: nn.Module) -> None:
    """Raise ``ContractError`` if a layer was assigned to a name that the architecture does not use.

    Python accepts ``model.fc = nn.Linear(256, 3)`` for any model. If the classifier has another
    name, the model never uses the layer.
    """
    places = {path.partition(".")[0] for path in find_own_classifier(model).paths}
    children = dict(model.named_children())
    stray = [
        name
        for name in _USUAL_NAMES
        if name in children and name not in places and children[name].state_dict()
    ]
    if not stray:
        return
    architecture = timm_cfg(model)["architecture"]
    fresh = create_model(architecture, pretrained=False, device="meta", **model_arguments(model))
    unused = [name for name in stray if name not in dict(fresh.named_children())]
    if unused:
        raise ContractError(
            f"{name_of(model)} does not use its part {unused[0]}: its classifier is "
            f"{', '.join(find_classifier(model).paths)}. Assign the layer there, and remove "
            f"{unused[0]}; or call adapt(model, num_classes)"
        )


def _same_modules(model: nn.Module, other: nn.Module, path: str) -> bool:
    """Return True if both have modules of the same classes and tensors of the same shapes there."""
    try:
        one, two = model.get_submodule(path), other.get_submodule(path)
    except AttributeError:
        return False
    classes = [(name, type(module)) for name, module in one.named_modules()]
    shapes = {name: tensor.shape for name, tensor in one.state_dict().items()}
    return classes == [(name, type(module)) for name, module in two.named_modules()] and (
        shapes == {name: tensor.shape for name, tensor in two.state_dict().items()}
    )


def _rebuild(
    model: nn.Module, own: nn.Module, path: str, width: int
) -> tuple[Kind, dict[str, Tensor]]:
    """Return a kind and the tensors with which it gives the logits of the module at ``path``."""
    hand_made = model.get_submodule(path)
    layers = [
        part
        for part in hand_made.modules()
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.groups == 1)
    ]
    covered = sum(len(list(layer.parameters())) for layer in layers)
    if len(layers) not in (1, 2) or covered != len(hand_made.state_dict()):
        raise _unknown(model, path)
    matrices = [layer.weight.detach().flatten(1) for layer in layers]
    if matrices[0].shape[1] != width:
        raise ContractError(
            f"the classifier {path} of {name_of(model)} takes {matrices[0].shape[1]} features, but "
            f"the backbone returns {width}"
        )
    biases = [
        matrix.new_zeros(matrix.shape[0]) if layer.bias is None else layer.bias.detach()
        for layer, matrix in zip(layers, matrices, strict=True)
    ]
    slot = own.get_submodule(path)
    is_conv = isinstance(slot, nn.Conv2d)
    if len(layers) == 2:
        kind: Kind = "mlp"
        names = [f"{layer}.{part}" for layer in ("fc1", "fc2") for part in ("weight", "bias")]
        values = [matrices[0], biases[0], matrices[1], biases[1]]
    else:
        kind = "own" if type(slot) is nn.Linear or is_conv else "linear"
        if is_conv and isinstance(layers[0], nn.Linear):
            kind = "linear"
        matrix = matrices[0]
        names = ["weight", "bias"]
        values = [
            matrix.reshape(cast(Tensor, slot.weight).shape) if kind == "own" else matrix,
            biases[0],
        ]
    tensors = {f"{path}.{name}": value for name, value in zip(names, values, strict=True)}
    if not _gives_same_logits(model, path, kind, tensors, width):
        raise _unknown(model, path)
    return kind, tensors


def _gives_same_logits(
    model: nn.Module, path: str, kind: Kind, tensors: dict[str, Tensor], width: int
) -> bool:
    probe = copy_structure(model, share_tensors=False)
    install_classifier(probe, kind, find_classifier(model).num_classes, tensors)
    rebuilt = probe.get_submodule(path).to_empty(device="cpu").float().eval()
    state = {name.removeprefix(f"{path}."): tensor for name, tensor in tensors.items()}
    if {n: t.shape for n, t in rebuilt.state_dict().items()} != {
        n: t.shape for n, t in state.items()
    }:
        return False
    rebuilt.load_state_dict(state)
    hand_made = copy.deepcopy(model.get_submodule(path)).cpu().float().eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_SAMPLES, width, generator=generator)
    convolves = any(isinstance(part, nn.Conv2d) for part in (*hand_made.modules(), rebuilt))
    x = x[:, :, None, None] if convolves else x
    with torch.no_grad():
        try:
            expected = hand_made(x).flatten(1)
            logits = rebuilt(x).flatten(1)
        except (RuntimeError, TypeError, IndexError):
            return False
    return logits.shape == expected.shape and bool(
        torch.allclose(logits, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
    )


def _unknown(model: nn.Module, path: str) -> ContractError:
    module = model.get_submodule(path)
    parts = [type(part).__name__ for part in module.modules() if not list(part.children())]
    return ContractError(
        f"the classifier {path} of {name_of(model)} is of an unknown kind ({', '.join(parts)}), "
        f"expected one of {', '.join(KINDS)}: a single linear layer, or two with GELU between "
        "them; adapt(model, num_classes, kind) makes a classifier that a head file can describe"
    )


def install_described(model: nn.Module, kind: str, tensors: dict[str, Tensor]) -> None:
    """Put the classifier that ``describe_classifier`` returned onto ``model``, in place."""
    install_classifier(model, cast(Kind, kind), find_classifier(model).num_classes, tensors)
    model.load_state_dict(tensors, strict=False)
