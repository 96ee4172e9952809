"""Put heads onto timm models, and take heads out of them."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import safetensors.torch
import timm.data
import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import (
    classifier_tensors,
    find_classifier,
    name_of,
    num_features,
)
from headkit.adapters.backbone.delta.merge import delta_of, merge_delta
from headkit.adapters.backbone.fingerprint import backbone_info, check_trained
from headkit.adapters.backbone.freeze import freeze
from headkit.adapters.backbone.info import BackboneInfo
from headkit.adapters.backbone.labels import label_names_of, set_label_names
from headkit.adapters.backbone.level import LAST, LevelNames
from headkit.adapters.backbone.level_head import level_head_of
from headkit.adapters.backbone.levels import choose_levels, find_levels, last_level
from headkit.adapters.backbone.levels.install import install_level_head
from headkit.adapters.backbone.load import load_backbone
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.backbone.preprocessing import preprocessing, timm_cfg
from headkit.adapters.compat import model_arguments, unwrap
from headkit.adapters.errors import BackboneMismatch, ContractError
from headkit.adapters.images.pixel_rule import CURRENT_RULE, PixelRule
from headkit.adapters.tensor_bytes import to_safetensors

from .hand_made import check_place, describe_classifier
from .head import Head
from .kinds import Kind, default_kind, install_classifier
from .tasks import DEFAULT, TaskName


def adapt(
    architecture_or_model: str | nn.Module,
    num_classes: int,
    kind: Kind | None = None,
    *,
    levels: LevelNames | None = None,
    weights: str | Path | None = None,
    remap: bool = False,
    **timm_kwargs: Any,
) -> nn.Module:
    """Put a new, untrained classifier onto a frozen backbone.

    The result is a plain timm model that any training loop can train. Only its classifier learns,
    even after ``model.train()``.

    Args:
        architecture_or_model: A timm entry point; or a timm model, which is changed in place. The
            model may be compiled or wrapped, as by ``torch.compile``.
        num_classes: Length of the new logits.
        kind: ``own`` for the architecture's own classifier, ``linear``, ``mlp`` or ``cosine``. If
            None, ``linear`` if the architecture's own classifier has hidden layers and is larger,
            else ``own``.
        levels: Names of the levels that the classifier reads in addition to the last features, in
            a sequence or separated by commas, or ``all``; items of ``headkit.levels(model)`` can
            stand for their names. The kind is then ``linear``.
        weights: See ``load_backbone``.
        remap: See ``load_backbone``.
        **timm_kwargs: See ``load_backbone``.

    Raises:
        UnknownArchitecture, WeightsError: See ``load_backbone``.
        ContractError: The model has no classifier that can be replaced, or no such levels.
        ValueError: ``kind`` is another kind than ``linear`` for a classifier over levels, or
            ``levels`` is empty.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected at least 1")
    if levels is not None and kind not in (None, "linear"):
        raise ValueError(f"kind is {kind!r}, but a classifier over levels is linear: omit kind")
    if isinstance(architecture_or_model, str):
        model = load_backbone(architecture_or_model, weights, remap=remap, **timm_kwargs)
        given = model
    else:
        given, model = architecture_or_model, unwrap(architecture_or_model)
    if levels is None:
        install_classifier(model, kind or default_kind(model), num_classes)
    else:
        chosen = choose_levels(model, levels)
        others = [level for level in chosen if level.name != LAST]
        install_level_head(model, (last_level(model), *others), num_classes)
    freeze(model)
    return given


