"""Load the backbone of any timm architecture, freeze it, and tell which one it is."""

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
from .preprocessing import timm_cfg


def load_backbone(
    architecture: str,
    weights: str | Path | None = None,
    *,
    remap: bool = False,
    **timm_kwargs: Any,
) -> nn.Module:
    """Load a frozen backbone: a timm model in eval mode whose parameters do not train.

    Its own classifier stays in place, so that ``model(x)`` gives the logits it was trained for.

    Args:
        architecture: timm entry point, with a pretrained tag if wanted: ``resnet50.a1_in1k``.
        weights: a ``.safetensors`` or ``.pth`` file (never unpickled: ``weights_only=True``).
            Without it timm loads its pretrained weights from the Hugging Face Hub or its cache.
        remap: give the tensors of ``weights`` to the model's by position instead of by name, as
            ``timm.models.load_checkpoint(remap=True)`` does. All shapes must agree in order.
        **timm_kwargs: anything that ``timm.create_model`` takes; ``pretrained=False`` gives
            random weights.

    Raises:
        UnknownArchitecture: timm does not know the name or the tag.
        WeightsError: the weights cannot be fetched or read, or do not fit.
        ContractError: see ``create_model``.
    """
    check_architecture(architecture)
    timm_kwargs = dict(timm_kwargs)
    if weights is not None:
        state = _read_weights(Path(weights))
        if remap:
            names = _state_names(architecture, state, timm_kwargs)
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
    model = _create(architecture, weights, timm_kwargs)
    # timm keeps the overlay in the model's configuration: a second copy of all weights.
    timm_cfg(model).pop("state_dict", None)
    if source == "hub":
        cfg = timm_cfg(model)
        source = f"hub:{cfg.get('hf_hub_id') or cfg.get('url') or architecture}"
    setattr(model, SOURCE, source)
    return freeze(model)


def check_architecture(architecture: str) -> None:
    """Raise ``UnknownArchitecture`` with the nearest names unless timm knows ``architecture``."""
    if architecture.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return
    kind = detect_file_kind(architecture)
    if kind is not None:
        raise UnknownArchitecture(
            f"the architecture is {architecture}: it is {kind.noun}, expected the name of a timm "
            "architecture, such as resnet50"
        )
    name, _, tag = architecture.partition(".")
    if not timm.is_model(name):
        raise UnknownArchitecture.with_nearest(name, timm.list_models())
    if tag and not timm.models.is_model_pretrained(architecture):
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
        raise UnknownArchitecture(
            f"{name} has no pretrained tag {tag!r}; it has {', '.join(tags) if tags else 'none'}"
        )


def create_model(architecture: str, **timm_kwargs: Any) -> nn.Module:
    """Return ``timm.create_model(architecture, **timm_kwargs)``.

    Raises:
        ContractError: the installed timm lacks a name that the architecture is made of. The message
            has the name.
    """
    try:
        model = timm.create_model(architecture, **timm_kwargs)
    except (AttributeError, ImportError, NameError) as error:
        if isinstance(error, AttributeError) and not isinstance(error.obj, ModuleType):
            raise
        raise ContractError(
            f"timm {timm.__version__} cannot make {architecture}: {first_line(error)}"
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
        raise WeightsError(f"cannot read weights {path}: it holds no tensors")
    return tensors


def _state_names(
    architecture: str, state: Mapping[str, Tensor], timm_kwargs: Mapping[str, Any]
) -> list[str]:
    """Names of the architecture's tensors, after checking that the file's fit them in order."""
    with torch.device("meta"):
        kwargs = {k: v for k, v in timm_kwargs.items() if k not in ("pretrained", "num_classes")}
        expected = timm.create_model(architecture, pretrained=False, **kwargs).state_dict()
    if len(expected) != len(state):
        raise WeightsError(
            f"cannot remap by position: the file has {len(state)} tensors, "
            f"{architecture} has {len(expected)}"
        )
    for (name, tensor), (other, found) in zip(expected.items(), state.items(), strict=True):
        if tensor.shape != found.shape:
            raise WeightsError(
                f"cannot remap by position: {other} has shape {tuple(found.shape)}, "
                f"{architecture} expects {tuple(tensor.shape)} for {name}"
            )
    return list(expected)


def _create(
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
            "name a file with weights=FILE (--weights FILE), or ask for random weights with "
            "pretrained=False"
        ) from error
