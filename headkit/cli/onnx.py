"""The commands ``export`` and ``graft``. The second runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .terminal import HeadBackbone, HeadWeights, Json, Remap, show


def export(
    heads: Annotated[
        list[Path],
        typer.Argument(
            help="Head file, or reference to a head in the store. --form multi takes several."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Path of the new ONNX file, with the suffix .onnx.")],
    form: Annotated[
        str,
        typer.Option(
            help="Form of the model. merged: one fixed head; swappable: one head that can be "
            "replaced on each call; multi: several heads at once; backbone: features only, no head."
        ),
    ] = "merged",
    backbone: HeadBackbone = None,
    weights: HeadWeights = None,
    remap: Remap = False,
    preprocess: Annotated[
        bool,
        typer.Option(
            "--preprocess",
            help="Include preprocessing in the model: it then takes raw images of any size.",
        ),
    ] = False,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Add an output named probabilities: softmax or sigmoid of the logits.",
        ),
    ] = False,
    levels: Annotated[
        str | None,
        typer.Option(
            help="Levels that the model computes for heads over levels: names separated by commas, "
            "or all. Default: the levels that the given heads read."
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Precision of the backbone: fp32, fp16 or int8.")
    ] = "fp32",
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images; required for fp16 and int8. Half of them are for calibration; "
            "the other half measure what the lower precision costs."
        ),
    ] = None,
    max_cost: Annotated[
        float,
        typer.Option(
            help="Maximum cost of fp16 or int8: the fraction of --images whose predicted class "
            "changes, or the loss of accuracy if --images has one folder per class."
        ),
    ] = 0.02,
    optimize: Annotated[
        bool,
        typer.Option(help="Speed up the graph by using operators that only ONNX Runtime supports."),
    ] = True,
    config: Annotated[
        bool,
        typer.Option(
            "--config", help="Write config.json next to the model, for Hugging Face Optimum."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Export a head with its backbone to ONNX. The result is verified against torch."""
    from headkit.adapters.file_kinds import MODEL, check_output
    from headkit.registry.resolve import load_head

    check_output(out, MODEL)
    for head in heads:
        load_head(head)  # refuses a bad file before torch is imported
    from headkit.export.exporter import export as export_model

    done = export_model(
        heads if form == "multi" or len(heads) > 1 else heads[0],
        out,
        form,
        backbone=backbone,
        weights=weights,
        remap=remap,
        preprocess=preprocess,
        probabilities=probabilities,
        levels=levels,
        precision=precision,
        images=images,
        max_cost=max_cost,
        optimize=optimize,
        config=config,
    )
    result = {
        "model": str(out),
        "bytes": done.num_bytes,
        "opset": done.opset,
        "form": form,
        "precision": precision,
        "difference": done.difference,
        "pixel_difference": done.pixel_difference,
        "precision_cost": dict(done.info.cost),
    }
    show(result, as_json, "\n".join(_format_exported(result)))


def _format_exported(result: dict[str, Any]) -> list[str]:
    worst, batches = max(result["difference"].values()), ", ".join(map(str, result["difference"]))
    lines = [
        f"{result['model']}: {result['bytes']:,} bytes, opset {result['opset']}; largest "
        f"difference from torch at batch sizes {batches}: {worst:.1e} times the largest value"
    ]
    if result["pixel_difference"] is not None:
        lines.append(
            "mean difference of the model's pixels from Pillow's: "
            f"{result['pixel_difference']:.1e} of their range"
        )
    for name, cost in result["precision_cost"].items():
        line = f"{name}: " if name else ""
        line += f"{result['precision']} predicts the same class as fp32 on "
        line += f"{cost['agreement']:.2%} of {cost['images']} held-out images"
        if cost["accuracy_before"] is not None:
            line += f"; accuracy {cost['accuracy_before']:.4f} before, "
            line += f"{cost['accuracy_after']:.4f} after"
        lines.append(line)
    return lines


def graft(
    model: Annotated[Path, typer.Argument(help="Exported ONNX file.")],
    head: Annotated[Path, typer.Argument(help="Head file, or reference to a head in the store.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Path of the new ONNX file. If it ends in .onnx_adapter (swappable models only), "
            "only the head is written, as an adapter file for ONNX Runtime."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the head in a multi model. Default: the head's file name without the "
            "suffix, or its published name."
        ),
    ] = None,
    add: Annotated[
        bool,
        typer.Option("--add", help="Add the head to a multi model instead of replacing a head."),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Accept a head that was trained on other weights of the same architecture (its "
            "logits will differ from those in training), and allow --out to be the model itself.",
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Allow --out to be the model itself. The backbone's weights are still checked.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Put another head into an exported model. This does not need torch."""
    from headkit.export.graph.graft import graft as graft_head

    info = graft_head(model, head, out, name=name, add=add, force=force, overwrite=overwrite)
    text = ", ".join(f"{one.name or 'head'} with {one.num_classes} classes" for one in info.heads)
    result = {
        "model": str(out),
        "bytes": out.stat().st_size,
        "form": info.form,
        "heads": {one.name: one.head_id for one in info.heads},
    }
    if out.suffix == ".onnx_adapter":
        text = f"adapter for {model}"
    show(result, as_json, f"{out}: {out.stat().st_size:,} bytes, {text}")
