"""The options of ``fit``, which every command that trains heads takes from here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from headkit.cli.terminal import Json, Remap

from .config import Config

Backbone = Annotated[
    str,
    typer.Option(
        help="timm architecture, such as resnet50.a1_in1k; or a model that timm saved: "
        "local-dir:FOLDER or hf-hub:USER/REPO."
    ),
]
NewHead = Annotated[
    Path, typer.Option(help="Path of the new head file, with the suffix .safetensors.")
]
Data = Annotated[
    str,
    typer.Option(
        help="Labeled images: a folder with one subfolder per class or per split, a CSV or TSV "
        "file with the columns path and label, or a data set that timm can read, "
        "such as hfds/NAME or wds/FOLDER."
    ),
]
Val = Annotated[
    str | None,
    typer.Option(
        help="Images to measure the head on, in any form that --data accepts. They influence no "
        "choice. Default: the validation split of --data if it has one, otherwise "
        "cross-validation on --data."
    ),
]
Test = Annotated[
    str | None,
    typer.Option(
        help="More images to measure the head on, in any form that --data accepts; or 'split' for "
        "the test split of --data. They influence no choice."
    ),
]
Extend = Annotated[
    str | None,
    typer.Option(
        help="Head file, or reference to a store, to which --data adds images or classes. The "
        "features of the head's own training images must still be in the cache."
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        help="Task: multiclass, multilabel or regression. Default: multilabel if an image in the "
        "CSV file has several labels, otherwise multiclass."
    ),
]
ClassFrom = Annotated[
    str | None,
    typer.Option(
        help="Folder that names the class of an image: top (directly under the root) or parent "
        "(the folder that holds the image). Default: top; if the tree can be read in both ways, "
        "you must choose."
    ),
]
PathColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of image paths in a CSV file. Default: the column with a name "
        "such as path, file or image."
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of labels in a CSV file, or several columns separated by commas, one per "
        "class or output. Default: the column with a name such as label, class or target."
    ),
]
LabelSeparator = Annotated[
    str | None,
    typer.Option(
        help="Text between the labels of one image in a CSV file. Default: a vertical bar; "
        "with --task multilabel, also a comma or a semicolon."
    ),
]
Kind = Annotated[
    str | None,
    typer.Option(
        help="Kind of head: own (the architecture's classifier), linear, mlp or cosine. Default: "
        "own or linear, depending on the architecture."
    ),
]
Levels = Annotated[
    str,
    typer.Option(
        help="What a linear head reads: auto (chosen by cross-validation; with --l2, the last "
        "features alone), last (the last features), all (the last features and all levels), or "
        "names of levels separated by commas."
    ),
]
Holdout = Annotated[
    float | None,
    typer.Option(
        help="Fraction of each class to hold out once to measure the head, instead of "
        "cross-validation. It cannot be combined with --val. Default: cross-validation; 0.2 for "
        "more than 2,000 images and for heads that are not linear."
    ),
]
L2 = Annotated[
    str | None,
    typer.Option(
        help="Strength of the L2 penalty for a linear head, or several strengths separated by "
        "commas: cross-validation chooses one. With --levels auto, the head then reads the last "
        "features alone. Default: search a wide range."
    ),
]
ClassWeights = Annotated[
    str | None,
    typer.Option(
        help="'balanced' (rare classes count more), or LABEL=WEIGHT pairs separated by commas. "
        "Default: 1 for each class."
    ),
]
Thresholds = Annotated[
    str | None,
    typer.Option(
        help="How to choose the decision threshold of each label of a multilabel head: f1, or a "
        "precision that each label must reach, such as 0.9. Default: f1 for a multilabel head."
    ),
]
Views = Annotated[
    int,
    typer.Option(
        help="Number of crops per training image. The first is the evaluation crop; the others are "
        "random."
    ),
]
Runtime = Annotated[
    str, typer.Option(help="Runtime that extracts features: auto, onnxruntime, openvino or torch.")
]
Precision = Annotated[str, typer.Option(help="Precision of the backbone: fp32 or bf16.")]
Executor = Annotated[
    str, typer.Option(help="Where features are extracted: local (this machine) or ray (a cluster).")
]
Cache = Annotated[
    Path | None,
    typer.Option(help="Folder for cached features. Default: the user's cache folder."),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Do not cache features.")]
Seed = Annotated[
    int, typer.Option(help="Random seed for the held-out images, the crops and the training.")
]
BatchSize = Annotated[int, typer.Option(help="Number of images per forward pass.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Number of processes that decode images. Default: one per core."),
]
MaxUnreadable = Annotated[
    float, typer.Option(help="Maximum fraction of images that may be unreadable.")
]
ImgSize = Annotated[
    str | None,
    typer.Option(
        help="Edge of the input images in pixels, or HEIGHTxWIDTH, such as 256x320. Default: the "
        "architecture's own size."
    ),
]
CropPct = Annotated[
    float | None,
    typer.Option(
        help="Edge of the evaluation crop divided by the edge of the resized image, above 0 and at "
        "most 1. Default: the architecture's own."
    ),
]
CropMode = Annotated[
    str | None,
    typer.Option(
        help="How to fit images of another shape: center (cut), squash (change the aspect "
        "ratio) or border (pad). Default: the architecture's own."
    ),
]
Report = Annotated[
    Path | None, typer.Option(help="Folder for a confusion matrix and a reliability diagram.")
]
Notes = Annotated[str, typer.Option(help="Free text that is stored in the head file.")]


def fit_options(
    val: Val = None,
    test: Test = None,
    extend: Extend = None,
    task: Task = None,
    class_from: ClassFrom = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    label_separator: LabelSeparator = None,
    kind: Kind = None,
    levels: Levels = "auto",
    remap: Remap = False,
    img_size: ImgSize = None,
    crop_pct: CropPct = None,
    crop_mode: CropMode = None,
    holdout: Holdout = None,
    l2: L2 = None,
    class_weights: ClassWeights = None,
    thresholds: Thresholds = None,
    views: Views = 1,
    runtime: Runtime = "auto",
    precision: Precision = "fp32",
    executor: Executor = "local",
    cache: Cache = None,
    no_cache: NoCache = False,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    workers: Workers = None,
    max_unreadable: MaxUnreadable = 0.05,
    report: Report = None,
    notes: Notes = "",
) -> dict[str, Any]:
    """Return the keyword arguments of ``headkit.fit`` for the options of a command."""
    return {
        "val": val,
        "test": test,
        "extend": extend,
        "task": task,
        "class_from": class_from,
        "path_column": path_column,
        "label_column": label_column,
        "label_separator": label_separator,
        "kind": kind,
        "levels": _parse_levels(levels),
        "remap": remap,
        "img_size": _parse_size(img_size),
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "holdout": holdout,
        "l2": parse_numbers("l2", l2),
        "class_weights": _parse_weights(class_weights),
        "thresholds": _parse_thresholds(thresholds),
        "views": views,
        "runtime": runtime,
        "precision": precision,
        "executor": executor,
        "cache": choose_cache(cache, no_cache),
        "seed": seed,
        "batch_size": batch_size,
        "workers": workers,
        "max_unreadable": max_unreadable,
        "report": report,
        "notes": notes,
    }


def takes_fit_options(
    *without: str,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command the options of ``fit_options``, and ``--config``.

    The last parameters of the command must be ``options``, which gets the result of
    ``fit_options``, and ``as_json``.

    Args:
        without: Names of options that the command does not take.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        every = inspect.signature(fit_options, eval_str=True).parameters
        shared = {name: one for name, one in every.items() if name not in without}
        own = inspect.signature(command, eval_str=True).parameters
        before = [one for name, one in own.items() if name not in ("options", "as_json")]
        kind = before[0].kind
        config = inspect.Parameter("config", kind, default=None, annotation=Config)
        last = inspect.Parameter("as_json", kind, default=False, annotation=Json)

        @functools.wraps(command)
        def run(config: Path | None, as_json: bool, **values: Any) -> None:
            del config  # it has changed the defaults of the other options
            taken = fit_options(**{name: values.pop(name) for name in shared})
            options = {name: value for name, value in taken.items() if name not in without}
            command(**values, options=options, as_json=as_json)

        # Typer reads the options from the signature.
        parameters = [*before, *shared.values(), config, last]
        vars(run)["__signature__"] = inspect.Signature(parameters)
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _parse_size(text: str | None) -> int | tuple[int, ...] | None:
    if text is None:
        return None
    try:
        edges = tuple(int(part) for part in text.lower().split("x"))
    except ValueError as error:
        raise ValueError(
            f"img-size is {text!r}, expected an edge in pixels, or HEIGHTxWIDTH, such as 256x320"
        ) from error
    return edges[0] if len(edges) == 1 else edges


def _parse_thresholds(text: str | None) -> str | float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _parse_levels(text: str) -> str | list[str]:
    from headkit.adapters.backbone.level import level_names

    names = level_names(text)
    return names[0] if len(names) == 1 else names


def parse_numbers(name: str, text: str | None) -> float | list[float] | None:
    """Return the number, or the numbers separated by commas, that an option called ``name`` has."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"{name} is {text!r}, expected a number, or several separated by commas"
        ) from error
    return numbers[0] if len(numbers) == 1 else numbers


def _parse_weights(text: str | None) -> Any:
    if text is None or text == "balanced":
        return text
    pairs = [part.rpartition("=") for part in text.split(",")]
    try:
        return {label: float(weight) for label, _, weight in pairs}
    except ValueError as error:
        raise ValueError(
            f"class-weights is {text!r}, expected 'balanced', or LABEL=WEIGHT pairs separated by "
            "commas"
        ) from error


def choose_cache(folder: Path | None, no_cache: bool) -> bool | Path:
    """Return the argument ``cache`` of the functions for the two options."""
    return False if no_cache else True if folder is None else folder
