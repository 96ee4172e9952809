"""Run one slice: kill many processes that write the same files, and check these all along."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cache_writers, output_writers, store_writers
from .actors import Actor, Habits, Outcome, Writer, call, run_at_once

CHECKED_EVERY = 20
"""Number of pairs of processes after which all files are checked; versions are always checked."""


@dataclass(frozen=True)
class Group:
    """Processes that work on the same files.

    Attributes:
        writers: The processes by name.
        prepare: Makes the files before the first kill.
        check: Checks all files: ``torn``, ``temporary``, and for a store also ``gaps`` and
            ``problems``.
        clean: Does what a user would do next; returns the number of temporary files that stay.
    """

    writers: Mapping[str, Writer]
    prepare: Callable[[Path], None]
    check: Callable[[Path], dict[str, Any]]
    clean: Callable[[Path], int]


GROUPS = {
    module.__name__.rpartition(".")[2].removesuffix("_writers"): Group(
        module.WRITERS, module.prepare, module.check, module.clean
    )
    for module in (store_writers, cache_writers, output_writers)
}


def run_slice(
    folder: Path, group: Group, kills: Mapping[str, int], seed: int, *, by_clock: bool = False
) -> dict[str, Any]:
    """Kill processes, two at a time, until each writer was killed as often as ``kills`` says.

    A process whose moment comes after its end is not counted. No file is repaired between kills,
    only the next processes work on what the last ones left.

    Args:
        folder: Empty folder for the files.
        group: The processes.
        kills: Number of kills of each writer.
        seed: Seed of all random choices.
        by_clock: Draw all moments by the clock.
    """
    started = time.monotonic()
    generator = random.Random(seed)  # noqa: S311 - no secret
    habits = {name: Habits() for name in group.writers}
    killed, ran = Counter[str](), Counter[str]()
    acknowledged, lost, errors = list[list[Any]](), list[str](), list[str]()
    found = {"torn": set[str](), "gaps": set[str](), "problems": set[str]()}
    most_temporary = pairs = 0
    call(group.prepare, folder)

    def check_all() -> None:
        nonlocal most_temporary
        values = call(group.check, folder)
        most_temporary = max(most_temporary, values.pop("temporary"))
        for kind, items in values.items():
            found[kind].update(items)
        for start in range(0, len(acknowledged), 200):
            lost.extend(call(store_writers.read_versions, folder, acknowledged[start:][:200]))

    while any(killed[name] < number for name, number in kills.items()):
        left = [name for name, number in kills.items() if killed[name] < number]
        weights = [kills[name] - killed[name] for name in left]
        names = generator.choices(left, weights, k=2)
        outcomes = run_at_once(
            [
                Actor(
                    group.writers[name],
                    folder,
                    generator.randrange(10**9),
                    habits[name],
                    moment=generator.random(),
                    by_clock=by_clock or generator.random() < 0.5,
                )
                for name in names
            ]
        )
        for name, outcome in zip(names, outcomes, strict=True):
            (killed if outcome.killed else ran)[name] += 1
            if outcome.error:
                errors.append(f"{name}: {outcome.error}")
        new = [values for one in outcomes for values in one.said if values[0] == "version"]
        lost.extend(call(store_writers.read_versions, folder, new) if new else [])
        acknowledged += new
        pairs += 1
        if group is GROUPS["store"] and generator.random() < 0.25:
            store_writers.age(folder)
        if pairs % CHECKED_EVERY == 0:
            check_all()
        if len(errors) > len(killed):
            break
    check_all()
    stay = call(group.clean, folder)
    check_all()
    versions = {f"{name}@{number}" for _, name, number, _ in acknowledged}
    return {
        "kills": {name: min(killed[name], number) for name, number in kills.items()},
        "ended_by_themselves": dict(ran),
        "acknowledged": len(acknowledged),
        "lost": sorted(set(lost)) + _find_repeated(acknowledged),
        **{kind: sorted(items) for kind, items in found.items()},
        "gaps": sorted(found["gaps"] & versions),
        "gaps_of_killed_publishers": sorted(found["gaps"] - versions),
        "errors": errors,
        "temporary": {"most": most_temporary, "after_the_next_write": stay},
        "seconds": round(time.monotonic() - started, 1),
    }


def _find_repeated(acknowledged: list[list[Any]]) -> list[str]:
    """Return the versions that two publishers were told to have published."""
    counts = Counter((name, number) for _, name, number, _ in acknowledged)
    return [f"{name}@{number} was published twice" for (name, number), n in counts.items() if n > 1]


__all__ = ["GROUPS", "Group", "Outcome", "run_slice"]
