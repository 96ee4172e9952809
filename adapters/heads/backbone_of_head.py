"""Load the backbone that a head was trained on.

A head file may come from anybody. What it says about its backbone selects weights that timm itself
publishes, and nothing else: headkit loads a file, a folder or a repository only if the user names
it.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import timm
import timm.models
from torch import nn

from headkit.adapters.backbone.config.input_size import recorded_arguments
from headkit.adapters.backbone.config.saved_model import HUB, LOCAL
from headkit.adapters.backbone.delta.merge import merge_delta
from headkit.adapters.backbone.load import create_model, load_backbone
from headkit.adapters.bounds import describe
from headkit.adapters.errors import HeadFormatError, UnknownArchitecture, WeightsError
from headkit.adapters.files import is_file

from .head import Head

_BUILDER = frozenset(
    ("group_size", "channel_multiplier", "depth_multiplier", "channel_divisor", "num_classes")
)
"""Arguments of timm's builders that scale an architecture."""


def load_backbone_of(
    head: Head,
    weights: str | Path | None = None,
    *,
    backbone: str | None = None,
    remap: bool = False,
    folder: Path | None = None,
) -> nn.Module:
    """Load the backbone that ``head`` was trained on. It has the changes of the head's delta.

    Args:
        head: The head; it names the architecture, its arguments and the source of its weights.
        weights: See ``load_backbone``. If None, the weights come from ``backbone``, or else from
            timm, if timm itself publishes the weights that the head names. Nothing else that a head
            names is read.
        backbone: The architecture to load instead of the one that the head names, see
            ``load_backbone``: ``local-dir:FOLDER`` or ``hf-hub:USER/REPO`` for a head that was
            trained on such a model.
        remap: See ``load_backbone``.
        folder: The folder of the head file. If the file that the head names is there, an error says
            so.

    Raises:
        UnknownArchitecture, WeightsError: See ``load_backbone``; or the head does not name weights
            that timm publishes, and you passed none.
        HeadFormatError: The head names arguments that are not those of an architecture.
        BackboneMismatch: The head has a delta, and the weights are not those that it changes.
    """
    model = _load_base(head, weights, backbone, remap=remap, folder=folder)
    if head.delta is not None:
        merge_delta(model, head.delta, head.backbone.fingerprint)
    return model


def _load_base(
    head: Head,
    weights: str | Path | None,
    backbone: str | None,
    *,
    remap: bool,
    folder: Path | None,
) -> nn.Module:
    arguments = recorded_arguments(check_arguments(head), head.pretrained_cfg)
    if backbone is not None:
        return load_backbone(backbone, weights, remap=remap, **arguments)
    if weights is not None:
        # A tag of a folder or of a repository is unknown to timm; the fingerprint decides.
        return load_backbone(head.architecture, weights, remap=remap, **arguments)
    name = f"{head.architecture}.{head.backbone.tag}" if head.backbone.tag else head.architecture
    if not _is_from_timm(name, head.backbone.source):
        raise WeightsError(_ask(head, folder))
    return load_backbone(name, remap=remap, **arguments)


def check_arguments(head: Head) -> dict[str, Any]:
    """Return the arguments of a head that build its architecture.

    Raises:
        UnknownArchitecture: timm has no such architecture.
        HeadFormatError: An argument is not one of the class of the architecture. The head itself
            has checked the values, see ``schema``.
    """
    if not timm.is_model(head.architecture):
        raise UnknownArchitecture.with_nearest(head.architecture, timm.list_models())
    arguments = dict(head.model_args)
    if not arguments:
        return arguments
    allowed, any_name = _parameters(head.architecture)
    unknown = [] if any_name else [name for name in arguments if name not in allowed]
    if unknown:
        raise HeadFormatError(
            f"the head's model_args has {describe(unknown[0])}, expected only arguments that build "
            f"{head.architecture}: load the backbone with load_backbone, and pass it with backbone="
        )
    return arguments


def _parameters(architecture: str) -> tuple[frozenset[str], bool]:
    """Return the parameters of an architecture's class, and whether it takes further ones."""
    names, any_name = set(_BUILDER), False
    model = create_model(architecture, pretrained=False, device="meta")
    for parent in type(model).__mro__:
        if "__init__" not in vars(parent) or parent is nn.Module or parent is object:
            continue
        parameters = inspect.signature(vars(parent)["__init__"]).parameters.values()
        names |= {parameter.name for parameter in parameters}
        any_name |= any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return frozenset(names), any_name


def _is_from_timm(name: str, source: str) -> bool:
    """Return True if ``source`` is where timm itself gets the weights called ``name``."""
    kind, _, place = source.partition(":")
    if kind != "hub" or not timm.models.is_model_pretrained(name):
        return False
    cfg = timm.models.get_pretrained_cfg(name)
    return place in (cfg.hf_hub_id, cfg.url, name, f"timm/{name}")


def _ask(head: Head, folder: Path | None) -> str:
    """Return a message that shows the source of a head's backbone and says what to pass."""
    kind, _, place = head.backbone.source.partition(":")
    shown = place if place.isprintable() else ascii(place)
    by_file = "with weights=FILE (--weights FILE)"
    if kind == "file":
        beside = Path() if folder is None else folder
        found = shown == Path(place).name and is_file(beside / place)
        where = f"; {beside / place} may be that file" if found else ""
        return (
            f"this head's backbone came from the file {shown}, which headkit reads only if you "
            f"name it: pass it {by_file}{where}"
        )
    if kind == "folder":
        return (
            f"this head's backbone came from the folder {shown}, which headkit reads only if you "
            f"name it: pass it with backbone='{LOCAL}FOLDER' (--backbone {LOCAL}FOLDER)"
        )
    if kind == "hub":
        return (
            f"this head's backbone came from {shown} on the Hub, which is not a source of timm's "
            "own weights, so headkit does not fetch it by itself: if you trust it, pass it with "
            f"backbone='{HUB[0]}{shown}' (--backbone {HUB[0]}{shown}), or a file {by_file}"
        )
    return (
        "the weights of this head's backbone cannot be found, as their source is "
        f"{head.backbone.source!r}: pass them {by_file}, or pass the backbone itself"
    )
