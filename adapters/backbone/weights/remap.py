"""Match tensors by position: another implementation of the same layers, in the same order."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from headkit.adapters.backbone.classifier import replace_classifier
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.errors import WeightsError

from .match import Wanted
from .read import Checkpoint


def rename_by_position(wanted: Wanted, model: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with the architecture's names, given in order.

    The file may have the classifier with any number of classes, or lack it.

    Args:
        wanted: The tensors that the architecture needs.
        model: The architecture, on the meta device.
        checkpoint: The tensors, in the order of the model that saved them.

    Raises:
        WeightsError: The numbers of tensors or their shapes differ, or the file has no order.
    """
    start = "cannot remap by position"
    if not checkpoint.ordered:
        raise WeightsError(
            f"{start}: {checkpoint.place} is a .safetensors file, which does not keep the order of "
            "its tensors: save them with torch.save instead"
        )
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        groups.setdefault(checkpoint.groups[name], {})[name] = tensor
    lists = [list(wanted.backbone), _with_classifier(model)]
    counts = sorted({len(names) for names in lists})
    candidates = [group for group in groups.values() if len(group) in counts]
    if len(candidates) != 1:
        largest = max(len(group) for group in groups.values())
        raise WeightsError(
            f"{start}: the file has {largest} tensors, but {wanted.name} has {counts[-1]}, or "
            f"{counts[0]} without its classifier"
            if not candidates
            else f"{start}: the file has {len(candidates)} lists of {counts[-1]} tensors, expected "
            "one"
        )
    (group,) = candidates
    names = next(names for names in reversed(lists) if len(names) == len(group))
    renamed = dict(zip(names, group.values(), strict=True))
    _check_shapes(wanted, renamed, list(group))
    return checkpoint.with_tensors(renamed)


def _check_shapes(wanted: Wanted, renamed: Mapping[str, Tensor], names_in_file: list[str]) -> None:
    for (name, tensor), name_in_file in zip(renamed.items(), names_in_file, strict=True):
        expected = wanted.backbone.get(name)
        if expected is not None and tensor.shape != expected.shape:
            raise WeightsError(
                f"cannot remap by position: {name_in_file} has the shape {tuple(tensor.shape)}, "
                f"but {wanted.name} expects {tuple(expected.shape)} for {name}"
            )


def _with_classifier(model: nn.Module) -> list[str]:
    probe = copy_structure(model, share_tensors=False)
    replace_classifier(probe, 3)
    return list(probe.state_dict())
