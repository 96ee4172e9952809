"""The commands that search and describe: ``models`` and ``info``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import Json, format_lines, format_table, parse_count, show

if TYPE_CHECKING:
    from headkit.registry.catalogue import Architecture


def models(
    pattern: Annotated[
        str,
        typer.Argument(
            help="Part of a name, such as resnet50 or resnet50.a1_in1k, or a glob. Default: all.",
            show_default=False,
        ),
    ] = "",
    family: Annotated[
        str | None, typer.Option(help="timm module, such as resnet, or a glob.")
    ] = None,
    max_params: Annotated[
        str | None, typer.Option(help="Maximum number of parameters of the backbone, such as 30M.")
    ] = None,
    input_size: Annotated[
        int | None, typer.Option(help="Height and width of the input, in pixels.")
    ] = None,
    features: Annotated[
        int | None, typer.Option(help="Number of features of the backbone.")
    ] = None,
    license: Annotated[  # noqa: A002 - the word that users look for
        str | None, typer.Option(help="License of the weights, such as apache-2.0, or a glob.")
    ] = None,
    exportable: Annotated[
        bool,
        typer.Option(
            "--exportable", help="List only architectures whose ONNX export is known to work."
        ),
    ] = False,
    pretrained: Annotated[
        bool,
        typer.Option("--pretrained", help="List only architectures with pretrained weights."),
    ] = False,
    sort: Annotated[
        str, typer.Option(help="Order of the rows: name, latency, params, gmacs or accuracy.")
    ] = "name",
    names: Annotated[bool, typer.Option("--names", help="Print only the names.")] = False,
    as_json: Json = False,
) -> None:
    """Search timm's architectures."""
    from headkit.registry.catalogue import models as search
    from headkit.registry.catalogue import nearest

    rows = search(
        pattern,
        family=family,
        max_params=None if max_params is None else parse_count(max_params),
        input_size=input_size,
        features=features,
        license=license,
        exportable=exportable,
        pretrained=pretrained,
        sort=sort,
    )
    if as_json:
        show([row.to_json() for row in rows], as_json, "")
    elif not rows:
        near = nearest(pattern) if pattern else []
        hint = f"; nearest names: {', '.join(near)}" if near else ""
        typer.echo(f"no architecture matches{hint}", err=True)
        raise typer.Exit(1)
    elif names:
        print("\n".join(row.name for row in rows))
    else:
        header = ("architecture", "M params", "GMAC", "features", "input", "top-1 %", "ms")
        print(format_table((*header, "export", "tags"), map(_cells, rows)))


def _cells(row: Architecture) -> list[object]:
    size = None if row.input_size is None else "x".join(map(str, row.input_size[1:]))
    params = None if row.parameters is None else f"{row.parameters / 1e6:.1f}"
    export = {True: "yes", False: "no", None: None}[row.exportable]
    shown = [row.name, params, row.gmacs, row.num_features, size, row.top1, row.latency_ms]
    return [*shown, export, len(row.tags)]


def info(
    name: Annotated[
        str,
        typer.Argument(
            help="Architecture, head file, reference to a head in the store, or ONNX file."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Describe an architecture, a head or an exported model."""
    from headkit.info import info as describe

    description = describe(name)
    show(description, as_json, "\n".join(format_lines(description)))
