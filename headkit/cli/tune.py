"""The command ``tune``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .fit import describe_fit, format_fit
from .options.fit import Backbone, Data, NewHead, parse_numbers, takes_fit_options
from .terminal import Weights, progress_bar, show


@takes_fit_options("extend", "views", "batch_size")
def tune(
    backbone: Backbone,
    data: Data,
    out: NewHead,
    weights: Weights = None,
    method: Annotated[
        str,
        typer.Option(
            help="What changes: affine (all vectors, and a scale per output of a layer), bias (all "
            "vectors), lora (a matrix of low rank per layer), last (the last block) or auto (the "
            "better of affine and lora on held-out images)."
        ),
    ] = "auto",
    rank: Annotated[int, typer.Option(help="Rank of the matrices of lora.")] = 8,
    rates: Annotated[
        str | None,
        typer.Option(
            help="Learning rate of the changes, or several separated by commas: held-out images "
            "choose one. Default: one to three that depend on the method."
        ),
    ] = None,
    epochs: Annotated[
        float,
        typer.Option(help="Number of passes over the images. There are at least 120 batches."),
    ] = 8,
    scale: Annotated[
        float, typer.Option(help="Smallest share of the image that a random crop keeps.")
    ] = 0.5,
    hflip: Annotated[float, typer.Option(help="Probability of a horizontal flip.")] = 0.5,
    vflip: Annotated[float, typer.Option(help="Probability of a vertical flip.")] = 0.0,
    color_jitter: Annotated[
        float, typer.Option(help="Strength of random changes of the colors.")
    ] = 0.0,
    auto_augment: Annotated[
        str, typer.Option(help="Augmentation policy of timm, such as rand-m9-mstd0.5.")
    ] = "",
    batch_size: Annotated[int, typer.Option(help="Number of images of a batch.")] = 32,
    *,
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Train a head and small changes to its backbone, and save both in one head file.

    Tuning starts from the head of ``headkit fit``. If it gains nothing on held-out images, the
    result is that head, without changes.
    """
    from headkit.adapters.file_kinds import HEAD, check_output

    check_output(out, HEAD, inputs=(weights, data))
    from headkit.adapters.tuning.batches import Augmentation
    from headkit.tune import tune as tune_head

    augmentation = Augmentation(
        scale=(scale, 1.0),
        hflip=hflip,
        vflip=vflip,
        color_jitter=color_jitter,
        auto_augment=auto_augment,
    )
    with progress_bar() as progress:
        head = tune_head(
            backbone,
            data,
            method=method,
            rank=rank,
            rates=parse_numbers("rates", rates),
            epochs=epochs,
            augmentation=augmentation,
            weights=weights,
            batch_size=batch_size,
            progress=progress,
            **options,
        )
    head.save(out)
    show(describe_fit(head, out), as_json, "\n".join(format_fit(head, out)))
