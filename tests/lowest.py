"""Print the architectures that ``make test-lowest`` checks: the smallest of each family."""

from __future__ import annotations

import json
from pathlib import Path

import timm

from headkit.benchmarks.coverage.record import smallest_of_each_family

RECORD = Path(__file__).parents[1] / "benchmarks" / "results" / "coverage.jsonl"
NEEDS_NEWER_TIMM = ("mlp_mixer", "swiftformer")
"""Families that cannot go from no classes to some before timm 1.0.29; headkit's error says so."""


def architectures() -> list[str]:
    """List the smallest architecture of each family that the installed timm has.

    The committed record is that of a newer timm, so that the command line would not read it here.
    """
    known = set(timm.list_models())
    rows = [json.loads(line) for line in RECORD.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["name"] in known and row["family"] not in NEEDS_NEWER_TIMM]
    keyed = {(row["name"], row["check"]): row for row in rows}
    return smallest_of_each_family(keyed)


if __name__ == "__main__":
    print(",".join(architectures()))
