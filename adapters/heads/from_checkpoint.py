"""Take the head out of the checkpoint of a model that was trained as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from headkit.adapters.backbone.classifier import classifier_tensors
from headkit.adapters.backbone.config.saved_model import HUB, LOCAL
from headkit.adapters.backbone.fingerprint import forget_untrained
from headkit.adapters.backbone.freeze import freeze
from headkit.adapters.backbone.load import load_with_rest
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.backbone.weights.match import shorten
from headkit.adapters.backbone.weights.read import as_labels
from headkit.adapters.errors import ContractError, DataError, WeightsError
from headkit.adapters.files import NO_SUCH_FILE, is_file, why_missing

from .attach import head_of
from .head import Head
from .kinds import Kind, install_classifier
from .tasks import DEFAULT, TaskName

_KINDS: tuple[Kind, ...] = ("linear", "mlp", "cosine")
"""Kinds of heads other than the architecture's own classifier, which ``load_backbone`` keeps."""


def extract_head(
    checkpoint: str | Path,
    backbone: str | None = None,
    label_names: Sequence[str] | None = None,
    *,
    task: TaskName = DEFAULT,
    remap: bool = False,
    notes: str = "",
    **timm_kwargs: Any,
) -> Head:
    """Take the head out of a checkpoint of a fully trained model.

    The head belongs to the backbone of the checkpoint: pass the checkpoint as ``weights`` when you
    export the head or load its backbone.

    Args:
        checkpoint: A weights file, see ``load_backbone``; or a folder or a repository of a model
            that timm saved: ``FOLDER``, ``local-dir:FOLDER`` or ``hf-hub:USER/REPO``.
        backbone: The architecture of the model. A folder or a repository of timm names its own.
        label_names: One name per class. Default: the names that the checkpoint has: in the
            ``config.json`` of timm, or in a dictionary beside the tensors, such as ``class_names``.
        task: What the logits mean.
        remap: See ``load_backbone``.
        notes: Free text.
        **timm_kwargs: Arguments with which the model was created, see ``load_backbone``.

    Raises:
        UnknownArchitecture, WeightsError: See ``load_backbone``; or the checkpoint has no
            classifier, or one that no head file can describe.
        HeadFormatError: A value is invalid, for example the number of label names.
    """
    place = str(checkpoint)
    own = place if place.startswith((LOCAL, *HUB)) else ""
    if not own and backbone is None and is_file(Path(place) / "config.json"):
        own = f"{LOCAL}{place}"
    if own and backbone is None:
        model, left_out = load_with_rest(own, remap=remap, **timm_kwargs)
    elif backbone is None:
        raise WeightsError(
            f"{place} does not name its architecture: pass it with backbone=NAME (--backbone NAME)"
        )
    else:
        weights = place.removeprefix(LOCAL)
        model, left_out = load_with_rest(backbone, weights, remap=remap, **timm_kwargs)
    if left_out:
        _install(model, left_out, place)
    elif not classifier_tensors(model):
        raise WeightsError(f"{place} has no classifier, so there is no head to extract")
    return head_of(model, label_names, task=task, notes=notes)


def read_label_names(text: str) -> tuple[str, ...]:
    """Return label names from a file with one name per line, a JSON file, or ``a,b,c``.

    Raises:
        DataError: The file cannot be read, or has no names.
    """
    path = Path(text)
    if not is_file(path) and why_missing(path) in ("", NO_SUCH_FILE):
        return tuple(name.strip() for name in text.split(","))
    try:
        content = path.read_text(encoding="utf-8-sig")
        value = json.loads(content) if path.suffix.lower() == ".json" else content.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read the labels {path}: {error}") from error
    if isinstance(value, list):
        value = [name.strip() if isinstance(name, str) else name for name in value]
        value = [name for name in value if name != ""]
    names = as_labels(value)
    if names is None:
        raise DataError(
            f"cannot read the labels {path}: expected one name per line, or in a .json file a list "
            "of names or a dictionary from index to name"
        )
    return names


def _install(model: nn.Module, tensors: Mapping[str, Tensor], place: str) -> None:
    """Put a classifier of a kind that headkit makes onto ``model``, in place."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for number in sorted({tensor.shape[0] for tensor in tensors.values() if tensor.ndim}):
        for kind in _KINDS:
            probe = copy_structure(model, share_tensors=False)
            try:
                install_classifier(probe, kind, number, tensors)
            except ContractError:
                continue
            if {name: t.shape for name, t in classifier_tensors(probe).items()} != shapes:
                continue
            install_classifier(model, kind, number, tensors)
            model.load_state_dict(dict(tensors), strict=False)
            forget_untrained(model)
            freeze(model)
            return
    raise WeightsError(
        f"the classifier of {place} ({shorten(tensors)}) is of an unknown kind, as its tensors do "
        "not say what is between them: build the model, load the file into it, and call "
        "save_head(model, PATH)"
    )
