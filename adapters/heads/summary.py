"""Say in sentences what a user must know about a head, for the command line, the log and repr.

Everything is read from the head's metrics, so a head file says the same as the run that wrote it.
Metrics come from files, so a value of another type counts as missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headkit.adapters.display import count_of, cut_name, escape_unprintable

from .tasks import TaskName, get_task

WEAK = 0.5
"""A class is weak if its recall is below this share of the mean recall."""
FEW_IMAGES = 10
"""A class has few images if fewer than this number train it."""
MAX_LISTED = 5
"""Maximum number of classes that a sentence names, and that a head stores as having few images."""
MAX_REASONS = 8
"""Maximum number of reasons for skipped files that a head stores."""
SPLIT_REASON = "in the split "
"""Start of the reason for images of a split that neither trains nor validates."""


@dataclass(frozen=True)
class Remark:
    """A sentence about a head.

    Attributes:
        text: The sentence.
        serious: True if the user should act on it, False if it only informs.
    """

    text: str
    serious: bool = False


def find_weak_classes(recall: object, names: Sequence[str]) -> list[tuple[str, float]]:
    """Return the classes with a recall below half of the mean, the worst first.

    Args:
        recall: Recall of each class; None for a class without images. Anything else, such as the
            missing recall of a regression head, gives no classes.
        names: One name per class.
    """
    measured = _pair_up(recall, names)
    known = [(name, value) for name, value in measured if value is not None]
    if not known:
        return []
    limit = WEAK * sum(value for _, value in known) / len(known)
    return sorted((pair for pair in known if pair[1] < limit), key=lambda pair: pair[1])


def format_interval(interval: object) -> str:
    """Return `` (95 % interval 0.6132 to 0.7510)``, or nothing if there is no interval."""
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return ""
    low, high = interval
    if not (isinstance(low, int | float) and isinstance(high, int | float)):
        return ""
    return f" (95 % interval {low:.4f} to {high:.4f})"


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Return the scalar metrics, ``accuracy 0.6860 (95 % interval …), log loss 0.9120``."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4f}{format_interval(metrics.get(f'{name}_interval'))}"
        for name, value in metrics.items()
        if isinstance(value, float) and name not in ("l2", "var_smoothing", "learning_rate")
    )


def store_few_images(images: Iterable[int] | None) -> dict[str, Any]:
    """Return the metrics that name the classes with few training images, the fewest first.

    Args:
        images: Number of training images of each class; None without classes.

    Returns:
        ``num_few_images``, the number of these classes, and ``fewest_images``, the index and the
        number of images of the first ``MAX_LISTED``; empty if there are no such classes.
    """
    counts = [] if images is None else list(map(int, images))
    few = sorted((n, index) for index, n in enumerate(counts) if n < FEW_IMAGES)
    if not few:
        return {}
    fewest = [[index, n] for n, index in few[:MAX_LISTED]]
    return {"num_few_images": len(few), "fewest_images": fewest}


def store_skipped(skipped: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """Return the metrics that count the skipped files by reason; empty if there are none."""
    counts: dict[str, int] = {}
    for reason, count in skipped:
        counts[reason] = counts.get(reason, 0) + count
    if not counts:
        return {}
    ordered = sorted(counts, key=lambda reason: -counts[reason])
    stored = {reason[:60]: counts[reason] for reason in ordered[:MAX_REASONS]}
    rest = sum(counts[reason] for reason in ordered[MAX_REASONS:])
    return {"skipped": {**stored, **({"other reasons": rest} if rest else {})}}


def find_few_images(metrics: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, int]]:
    """Return the classes that ``store_few_images`` listed, with their numbers of images."""
    listed = metrics.get("fewest_images")
    pairs = [pair for pair in listed if _is_pair(pair)] if isinstance(listed, list) else []
    return [(names[index], n) for index, n in pairs if 0 <= index < len(names)]


def remarks(metrics: Mapping[str, Any], names: Sequence[str], task: TaskName) -> list[Remark]:
    """Return what a user must know about a head, the most serious first.

    Args:
        metrics: Metrics of a head, see ``fit``.
        names: One name per output.
        task: The task of the head.
    """
    found = [*_remark_on_recall(metrics, names), *_remark_on_numbers(metrics, task)]
    few = find_few_images(metrics, names)
    if few:
        total = max(_number(metrics.get("num_few_images")), len(few))
        found.append(
            Remark(
                f"{count_of(total, 'class has', 'classes have')} fewer than {FEW_IMAGES} training "
                f"images: {_list(((name, str(n)) for name, n in few), total)}"
            )
        )
    for name, split in (("val", "validation"), ("test", "test")):
        shared = _number(metrics.get(f"num_{name}_in_train"))
        if shared:
            found.append(
                Remark(
                    f"{count_of(shared, f'{split} image is', f'{split} images are')} also in the "
                    "training data, which inflates the metrics",
                    serious=True,
                )
            )
    return [*found, *_remark_on_skipped(metrics)]


def describe(metrics: Mapping[str, Any], names: Sequence[str], task: TaskName) -> dict[str, Any]:
    """Return what a user must know as JSON values: ``weak_classes``, ``few_images``, ``notes``.

    Args:
        metrics: See ``remarks``.
        names: See ``remarks``.
        task: See ``remarks``.
    """
    weak = find_weak_classes(metrics.get("recall"), names)
    few = find_few_images(metrics, names)
    return {
        "weak_classes": [{"label": name, "recall": recall} for name, recall in weak],
        "few_images": [{"label": name, "images": n} for name, n in few],
        "notes": [remark.text for remark in remarks(metrics, names, task)],
    }


def format_validation(metrics: Mapping[str, Any]) -> str:
    """Say which images measured the head; empty for a head that does not say."""
    images = _number(metrics.get("num_val"))
    if metrics.get("validation") == "cross_validation":
        which = f"each of {images} images" if images != 1 else "1 image"
        return f"validation: cross-validation, {which} was held out once"
    if metrics.get("validation") == "holdout":
        total = _number(metrics.get("num_train"))
        were = "was" if images == 1 else "were"
        return f"validation: {images} of {count_of(total, 'image', 'images')} {were} held out once"
    if metrics.get("validation") == "held_out":  # headkit 0.1: the head has not seen these images
        total = images + _number(metrics.get("num_train"))
        return f"validation: {images} of {total} images, held out of the training data"
    if metrics.get("validation") == "own":
        return f"validation: {count_of(images, 'image', 'images')} from a separate validation split"
    return ""


def _remark_on_recall(metrics: Mapping[str, Any], names: Sequence[str]) -> list[Remark]:
    measured = _pair_up(metrics.get("recall"), names)
    known = [value for _, value in measured if value is not None]
    found = []
    weak = find_weak_classes(metrics.get("recall"), names)
    if weak:
        found.append(
            Remark(
                f"{len(weak)} of {count_of(len(names), 'class', 'classes')} "
                f"{'has' if len(weak) == 1 else 'have'} a recall below half of the mean "
                f"({sum(known) / len(known):.2f}): "
                f"{_list(((name, f'{value:.2f}') for name, value in weak), len(weak))}",
                serious=True,
            )
        )
    unmeasured = [name for name, value in measured if value is None]
    if unmeasured and known:
        found.append(
            Remark(
                f"the recall of {count_of(len(unmeasured), 'class', 'classes')} is unknown, "
                f"because there are no images to measure it on: "
                + _list(((name, "") for name in unmeasured), len(unmeasured))
            )
        )
    return found


def _remark_on_numbers(metrics: Mapping[str, Any], task: TaskName) -> list[Remark]:
    r2 = metrics.get("r2")
    if get_task(task).has_classes or not isinstance(r2, float) or r2 > 0:
        return []
    text = f"R² is {r2:.4f}: predicting the mean of the targets is at least as good"
    return [Remark(text, serious=True)]


def _remark_on_skipped(metrics: Mapping[str, Any]) -> list[Remark]:
    found = []
    unreadable = _number(metrics.get("num_unreadable"))
    if unreadable:
        found.append(
            Remark(f"skipped {count_of(unreadable, 'image', 'images')} that cannot be read")
        )
    stored = metrics.get("skipped")
    skipped = {r: _number(n) for r, n in stored.items()} if isinstance(stored, dict) else {}
    splits = {r: n for r, n in skipped.items() if r.startswith(SPLIT_REASON)}
    others = {r: n for r, n in skipped.items() if r not in splits}
    if others:
        reasons = ", ".join(f"{escape_unprintable(r)} ({n})" for r, n in others.items())
        total = sum(others.values())
        found.append(Remark(f"skipped {count_of(total, 'file', 'files')} of the data: {reasons}"))
    for reason, n in splits.items():
        split = escape_unprintable(reason.removeprefix(SPLIT_REASON))
        found.append(
            Remark(
                f"the split {split} ({count_of(n, 'image', 'images')}) is not used; "
                f"`headkit evaluate HEAD --data DATA --split {split}` measures the head on it"
            )
        )
    return found


def _pair_up(recall: object, names: Sequence[str]) -> list[tuple[str, float | None]]:
    if not isinstance(recall, list | tuple) or len(recall) != len(names):
        return []
    if not all(value is None or isinstance(value, int | float) for value in recall):
        return []
    return list(zip(names, recall, strict=True))


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(number, int) for number in value)
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _list(pairs: Iterable[tuple[str, str]], total: int) -> str:
    """Return the first names with their values, and how many more there are."""
    shown = [f"{cut_name(name)} {value}".rstrip() for name, value in list(pairs)[:MAX_LISTED]]
    more = f" and {total - len(shown)} more" if total > len(shown) else ""
    return ", ".join(shown) + more
