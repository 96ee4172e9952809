"""500 random trees: what headkit understands is what an independent listing finds."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from headkit.adapters.data.open import open_data
from headkit.adapters.errors import DataError

READ = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
OTHERS = (".heic", ".avif", ".jp2", ".tga", ".svg", ".npy", ".txt", ".csv", ".json", "", ".1")
SPLITS = (
    ("train", "valid", "test"),
    ("train", "val"),
    ("Training", "Testing"),
    ("training_set", "test_set"),
    ("Train", "Test"),
    ("TRAIN", "dev", "TEST"),
    ("seg_train", "seg_test"),
    ("train", "validation", "test"),
    ("train-images", "val-images"),
)
VALIDATION = ("valid", "val", "dev", "validation", "val-images")
CLASSES = ("cat", "dog", "Übel 猫", "a b", "c10", "c9", "2023", "2024", "x.y", "train wheels")
INNER = ("hard", "easy", "2023", "batch1", "batch2", "cat")
SYSTEM = ("__MACOSX", "@eaDir", ".thumbnails", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found")
HIDDEN = ("._a.jpg", ".DS_Store", "Thumbs.db", ".b.png")


class Tree(NamedTuple):
    root: Path
    splits: tuple[str, ...]


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _grow(root: Path, draw: random.Random) -> Tree:
    """Write a tree of empty files."""
    splits = draw.choice(SPLITS) if draw.random() < 0.5 else ()
    classes = draw.sample(CLASSES, draw.randint(1 if draw.random() < 0.1 else 2, 5))
    style = draw.choice(("flat", "flat", "deep", "mixed"))
    for split in splits or ("",):
        top = root / split
        for number, label in enumerate(classes):
            if split in VALIDATION and draw.random() < 0.2:
                continue
            for index in range(draw.randint(0 if draw.random() < 0.05 else 1, 5)):
                folder = top / label
                if style == "deep":
                    folder /= f"part of {label}" if draw.random() < 0.8 else draw.choice(INNER)
                elif style == "mixed" and draw.random() < 0.1:
                    folder /= draw.choice(INNER)
                suffix = draw.choice(READ if index == 0 or draw.random() < 0.7 else OTHERS)
                if draw.random() < 0.3:
                    suffix = suffix.upper()
                _write(folder / f"{number}-{index}{suffix}")
        for _ in range(draw.randint(0, 2)):
            _write(top / draw.choice(classes) / draw.choice(HIDDEN))
            _write(top / draw.choice(SYSTEM) / draw.choice(("a", "b/c")) / "1.jpg")
        if draw.random() < 0.05:
            _write(top / draw.choice(("loose.png", "new class/1.png", "empty/notes.txt")))
    for name in draw.sample(("README.txt", "labels.csv", ".git/config", "extra.heic"), 2):
        _write(root / name)
    if splits and draw.random() < 0.2:
        _write(root / "unlabelled" / "1.jpg")
    return Tree(root, splits)


def _files(root: Path) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yield the parts of the path of each file, and whether it is an image that a user sees."""
    for path in root.rglob("*"):
        if path.is_file():
            parts = path.relative_to(root).parts
            system = any(part.startswith(".") or part in SYSTEM for part in parts)
            yield parts, not system and path.suffix.lower() in READ


def _must_stop(chains: set[tuple[str, ...]], folders: set[str], known: set[str] | None) -> bool:
    """Say whether the folders of images below one split can be read in two ways, or not at all."""
    tops = {chain[0] for chain in chains if chain}
    if () in chains or not chains:
        return True
    if known is None and (len(tops) < 2 or folders - tops):
        return True
    if known is not None and tops - known:
        return True
    if max(map(len, chains)) == 1 or len(tops) == 1:
        return False
    places = {(name, chain[:i]) for chain in chains for i, name in enumerate(chain)}
    repeated = len({name for name, _ in places}) < len(places)
    depths = {(chain[0], len(chain)) for chain in chains}
    return repeated or len(depths) > len(tops) or tops <= {"2023", "2024"}


def _check(tree: Tree) -> bool:
    """Compare what headkit understands with the listing; return whether it understood the tree."""
    root, splits = tree
    files = list(_files(root))
    assert files
    train = splits[0] if splits else ""
    val = next((split for split in splits if split in VALIDATION), None)
    start = 1 if splits else 0

    def images_of(split: str) -> list[tuple[str, ...]]:
        return [p for p, image in files if image and (not splits or p[0] == split)]

    def folders_of(split: str) -> set[str]:
        found = {path.name for path in (root / split).iterdir() if path.is_dir()}
        return {name for name in found if not name.startswith(".") and name not in SYSTEM}

    chains = {parts[start:-1] for parts in images_of(train)}
    stop = _must_stop(chains, folders_of(train), None)
    if val is not None and not stop:
        known = {chain[0] for chain in chains}
        stop = _must_stop({p[start:-1] for p in images_of(val)}, folders_of(val), known)
    if stop:
        with pytest.raises(DataError):
            open_data(root)
        return False
    found, found_val = open_data(root)
    seen = 0
    for split, dataset in ((train, found), (val, found_val)):
        assert (dataset is None) == (split is None)
        if dataset is None or split is None:
            continue
        assert dataset.paths is not None
        assert dataset.targets is not None
        labels = [dataset.label_names[target] for target in dataset.targets]
        paths = [Path(path).relative_to(root).parts for path in dataset.paths]
        expected = {parts: parts[start] for parts in images_of(split)}
        assert dict(zip(paths, labels, strict=True)) == expected
        assert len(paths) == len(expected)
        empty = sum(s.count for s in dataset.skipped if s.reason == "class folder without images")
        seen += len(paths) + sum(s.count for s in dataset.skipped) - empty
    assert seen == len(files), files
    return True


@pytest.mark.parametrize("part", range(5))
def test_every_file_is_an_image_of_its_class_or_is_counted(tmp_path: Path, part: int) -> None:
    draw = random.Random(part)  # noqa: S311
    understood = sum(_check(_grow(tmp_path / str(number), draw)) for number in range(100))
    assert 40 < understood < 95  # both kinds of trees occur
