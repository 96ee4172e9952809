"""Head files: load, show, describe, publish, and what goes with a head on the Hub."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from random import Random
from typing import Any

import safetensors.numpy
from safetensors import SafetensorError

from headkit.adapters.heads.checksum import CHECKSUM, compute_checksum
from headkit.adapters.heads.head import Head
from headkit.info import info
from headkit.registry.hub.card import build_config, render_card
from headkit.registry.store.store import HeadStore

from ..mutations import parts
from ..mutations.tensor_files import edit_json_entry, edit_tensor_file, read_parts, write_parts
from ..seeds import SeedFiles
from .door import Door

NAMES = (
    *("requires", "pixels", "pretrained_cfg", "model_args", "label_names", "temperature", "task"),
    *("cache_dir", "pretrained_cfg_overlay", "url", "file", "layers", "num_classes", "kind"),
)
"""Keys that a reader of head files may know."""


def open_door(seeds: SeedFiles, folder: Path) -> Door:
    """See ``doors.open_door``."""
    path, store = folder / "head.safetensors", folder / "store"

    def enter(content: bytes) -> None:
        given = parts.split(content)
        path.write_bytes(given["head"])
        if "size" in given:  # a sparse file: it takes no space on the disk
            os.truncate(path, len(given["head"]) + int(given["size"]))
        try:
            head = Head.load(path)
            repr(head), head._repr_html_()
            info(path)
            render_card("user/repository", {"": build_config(head)})
            HeadStore(store).publish(path, "head")
        finally:
            shutil.rmtree(store, ignore_errors=True)

    valid = [head for name in ("resnet", "vit", "deit") for head in seeds.heads(name)]
    return Door([parts.join({"head": head}) for head in valid], _change, enter)


def _change(content: bytes, random: Random) -> bytes:
    given = {"head": edit_head(parts.split(content)["head"], random)}
    if random.random() < 0.05:
        given["size"] = str(random.choice((1, 4096, 2**29, 2**31, 2**36))).encode()
    return parts.join(given)


def edit_head(content: bytes, random: Random) -> bytes:
    """Return a head file with one to three changes; mostly, with the checksum of the result."""
    content = edit_tensor_file(content, random, _edit_metadata)
    return _with_checksum(content) if random.random() < 0.7 else content


def _with_checksum(content: bytes) -> bytes:
    try:
        header, data = read_parts(content)
        metadata, tensors = header["__metadata__"], safetensors.numpy.load(content)
        metadata[CHECKSUM] = compute_checksum(metadata["head"], tensors)
        return write_parts(header, data)
    # An input that is no longer a file of tensors has no checksum.
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, struct.error):
        return content


def _edit_metadata(metadata: dict[str, Any], random: Random) -> None:
    if random.random() < 0.1:
        key = random.choice(("format", "version", "head", "other"))
        metadata[key] = random.choice(("1", "2", "3", "headkit", "pt", "", "{}", "null", "[1]"))
    else:
        edit_json_entry(metadata, "head", random, NAMES)