def head_of(
    model: nn.Module,
    label_names: Sequence[str] | None = None,
    *,
    task: TaskName = DEFAULT,
    metrics: Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    notes: str = "",
    pixels: PixelRule = CURRENT_RULE,
) -> Head:
    """Take the head out of a timm model. Any training loop may have trained the model.

    Args:
        model: A timm model with a classifier, which may be compiled or wrapped. The classifier may
            be one that you made by hand, if it is of one of the kinds of heads.
        label_names: One name per class. Default: the names that came with the classifier, if it was
            loaded with names.
        task: What the logits mean.
        metrics: Measurements that the head stores.
        temperature: Divisor of the logits before softmax or sigmoid.
        notes: Free text.
        pixels: The rule by which image files became the pixels that the model was trained on.

    Raises:
        ContractError: The model has no classifier; its classifier is as random as it was loaded, or
            of a kind that no head file can describe.
        HeadFormatError: A value is invalid, for example the number of label names.
    """
    model = unwrap(model)
    check_place(model)
    kind, tensors = describe_classifier(model)
    if not tensors:
        raise ContractError(
            f"{name_of(model)} has no classifier: call adapt(model, num_classes) first"
        )
    check_trained(model)
    model_args = model_arguments(model)
    model_args.pop("num_classes", None)
    if label_names is None:
        label_names = label_names_of(model)
    level_head = level_head_of(model)
    info = backbone_info(model)
    delta, fingerprint = delta_of(model) or (None, "")
    return Head(
        tensors={name: _array(value) for name, value in tensors.items()},
        architecture=timm_cfg(model)["architecture"],
        num_classes=find_classifier(model).num_classes,
        num_features=num_features(model),
        backbone=info,
        pretrained_cfg=preprocessing(model),
        kind=kind,
        global_pool=model_args.get("global_pool", "") or "",
        label_names=None if label_names is None else tuple(map(str, label_names)),
        model_args=model_args,
        task=task,
        temperature=temperature,
        metrics=dict(metrics or {}),
        levels=() if level_head is None else level_head.levels,
        versions=_versions(),
        notes=notes,
        pixels=pixels,
        delta=delta if fingerprint == info.fingerprint else None,
    )


def save_head(
    model: nn.Module, path: str | Path, label_names: Sequence[str] | None = None, **description: Any
) -> Head:
    """Save the head of a trained timm model to ``path``; see ``head_of`` for the arguments.

    Raises:
        OutputError: The path cannot be written; a file at the path stays as it was.
        ContractError, HeadFormatError: See ``head_of``.
    """
    head = head_of(model, label_names, **description)
    head.save(path)
    return head


def attach(model: nn.Module, head: Head | str | Path, *, force: bool = False) -> nn.Module:
    """Put ``head`` onto ``model`` in place. Return the model, frozen and in eval mode.

    If the head has a delta, it is merged into the weights of the model.

    Args:
        model: The backbone that the head was trained on, with any classifier or none.
        head: A head, or the path of a head file.
        force: Accept a backbone of the same architecture with other weights or another pooling. The
            logits will differ. A head with a delta never accepts other weights.

    Raises:
        BackboneMismatch: The model has another architecture; it has other weights or another
            pooling (unless ``force``); or its classifier has other tensors. The model stays as it
            was.
        HeadFormatError: The file is not a head file.
        ValueError: ``model`` is a head or a path.
    """
    if isinstance(model, str | Path | Head):
        raise ValueError(
            f"the first argument of attach is a {type(model).__name__}, expected a model: "
            "write attach(load_backbone(ARCHITECTURE), HEAD)"
        )
    if not isinstance(head, Head):
        head = Head.load(head)
    plain = unwrap(model)
    _attach(plain, head, _Identity(plain), force=force)
    return model


def attach_in_turn(model: nn.Module, heads: Iterable[Head]) -> nn.Module:
    """Attach one head after another to ``model``. Return the model with the last head on it.

    The weights of the backbone are hashed once for all heads.

    Raises:
        BackboneMismatch: See ``attach``; the model keeps the head before.
    """
    plain = unwrap(model)
    identity = _Identity(plain)
    for head in heads:
        _attach(plain, head, identity, force=False)
    return model


