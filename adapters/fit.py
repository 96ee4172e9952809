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

from .adapt import adapt, head_of, preprocessing
from .backbone import load_backbone
from .classifier import locate, name_of, replace
from .data import Source, batches, count, open_data, stratified_holdout
from .errors import ContractError, DataError
from .head import Head
from .kinds import Kind
from .quirks import LOGITS, row
from .solver import Linear, logistic_regression
from .split import classify, features
from .twin import twin

logger = logging.getLogger("headkit")

Progress = Callable[[str, int, int | None], None]
"""Called with what is being read, images done, and images in all if that is known."""


@dataclass(frozen=True)
class Extracted:
    """Features and targets ``[N]`` of the images that could be read.

    Attributes:
        branches: what ``split.features`` gives, ``[N, …]`` each; mostly one.
        targets: class indices.
        unreadable: the other images, with the reason.
    """

    branches: tuple[Tensor, ...]
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
    afterwards. Its classifier is the architecture's own if that is linear, else of kind ``linear``.

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
        ContractError: the architecture's logits are more than the mean of its classifiers.
    """
    # All that can be refused is refused before minutes of extraction.
    if not 0 < holdout < 1:
        raise ValueError(f"holdout is {holdout}, expected a share between 0 and 1")
    if l2 <= 0:
        raise ValueError(f"l2 is {l2}, expected a positive strength")
    train, validation = open_data(data, val)
    if isinstance(backbone, str):
        backbone = load_backbone(backbone, weights, remap=remap, **timm_kwargs)
    kind = _linear_kind(backbone)
    report = progress or (lambda *_: None)
    extracted = extract(backbone, train, batch_size, workers, max_unreadable, report)
    x, y = extracted.branches, extracted.targets
    if validation is not None:
        held = extract(backbone, validation, batch_size, workers, max_unreadable, report)
        x_val, y_val = held.branches, held.targets
        skipped = len(extracted.unreadable) + len(held.unreadable)
    else:
        mask = torch.from_numpy(stratified_holdout(y.numpy(), holdout, seed))
        x_val, x = tuple(b[mask] for b in x), tuple(b[~mask] for b in x)
        y_val, y = y[mask], y[~mask]
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
    model = adapt(backbone, len(label_names), kind)
    solution = logistic_regression(
        torch.cat([branch.flatten(1) for branch in x], 1), y, len(label_names), l2=l2
    )
    _set_linear(model, solution, [branch[0].numel() for branch in x])
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


@torch.no_grad()
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
    """
    transform = timm.data.create_transform(**preprocessing(backbone), is_training=False)
    kept, targets, unreadable, seen = [], [], list[str](), 0
    total = count(source)
    device = next(backbone.parameters()).device
    progress(source.name, 0, total)
    for batch in batches(source, transform, batch_size, workers):
        if len(batch.targets):
            # Channels last: a third faster on CPU for convolutional backbones, at equal numbers.
            images = batch.images.to(device, memory_format=torch.channels_last)
            entered = features(backbone, images)
            branches = (entered,) if isinstance(entered, Tensor) else entered
            kept.append([branch.cpu() for branch in branches])
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
    joined = tuple(torch.cat(parts) for parts in zip(*kept, strict=True))
    return Extracted(joined, torch.cat(targets), tuple(unreadable))


def _linear_kind(model: nn.Module) -> Kind:
    """Return ``own`` if the own classifier is linear, else ``linear``.

    Raises:
        ContractError: the logits are not the mean of what the classifier's modules give, so that
            linear modules cannot be solved for.
    """
    if row(LOGITS, model) is not None:
        raise ContractError(
            f"fit cannot solve for {name_of(model)}, whose logits are more than the mean of its "
            "classifiers: train what adapt() returns in a loop"
        )
    probe = twin(model, share_tensors=False)
    modules = [probe.get_submodule(path) for path in replace(probe, 2).paths]
    return "own" if all(isinstance(m, nn.Linear | nn.Conv2d) for m in modules) else "linear"


@torch.no_grad()
def _set_linear(model: nn.Module, solution: Linear, widths: list[int]) -> None:
    """Spread one linear map over the classifier's modules, the mean of which are the logits.

    Module ``i`` sees branch ``i`` modulo their number, see ``split.classify``.
    """
    paths = locate(model).paths
    parts = torch.split(solution.weight, widths, 1)
    for number, path in enumerate(paths):
        branch = number % len(parts)
        sharing = len(range(branch, len(paths), len(parts)))
        module = model.get_submodule(path)
        weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
        weight.copy_((parts[branch] * len(paths) / sharing).view_as(weight))
        bias.copy_(solution.bias)
