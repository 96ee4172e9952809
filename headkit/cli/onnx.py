"""The commands for ONNX: ``export``, ``graft`` and ``predict``. The last two run without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .terminal import Json, Remap, show


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
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights file for the backbone. Default: the weights that the head names, from "
            "the Hugging Face Hub or from a file in the head's folder or the current folder."
        ),
    ] = None,
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


def predict(
    model: Annotated[Path, typer.Argument(help="Exported ONNX file.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of images.")],
    head: Annotated[
        list[Path] | None,
        typer.Option(
            help="Head file or .onnx_adapter file for a swappable model; repeatable. Default: the "
            "model's own head."
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Name of a head in a multi model; repeatable. Default: all heads."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Accept a head that was trained on other weights of the same architecture.",
        ),
    ] = False,
    provider: Annotated[
        str, typer.Option(help="Execution provider: cpu, cuda, tensorrt or openvino.")
    ] = "cpu",
    top_k: Annotated[
        int, typer.Option(help="Maximum number of predictions per image and head.")
    ] = 3,
    batch_size: Annotated[int, typer.Option(help="Number of images per run of the model.")] = 16,
    threads: Annotated[
        int | None, typer.Option(help="Number of CPU threads. Default: one per core.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Classify images with an exported model. This does not need torch."""
    from headkit.adapters.images import list_images
    from headkit.export.predict.predictor import Predictor
    from headkit.registry.resolve import head_name

    _check_order(model, images)
    extra = {head_name(path): path for path in head or []}
    if len(extra) < len(head or []):
        shown = ", ".join(map(str, head or []))
        raise ValueError(f"two of the heads {shown} have the same file name: rename one file")
    predictor = Predictor(model, dict(extra), provider, threads=threads, force=force)
    paths = [path for argument in images for path in list_images(argument)]
    names = name or list(extra) or predictor.heads
    predictions = predictor.predict(paths, names, top_k=top_k, batch_size=batch_size)
    rows: list[dict[str, Any]] = [
        {"image": str(path), **({"head": key} if key else {}), "predictions": of_head[number]}
        for number, path in enumerate(paths)
        for key, of_head in predictions.items()
    ]
    show(rows, as_json, "\n".join(map(_format_prediction, rows)))


def _check_order(model: Path, images: list[Path]) -> None:
    """Raise if the model is a head or an image, or an image is a head or a model."""
    from headkit.adapters.errors import DataError, ExportError
    from headkit.adapters.file_kinds import MODEL, check_argument, detect_file_kind
    from headkit.adapters.images import is_image

    usage = "the model first and then images: predict MODEL.onnx IMAGE --head HEAD.safetensors"
    check_argument("the model", model, MODEL, usage)
    if is_image(model) and model.is_file():
        raise ExportError(f"{model} is an image, expected an ONNX model; pass {usage}")
    for image in images:
        kind = detect_file_kind(image)
        if kind is not None:
            raise DataError(f"{image} is {kind.noun}, expected an image; pass {usage}")


def _format_prediction(row: dict[str, Any]) -> str:
    head = f"{row['head']}: " if "head" in row else ""
    return f"{row['image']}  {head}" + "  ".join(
        f"{p['label']} {p['score']:.4f}" for p in row["predictions"]
    )
