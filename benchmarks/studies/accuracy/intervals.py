"""Compare the accuracy that ``fit`` states with the accuracy on all other images.

``python -m headkit.benchmarks.studies.accuracy.intervals`` fits a head to each of many random draws
of images of MNIST, and measures it on the remainder. It adds to
``benchmarks/results/accuracy/intervals.jsonl`` and skips the draws that are there.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headkit.adapters.backbone.level import LAST
from headkit.adapters.backbone.levels import find_levels
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.fitting.fit_linear import LinearFit, fit_linear
from headkit.adapters.fitting.measured import Measured
from headkit.adapters.fitting.out_of_fold import apply_linear
from headkit.adapters.heads.tasks import get_task

from . import backbones
from .cells import BACKBONES
from .features import extract
from .heads import label_features
from .results import FOLDER
from .sets import ImageSet, load

SET = "mnist"
SIZES = (100, 1000)
"""Numbers of images in a draw."""
DRAWS = 1000


def main() -> None:
    """Measure the draws that the file of results lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=FOLDER / "intervals.jsonl")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    done = {(row["images"], row["draw"]) for row in read(options.results)}
    images, backbone = load(SET), BACKBONES[0]
    levels = find_levels(backbones.load(backbone))
    examples = label_features(extract(images, backbone).levels, images, levels)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for size in options.sizes:
        for draw in range(options.draws):
            if (size, draw) not in done:
                row = {"images": size, "draw": draw, **_measure(images, examples, size, draw)}
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """Return the draws in a file; a line that a killed process left torn is no draw."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _measure(images: ImageSet, examples: LabeledFeatures, size: int, draw: int) -> dict[str, Any]:
    """Fit a head to a draw; return what cross-validation states, and the accuracy on the rest."""
    generator = np.random.default_rng((size, draw))
    training = torch.zeros(len(images.targets), dtype=torch.bool)
    training[torch.from_numpy(generator.permutation(len(training))[:size])] = True
    task = get_task(images.task)
    how = LinearFit(
        ((LAST,), (LAST, *(level.name for level in examples.levels))),
        task,
        images.num_outputs,
    )
    chosen = examples.select(training)
    fitted = fit_linear(chosen, torch.arange(len(examples)), None, how)
    stated = Measured.of_folds(fitted.held, examples.y).metrics_of_choices(task.name, "f1")
    logits = apply_linear(fitted.linear, examples.select(~training).row(fitted.levels))
    truth = float((logits.argmax(1) == examples.y[~training]).double().mean())
    return {
        "accuracy": stated["accuracy"],
        "log_loss": stated["log_loss"],
        "truth": round(truth, 6),
        "measured": len(fitted.held.images),
        "levels": list(fitted.levels),
    }


if __name__ == "__main__":
    main()
