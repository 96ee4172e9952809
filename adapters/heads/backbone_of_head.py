"""Load the backbone that a head was trained on."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from headkit.adapters.backbone.input_size import recorded_arguments
from headkit.adapters.backbone.load import load_backbone
from headkit.adapters.errors import WeightsError

from .head import Head


def load_backbone_of(
    head: Head,
    weights: str | Path | None = None,
    *,
    remap: bool = False,
    folder: Path | None = None,
) -> nn.Module:
    """Load the backbone that ``head`` was trained on.

    Args:
        head: The head; it names the architecture, its arguments and the source of its weights.
        weights: See ``load_backbone``. If None, the weights come from the source that the head
            names: the Hub, or a file of that name in ``folder`` or in the current folder.
        remap: See ``load_backbone``.
        folder: The folder of the head file.

    Raises:
        UnknownArchitecture, WeightsError: See ``load_backbone``.
    """
    kind, _, name = head.backbone.source.partition(":")
    if weights is None and kind == "file":
        places = [place for place in (folder, Path()) if place is not None]
        weights = next((p / name for p in places if (p / name).is_file()), None)
        if weights is None:
            raise WeightsError(
                f"this head's backbone came from the file {name}, which is not in "
                f"{' or in '.join(str(place.absolute()) for place in places)}: "
                "pass its path with weights=FILE (--weights FILE)"
            )
    if weights is None and kind in ("random", "unknown"):
        raise WeightsError(
            f"the weights of this head's backbone cannot be found, as their source is "
            f"{head.backbone.source!r}: pass them with weights=FILE (--weights FILE), or pass the "
            "backbone itself"
        )
    name = f"{head.architecture}.{head.backbone.tag}" if head.backbone.tag else head.architecture
    arguments = recorded_arguments(head.model_args, head.pretrained_cfg)
    return load_backbone(name, weights, remap=remap, **arguments)
