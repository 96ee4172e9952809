"""Render what ``publishing`` and ``serving`` measured as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .machines import machines


def publishing(result: Mapping[str, Any]) -> str:
    """Return a table of what many publishers at once, large listings and searches gave."""
    lines = ["| what | measured |", "| --- | --- |"]
    for name, where in (("local", "a directory"), ("s3", "an S3 endpoint")):
        found = result.get(name)
        if found:
            lines.append(
                f"| {found['processes']} processes publish {found['versions']} versions each of "
                f"one name in {where}, one is killed; {found['repeats']} times | "
                f"{found['acknowledged']:,} acknowledged, {found['lost']} lost, {found['gaps']} "
                f"gaps in the numbers, {len(found['problems'])} objects damaged; a tag resolved "
                f"{found['resolved']:,} times meanwhile and failed {found['unresolved']} times |"
            )
    listing = result.get("listing")
    if listing:
        lines.append(
            f"| list {listing['heads']:,} heads in a directory | "
            f"{listing['list_ms']['median_ms']:.0f} ms; the whole command "
            f"{listing['command_ms']['median_ms']:.0f} ms |"
        )
    search = result.get("search")
    if search:
        ours, theirs = (search[key]["median_ms"] for key in ("command_ms", "import_timm_ms"))
        lines.append(
            f"| `headkit models vit`, start included | {ours:.0f} ms; importing timm takes "
            f"{theirs:.0f} ms |"
        )
    return "\n".join([*lines, "", *machines(result)])


def serving(result: Mapping[str, Any]) -> str:
    """Return a table of what a server with many clients and many heads gave."""
    lines = ["| what | measured |", "| --- | --- |"]
    clients = result.get("clients")
    if clients:
        for key, count in (("one_client", 1), ("crowd", clients["clients"])):
            found = clients[key]
            statuses = ", ".join(f"{n:,} times {s}" for s, n in sorted(found["statuses"].items()))
            lines.append(
                f"| {count} client{'s' if count > 1 else ''} for {found['seconds']:.0f} s, "
                f"{clients['heads']} heads on {clients['architecture']} | "
                f"{found['requests_per_second']:.0f} requests/s; p50 "
                f"{found['latency_ms']['p50']:.0f} ms, p99 {found['latency_ms']['p99']:.0f} ms; "
                f"status {statuses} |"
            )
        wrong = ", ".join(
            f"{what}: {status or 'no answer'}" for what, status in clients["misbehaviour"].items()
        )
        after = clients["afterwards"]["statuses"]
        served = ", ".join(f"{n} times {s}" for s, n in sorted(after.items()))
        lines.append(f"| what is wrong, and requests afterwards | {wrong}; then {served} |")
    heads = result.get("heads")
    if heads:
        ratio, ms = heads["ratio"], heads["ms"]
        lines.append(
            f"| one image by {heads['heads']} heads on {heads['architecture']} | one request "
            f"{ms['one request']['median_ms']:.1f} ms, as many sessions one after another "
            f"{ms['sessions']['median_ms']:.0f} ms: {ratio['value']:.0f} times (99 % interval "
            f"{ratio['low']:.0f} to {ratio['high']:.0f}) |"
        )
    return "\n".join([*lines, "", *machines(result)])
