"""Read the tensors of a weights file, whatever holds them; torch refuses files with objects."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from headkit.adapters.errors import WeightsError, first_line
from headkit.adapters.file_kinds import TENSORS, detect_file_kind
from headkit.adapters.files import check_readable, is_file, is_folder

NAMES_IN_FOLDER = (
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""Names of the weights in a folder that ``timm.models.save_for_hf`` writes, best first."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
MAX_DEPTH = 8
MAX_CONFIG_BYTES = 2**24
_WRAPPERS = re.compile(
    r"(?:(?<=^)|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""Parts of names that torch adds for a compiled or wrapped module, at any place of a name."""
_LABEL_KEYS = ("label_names", "class_names", "classes", "labels", "class_to_idx", "id2label")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a file, a folder or a repository, under flat names.

    Attributes:
        place: Where they came from, for messages.
        tensors: All tensors. The keys of nested dictionaries and lists are joined by dots.
        groups: For each tensor, the joined keys of the dictionary that holds it.
        ordered: Whether the order of the tensors is the order in which they were saved.
        unwrapped: Whether names lost what ``torch.compile`` or another wrapper had added.
        label_names: One name per class, if the file has them.
    """

    place: str
    tensors: Mapping[str, Tensor]
    groups: Mapping[str, str] = field(default_factory=dict)
    ordered: bool = True
    unwrapped: bool = False
    label_names: tuple[str, ...] | None = None

    @classmethod
    def from_object(cls, place: str, value: object, *, ordered: bool = True) -> Checkpoint:
        """Collect the tensors of nested dictionaries and lists.

        Raises:
            WeightsError: There is no tensor, or two tensors have the same joined name.
        """
        tensors, groups, unwrapped = dict[str, Tensor](), dict[str, str](), False
        for path, tensor in _walk(value, ()):
            raw = ".".join(path)
            name = _WRAPPERS.sub("", raw)
            unwrapped |= name != raw
            if name in tensors and not _equal(tensors[name], tensor):
                raise WeightsError(f"cannot read weights {place}: it has two tensors called {name}")
            tensors[name] = tensor
            groups[name] = ".".join(path[:-1])
        if not tensors:
            raise WeightsError(f"cannot read weights {place}: it has no tensors")
        return cls(place, tensors, groups, ordered, unwrapped, _find_labels(value))

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Checkpoint:
        """Return the checkpoint with other tensors in one group."""
        return replace(self, tensors=tensors, groups=dict.fromkeys(tensors, ""))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a weights file, or the weights file of a folder.

    Args:
        path: A safetensors file; a file of ``torch.save``, which is read with
            ``weights_only=True``; or a folder that timm wrote.

    Raises:
        WeightsError: There is no such file, it is of another kind, or it has no tensors.
    """
    if is_folder(path):
        return replace(read_checkpoint(weights_in_folder(path)), label_names=labels_of(path))
    check_readable(path, "weights", WeightsError)
    kind = detect_file_kind(path)
    if kind is not None and kind is not TENSORS:
        raise WeightsError(
            f"cannot read weights {path}: it is {kind.noun}, expected the weights of a backbone "
            "(.safetensors or .pth)"
        )
    if kind is TENSORS or path.suffix == ".safetensors":
        try:
            value: object = safetensors.torch.load_file(path)
        except Exception as error:
            raise WeightsError(f"cannot read weights {path}: {first_line(error)}") from error
        return Checkpoint.from_object(str(path), value, ordered=False)
    return Checkpoint.from_object(str(path), _load_pickled(path))


def weights_in_folder(folder: Path) -> Path:
    """Return the weights file of a folder: the one with timm's name, or the only one.

    Raises:
        WeightsError: The folder has no weights file, or several.
    """
    for name in NAMES_IN_FOLDER:
        if is_file(folder / name):
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and is_file(path))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5])
        raise WeightsError(
            f"the folder {folder} has {len(found)} weights files{': ' if found else ''}{names}, "
            f"expected {NAMES_IN_FOLDER[0]} or one file: pass the path of the file"
        )
    return found[0]


def labels_of(folder: Path) -> tuple[str, ...] | None:
    """Return the label names in the ``config.json`` that timm writes, or None."""
    config = read_config(folder)
    inner = config.get("pretrained_cfg")
    for values in (config, inner if isinstance(inner, dict) else {}):
        for key in ("label_names", "labels", "label_descriptions"):
            names = as_labels(values.get(key))
            if names is not None:
                return names
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of ``config.json`` in a folder; empty if there is none.

    Raises:
        WeightsError: The file is not a JSON object, or larger than 16 MiB.
    """
    path = folder / "config.json"
    if not is_file(path):
        return {}
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"cannot read {path}: {first_line(error)}") from error
    return config


def as_labels(value: object) -> tuple[str, ...] | None:
    """Return label names in the order of the classes, or None if ``value`` is nothing of the kind.

    Args:
        value: A list of names; a dictionary from index to name or from name to index; or timm's
            dictionary from name to description, in the order of the classes.
    """
    if isinstance(value, list | tuple):
        names = [str(name) for name in value if isinstance(name, str | int)]
        return tuple(names) if names and len(names) == len(value) else None
    if not isinstance(value, Mapping) or not value:
        return None
    keys, items = [str(key) for key in value], list(value.values())
    count = [str(number) for number in range(len(keys))]
    if sorted(keys) == sorted(count) and all(isinstance(item, str) for item in items):
        by_index = dict(zip(keys, items, strict=True))
        return tuple(by_index[number] for number in count)
    if all(isinstance(item, int) for item in items) and sorted(items) == list(range(len(items))):
        return tuple(sorted(keys, key=lambda key: int(value[key])))
    return tuple(keys) if all(isinstance(item, str) for item in items) else None


def _find_labels(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, Mapping):
        return None
    return next((names for key in _LABEL_KEYS if (names := as_labels(value.get(key)))), None)


def _load_pickled(path: Path) -> object:
    try:
        # Checkpoints of timm's own training script hold the arguments of the script.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        names = _unsafe_names(path)
        if "TorchScript" in str(error):
            raise WeightsError(
                f"cannot read weights {path}: it is a TorchScript model, which is code; save its "
                "tensors alone: torch.save(torch.jit.load(FILE).state_dict(), OTHER_FILE)"
            ) from error
        if isinstance(error, OSError):
            raise WeightsError(f"cannot read weights {path}: {first_line(error)}") from error
        if not names:
            raise WeightsError(
                f"cannot read weights {path}: it is damaged, or neither torch.save nor safetensors "
                "wrote it; expected a .pth or .safetensors file with tensors"
            ) from error
        raise WeightsError(
            f"cannot read weights {path}: it holds Python objects ({', '.join(names[:3])}), but "
            "headkit reads only tensors and plain values (weights_only=True), because anything "
            "else could run code. If you trust the file, load it with torch, and save its tensors "
            "alone: torch.save(model.state_dict(), FILE)"
        ) from error


def _unsafe_names(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # the file is damaged, or in torch's format before 1.6
        return []


def _walk(value: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield path or ("tensor",), value.detach()
    elif len(path) < MAX_DEPTH and isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _walk(item, (*path, str(key)))


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
