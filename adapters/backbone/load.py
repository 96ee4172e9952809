"""Load the backbone of any timm architecture, and freeze it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import timm
import timm.models
from torch import Tensor, nn

from headkit.adapters.compat import keep_arguments
from headkit.adapters.errors import ContractError, UnknownArchitecture, WeightsError, first_line
from headkit.adapters.file_kinds import detect_file_kind
from headkit.adapters.files import is_file, is_folder

from .classifier import classifier_tensors, replace_classifier
from .config.input_size import ImageSize, check_input_options, check_input_size, input_arguments
from .config.saved_model import HUB, LOCAL, check_saved_model, is_saved_model
from .fingerprint import SOURCE, mark_untrained
from .freeze import freeze
from .labels import set_label_names
from .preprocessing import timm_cfg
from .weights.prepare import prepare
from .weights.read import Checkpoint, as_labels, read_checkpoint

logger = logging.getLogger("headkit")


def load_backbone(
    architecture: str,
    weights: str | Path | None = None,
    *,
    remap: bool = False,
    img_size: ImageSize | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    **timm_kwargs: Any,
) -> nn.Module:
    """Load a frozen backbone: a timm model in eval mode whose parameters do not train.

    Each tensor of the backbone comes from the weights; otherwise this is an error. The model keeps
    the classifier of the weights, so ``model(x)`` returns the logits that it was trained for. If
    the weights have no classifier, or one that the architecture does not have, the model has no
    classes, unless you pass ``num_classes``. A warning says what was recognized around the
    tensors, what timm converted, and what was left out.

    Args:
        architecture: timm model name with an optional pretrained tag: ``resnet50.a1_in1k``; or the
            place of a model that timm saved: ``local-dir:FOLDER`` or ``hf-hub:USER/REPO``.
        weights: A ``.safetensors`` file; a file of ``torch.save``, which is read with
            ``weights_only=True``; or a folder with one of them. The tensors may be nested in
            dictionaries, and their names may share a prefix. If None, timm loads its pretrained
            weights from the Hugging Face Hub or from its cache.
        remap: Assign the tensors of ``weights`` to those of the model by position instead of by
            name, as ``timm.models.load_checkpoint(remap=True)`` does. The shapes must be equal in
            this order.
        img_size: Edge of the input images in pixels, or height and width. Default: the
            architecture's own. timm resamples position embeddings for another size.
        crop_pct: Edge of the crop divided by the edge of the resized image, see timm.
        crop_mode: ``center``, ``squash`` or ``border``, see timm.
        **timm_kwargs: Any arguments of ``timm.create_model``. ``pretrained=False`` selects random
            weights. If ``num_classes`` is not that of the weights, the classifier is new and
            random. timm converts the weights to another ``img_size`` or ``in_chans``.

    Raises:
        UnknownArchitecture: timm has no such model or pretrained tag.
        WeightsError: The weights cannot be downloaded or read, or do not fit.
        ContractError: See ``create_model``; or the architecture cannot take images of ``img_size``.
        ValueError: An argument is out of its range.
    """
    inputs = {"img_size": img_size, "crop_pct": crop_pct, "crop_mode": crop_mode}
    return load_with_rest(architecture, weights, remap=remap, **inputs, **timm_kwargs)[0]


def load_with_rest(
    architecture: str,
    weights: str | Path | None = None,
    *,
    remap: bool = False,
    **timm_kwargs: Any,
) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """Load a backbone, and return the tensors of a classifier that was left out.

    Args:
        architecture: See ``load_backbone``.
        weights: See ``load_backbone``.
        remap: See ``load_backbone``.
        **timm_kwargs: See ``load_backbone``.

    Raises:
        UnknownArchitecture, WeightsError, ContractError: See ``load_backbone``.
    """
    check_architecture(architecture)
    kwargs = {name: value for name, value in timm_kwargs.items() if value is not None}
    checkpoint_path = kwargs.pop("checkpoint_path", None)
    weights = weights or checkpoint_path
    inputs = [kwargs.pop(name, None) for name in ("img_size", "crop_pct", "crop_mode")]
    size = check_input_options(*inputs)
    kwargs = input_arguments(architecture, kwargs, *inputs)
    overlay = dict(kwargs.get("pretrained_cfg_overlay") or {})
    if weights is None and overlay.get("file"):  # how timm itself takes a file
        weights = overlay.pop("file")
        kwargs["pretrained_cfg_overlay"] = overlay
    checkpoint, source = None, ""
    if weights is not None:
        checkpoint, source = read_checkpoint(Path(weights)), f"file:{Path(weights).resolve().name}"
        if is_folder(weights):
            source = f"folder:{Path(weights).resolve().name}"
            _warn_of_config(architecture, Path(weights))
    elif overlay.get("state_dict"):
        checkpoint = Checkpoint.from_object("the state_dict", overlay.pop("state_dict"))
        kwargs["pretrained_cfg_overlay"], source = overlay, "unknown"
    elif not kwargs.pop("pretrained", True):
        model, source = _create_random(architecture, kwargs), "random"
    elif architecture.startswith(LOCAL):
        folder = Path(architecture.removeprefix(LOCAL))
        checkpoint, source = read_checkpoint(folder), f"folder:{folder.resolve().name}"
    elif architecture.startswith(HUB):
        checkpoint = _download(architecture, kwargs)
        source = f"hub:{architecture.partition(':')[2]}"
    else:
        model = _load_from_timm(architecture, kwargs)
        cfg = timm_cfg(model)
        source = f"hub:{cfg.get('hf_hub_id') or cfg.get('url') or architecture}"
    left_out: Mapping[str, Tensor] = {}
    if checkpoint is not None:
        model, left_out = _load_checkpoint(architecture, checkpoint, kwargs, remap=remap)
    setattr(model, SOURCE, source)
    if size is not None:
        check_input_size(model, size)
    return freeze(model), left_out


def check_architecture(architecture: str) -> None:
    """Raise ``UnknownArchitecture`` with the nearest names if timm lacks ``architecture``."""
    if architecture.startswith(HUB):
        return
    if architecture.startswith(LOCAL):
        folder = Path(architecture.removeprefix(LOCAL))
        if not is_file(folder / "config.json"):
            raise UnknownArchitecture(
                f"{folder} has no config.json, expected a folder that timm saved: pass the name of "
                "an architecture, and the folder or its file as weights (--weights)"
            )
        return
    kind = detect_file_kind(architecture)
    if kind is not None:
        raise UnknownArchitecture(
            f"{architecture} is {kind.noun}, expected the name of a timm architecture, such as "
            "resnet50"
        )
    if "/" in architecture or "\\" in architecture:
        where = LOCAL if is_folder(architecture) else HUB[0]
        raise UnknownArchitecture(
            f"{architecture} is not the name of a timm architecture, such as resnet50: for a model "
            f"that timm saved there, write {where}{architecture}"
        )
    name, _, tag = architecture.partition(".")
    if not timm.is_model(name):
        raise UnknownArchitecture.with_nearest(name, timm.list_models())
    if tag and not timm.models.is_model_pretrained(architecture):
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
        hint = f"its tags are {', '.join(tags)}" if tags else "timm has no weights for it"
        raise UnknownArchitecture(f"{name} has no pretrained tag {tag!r}: {hint}")


def create_model(architecture: str, **timm_kwargs: Any) -> nn.Module:
    """Return ``timm.create_model(architecture, **timm_kwargs)``.

    Raises:
        ContractError: The installed timm lacks a name that the architecture needs. The message has
            the name.
        WeightsError: The architecture is the place of a model that timm saved, and timm cannot
            build what its ``config.json`` describes.
    """
    try:
        model = _create(architecture, timm_kwargs)
    except (AttributeError, ImportError, NameError) as error:
        if isinstance(error, AttributeError) and not isinstance(error.obj, ModuleType):
            raise
        raise ContractError(
            f"timm {timm.__version__} cannot create {architecture}: {first_line(error)}"
        ) from error
    assert isinstance(model, nn.Module)  # noqa: S101 - for the type checker: timm is untyped
    keep_arguments(model, timm_kwargs)
    return model


def _create(architecture: str, timm_kwargs: Mapping[str, Any]) -> object:
    if not is_saved_model(architecture):
        return timm.create_model(architecture, **timm_kwargs)
    check_saved_model(architecture, timm_kwargs.get("cache_dir"))
    try:
        return timm.create_model(architecture, **timm_kwargs)
    except (ImportError, NameError):
        raise
    except Exception as error:  # what config.json says may fail anywhere in timm and torch
        raise WeightsError(
            f"timm cannot build the model that the config.json of {architecture} describes: "
            f"{first_line(error)}"
        ) from error


def _creator(architecture: str, kwargs: Mapping[str, Any]) -> Callable[..., nn.Module]:
    """Return a function that creates the architecture with ``kwargs`` and further arguments."""
    base = {k: v for k, v in kwargs.items() if k not in ("num_classes", "pretrained")}

    def create(**more: Any) -> nn.Module:
        overlay = dict(base.get("pretrained_cfg_overlay") or {})
        added = more.pop("pretrained_cfg_overlay", {})
        if "state_dict" in added:  # timm takes the size for that of the weights
            overlay.pop("input_size", None)
        overlay |= added
        options = {"pretrained_cfg_overlay": overlay} if overlay else {}
        model = create_model(architecture, **{**base, **more, **options})
        wanted = more.get("num_classes")
        if wanted and not hasattr(model, "get_classifier"):
            replace_classifier(model, wanted)  # timm's encoders ignore num_classes
        return model

    return create


def _num_classes(kwargs: Mapping[str, Any]) -> dict[str, int]:
    return {"num_classes": kwargs["num_classes"]} if "num_classes" in kwargs else {}


def _create_random(architecture: str, kwargs: Mapping[str, Any]) -> nn.Module:
    return _creator(architecture, kwargs)(pretrained=False, **_num_classes(kwargs))


def _load_checkpoint(
    architecture: str, checkpoint: Checkpoint, kwargs: Mapping[str, Any], *, remap: bool
) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """Create a model whose whole backbone, and if possible classifier, is that of a checkpoint."""
    create = _creator(architecture, kwargs)
    prepared = prepare(architecture, checkpoint, create, kwargs, remap=remap)
    count = {} if prepared.num_classes is None else {"num_classes": prepared.num_classes}
    model = create(pretrained=False, **count)
    result = model.load_state_dict(dict(prepared.tensors), strict=False)
    classifier = set() if prepared.kept else set(classifier_tensors(model))
    missing = [
        name
        for name in result.missing_keys
        if name not in classifier and not name.endswith("num_batches_tracked")
    ]
    if missing or result.unexpected_keys:
        raise WeightsError(
            f"the tensors of {checkpoint.place} do not fit {architecture}: "
            f"missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}"
        )
    notes = list(prepared.notes)
    cfg = timm_cfg(model)
    listed = (checkpoint.label_names, cfg.get("label_names"), cfg.get("label_descriptions"))
    names = next((names for one in listed if (names := as_labels(one))), None)
    if prepared.kept and names and len(names) != prepared.num_classes:
        notes.append(f"left out {len(names)} names for {prepared.num_classes} classes")
    elif prepared.kept:
        set_label_names(model, names)
    if notes:
        logger.warning("%s: %s", checkpoint.place, "; ".join(notes))
    if prepared.untrained:
        mark_untrained(model, f"{prepared.untrained} ({checkpoint.place})")
    return model, prepared.left_out


def _load_from_timm(architecture: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Load timm's own pretrained weights."""
    create = _creator(architecture, kwargs)
    load = partial(create, pretrained=True, **_num_classes(kwargs))
    model: nn.Module = _explain_failures(architecture, load)
    cfg = timm_cfg(model)
    requested = kwargs.get("num_classes")
    if requested and requested != cfg.get("num_classes"):
        mark_untrained(model, f"timm's weights have {cfg.get('num_classes')} classes")
    return model


