"""Load the backbone of any timm architecture, and freeze it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from headkit.adapters.compat import keep_arguments
from headkit.adapters.errors import ContractError, UnknownArchitecture, WeightsError, first_line
from headkit.adapters.file_kinds import TENSORS, detect_file_kind

from .fingerprint import SOURCE
from .freeze import freeze
from .input_size import ImageSize, check_input_options, check_input_size, input_arguments
from .preprocessing import timm_cfg


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

    The model keeps its own classifier, so ``model(x)`` returns the logits that it was trained for.

    Args:
        architecture: timm model name with an optional pretrained tag: ``resnet50.a1_in1k``.
        weights: A ``.safetensors`` or ``.pth`` file, which is read with ``weights_only=True``. If
            None, timm loads its pretrained weights from the Hugging Face Hub or from its cache.
        remap: Assign the tensors of ``weights`` to those of the model by position instead of by
            name, as ``timm.models.load_checkpoint(remap=True)`` does. The shapes must be equal in
            this order.
        img_size: Edge of the input images in pixels, or height and width. Default: the
            architecture's own. timm resamples position embeddings for another size.
        crop_pct: Edge of the crop divided by the edge of the resized image, see timm.
        crop_mode: ``center``, ``squash`` or ``border``, see timm.
        **timm_kwargs: Any arguments of ``timm.create_model``. ``pretrained=False`` selects random
            weights.

    Raises:
        UnknownArchitecture: timm has no such model or pretrained tag.
        WeightsError: The weights cannot be downloaded or read, or do not fit.
        ContractError: See ``create_model``; or the architecture cannot take images of ``img_size``.
        ValueError: An argument is out of its range.
    """
    check_architecture(architecture)
    size = check_input_options(img_size, crop_pct, crop_mode)
    timm_kwargs = input_arguments(architecture, timm_kwargs, img_size, crop_pct, crop_mode)
    timm_kwargs = dict(timm_kwargs)
    if weights is not None:
        state = _read_weights(Path(weights))
        if remap:
            names = _names_by_position(architecture, state, timm_kwargs)
            state = dict(zip(names, state.values(), strict=True))
        timm_kwargs["pretrained"] = True
        timm_kwargs["pretrained_cfg_overlay"] = {
            **timm_kwargs.pop("pretrained_cfg_overlay", {}),
            "state_dict": state,
            "custom_load": False,
        }
        source = f"file:{Path(weights).name}"
    else:
        source = "hub" if timm_kwargs.setdefault("pretrained", True) else "random"
    model = _create_with_weights(architecture, weights, timm_kwargs)
    # timm keeps the overlay in the model's configuration, and with it a second copy of all weights.
    timm_cfg(model).pop("state_dict", None)
    if source == "hub":
        cfg = timm_cfg(model)
        source = f"hub:{cfg.get('hf_hub_id') or cfg.get('url') or architecture}"
    setattr(model, SOURCE, source)
    if size is not None:
        check_input_size(model, size)
    return freeze(model)


def check_architecture(architecture: str) -> None:
    """Raise ``UnknownArchitecture`` with the nearest names if timm lacks ``architecture``."""
    if architecture.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return
    kind = detect_file_kind(architecture)
    if kind is not None:
        raise UnknownArchitecture(
            f"{architecture} is {kind.noun}, expected the name of a timm architecture, such as "
            "resnet50"
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
    """
    try:
        model = timm.create_model(architecture, **timm_kwargs)
    except (AttributeError, ImportError, NameError) as error:
        if isinstance(error, AttributeError) and not isinstance(error.obj, ModuleType):
            raise
        raise ContractError(
            f"timm {timm.__version__} cannot create {architecture}: {first_line(error)}"
        ) from error
    assert isinstance(model, nn.Module)  # noqa: S101 - for the type checker: timm is untyped
    keep_arguments(model, timm_kwargs)
    return model


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"cannot read weights {path}: no such file")
    kind = detect_file_kind(path)
    if kind is not None and kind is not TENSORS:
        raise WeightsError(
            f"cannot read weights {path}: it is {kind.noun}, expected the weights of a backbone "
            "(.safetensors or .pth)"
        )
    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:
        raise WeightsError(f"cannot read weights {path}: {first_line(error)}") from error
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"cannot read weights {path}: it has no tensors")
    return tensors


def _names_by_position(
    architecture: str, state: Mapping[str, Tensor], timm_kwargs: Mapping[str, Any]
) -> list[str]:
    """Return the names of the architecture's tensors after checking that the file's tensors fit."""
    with torch.device("meta"):
        kwargs = {k: v for k, v in timm_kwargs.items() if k not in ("pretrained", "num_classes")}
        expected = timm.create_model(architecture, pretrained=False, **kwargs).state_dict()
    if len(expected) != len(state):
        raise WeightsError(
            f"cannot remap by position: the file has {len(state)} tensors, but "
            f"{architecture} has {len(expected)}"
        )
    for (name, tensor), (file_name, loaded) in zip(expected.items(), state.items(), strict=True):
        if tensor.shape != loaded.shape:
            raise WeightsError(
                f"cannot remap by position: {file_name} has the shape {tuple(loaded.shape)}, but "
                f"{architecture} expects {tuple(tensor.shape)} for {name}"
            )
    return list(expected)


def _create_with_weights(
    architecture: str, weights: str | Path | None, timm_kwargs: Mapping[str, Any]
) -> nn.Module:
    try:
        return create_model(architecture, **timm_kwargs)
    except ContractError:
        raise
    except Exception as error:
        if not timm_kwargs["pretrained"]:
            raise
        if weights is not None:
            raise WeightsError(
                f"the tensors of {weights} do not fit {architecture}: {first_line(error)}; "
                "if only their names differ, remap=True (--remap of fit, export and serve) assigns "
                "them by position"
            ) from error
        raise WeightsError(
            f"timm could not load pretrained weights of {architecture}: {first_line(error)}; "
            "pass a file with weights=FILE (--weights FILE), or use random weights with "
            "pretrained=False"
        ) from error
