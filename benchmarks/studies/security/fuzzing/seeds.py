"""Write the valid files that the fuzzer changes, with headkit's own writers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the workers need no torch
    from headkit.adapters.heads.kinds import Kind

TIME = "1780000000"
"""Time of the files, so that the same code writes the same bytes."""
_TINY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "resnet": ("test_resnet", {"channels": (4, 4, 8, 8), "stem_width": 4}),
    "vit": ("test_vit", {"embed_dim": 8, "depth": 1, "num_heads": 2}),
    "deit": (
        "deit_tiny_distilled_patch16_224",
        {"embed_dim": 8, "depth": 1, "num_heads": 2, "patch_size": 32},
    ),
}
"""Architectures shrunk by timm's own arguments. The last has a classifier that torch converts."""
KINDS: tuple[Kind, ...] = ("own", "mlp", "cosine")


@dataclass(frozen=True)
class SeedFiles:
    """The valid files, in one folder.

    Attributes:
        folder: Folder of the files.
    """

    folder: Path

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return (self.folder / name).read_bytes()

    def heads(self, backbone: str) -> list[bytes]:
        """Return the head files of a backbone."""
        return [path.read_bytes() for path in sorted(self.folder.glob(f"{backbone}-*.safetensors"))]

    def models(self, *forms: str) -> list[bytes]:
        """Return the ONNX files of these forms."""
        paths = sorted(path for form in forms for path in self.folder.glob(f"*-{form}.onnx"))
        return [path.read_bytes() for path in paths]


def write_seed_files(folder: Path) -> SeedFiles:
    """Write the files if the folder lacks them; this needs torch and takes a minute."""
    done = folder / "done"
    if not done.exists():
        os.environ["SOURCE_DATE_EPOCH"] = TIME
        folder.mkdir(parents=True, exist_ok=True)
        for name in _TINY:
            _write_backbone(folder, name)
        done.touch()
    return SeedFiles(folder)


def _write_backbone(folder: Path, name: str) -> None:
    import torch

    import headkit
    from headkit.adapters.heads.head import Head
    from headkit.export.exporter import export

    architecture, arguments = _TINY[name]
    torch.manual_seed(0)
    backbone = headkit.load_backbone(architecture, pretrained=False, **arguments)
    heads: dict[str, Head] = {}
    for number, kind in enumerate(KINDS if name == "resnet" else KINDS[:1]):
        torch.manual_seed(number)
        model: Any = headkit.adapt(backbone, 3 + number, kind=kind)
        path = folder / f"{name}-{kind}.safetensors"
        labels = [f"class {label}" for label in range(3 + number)]
        heads[kind] = headkit.save_head(model, path, label_names=labels, notes="A note.")
    for form in ("merged", "backbone", *(["swappable"] if name != "vit" else [])):
        export(heads["own"], folder / f"{name}-{form}.onnx", form, backbone=backbone)
    if name != "resnet":
        return
    export(heads, folder / f"{name}-multi.onnx", "multi", backbone=backbone)
    raw = folder / f"{name}-raw.onnx"
    export(heads["own"], raw, preprocess=True, probabilities=True, backbone=backbone)
    headkit.graft(folder / f"{name}-swappable.onnx", heads["own"], folder / f"{name}.onnx_adapter")
