"""Render the results of the studies ``publishing`` and ``serving`` as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .machines import machines
from .wording import reword


def publishing(result: Mapping[str, Any]) -> str:
    """Return a table on simultaneous publishers, a large listing and a search."""
    lines = ["| measurement | result |", "| --- | --- |"]
    for name, where in (("local", "in a directory"), ("s3", "on an S3 endpoint")):
        crowd = result.get(name)
        if crowd:
            lines.append(
                f"| {crowd['processes']} processes each publish {crowd['versions']} versions of "
                f"one name {where}, and one of them is killed; {crowd['repeats']} repeats | "
                f"{crowd['acknowledged']:,} versions acknowledged, {crowd['lost']} lost, "
                f"{crowd['gaps']} gaps in the numbers, {len(crowd['problems'])} objects damaged; "
                f"at the same time a tag resolved {crowd['resolved']:,} times and failed "
                f"{crowd['unresolved']} times |"
            )
    listing = result.get("listing")
    if listing:
        lines.append(
            f"| list {listing['heads']:,} heads in a directory | "
            f"{listing['list_ms']['median_ms']:.0f} ms; the whole command takes "
            f"{listing['command_ms']['median_ms']:.0f} ms |"
        )
    search = result.get("search")
    if search:
        ours, theirs = (search[key]["median_ms"] for key in ("command_ms", "import_timm_ms"))
        lines.append(
            f"| `headkit models vit`, including Python's startup | {ours:.0f} ms; importing timm "
            f"takes {theirs:.0f} ms |"
        )
    return "\n".join([*lines, "", *machines(result)])


def serving(result: Mapping[str, Any]) -> str:
    """Return a table on a server with many clients and many heads."""
    lines = ["| measurement | result |", "| --- | --- |"]
    clients = result.get("clients")
    if clients:
        for key, count in (("one_client", 1), ("crowd", clients["clients"])):
            load = clients[key]
            lines.append(
                f"| {count} client{'s' if count > 1 else ''} for {load['seconds']:.0f} s, "
                f"{clients['heads']} heads on {clients['architecture']} | "
                f"{load['requests_per_second']:.0f} requests/s; p50 "
                f"{load['latency_ms']['p50']:.0f} ms, p99 {load['latency_ms']['p99']:.0f} ms; "
                f"{_count_statuses(load['statuses'])} |"
            )
        wrong = ", ".join(
            f"{reword(what)}: {status or 'no response'}"
            for what, status in clients["misbehaviour"].items()
        )
        served = _count_statuses(clients["afterwards"]["statuses"])
        lines.append(
            f"| status of bad requests, and of good requests afterwards | {wrong}; then {served} |"
        )
    heads = result.get("heads")
    if heads:
        ratio, ms = heads["ratio"], heads["ms"]
        lines.append(
            f"| one image classified by {heads['heads']} heads on {heads['architecture']} | one "
            f"request takes {ms['one request']['median_ms']:.1f} ms; {heads['heads']} sessions, "
            f"one after another, take {ms['sessions']['median_ms']:.0f} ms, which is "
            f"{ratio['value']:.0f} times as long (99 % confidence interval: {ratio['low']:.0f} to "
            f"{ratio['high']:.0f}) |"
        )
    return "\n".join([*lines, "", *machines(result)])


def _count_statuses(statuses: Mapping[str, int]) -> str:
    """Return the number of responses by HTTP status, and of requests that failed by error."""
    return ", ".join(
        f"{count:,} responses with status {status}"
        if status.isdigit()
        else f"{count:,} requests that failed with {status}"
        for status, count in sorted(statuses.items())
    )
