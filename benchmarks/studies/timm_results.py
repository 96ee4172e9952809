"""Extract the accuracies and latencies that timm's authors measured, for the catalogue.

Run ``python -m headkit.benchmarks.studies.timm_results CLONE`` with the path of a clone of timm's
repository. It writes ``benchmarks/results/timm_results.json`` at its end and takes seconds.

Source: the folder ``results`` of https://github.com/huggingface/pytorch-image-models (Apache-2.0),
by Ross Wightman.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from headkit.adapters.files import write_atomically

RESULT = Path(__file__).parents[1] / "results" / "timm_results.json"
REPOSITORY = "https://github.com/huggingface/pytorch-image-models"
ACCURACY = "results/results-imagenet.csv"
LATENCY = "results/benchmark-infer-fp32-nchw-pt240-cpu-i7_12700h-dynamo.csv"


def reduce(clone: Path) -> dict[str, Any]:
    """Return ``top1`` in per cent and ``latency_ms`` by ``architecture.tag``, and their sources."""
    commit = _git(clone, "rev-parse", "HEAD").strip()
    latency = _rows(clone, LATENCY)
    if {row["infer_batch_size"] for row in latency} != {"1"}:
        raise ValueError(f"{LATENCY} has rows with a batch size other than 1")
    return {
        "repository": REPOSITORY,
        "commit": commit,
        "top1": {
            "file": ACCURACY,
            "what": "ImageNet-1k validation, top-1 accuracy in per cent",
            "values": {row["model"]: float(row["top1"]) for row in _rows(clone, ACCURACY)},
        },
        "latency_ms": {
            "file": LATENCY,
            "what": "one image, float32, torch 2.4 compiled, Intel Core i7-12700H",
            "values": {row["model"]: float(row["infer_step_time"]) for row in latency},
        },
    }


def _rows(clone: Path, path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(_git(clone, "show", f"HEAD:{path}"))))


def _git(clone: Path, *arguments: str) -> str:
    command = ["git", "-C", str(clone), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    text = json.dumps(reduce(Path(sys.argv[1])), indent=0)
    print(write_atomically(RESULT, (text + "\n").encode()))
