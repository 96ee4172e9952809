"""The command ``predict``, which runs without torch. It goes on after a bad image."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headkit.adapters.files import is_file, is_folder

from .terminal import Json, progress_bar

if TYPE_CHECKING:
    from headkit.export.predict.scores import Result

STANDARD_INPUT = "-"


def predict(
    model: Annotated[Path, typer.Argument(help="Exported ONNX file.")],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files or folders of images, or - to read paths from standard input, "
            "one per line."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File for the results: NAME.csv for a table, NAME.jsonl for JSON Lines. Default: "
            "print them."
        ),
    ] = None,
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
        str,
        typer.Option(
            help="Execution provider: cpu, cuda, tensorrt, openvino, or ONNX Runtime's own name, "
            "such as CUDAExecutionProvider."
        ),
    ] = "cpu",
    provider_option: Annotated[
        list[str] | None,
        typer.Option(help="Option of the provider, such as device_id=1; repeatable."),
    ] = None,
    top_k: Annotated[
        int, typer.Option(help="Maximum number of predictions per image and head.")
    ] = 3,
    batch_size: Annotated[int, typer.Option(help="Number of images per run of the model.")] = 16,
    threads: Annotated[
        int | None, typer.Option(help="Number of CPU threads. Default: one per core.")
    ] = None,
    max_unreadable: Annotated[
        float,
        typer.Option(
            help="Maximum fraction of images that may be unreadable. If there are more, the exit "
            "status is 1."
        ),
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Classify images with an exported model. This does not need torch.

    An image that cannot be read gets a row with an error, and the others get their predictions.
    """
    from headkit.export.predict.predictor import Predictor
    from headkit.export.predict.result_files import check_results_path, write_results
    from headkit.registry.resolve import head_name

    if not 0 <= max_unreadable <= 1:
        raise ValueError(f"max-unreadable is {max_unreadable}, expected a fraction from 0 to 1")
    if out is not None:
        check_results_path(out)
    _check_order(model, images)
    extra = {head_name(path): path for path in head or []}
    if len(extra) < len(head or []):
        shown = ", ".join(map(str, head or []))
        raise ValueError(f"two of the heads {shown} have the same file name: rename one file")
    predictor = Predictor(
        model,
        dict(extra),
        provider,
        provider_options=_parse_options(provider_option),
        threads=threads,
        force=force,
    )
    names = name or list(extra) or predictor.heads
    results = predictor.stream(
        _expand(images), names, top_k=top_k, batch_size=batch_size, on_error="return"
    )
    named_heads = any(names)
    count = _Count(len(set(names)))
    if out is None:
        write = _print_json if as_json else _print_lines
        write(count.each(results), named_heads=named_heads)
    else:
        with progress_bar() as progress:
            top = max(predictor.num_predictions(top_k, one) for one in names)
            written = write_results(results, out, top, named_heads=named_heads)
            for _ in count.each(written):
                progress("predict", count.images, None)
    skipped = _count_skipped(images)
    if out is not None:
        summary = {
            "out": str(out),
            "images": count.images,
            "unreadable": count.unreadable,
            "skipped": skipped,
        }
        print(json.dumps(summary) if as_json else f"{out}: {count.images:,} images")
    if skipped:
        shown = ", ".join(f"{number:,} {reason}" for reason, number in skipped.items())
        print(f"skipped in folders: {shown}", file=sys.stderr)
    if count.unreadable:
        print(
            f"{count.unreadable:,} of {count.images:,} images could not be read: "
            "see the error for each image",
            file=sys.stderr,
        )
    if count.unreadable > max_unreadable * count.images or count.unreadable == count.images:
        raise typer.Exit(1)


class _Count:
    """The number of images, and of those that cannot be read, while results pass by."""

    def __init__(self, num_heads: int) -> None:
        self._num_heads = num_heads
        self._readable = self.unreadable = 0

    @property
    def images(self) -> int:
        return self.unreadable + self._readable // self._num_heads

    def each(self, results: Iterable[Result]) -> Iterator[Result]:
        for result in results:
            if result.error is None:
                self._readable += 1
            else:
                self.unreadable += 1
            yield result


def _count_skipped(arguments: Iterable[str]) -> dict[str, int]:
    """Return how many files in folders are not read, by the reason, as ``fit`` counts them."""
    from headkit.adapters.data.listing import list_folder, merge_skipped
    from headkit.adapters.errors import DataError

    listings = []
    for folder in dict.fromkeys(argument for argument in arguments if is_folder(argument)):
        with suppress(DataError):  # a folder that cannot be read has a row of its own
            listings.append(list_folder(folder).skipped)
    return {one.reason: one.count for one in merge_skipped(*listings)}


def _expand(arguments: Iterable[str]) -> Iterator[Path]:
    """Yield the path of each image below folders, in files, and on standard input."""
    from headkit.adapters.images.sources import iterate_images

    for argument in arguments:
        paths = _read_paths() if argument == STANDARD_INPUT else [argument]
        for path in paths:
            if not os.path.isdir(path):  # noqa: PTH112 - this may be called for millions
                yield Path(path)
                continue
            for found, _ in iterate_images(path):
                yield Path(found)


def _read_paths() -> Iterator[str]:
    """Yield the paths on standard input, one per line; skip empty lines.

    Raises:
        DataError: There is no path.
    """
    from headkit.adapters.errors import DataError

    empty = True
    for line in sys.stdin.buffer:
        path = os.fsdecode(line.rstrip(b"\r\n"))
        if path:
            empty = False
            yield path
    if empty:
        raise DataError("there are no paths on standard input, expected one per line")


def _print_json(results: Iterable[Result], *, named_heads: bool) -> None:
    """Print a JSON array while the results come."""
    from headkit.export.predict.result_files import result_row

    start = "[\n"
    for result in results:
        row = json.dumps(result_row(result, named_heads=named_heads), ensure_ascii=False)
        print(f"{start}  {row}", end="", flush=True)
        start = ",\n"
    print("\n]" if start != "[\n" else "[]")


def _print_lines(results: Iterable[Result], *, named_heads: bool) -> None:
    from headkit.adapters.display import escape_unprintable

    for result in results:
        head = f"{result.head}: " if named_heads and result.error is None else ""
        shown = "  ".join(f"{one['label']} {one['score']:.4f}" for one in result.predictions)
        text = shown if result.error is None else f"error: {result.error}"
        print(escape_unprintable(f"{result.image}  {head}{text}"), flush=True)


def _parse_options(options: Iterable[str] | None) -> dict[str, str] | None:
    pairs = [option.partition("=") for option in options or []]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise ValueError(f"provider-option is {key!r}, expected KEY=VALUE such as device_id=1")
    return {key: value for key, _, value in pairs} or None


def _check_order(model: Path, images: list[str]) -> None:
    """Raise if the model is a head or an image, or an image is a head or a model."""
    from headkit.adapters.errors import DataError, ExportError
    from headkit.adapters.file_kinds import MODEL, check_argument, detect_file_kind
    from headkit.adapters.images.formats import is_image
    from headkit.adapters.images.sources import iterate_images

    usage = "the model first and then images: predict MODEL.onnx IMAGE --head HEAD.safetensors"
    check_argument("the model", model, MODEL, usage)
    if is_image(model) and is_file(model):
        raise ExportError(f"{model} is an image, expected an ONNX model; pass {usage}")
    for image in images:
        kind = detect_file_kind(image)
        if kind is not None:
            raise DataError(f"{image} is {kind.noun}, expected an image; pass {usage}")
        if is_folder(image):
            next(iterate_images(image))  # raises now if the folder has no images
