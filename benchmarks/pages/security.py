"""Render the results of the studies in ``studies/security`` as Markdown.

A section that was not measured says nothing, so that each study can be run by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .machines import machines
from .wording import join_words

DOORS = {
    "head_file": "head file",
    "model": "exported model, opened by `Predictor`",
    "graft": "exported model, changed by `graft`",
    "serving": "backbone and heads, loaded by a server",
    "adapter_file": "adapter file of ONNX Runtime",
    "cache_shard": "cached features",
    "store_record": "records and tags of a store",
    "csv": "table of labeled images",
    "image": "image",
    "http_body": "body of a request to the server",
}
"""What the page calls each kind of input of the study ``fuzzing``."""
_STORES = {"local": "a directory", "s3": "an S3 endpoint"}


def fuzzing(result: Mapping[str, Any]) -> str:
    """Return a table on random changes of each kind of input."""
    doors = {DOORS.get(name, name): door for name, door in result.items()}
    if not doors:
        return ""
    header = (
        *("input", "tried", "accepted", "refused", "other errors", "hung", "over 1 GB"),
        *("slowest", "peak memory"),
    )
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for name, door in doors.items():
        cells = [f"{door[key]:,}" for key in ("inputs", "accepted", "refused", "raw_errors")]
        cells += [f"{door[key]:,}" for key in ("hangs", "over_memory")]
        cells += [f"{door['slowest_seconds']:.2f} s", f"{door['peak_mb']:,.0f} MB"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seeds = sorted({door["seed"] for door in doors.values()})
    word = "seed" if len(seeds) == 1 else "seeds"
    total = sum(door["inputs"] for door in doors.values())
    bad = sum(door["raw_errors"] + door["hangs"] + door["over_memory"] for door in doors.values())
    summary = (
        f"In total, {total:,} inputs were tried ({word} {join_words(list(map(str, seeds)))}). "
        f"{f'{bad:,} times,' if bad else 'None of'} "
        f"{'one of them' if bad else 'them'} gave another error, hung or took over 1 GB."
    )
    return "\n\n".join(["\n".join(lines), summary, "\n".join(machines(doors))])


def kills(result: Mapping[str, Any]) -> str:
    """Return a table on writers that are killed at random moments."""
    stores = {_STORES.get(name, name): section for name, section in result.items()}
    if not stores:
        return ""
    lines = [
        "| store in | killed | acknowledged | lost | torn | gaps in the numbers | gaps of killed "
        "publishers | problems |",
        "|" + " --- |" * 8,
    ]
    notes = []
    for name, section in stores.items():
        counts = section["kills"]
        writers = ", ".join(f"{what} {count:,}" for what, count in counts.items())
        cells = [f"{sum(counts.values()):,} ({writers})"]
        cells += [f"{section[key]:,}" for key in ("acknowledged", "lost", "torn", "gaps")]
        cells += [f"{section['gaps_of_killed_publishers']:,}", f"{len(section['problems']):,}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        proxy = section.get("proxy")
        if proxy:
            notes.append(
                f"Between the writers and {name} was a proxy that delayed {proxy['delayed']:,} "
                f"requests and let {proxy['failed']:,} fail."
            )
    return "\n\n".join(["\n".join(lines), *notes, "\n".join(machines(stores))])


def serving(result: Mapping[str, Any]) -> str:
    """Return a table on a server whose store hangs, and on one with hostile clients."""
    lines = ["| measurement | result |", "| --- | --- |"]
    hanging = result.get("hanging_store")
    if hanging:
        ratio = hanging["p99_ms"] / hanging["usual_p99_ms"]
        lines += [
            f"| the store does not answer for {hanging['seconds_hanging']:.0f} s: requests for "
            f"heads in memory | p99 {hanging['p99_ms']:.0f} ms; usually "
            f"{hanging['usual_p99_ms']:.0f} ms ({ratio:.2f} times as long) |",
            f"| `/healthz` and `/heads` in the meantime, slowest answer | "
            f"{hanging['healthz_max_ms']:.0f} ms and {hanging['heads_max_ms']:.0f} ms |",
            f"| from the end of that to an answer with a head that was not in memory | "
            f"{hanging['recovery_seconds']:.2f} s |",
        ]
    hostile = result.get("hostile_clients")
    if hostile:
        lines += [
            f"| for {hostile['seconds']:.0f} s, {hostile['half_open']:,} connections that are "
            f"half open, {hostile['slow_bodies']:,} bodies that arrive slowly and "
            f"{hostile['uploads']:,} uploads of 49 megapixels, at once: requests of an honest "
            f"client | {hostile['honest_answers']:,} of {hostile['honest_requests']:,} answered "
            f"({100 * hostile['honest_share']:.1f} %) |",
            f"| peak memory of the server in the meantime | {hostile['peak_mb']:,.0f} MB |",
        ]
    names = {"hanging_store": "the store that hangs", "hostile_clients": "the hostile clients"}
    sections = {names[key]: result[key] for key in names if result.get(key)}
    return "\n".join([*lines, "", *machines(sections)]) if sections else ""
