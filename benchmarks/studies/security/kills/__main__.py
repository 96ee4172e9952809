"""Run the sections of the study, slice by slice, and sum up."""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from headkit.adapters.files import write_atomically
from headkit.benchmarks.bench.machine import machine

from ..proxy import s3_behind_a_proxy
from . import store_writers
from .slices import GROUPS, run_slice

RESULT = Path(__file__).parents[3] / "results" / "security" / "kills.json"
KILLS: dict[str, dict[str, int]] = {
    "store": {
        "publish": 32,
        "gc": 28,
        "tag": 9,
        "untag": 6,
        "yank": 9,
        "upgrade": 4,
        "pull": 8,
    },
    "cache": {"fit": 25, "extract": 25, "convert": 10, "index": 25, "limit": 15},
    "output": {"save": 10, "export": 14, "graft": 26, "predict": 15},
}
"""Number of kills in one slice."""
SLICES = {"local": {"store": 7, "cache": 2, "output": 2}, "s3": {"store": 5}}
S3_KILLS = {"publish": 15, "gc": 10, "tag": 4, "untag": 3, "yank": 4, "pull": 4}


def main() -> None:
    """Run the slices that the result lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[[], *SLICES], help="default: all")
    parser.add_argument("--result", type=Path, default=RESULT, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("headkit").setLevel(logging.ERROR)
    result: Path = options.result
    values = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    for section in options.sections or SLICES:
        slices = values.setdefault(section, {}).setdefault("slices", {})
        for group, number in SLICES[section].items():
            for seed in range(number):
                name = f"{group}-{seed}"
                if name in slices:
                    continue
                slices[name] = _run(section, group, seed)
                values[section] = {**_sum(slices), "slices": slices, "machine": machine()}
                write_atomically(result, (json.dumps(values, indent=1) + "\n").encode())
                print(section, name, json.dumps(slices[name]), flush=True)


def _run(section: str, group: str, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="headkit-") as place:
        folder = Path(place).resolve()
        if section == "local":
            return run_slice(folder, GROUPS[group], KILLS[group], seed)
        with _on_s3() as counts:
            slice_values = run_slice(folder, GROUPS[group], S3_KILLS, seed, by_clock=True)
            return {**slice_values, "proxy": counts()}


@contextmanager
def _on_s3() -> Iterator[Any]:
    store_writers.load_client()
    with s3_behind_a_proxy() as (environment, bucket, counts):
        before = dict(os.environ)
        os.environ.update({**environment, store_writers.URL: f"s3://{bucket}/store"})
        try:
            yield counts
        finally:
            os.environ.clear()
            os.environ.update(before)


def _sum(slices: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    kills, proxy = Counter[str](), Counter[str]()
    for one in slices.values():
        kills.update(one["kills"])
        proxy.update(one.get("proxy", {}))
    gaps = sum(len(one["gaps"]) for one in slices.values())
    total: dict[str, Any] = {
        "kills": dict(kills),
        "acknowledged": sum(one["acknowledged"] for one in slices.values()),
        "lost": sum(len(one["lost"]) for one in slices.values()),
        "torn": sum(len(one["torn"]) for one in slices.values()),
        "gaps": gaps,
        "gaps_of_killed_publishers": sum(
            len(one.get("gaps_of_killed_publishers", ())) for one in slices.values()
        ),
        "problems": [p for one in slices.values() for p in (*one["problems"], *one["errors"])],
        "most_temporary_files": max(one["temporary"]["most"] for one in slices.values()),
        "temporary_files_after_the_next_write": sum(
            one["temporary"]["after_the_next_write"] for one in slices.values()
        ),
        "seconds": round(sum(one["seconds"] for one in slices.values()), 1),
    }
    return {**total, "proxy": dict(proxy)} if proxy else total


if __name__ == "__main__":
    main()
