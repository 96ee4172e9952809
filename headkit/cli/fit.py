"""The command ``fit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options.fit import Backbone, Data, NewHead, takes_fit_options
from .terminal import Weights, progress_bar, show

if TYPE_CHECKING:
    from headkit.adapters.heads.head import Head


@takes_fit_options()
def fit(
    backbone: Backbone,
    data: Data,
    out: NewHead,
    weights: Weights = None,
    *,
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Train a head on the features of a frozen backbone, and save the head."""
    from headkit.adapters.file_kinds import HEAD, check_output

    check_output(out, HEAD, inputs=(weights, options.get("extend"), data))
    from headkit.fit import fit as fit_head

    with progress_bar() as progress:
        head = fit_head(backbone, data, weights=weights, progress=progress, **options)
    head.save(out)
    show(describe_fit(head, out), as_json, "\n".join(format_fit(head, out)))


def describe_fit(head: Head, path: Path) -> dict[str, Any]:
    """Return the result of a fit as JSON values."""
    from headkit.adapters.heads.summary import describe

    names = head.label_names or tuple(map(str, range(head.num_classes)))
    return {
        "head": str(path),
        "bytes": path.stat().st_size,
        **head.metrics,
        **describe(head.metrics, names, head.task),
    }


def format_fit(head: Head, path: Path) -> list[str]:
    """Return the lines that tell people the result of a fit."""
    from headkit.adapters.display import count_of
    from headkit.adapters.heads.summary import format_metrics, format_validation, remarks
    from headkit.adapters.heads.tasks import get_task

    names = head.label_names or tuple(map(str, range(head.num_classes)))
    nouns = ("class", "classes") if get_task(head.task).has_classes else ("output", "outputs")
    measured = format_metrics(head.metrics) or "nothing was measured"
    first = (
        f"{path}: {count_of(head.num_classes, *nouns)}, {path.stat().st_size:,} bytes; on "
        f"{count_of(head.metrics['num_val'], 'image', 'images')} {measured}"
    )
    validation = "; ".join(filter(None, (format_validation(head.metrics), _reads(head))))
    test = head.metrics.get("test")
    tested = ""
    if test:
        images = count_of(test["num_images"], "image", "images")
        tested = f"test: {format_metrics(test)} on {images}"
    tuned = format_tuning(head)
    notes = [f"note: {remark.text}" for remark in remarks(head.metrics, names, head.task)]
    return [first, *filter(None, (validation, tuned, tested)), *notes]


def _reads(head: Head) -> str:
    """Return what a head reads."""
    others = [level.name for level in head.levels if level.name != "last"]
    levels = f" and {', '.join(others)}" if others else ""
    return f"the head reads the last features{levels}"


def format_tuning(head: Head) -> str:
    """Return what tuning gained over the head alone; empty if the head was not tuned."""
    from headkit.adapters.heads.summary import format_metrics

    facts = head.metrics.get("tuning")
    if not facts:
        return ""
    if facts["method"] is None:
        return "tuning gained nothing on held-out images, so the head has no changes"
    return (
        f"tuning: {facts['num_values']:,} values by {facts['method']} at rate {facts['rate']:g}; "
        f"the head without changes: {format_metrics(facts['head'])} on the same images"
    )
