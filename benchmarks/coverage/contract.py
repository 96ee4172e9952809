"""The adapter layer's contract for one architecture, checked without and with real tensors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models import get_model_input_config, get_pretrained_cfg
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import (
    classifier_tensors,
    find_classifier,
    num_features,
    replace_classifier,
)
from headkit.adapters.backbone.forward import TOLERANCE, classify, features
from headkit.adapters.backbone.freeze import freeze
from headkit.adapters.backbone.module_copy import all_tensors
from headkit.adapters.backbone.timm_exceptions import ENCODERS
from headkit.adapters.errors import ContractError
from headkit.adapters.heads.attach import attach, head_of
from headkit.adapters.heads.kinds import KINDS, default_kind, install, kind_of
from headkit.benchmarks.bench.macs import count_gmacs
from headkit.export.exporter import export

from .random_weights import asleep, calm, relative_difference, stir, wake

Row = dict[str, Any]

_CLASSES = 7
_SMALL_INPUT = 128
_SMALL_FIXED_INPUTS = (112, 224)
"""Multiples of the patches of 14, 16 and 32 pixels that architectures of a fixed size have."""


def structure(name: str) -> Row:
    """Check the contract's structure on the meta device: no weights are allocated.

    The classifier is found, replaced with n, 0 and m classes, has the tensors that plain timm gives
    it for that class count, and takes each kind of head.

    Returns:
        What is known of the architecture.

    Raises:
        ContractError: what does not hold.
    """
    model = _on_meta(name)
    found = find_classifier(model)
    started_with = found.num_classes
    classes = (
        [type(model.get_submodule(path)).__name__ for path in found.paths] if started_with else []
    )
    for num_classes in (5, 0, _CLASSES):
        now = replace_classifier(model, num_classes)
        _expect(now.paths == found.paths, f"the classifier moves from {found.paths} to {now.paths}")
        _expect(now.widths == found.widths, f"widths change from {found.widths} to {now.widths}")
    if not started_with:
        classes = [type(model.get_submodule(path)).__name__ for path in found.paths]
    own = _shapes(model)
    is_encoder = any(parent.__name__ in ENCODERS for parent in type(model).__mro__)
    if not is_encoder:
        plain = _shapes(_on_meta(name, num_classes=_CLASSES))
        _expect(own == plain, f"tensors are {own}, plain timm gives {plain}")
    head = set(find_classifier(model).tensors)
    backbone = sum(p.numel() for n, p in model.named_parameters() if n not in head)
    default = default_kind(model)
    for kind in KINDS[1:]:
        install(model, kind, _CLASSES)
        if kind != "linear" or _shapes(model) != own:
            _expect(kind_of(model) == kind, f"a {kind} head is taken for another")
    install(model, default, _CLASSES)
    per_class = sum(
        t.numel() * t.element_size() / _CLASSES
        for t in classifier_tensors(model).values()
        if t.ndim and t.shape[0] == _CLASSES
    )
    current = get_model_input_config(model)
    return {
        "parameters": backbone,
        "num_features": num_features(model),
        "input_size": list(current["input_size"]),
        "fixed_input_size": bool(current["fixed_input_size"]),
        "classifier": sorted(set(classes)),
        "modules": len(found.paths),
        "default_kind": default,
        "head_bytes_per_class": round(per_class),
        "starts_with_classes": started_with,
        "plain_timm": not is_encoder and default == "own",
        "tags": _tags(name),
    }


def numeric(name: str) -> Row:
    """Check the contract with real tensors, random weights of a fixed seed, batch 2.

    ``classify(features(x)) == model(x)``; a saved head gives the same logits bit for bit in a fresh
    model; training steps in train mode change the head and nothing else; without a classifier the
    features are the same.

    Returns:
        The difference relative to the largest logit, and the input size that was used.

    Raises:
        ContractError: what does not hold.
    """
    model, x, entered, options = _at_smallest_input(name)
    with torch.no_grad():
        woken = asleep(classify(model, entered))
    if woken:
        calm(model, x)
        with torch.no_grad():
            entered = features(model, x)
    with torch.no_grad():
        logits = model(x)
        difference = relative_difference(classify(model, entered), logits)
    _expect(difference <= TOLERANCE, f"classify(features(x)) differs by {difference:.1e}")
    _expect(bool(logits.isfinite().all()), "logits are not finite")
    _expect(bool((logits[0] != logits[1]).any()), "two images get the same logits")

    before = head_of(model)
    with tempfile.TemporaryDirectory() as folder:
        saved = before.save(Path(folder) / "head.safetensors")
        other = _fresh(name, **options)
        if woken:
            other.load_state_dict(_backbone_state(model), strict=False)
        # Else the same seed made the same backbone; attach compares the fingerprints.
        attach(other, saved)
    with torch.no_grad():
        _expect(torch.equal(other(x), logits), "a saved head gives other logits in a fresh model")
    del other

    _train(model, x)
    after = head_of(model)
    _expect(
        after.backbone.fingerprint == before.backbone.fingerprint, "training changes the backbone"
    )
    untouched = [
        key
        for key, tensor in before.tensors.items()
        if tensor.ndim >= 2 and (tensor == after.tensors[key]).all()
    ]
    _expect(not untouched, f"training does not change {', '.join(untouched)}")

    replace_classifier(model.eval(), 0)
    with torch.no_grad():
        without = features(model, x)
    pairs = zip(_branches(entered), _branches(without), strict=True)
    _expect(all(torch.equal(a, b) for a, b in pairs), "features change without a classifier")
    return {"difference": difference, "input": list(x.shape[1:])}


def macs(name: str) -> Row:
    """Count multiply-adds of one forward pass of one image, in billions."""
    model = _on_meta(name).eval().requires_grad_(False)
    return {"gmacs": count_gmacs(model, get_model_input_config(model)["input_size"])}


def exported(name: str) -> Row:
    """Export backbone and head, random weights of a fixed seed, and compare with torch.

    No branch of the network is without effect: what timm starts at zero gets random values.

    Returns:
        The largest difference at batch sizes other than the traced one, relative to the largest
        logit; relative to the same, how far the logits of two images lie apart and those of float32
        from those of float64; the opset, and the bytes of the file.

    Raises:
        ExportError: it cannot be exported, or ONNX Runtime gives other logits (``ParityError``).
        ContractError: the logits hardly depend on the image, or so much that rounding decides them:
            nothing would be checked.
    """
    model = _fresh(name)
    replace_classifier(model, _CLASSES)
    freeze(model)
    spread, rounding = wake(model)
    with tempfile.TemporaryDirectory() as folder:
        done = export(model, Path(folder) / "model.onnx")
    return {
        "difference": max(done.difference.values()),
        "spread": round(spread, 6),
        "rounding": rounding,
        "opset": done.opset,
        "bytes": done.num_bytes,
    }


CHECKS: dict[str, Callable[[str], Row]] = {
    "structure": structure,
    "numeric": numeric,
    "macs": macs,
    "export": exported,
}


def _on_meta(name: str, **kwargs: Any) -> nn.Module:
    return cast(nn.Module, timm.create_model(name, pretrained=False, device="meta", **kwargs))


def _fresh(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return cast(nn.Module, timm.create_model(name, pretrained=False, **kwargs)).eval()


def _backbone_state(model: nn.Module) -> dict[str, Tensor]:
    head = set(find_classifier(model).tensors)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in head}


def _at_smallest_input(name: str) -> tuple[nn.Module, Tensor, Any, dict[str, Any]]:
    """A frozen model with ``_CLASSES`` classes, a random batch, its features, options of timm.

    The images are smaller than the architecture's own where it takes such: as they come, or made
    for them by ``img_size`` where its input size is fixed.
    """
    current = get_model_input_config(_on_meta(name))
    channels, height, width = current["input_size"]
    attempts: list[tuple[dict[str, Any], tuple[int, int]]] = []
    if current["fixed_input_size"]:
        attempts += [
            ({"img_size": size}, (size, size))
            for size in _SMALL_FIXED_INPUTS
            if size < min(height, width)
        ]
    elif min(height, width) > _SMALL_INPUT:
        attempts.append(({}, (_SMALL_INPUT, _SMALL_INPUT)))
    attempts.append(({}, (height, width)))
    for number, (options, size) in enumerate(attempts, 1):
        x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(2))
        try:
            model = _fresh(name, **options)
            replace_classifier(model, _CLASSES)
            freeze(model)
            stir(model)
            with torch.no_grad():
                return model, x, features(model, x), options
        except Exception:
            if number == len(attempts):
                raise
    raise AssertionError("unreachable")


def _train(model: nn.Module, x: Tensor) -> None:
    found = find_classifier(model)
    kept = {n: t.clone() for n, t in all_tensors(model).items() if n not in set(found.tensors)}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        loss = nn.functional.cross_entropy(model.train()(x), torch.tensor([0, 1]))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    now = all_tensors(model)
    changed = [n for n, tensor in kept.items() if not torch.equal(now[n], tensor)]
    _expect(not changed, f"training changes {', '.join(changed[:5])}")


def _branches(entered: Any) -> tuple[Tensor, ...]:
    return (entered,) if isinstance(entered, Tensor) else tuple(entered)


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in classifier_tensors(model).items()}


def _tags(name: str) -> dict[str, str]:
    tags = {}
    for full in timm.list_pretrained(f"{name}.*"):
        cfg = get_pretrained_cfg(full)
        tags[full.partition(".")[2]] = (cfg.license if cfg is not None else None) or "unknown"
    return tags


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ContractError(otherwise)
