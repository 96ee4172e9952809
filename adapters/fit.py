"""Train a head on frozen features: extract once, then solve."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm.data
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .adapt import adapt, head_of
from .backbone import load_backbone, timm_cfg
from .classifier import classifier_tensors, classify, features, locate
from .data import Source, batches, count, open_data, stratified_holdout
from .errors import ContractError, DataError
from .head import Head
from .solver import logistic_regression

logger = logging.getLogger("headkit")

Progress = Callable[[str, int, int | None], None]
"""Called with what is being read, images done, and images in all if that is known."""


@dataclass(frozen=True)
class Extracted:
    """Features ``[N, num_features]`` and targets ``[N]`` of the images that could be read."""

    features: Tensor
    targets: Tensor
    unreadable: tuple[str, ...]


def fit(
    backbone: str | nn.Module,
    data: str | Path,
    *,
    val: str | Path | None = None,
    weights: str | Path | None = None,
    remap: bool = False,
    holdout: float = 0.2,
    l2: float = 1e-3,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 2,
    max_unreadable: float = 0.05,
    notes: str = "",
    progress: Progress | None = None,
    **timm_kwargs: Any,
) -> Head:
    """Train a head on the frozen features of ``backbone``.

    Features are extracted once with the backbone's own eval preprocessing; on them
    ``logistic_regression`` is solved. A backbone that is given as a model carries the new head
    afterwards.

    Args:
        backbone: timm entry point, or a timm model.
        data: training images, see ``open_data``.
        val: validation images. Without them, and where ``data`` has no validation folder,
            ``holdout`` of each class is kept back.
        weights: see ``load_backbone``.
        remap: see ``load_backbone``.
        holdout: share of each class to keep back, between 0 and 1.
        l2: strength of the penalty, see ``logistic_regression``.
        seed: of the choice of held-out images.
        batch_size: images per forward pass.
        workers: processes that decode images.
        max_unreadable: share of images that may be unreadable and left out, 0 to 1.
        notes: free text, kept with the head.
        progress: told about the images that were read.
        **timm_kwargs: see ``load_backbone``.

    Raises:
        UnknownArchitecture, WeightsError: see ``load_backbone``.
        DataError: see ``open_data``; or too many images are unreadable.
        ContractError: the architecture's classifier is not linear.
    """
    train, validation = open_data(data, val)
    if isinstance(backbone, str):
        backbone = load_backbone(backbone, weights, remap=remap, **timm_kwargs)
    report = progress or (lambda *_: None)
    extracted = extract(backbone, train, batch_size, workers, max_unreadable, report)
    x, y = extracted.features, extracted.targets
    if validation is not None:
        held = extract(backbone, validation, batch_size, workers, max_unreadable, report)
        x_val, y_val = held.features, held.targets
        skipped = len(extracted.unreadable) + len(held.unreadable)
    else:
        mask = torch.from_numpy(stratified_holdout(y.numpy(), holdout, seed))
        x_val, y_val, x, y = x[mask], y[mask], x[~mask], y[~mask]
        skipped = len(extracted.unreadable)
    label_names = train.label_names or tuple(map(str, range(int(y.max()) + 1)))
    missing = sorted(set(range(len(label_names))) - set(y.tolist()))
    if missing:
        raise DataError(
            f"no image of class {', '.join(label_names[i] for i in missing[:5])} could be read"
        )
    if not len(y_val):
        raise DataError(
            f"{train.name} has no class with two images: nothing is left to validate on"
        )
    model = adapt(backbone, len(label_names))
    solution = logistic_regression(x.flatten(1), y, len(label_names), l2=l2)
    _set_linear(model, solution.weight, solution.bias)
    with torch.inference_mode():
        logits = classify(model, x_val)
    metrics = {
        "accuracy": round((logits.argmax(1) == y_val).double().mean().item(), 6),
        "log_loss": round(cross_entropy(logits.double(), y_val).item(), 6),
        "num_train": len(y),
        "num_val": len(y_val),
        "num_unreadable": skipped,
    }
    return head_of(model, label_names, metrics=metrics, notes=notes)


@torch.inference_mode()
def extract(
    backbone: nn.Module,
    source: Source,
    batch_size: int,
    workers: int,
    max_unreadable: float,
    progress: Progress,
) -> Extracted:
    """Extract the features of all readable images of ``source``, in order.

    Raises:
        DataError: a larger share than ``max_unreadable`` of the images cannot be read, or all.
        ContractError: the architecture has several classifiers.
    """
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(backbone), is_training=False
    )
    kept, targets, unreadable, seen = [], [], list[str](), 0
    total = count(source)
    device = next(backbone.parameters()).device
    progress(source.name, 0, total)
    for batch in batches(source, transform, batch_size, workers):
        if len(batch.targets):
            # Channels last: a third faster on CPU for convolutional backbones, at equal numbers.
            images = batch.images.to(device, memory_format=torch.channels_last)
            entered = features(backbone, images)
            if not isinstance(entered, Tensor):
                raise ContractError("fit does not yet train architectures with several classifiers")
            kept.append(entered.cpu())
            targets.append(batch.targets)
        unreadable += batch.unreadable
        seen += batch.seen
        progress(source.name, seen, total)
    if unreadable:
        named = "; ".join(unreadable[:3]) + ("; …" if len(unreadable) > 3 else "")
        if not kept or len(unreadable) > max_unreadable * seen:
            raise DataError(
                f"{len(unreadable)} of {seen} images of {source.name} cannot be read, "
                f"allowed are {max_unreadable:.0%} (max_unreadable): {named}"
            )
        logger.warning(
            "skipped %d of %d images that cannot be read: %s", len(unreadable), seen, named
        )
    if not kept:
        raise DataError(f"no images in {source.name}")
    return Extracted(torch.cat(kept), torch.cat(targets), tuple(unreadable))


def _set_linear(model: nn.Module, weight: Tensor, bias: Tensor) -> None:
    paths = locate(model).paths
    tensors = classifier_tensors(model)
    names = {name.rpartition(".")[2] for name in tensors}
    if len(paths) != 1 or names != {"weight", "bias"} or len(tensors) != 2:
        raise ContractError(
            f"fit solves a linear classifier, {timm_cfg(model)['architecture']} has "
            f"{', '.join(tensors)}"
        )
    with torch.no_grad():
        tensors[f"{paths[0]}.weight"].copy_(weight.view_as(tensors[f"{paths[0]}.weight"]))
        tensors[f"{paths[0]}.bias"].copy_(bias)
