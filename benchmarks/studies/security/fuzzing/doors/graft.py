"""Graft: put a head file into an ONNX model."""

from __future__ import annotations

from pathlib import Path
from random import Random

from headkit.export.graph.graft import graft

from ..mutations import parts
from ..mutations.onnx_models import edit_model
from ..seeds import SeedFiles
from .door import Door
from .head_file import edit_head
from .model import write_neighbours


def open_door(seeds: SeedFiles, folder: Path) -> Door:
    """See ``doors.open_door``."""
    model, head, out = (folder / name for name in ("model.onnx", "own.safetensors", "out.onnx"))
    write_neighbours(folder)

    def enter(content: bytes) -> None:
        given = parts.split(content)
        model.write_bytes(given["model"])
        head.write_bytes(given["head"])
        graft(model, head, out, name="own")

    valid = []
    for name in ("resnet", "vit", "deit"):
        paths = sorted(seeds.folder.glob(f"{name}-*.onnx"))
        own = (seeds.folder / f"{name}-own.safetensors").read_bytes()
        valid += [parts.join({"model": path.read_bytes(), "head": own}) for path in paths]
    return Door(valid, _change, enter)


def _change(content: bytes, random: Random) -> bytes:
    given = parts.split(content)
    if random.random() < 0.75:
        given["model"] = edit_model(given["model"], random)
    else:
        given["head"] = edit_head(given["head"], random)
    return parts.join(given)
