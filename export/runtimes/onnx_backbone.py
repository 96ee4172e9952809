"""Export a backbone to the ONNX file with which runtimes other than torch extract features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnx
from torch import nn

from headkit.adapters.backbone.fingerprint import backbone_info
from headkit.adapters.backbone.level import LAST
from headkit.adapters.backbone.levels import vector_levels
from headkit.adapters.backbone.preprocessing import preprocessing, timm_cfg
from headkit.adapters.compat import model_arguments
from headkit.adapters.errors import ExportError
from headkit.adapters.features.lock import touch
from headkit.adapters.files import is_file, make_folder, writing
from headkit.adapters.temporary import temporary_folder
from headkit.export.exporter import export
from headkit.export.graph.checksums import checksum_of_backbone, is_intact
from headkit.export.graph.heads_in_graph import opset_of, put_preprocessing, write_metadata
from headkit.export.graph.onnx_file import write
from headkit.export.preprocess.onnx_graph import normalizing_model
from headkit.export.preprocess.pillow import Preprocess


def converter_versions() -> dict[str, str]:
    """Return the versions of the packages that convert a backbone."""
    return {name: version(name) for name in ("headkit", "onnxscript", "timm", "torch")}


def onnx_backbone(
    model: nn.Module, folder: Path, *, optimize: bool = True, levels: str | Sequence[str] = ()
) -> Path:
    """Return the ONNX file of a backbone; export and verify it unless ``folder`` has it intact.

    The input is ``image`` uint8 ``[batch, 3, H, W]``, already resized and cropped. The outputs are
    the features of each branch, followed by the vectors of the levels.

    Args:
        model: The backbone.
        folder: Folder of the files. Their names contain a hash of everything that they depend on.
        optimize: Rewrite the graph with ONNX Runtime's own operators, which other runtimes do not
            support.
        levels: Names of levels, or ``all`` for all levels. ``last`` adds nothing.

    Raises:
        ExportError: See ``export``.
        ContractError: The backbone has no such level.
    """
    cfg = preprocessing(model)
    chosen = [level.to_json() for level in vector_levels(model, levels)]
    key = {
        "fingerprint": backbone_info(model).fingerprint,
        "model_args": {k: str(v) for k, v in model_arguments(model).items() if k != "num_classes"},
        "preprocessing": cfg,
        "optimize": optimize,
        "versions": converter_versions(),
        **({"levels": chosen} if chosen else {}),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path = folder / f"{timm_cfg(model)['architecture']}-{digest}.onnx"
    if is_file(path) and is_intact(path):
        touch(path)
        return path
    make_folder(folder)
    with writing(path), temporary_folder(path) as temporary:
        plain = export(
            model,
            temporary / "backbone.onnx",
            "backbone",
            levels=[LAST, *(level["name"] for level in chosen)],
            optimize=optimize,
        )
        graph = onnx.load(plain.path)
    try:
        preprocess = Preprocess.from_cfg(cfg)
    except ValueError as error:
        raise ExportError(str(error)) from error
    put_preprocessing(graph, normalizing_model(preprocess, opset_of(graph)))
    checksum = checksum_of_backbone(graph, plain.info.is_of_head)
    write_metadata(graph, replace(plain.info, checksum=checksum))
    write(graph, path)
    return path
