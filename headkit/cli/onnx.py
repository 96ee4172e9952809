"""Commands for ONNX: export, graft, predict. The last two run without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .terminal import Json, Remap, Weights, show


def export(
    heads: Annotated[list[Path], typer.Argument(help="Head file; several for the form multi.")],
    out: Annotated[Path, typer.Option(help="Where to write the ONNX file.")],
    form: Annotated[
        str,
        typer.Option(
            help="merged: the head as constants; swappable: another one per call; multi: many "
            "heads at once; backbone: features and no head."
        ),
    ] = "merged",
    weights: Weights = None,
    remap: Remap = False,
    preprocess: Annotated[
        bool, typer.Option("--preprocess", help="Take raw images: resize and crop in the graph.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Add softmax or sigmoid of the logits.")
    ] = False,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8, of the backbone.")] = "fp32",
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to calibrate and measure precision with.")
    ] = None,
    max_cost: Annotated[
        float, typer.Option(help="Share of images whose class may change by the precision.")
    ] = 0.02,
    optimize: Annotated[
        bool, typer.Option(help="Rewrite the graph for speed; it then needs ONNX Runtime.")
    ] = True,
    config: Annotated[
        bool, typer.Option("--config", help="Write config.json beside it, for Optimum.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Export a head with its backbone to verified ONNX."""
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
        weights=weights,
        remap=remap,
        preprocess=preprocess,
        probabilities=probabilities,
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
    show(result, as_json, "\n".join(_exported(result)))


def _exported(result: dict[str, Any]) -> list[str]:
    worst, batches = max(result["difference"].values()), ", ".join(map(str, result["difference"]))
    lines = [
        f"{result['model']}: {result['bytes']:,} bytes, opset {result['opset']}; largest "
        f"difference from torch at batch sizes {batches}: {worst:.1e} of the largest value"
    ]
    if result["pixel_difference"] is not None:
        lines.append(
            f"pixels of the graph differ from Pillow's by {result['pixel_difference']:.1e} of "
            "their range on average"
        )
    for name, cost in result["precision_cost"].items():
        line = f"{name}: " if name else ""
        line += f"{result['precision']}: the same class on {cost['agreement']:.2%} of "
        line += f"{cost['images']} held-out images"
        if cost["accuracy_before"] is not None:
            line += f", accuracy {cost['accuracy_before']:.4f} before, "
            line += f"{cost['accuracy_after']:.4f} after"
        lines.append(line)
    return lines


def graft(
    model: Annotated[Path, typer.Argument(help="Exported ONNX file.")],
    head: Annotated[Path, typer.Argument(help="Head file.")],
    out: Annotated[
        Path,
        typer.Option(help="Where to write the new ONNX file, or NAME.onnx_adapter of a swappable."),
    ],
    name: Annotated[
        str | None, typer.Option(help="Of the head in a multi model; else its file's name.")
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Add to a multi model instead of replacing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Onto other weights of the same architecture too.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let --out be the model itself and replace it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put another head into an exported model. Needs no torch."""
    from headkit.export.graph.graft import graft as graft_head

    info = graft_head(model, head, out, name=name, add=add, force=force, overwrite=overwrite)
    held = {one.name: one.num_classes for one in info.heads}
    text = ", ".join(f"{key or 'head'} with {count} classes" for key, count in held.items())
    result = {
        "model": str(out),
        "bytes": out.stat().st_size,
        "form": info.form,
        "heads": {one.name: one.head_id for one in info.heads},
    }
    if out.suffix == ".onnx_adapter":
        text = f"adapter for {model}"
    show(result, as_json, f"{out}: {out.stat().st_size:,} bytes, {text}")


def predict(
    model: Annotated[Path, typer.Argument(help="Exported ONNX file.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    head: Annotated[
        list[Path] | None,
        typer.Option(help="Head files or .onnx_adapter files for a swappable model; repeatable."),
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Only these heads of a multi model; repeatable.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take heads of other weights of the architecture too.")
    ] = False,
    provider: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or openvino.")] = "cpu",
    top_k: Annotated[int, typer.Option(help="Predictions per image.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Images per run.")] = 16,
    threads: Annotated[int | None, typer.Option(help="Threads of ONNX Runtime.")] = None,
    as_json: Json = False,
) -> None:
    """Classify images with an exported model. Needs no torch."""
    from headkit.adapters.images import list_images
    from headkit.export.predict.predictor import Predictor
    from headkit.registry.resolve import head_name

    _check_order(model, images)
    extra = {head_name(path): path for path in head or []}
    if len(extra) < len(head or []):
        raise ValueError("two of the heads have the same name: rename one")
    predictor = Predictor(model, dict(extra), provider, threads=threads, force=force)
    listed = [image for given in images for image in list_images(given)]
    chosen = name or list(extra) or predictor.heads
    found = predictor.predict(listed, chosen, top_k=top_k, batch_size=batch_size)
    rows: list[dict[str, Any]] = [
        {"image": str(image), **({"head": key} if key else {}), "predictions": predictions[number]}
        for number, image in enumerate(listed)
        for key, predictions in found.items()
    ]
    show(rows, as_json, "\n".join(map(_predicted, rows)))


def _check_order(model: Path, images: list[Path]) -> None:
    """Refuse a head or an image for the model, and a head or a model for an image."""
    from headkit.adapters.errors import DataError, ExportError
    from headkit.adapters.file_kinds import MODEL, check_argument, detect_file_kind
    from headkit.adapters.images import is_image

    usage = "the model first and then images: predict MODEL.onnx IMAGE --head HEAD.safetensors"
    check_argument("the model", model, MODEL, usage)
    if is_image(model) and model.is_file():
        raise ExportError(f"the model is {model}: it is an image; write {usage}")
    for image in images:
        kind = detect_file_kind(image)
        if kind is not None:
            raise DataError(f"an image is {image}: it is {kind.noun}; write {usage}")


def _predicted(row: dict[str, Any]) -> str:
    head = f"{row['head']}: " if "head" in row else ""
    return f"{row['image']}  {head}" + "  ".join(
        f"{p['label']} {p['score']:.4f}" for p in row["predictions"]
    )
