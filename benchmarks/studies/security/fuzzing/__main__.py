"""Fuzz the doors of headkit: ``python -m headkit.benchmarks.studies.security.fuzzing [DOOR …]``.

It writes ``benchmarks/results/security/fuzzing.json`` as it goes, and an interrupted run continues
where it was. It ends with status 1 if an input is a fault; the input is then in ``--failures``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .doors import DOORS
from .seeds import write_seed_files
from .study import Study

RESULT = Path(__file__).parents[3] / "results" / "security" / "fuzzing.json"


def main() -> int:
    """Run the study; return the status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("doors", nargs="*", choices=[[], *DOORS], help="doors (default: all)")
    parser.add_argument("--inputs", type=int, default=10_000, help="number of inputs per door")
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs")
    parser.add_argument("--minutes", type=float, help="time limit of all doors together")
    parser.add_argument("--result", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument("--fresh", action="store_true", help="forget the counts of these doors")
    folder = Path("build/fuzzing")
    parser.add_argument("--seeds", type=Path, default=folder / "seeds", help="valid files")
    parser.add_argument("--failures", type=Path, default=folder / "failures", help="failing inputs")
    options = parser.parse_args()
    seeds = write_seed_files(options.seeds.absolute())
    study = Study(seeds, options.result, options.failures.absolute(), options.seed, options.inputs)
    doors = options.doors or list(DOORS)
    if options.fresh:
        study.forget(doors)
    seconds = None if options.minutes is None else 60 * options.minutes
    return 1 if study.run(doors, seconds) else 0


if __name__ == "__main__":
    sys.exit(main())
