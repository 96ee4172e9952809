"""Check the contract of the adapter layer for one architecture, on meta and on real tensors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import (
    classifier_tensors,
    find_classifier,
    name_of,
    num_features,
    replace_classifier,
)
from headkit.adapters.backbone.forward import TOLERANCE, classify, features
from headkit.adapters.backbone.freeze import freeze
from headkit.adapters.backbone.module_copy import all_tensors
from headkit.adapters.backbone.timm_exceptions import ENCODERS, class_names
from headkit.adapters.compat import input_config
from headkit.adapters.heads.attach import attach, head_of
from headkit.adapters.heads.kinds import KINDS, default_kind, detect_kind, install_classifier
from headkit.benchmarks.bench.macs import count_gmacs
from headkit.export.exporter import export

from .levels import level_export, level_maps, levels
from .models import CLASSES, create, create_on_meta, expect, prepare_smallest_input
from .random_weights import (
    ignores_input,
    randomize_weights,
    relative_difference,
    scale_batchnorm_inputs,
)
from .tuning import tuning, tuning_merged

Row = dict[str, Any]


def structure(name: str) -> Row:
    """Check the structural part of the contract on the meta device, which allocates no weights.

    The check finds the classifier, replaces it with n, 0 and m classes, compares its tensors with
    those of plain timm for that number of classes, and installs each kind of head.

    Returns:
        Properties of the architecture.

    Raises:
        ContractError: A part of the contract is broken; the message says which.
    """
    model = create_on_meta(name)
    classifier, who = find_classifier(model), name_of(model)
    started_with = classifier.num_classes
    paths = classifier.paths
    types = [type(model.get_submodule(path)).__name__ for path in paths] if started_with else []
    for num_classes in (5, 0, CLASSES):
        now = replace_classifier(model, num_classes)
        expect(now.paths == paths, f"{who}: the classifier moves from {paths} to {now.paths}")
        expect(
            now.widths == classifier.widths,
            f"{who}: the widths change from {classifier.widths} to {now.widths}",
        )
    if not started_with:
        types = [type(model.get_submodule(path)).__name__ for path in paths]
    own = _shapes(model)
    is_encoder = not ENCODERS.keys().isdisjoint(class_names(model))
    if not is_encoder:
        plain = _shapes(create_on_meta(name, num_classes=CLASSES))
        expect(own == plain, f"{who}: the tensors are {own}, those of plain timm are {plain}")
    head = set(find_classifier(model).tensors)
    backbone = sum(p.numel() for n, p in model.named_parameters() if n not in head)
    default = default_kind(model)
    for kind in KINDS[1:]:
        install_classifier(model, kind, CLASSES)
        if kind != "linear" or _shapes(model) != own:
            expect(
                detect_kind(model) == kind,
                f"{who}: a {kind} head is recognized as {detect_kind(model)}",
            )
    install_classifier(model, default, CLASSES)
    per_class = sum(
        t.numel() * t.element_size() / CLASSES
        for t in classifier_tensors(model).values()
        if t.ndim and t.shape[0] == CLASSES
    )
    current = input_config(model)
    return {
        "parameters": backbone,
        "num_features": num_features(model),
        "input_size": list(current["input_size"]),
        "fixed_input_size": bool(current["fixed_input_size"]),
        "classifier": sorted(set(types)),
        "modules": len(paths),
        "default_kind": default,
        "head_bytes_per_class": round(per_class),
        "starts_with_classes": started_with,
        "plain_timm": not is_encoder and default == "own",
        "tags": _tags(name),
    }


def numeric(name: str) -> Row:
    """Check the contract on real tensors: random weights of a fixed seed, two images.

    ``classify(features(x))`` equals ``model(x)``. A saved head in a fresh model computes the same
    logits bit for bit. Training steps in train mode change the head and nothing else. The features
    are the same without a classifier.

    Returns:
        The difference relative to the largest logit, and the input size.

    Raises:
        ContractError: A part of the contract is broken; the message says which.
    """
    model, x, entered, options = prepare_smallest_input(name)
    with torch.no_grad():
        was_scaled = ignores_input(classify(model, entered))
    if was_scaled:
        scale_batchnorm_inputs(model, x)
        with torch.no_grad():
            entered = features(model, x)
    with torch.no_grad():
        logits = model(x)
        difference = relative_difference(classify(model, entered), logits)
    expect(
        difference <= TOLERANCE,
        f"classify(features(x)) differs from model(x) by {difference:.1e} of the largest logit, "
        f"expected at most {TOLERANCE:.0e}",
    )
    expect(bool(logits.isfinite().all()), "logits are not finite")
    expect(bool((logits[0] != logits[1]).any()), "two images have the same logits")

    before = head_of(model)
    with tempfile.TemporaryDirectory() as folder:
        saved = before.save(Path(folder) / "head.safetensors")
        other = create(name, **options)
        if was_scaled:
            other.load_state_dict(_backbone_state(model), strict=False)
        # Otherwise the backbone is the same, as its seed is; attach compares the fingerprints.
        attach(other, saved)
    with torch.no_grad():
        expect(
            torch.equal(other(x), logits), "a saved head computes different logits in a new model"
        )
    del other

    _train(model, x)
    after = head_of(model)
    expect(
        after.backbone.fingerprint == before.backbone.fingerprint, "training changes the backbone"
    )
    untouched = [
        key
        for key, tensor in before.tensors.items()
        if tensor.ndim >= 2 and (tensor == after.tensors[key]).all()
    ]
    expect(not untouched, f"training does not change {', '.join(untouched)}")

    replace_classifier(model.eval(), 0)
    with torch.no_grad():
        without = features(model, x)
    pairs = zip(_branches(entered), _branches(without), strict=True)
    expect(all(torch.equal(a, b) for a, b in pairs), "removing the classifier changes the features")
    return {"difference": difference, "input": list(x.shape[1:])}


def macs(name: str) -> Row:
    """Count the multiply-adds of a forward pass of one image, in billions."""
    model = create_on_meta(name).eval().requires_grad_(False)
    return {"gmacs": count_gmacs(model, input_config(model)["input_size"])}


def check_export(name: str) -> Row:
    """Export backbone and head with random weights of a fixed seed, and compare with torch.

    Every branch of the network affects the logits: tensors that timm initializes with zeros get
    random values.

    Returns:
        ``difference``: the largest difference at batch sizes other than the traced one.
        ``spread``: the difference between the logits of two images.
        ``rounding``: the difference between the logits in float32 and in float64.
        All three are relative to the largest logit. ``opset``, and the ``bytes`` of the file.

    Raises:
        ExportError: The export fails, or ONNX Runtime computes other logits (``ParityError``).
        ContractError: The logits hardly depend on the image, or they depend on it so strongly that
            rounding decides them, so that a comparison would check nothing.
    """
    model = create(name)
    replace_classifier(model, CLASSES)
    freeze(model)
    spread, rounding = randomize_weights(model)
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
    "export": check_export,
    "levels": levels,
    "level_maps": level_maps,
    "level_export": level_export,
    "tuning": tuning,
    "tuning_merged": tuning_merged,
}


def _backbone_state(model: nn.Module) -> dict[str, Tensor]:
    head = set(find_classifier(model).tensors)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in head}


def _train(model: nn.Module, x: Tensor) -> None:
    head = set(find_classifier(model).tensors)
    kept = {n: t.clone() for n, t in all_tensors(model).items() if n not in head}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        loss = nn.functional.cross_entropy(model.train()(x), torch.tensor([0, 1]))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    now = all_tensors(model)
    changed = [n for n, tensor in kept.items() if not torch.equal(now[n], tensor)]
    expect(not changed, f"training changes {', '.join(changed[:5])}")


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
