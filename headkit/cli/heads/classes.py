"""The commands ``heads select``, ``drop``, ``rename`` and ``diff``. Only images need torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headkit.cli.options.fit import BatchSize, Cache, MaxUnreadable, NoCache, Workers, choose_cache
from headkit.cli.terminal import HeadBackbone, HeadWeights, Json, Remap, progress_bar, show

if TYPE_CHECKING:
    from headkit.adapters.heads.difference import HeadDifference
    from headkit.adapters.heads.head import Head

MAX_CHANGES = 8
"""Maximum number of pairs of different predictions that are printed."""

HeadFile = Annotated[
    str, typer.Argument(help="Head file, or reference to a head in the store.", metavar="HEAD")
]
Out = Annotated[Path, typer.Option(help="Path of the new head file, with the suffix .safetensors.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Allow --out to be the head file itself.")
]
Labels = Annotated[list[str], typer.Argument(help="Label names.", metavar="LABEL...")]


def select(
    head: HeadFile, labels: Labels, out: Out, overwrite: Overwrite = False, as_json: Json = False
) -> None:
    """Write a head with only these classes, in this order. Nothing is trained again."""
    _write(_load(head, out, overwrite).select(labels), out, as_json)


def drop(
    head: HeadFile, labels: Labels, out: Out, overwrite: Overwrite = False, as_json: Json = False
) -> None:
    """Write a head without these classes. Nothing is trained again."""
    _write(_load(head, out, overwrite).drop(labels), out, as_json)


def rename(
    head: HeadFile,
    names: Annotated[
        list[str], typer.Argument(help="Old and new name of a class.", metavar="OLD=NEW...")
    ],
    out: Out,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a head whose classes have other names."""
    loaded = _load(head, out, overwrite)
    _write(loaded.rename(_parse_names(names, loaded)), out, as_json)


def diff(
    a: Annotated[str, typer.Argument(help="Head file, or reference to a head in the store.")],
    b: Annotated[str, typer.Argument(help="The other head.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="Labeled images, in any form that fit accepts, on which the predictions of the "
            "heads are compared. Default: none."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the data, see evaluate: test, val or train.")
    ] = None,
    backbone: HeadBackbone = None,
    weights: HeadWeights = None,
    remap: Remap = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    batch_size: BatchSize = 16,
    workers: Workers = None,
    max_unreadable: MaxUnreadable = 0.05,
    as_json: Json = False,
) -> None:
    """Say how two heads differ: labels, values, metrics, weights and predictions."""
    from headkit.diff import diff_heads

    with progress_bar() as progress:
        found = diff_heads(
            a,
            b,
            data,
            split=split,
            backbone=backbone,
            weights=weights,
            remap=remap,
            cache=choose_cache(cache, no_cache),
            batch_size=batch_size,
            workers=workers,
            max_unreadable=max_unreadable,
            progress=progress,
        )
    show(found.to_json(), as_json, "\n".join(_format(found)))


def _load(head: str, out: Path, overwrite: bool) -> Head:
    """Load the head that is changed.

    Raises:
        OutputError: ``out`` cannot be written, or is the head file without ``overwrite``.
    """
    from headkit.adapters.errors import OutputError
    from headkit.adapters.file_kinds import HEAD, check_output
    from headkit.adapters.files import is_same_file
    from headkit.registry.resolve import load_head

    check_output(out, HEAD)
    if is_same_file(head, out) and not overwrite:
        raise OutputError(
            f"cannot write {out}: it is the head file itself; choose another path, or pass "
            "--overwrite to replace it"
        )
    return load_head(head)


def _parse_names(texts: list[str], head: Head) -> dict[str, str]:
    """Return the new names by old name.

    Raises:
        ValueError: A text has no ``=``, or a name gets two new names.
    """
    names: dict[str, str] = {}
    for text in texts:
        old, new = _split(text, head)
        if names.get(old, new) != new:
            raise ValueError(
                f"{old!r} gets the names {names[old]!r} and {new!r}, expected one new name"
            )
        names[old] = new
    return names


def _split(text: str, head: Head) -> tuple[str, str]:
    """Split ``old=new`` at the sign after which it is known that ``old`` is a label."""
    places = [place for place, mark in enumerate(text) if mark == "="]
    if not places:
        raise ValueError(f"{text!r} has no '=', expected OLD=NEW")
    known = [place for place in places if text[:place] in (head.label_names or ())]
    place = (known or places)[0]
    return text[:place], text[place + 1 :]


def _write(head: Head, out: Path, as_json: bool) -> None:
    from headkit.adapters.display import format_names

    head.save(out)
    names = list(head.label_names or ())
    result = {"head": str(out), "num_classes": head.num_classes, "label_names": names}
    show(result, as_json, f"{out}: {head.num_classes} classes: {format_names(names)}")


def _format(found: HeadDifference) -> list[str]:
    from headkit.adapters.display import format_count

    renamed = [f"{old} -> {new}" for old, new in found.renamed.items()]
    lines = [
        f"labels {word}: {format_count(len(labels), labels)}"
        for word, labels in (
            *(("removed", found.removed), ("added", found.added), ("renamed", renamed)),
        )
        if labels
    ]
    if found.reordered:
        lines.append("the order of the labels differs")
    lines += [f"levels {word}: {', '.join(names)}" for word, names in found.levels.items() if names]
    for title, pairs in (
        ("", found.values),
        ("backbone.", found.backbone),
        ("metrics.", found.metrics),
    ):
        lines += [
            f"{title}{name}: {_cut(one)} -> {_cut(two)}" for name, (one, two) in pairs.items()
        ]
    lines += [
        f"{name}: only {head} has it"
        for head, word in (("A", "removed"), ("B", "added"))
        for name in found.tensors.get(word, ())
    ]
    lines += [
        f"{name}: " + ("another shape" if value is None else f"differs by at most {value:.4g}")
        for name, value in found.weights.items()
    ]
    if renamed and len(lines) == 1:
        lines.append("nothing else differs")
    return [*(lines or ["no difference"]), *_format_agreement(found.agreement)]


def _format_agreement(agreement: dict[str, Any]) -> list[str]:
    from headkit.adapters.display import cut_name

    if not agreement:
        return []
    if "mean_difference" in agreement:
        said = f"mean difference {agreement['mean_difference']:.4g}"
    else:
        said = f"agreement {agreement['agreement']:.4f}"
    pairs = [
        f"{row['count']} {cut_name(row['a'])} -> {cut_name(row['b'])}"
        for row in agreement.get("changes", [])[:MAX_CHANGES]
    ]
    lines = [f"predictions on {agreement['num_images']} images: {said}"]
    return [*lines, f"most changed: {'; '.join(pairs)}"] if pairs else lines


def _cut(value: object) -> str:
    shown = str(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"