class _Identity:
    """What ``backbone_info`` says about a model, computed when it is needed and not again."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._info: BackboneInfo | None = None

    def read(self) -> BackboneInfo:
        self._info = self._info or backbone_info(self._model)
        return self._info

    def forget(self) -> None:
        """Compute it again: the weights changed."""
        self._info = None


def _attach(model: nn.Module, head: Head, identity: _Identity, *, force: bool) -> nn.Module:
    architecture = timm_cfg(model)["architecture"]
    if architecture != head.architecture:
        raise BackboneMismatch(
            f"this head was trained on {head.architecture}, but the backbone is {architecture}: "
            f"load {head.architecture}"
        )
    width = num_features(model)
    if width != head.num_features:
        raise BackboneMismatch(
            f"this head takes {head.num_features} features, but the backbone has {width}"
        )
    pooled = model_arguments(model).get("global_pool", "") or ""
    if not force and pooled != head.global_pool:
        raise BackboneMismatch(
            f"this head was trained with global_pool {head.global_pool!r}, but the backbone has "
            f"{pooled!r}: create the backbone with global_pool={head.global_pool!r}, or attach the "
            "head in Python with attach(model, head, force=True)"
        )
    if not force:
        _check_weights(model, head, identity.read())
    tensors = safetensors.torch.load(to_safetensors(head.tensors))
    if head.levels:
        _check_levels(model, head)
    else:
        _check_classifier(model, head, tensors)
    if head.delta is not None:
        merge_delta(model, head.delta, head.backbone.fingerprint)
        identity.forget()
    if head.levels:
        install_level_head(model, head.levels, head.num_classes)
    else:
        install_classifier(model, cast(Kind, head.kind), head.num_classes, tensors)
    model.load_state_dict(tensors, strict=False)
    set_label_names(model, head.label_names)
    return freeze(model)


def _check_weights(model: nn.Module, head: Head, info: BackboneInfo) -> None:
    """Raise ``BackboneMismatch`` unless the weights of ``model`` are those of the head.

    If the head has a delta, they may also be those that the delta changes.
    """
    bases = [head.backbone.fingerprint, *([head.delta.base] if head.delta is not None else [])]
    if info.fingerprint in bases:
        return
    found, way_out = delta_of(model), "load the weights that the head was trained on"
    if found is not None and found[0].base in bases:
        way_out = "load the backbone again, as this one has the changes of another head"
    if head.delta is None:
        way_out += ", or attach the head in Python with attach(model, head, force=True)"
    raise BackboneMismatch(
        f"this head was trained on {_describe(head.backbone.tag, head.backbone.source)} with "
        f"fingerprint {bases[-1][:12]}, but the backbone is {_describe(info.tag, info.source)} "
        f"with fingerprint {info.fingerprint[:12]}: {way_out}"
    )


def _check_classifier(model: nn.Module, head: Head, tensors: dict[str, Tensor]) -> None:
    """Raise ``BackboneMismatch`` unless the classifier of the head fits ``model``."""
    probe = copy_structure(model, share_tensors=False)
    install_classifier(probe, cast(Kind, head.kind), head.num_classes, tensors)
    model_shapes = {name: list(value.shape) for name, value in classifier_tensors(probe).items()}
    head_shapes = {name: list(value.shape) for name, value in tensors.items()}
    if model_shapes != head_shapes:
        raise BackboneMismatch(
            f"the head's tensors have the shapes {head_shapes}, but those of the classifier of "
            f"{head.architecture} have {model_shapes}"
        )


def _check_levels(model: nn.Module, head: Head) -> None:
    found = {level.name: level for level in (last_level(model), *find_levels(model))}
    for level in head.levels:
        if found.get(level.name) != level:
            known = found.get(level.name)
            raise BackboneMismatch(
                f"this head reads the level {level.to_json()}, but the backbone has "
                + (f"the levels {', '.join(found)}" if known is None else f"{known.to_json()}")
                + ": install the version of timm that the head names"
            )


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu().clone()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _describe(tag: str, source: str) -> str:
    return f"{tag or 'weights without a tag'} ({source})"


def _versions() -> dict[str, str]:
    try:
        own = version("headkit")
    except PackageNotFoundError:
        own = "unknown"
    return {
        "headkit": own,
        "python": platform.python_version(),
        "timm": timm.__version__,
        "torch": torch.__version__,
    }