def _download(architecture: str, kwargs: Mapping[str, Any]) -> Checkpoint:
    """Return the tensors of a repository on the Hub."""
    name = architecture.partition(":")[2]
    model = _explain_failures(
        architecture, partial(_creator(architecture, kwargs), pretrained=False, device="meta")
    )
    cfg, cache = timm_cfg(model), kwargs.get("cache_dir")
    file = {"filename": cfg["hf_hub_filename"]} if cfg.get("hf_hub_filename") else {}
    state = _explain_failures(
        architecture,
        partial(timm.models.load_state_dict_from_hf, name, cache_dir=cache, **file),
    )
    return Checkpoint.from_object(architecture, state)


def _explain_failures(architecture: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except ContractError:
        raise
    except Exception as error:
        raise WeightsError(
            f"timm could not load pretrained weights of {architecture}: {first_line(error)}; "
            "pass a file with weights=FILE (--weights FILE), or use random weights with "
            "pretrained=False"
        ) from error


def _warn_of_config(architecture: str, weights: Path) -> None:
    if is_folder(weights) and is_file(weights / "config.json") and LOCAL not in architecture:
        logger.warning(
            "%s: only its tensors and labels are used; to use its preprocessing as well, load the "
            "architecture %s%s",
            weights,
            LOCAL,
            weights,
        )
