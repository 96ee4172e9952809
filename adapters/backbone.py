"""Load the backbone of any timm architecture, freeze it, and tell which one it is."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.nn.functional import dropout

from .classifier import classifier_tensors, locate
from .errors import ContractError, UnknownArchitecture, WeightsError, first_line
from .head import BackboneInfo, Head

_SOURCE = "_headkit_source"


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
    setattr(model, _SOURCE, source)
    return freeze(model)


def load_backbone_of(
    head: Head,
    weights: str | Path | None = None,
    *,
    remap: bool = False,
    folder: Path | None = None,
) -> nn.Module:
    """Load the backbone that ``head`` was trained on.

    Args:
        head: names the architecture, its arguments and where its weights came from.
        weights: see ``load_backbone``. Without it: the Hub, or, when the head says that the weights
            came from a file, the file of that name in ``folder`` or in the current folder.
        remap: see ``load_backbone``.
        folder: where the head file lies.

    Raises:
        UnknownArchitecture, WeightsError: see ``load_backbone``.
    """
    kind, _, name = head.backbone.source.partition(":")
    if weights is None and kind == "file":
        places = [place for place in (folder, Path()) if place is not None]
        weights = next((p / name for p in places if (p / name).is_file()), None)
        if weights is None:
            raise WeightsError(
                f"this head's backbone came from the file {name}, which is not in "
                f"{' or in '.join(str(place.absolute()) for place in places)}: "
                "name it with weights=FILE (--weights FILE)"
            )
    if weights is None and kind in ("random", "unknown"):
        raise WeightsError(
            f"where this head's backbone came from is {head.backbone.source!r}: "
            "name its file with weights=FILE (--weights FILE) or pass the backbone itself"
        )
    name = f"{head.architecture}.{head.backbone.tag}" if head.backbone.tag else head.architecture
    return load_backbone(name, weights, remap=remap, **head.model_args)


def check_architecture(architecture: str) -> None:
    """Raise ``UnknownArchitecture`` with the nearest names unless timm knows ``architecture``."""
    if architecture.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return
    name, _, tag = architecture.partition(".")
    if not timm.is_model(name):
        raise UnknownArchitecture.named(name, timm.list_models())
    if tag and not timm.models.is_model_pretrained(architecture):
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
        raise UnknownArchitecture(
            f"{name} has no pretrained tag {tag!r}; it has {', '.join(tags) if tags else 'none'}"
        )


def timm_cfg(model: nn.Module) -> dict[str, Any]:
    """Return timm's ``pretrained_cfg`` of a model.

    Raises:
        ContractError: the model did not come from timm.
    """
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, dict) or "architecture" not in cfg:
        raise ContractError(
            f"{type(model).__name__} has no pretrained_cfg: make it with timm.create_model"
        )
    return cfg


def freeze(model: nn.Module) -> nn.Module:
    """Freeze the backbone in place, whatever a training loop does to the model afterwards.

    Parameters outside the classifier stop to require gradients. ``model.train()`` puts only the
    classifier into training mode: BatchNorm statistics of the backbone keep their values, and its
    dropout and stochastic depth stay off; timm's ``drop_rate`` acts on what enters the classifier.
    Returns the model, in eval mode.
    """
    found = locate(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name in found.tensors)
    if hasattr(model, "set_distilled_training"):
        cast(Any, model).set_distilled_training(False)  # logits, and not one per classifier
    for path in found.paths if found.num_classes else ():
        _add_dropout(model.get_submodule(path), float(getattr(model, "drop_rate", 0.0) or 0.0))
    # Not a method of a subclass: the model keeps timm's own class. A partial of a module-level
    # function survives deepcopy and pickling with the copy's own model, a closure does not.
    model.train = partial(_train_classifier_only, model)  # type: ignore[method-assign]
    return model.eval()


def _train_classifier_only(model: nn.Module, mode: bool = True) -> nn.Module:
    type(model).train(model, False)
    found = locate(model)
    for path in found.paths if found.num_classes else ():
        model.get_submodule(path).train(mode)
    return model


def _add_dropout(classifier: nn.Module, rate: float) -> None:
    """Drop features here: timm's own dropout sits in the backbone, which stays in eval mode."""
    has_own = any(isinstance(part, nn.Dropout) for part in classifier.modules())
    has_hook = any(
        isinstance(hook, partial) and hook.func is _drop
        for hook in classifier._forward_pre_hooks.values()
    )
    if rate and not has_own and not has_hook:
        classifier.register_forward_pre_hook(partial(_drop, rate))


def _drop(rate: float, classifier: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (dropout(args[0], rate, classifier.training), *args[1:])


def backbone_info(model: nn.Module) -> BackboneInfo:
    """Tell which backbone ``model`` is, whatever classifier it carries."""
    trained = set(classifier_tensors(model))
    return BackboneInfo(
        tag=timm_cfg(model).get("tag") or "",
        source=getattr(model, _SOURCE, "unknown"),
        parameters=sum(p.numel() for name, p in model.named_parameters() if name not in trained),
        fingerprint=fingerprint(model.state_dict(), trained),
    )


def fingerprint(state: Mapping[str, Tensor], classifier: Collection[str] = ()) -> str:
    """Return the SHA-256 of a backbone's tensors, 64 hexadecimal digits.

    Over the tensors in ascending order of their names, those named in ``classifier`` left out:
    the line ``name<TAB>dtype<TAB>shape<LF>``, with the dtype as safetensors calls it and the shape
    as numbers joined by commas, then the tensor's bytes in row-major order, little endian.
    """
    digest = hashlib.sha256()
    for name in sorted(set(state) - set(classifier)):
        tensor = state[name].detach().cpu().contiguous()
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"{name}\t{_DTYPES[tensor.dtype]}\t{shape}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"cannot read weights {path}: no such file")
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
        model = timm.create_model(architecture, **timm_kwargs)
    except Exception as error:
        if not timm_kwargs["pretrained"]:
            raise
        if weights is not None:
            raise WeightsError(
                f"the tensors of {weights} do not fit {architecture}: {first_line(error)}; "
                "if only their names differ, remap=True (--remap) assigns them by position"
            ) from error
        raise WeightsError(
            f"timm could not load pretrained weights of {architecture}: {first_line(error)}; "
            "name a file with weights=FILE (--weights FILE), or ask for random weights with "
            "pretrained=False"
        ) from error
    assert isinstance(model, nn.Module)  # noqa: S101 - for the type checker: timm is untyped
    return model
