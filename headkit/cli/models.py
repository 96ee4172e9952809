"""Commands that show what there is: the catalogue of architectures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import Json, lines_of, number, show, table_of

if TYPE_CHECKING:
    from headkit.registry.catalogue import Architecture


def models(
    pattern: Annotated[str, typer.Argument(help="Substring or glob of name or name.tag.")] = "",
    family: Annotated[str | None, typer.Option(help="timm module, such as resnet.")] = None,
    max_params: Annotated[
        str | None, typer.Option(help="Parameters of the backbone, at most: 30M.")
    ] = None,
    input_size: Annotated[int | None, typer.Option(help="Height and width in pixels.")] = None,
    features: Annotated[int | None, typer.Option(help="Width of the features.")] = None,
    license: Annotated[  # noqa: A002 - the word that users look for
        str | None, typer.Option(help="Of the weights, such as apache-2.0, or a glob.")
    ] = None,
    exportable: Annotated[
        bool, typer.Option("--exportable", help="Only those whose export was tried and agrees.")
    ] = False,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Only those with pretrained weights.")
    ] = False,
    sort: Annotated[str, typer.Option(help="name, latency, params, gmacs or accuracy.")] = "name",
    names: Annotated[bool, typer.Option("--names", help="Print the names alone.")] = False,
    as_json: Json = False,
) -> None:
    """Search the architectures that timm has."""
    from headkit.registry.catalogue import models as search
    from headkit.registry.catalogue import nearest

    rows = search(
        pattern,
        family=family,
        max_params=None if max_params is None else number(max_params),
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
        print(table_of((*header, "export", "tags"), map(_cells, rows)))


def _cells(row: Architecture) -> list[object]:
    size = None if row.input_size is None else "x".join(map(str, row.input_size[1:]))
    params = None if row.parameters is None else f"{row.parameters / 1e6:.1f}"
    export = {True: "yes", False: "no", None: None}[row.exportable]
    shown = [row.name, params, row.gmacs, row.num_features, size, row.top1, row.latency_ms]
    return [*shown, export, len(row.tags)]


def info(
    name: Annotated[str, typer.Argument(help="Architecture, head file or ONNX file.")],
    as_json: Json = False,
) -> None:
    """Show what is known of an architecture, a head file or an exported model."""
    from headkit.info import info as describe

    described = describe(name)
    show(described, as_json, "\n".join(lines_of(described)))
