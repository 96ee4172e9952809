"""The command that describes labeled data: ``data``."""

from __future__ import annotations

from typing import Annotated

import typer

from .options.fit import ClassFrom, LabelColumn, LabelSeparator, PathColumn, Task
from .terminal import Json, show


def data(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Labeled images: a folder with one subfolder per class or per split, a CSV or TSV "
            "file, or a data set that timm can read, such as hfds/NAME or wds/FOLDER.",
        ),
    ],
    val: Annotated[
        str | None, typer.Option(help="Validation images, in any form that DATA accepts.")
    ] = None,
    task: Task = None,
    class_from: ClassFrom = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    label_separator: LabelSeparator = None,
    as_json: Json = False,
) -> None:
    """Show how headkit interprets labeled images: classes, splits, formats, what it skips."""
    from headkit.adapters.data.summary import describe_data

    summary = describe_data(
        data,
        val,
        task=task,  # type: ignore[arg-type]  # checked there
        class_from=class_from,  # type: ignore[arg-type]
        path_column=path_column,
        label_column=label_column,
        label_separator=label_separator,
    )
    show(summary.to_json(), as_json, str(summary))
