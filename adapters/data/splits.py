"""Know the names that folders and columns use for training, validation and test data."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, NamedTuple

SplitName = Literal["train", "val", "test"]

_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validate", "validation", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
WORDS = {word: split for split, words in _NAMES.items() for word in words}
"""Lowercase words that name a split. An evaluation split is a test split: Kaggle's folders
``training``, ``validation`` and ``evaluation`` are three splits."""
_ENDINGS = ("set", "data", "images")
_WITH_ENDINGS = {
    **WORDS,
    **{word + ending: split for word, split in WORDS.items() for ending in _ENDINGS},
}
_FILLERS = frozenset(
    ("set", "sets", "data", "dataset", "image", "images", "img", "imgs", "folder", "dir", "split")
)
"""Words beside the name of a split that say nothing more: ``training_set``, ``train-images``."""
_TOKEN = re.compile(r"\d+|[^\W\d_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


class NamedSplit(NamedTuple):
    """A split, and the other words of its name: ``seg_train`` is the split train of ``seg``."""

    split: SplitName
    others: tuple[str, ...]


@lru_cache(maxsize=1024)  # a column of a table repeats few names
def parse_split(name: str) -> NamedSplit | None:
    """Return the split that a folder is named after, or None.

    Case, separators, years and words such as ``set`` do not matter: ``Training_Set`` and
    ``train2017`` are train. A name with words of two splits names none.
    """
    tokens = [token.lower() for token in _TOKEN.findall(_CAMEL.sub(" ", name))]
    splits = [_WITH_ENDINGS[token] for token in tokens if token in _WITH_ENDINGS]
    if len(splits) != 1:
        return None
    others = tuple(
        token
        for token in tokens
        if token not in _WITH_ENDINGS and token not in _FILLERS and not _is_year(token)
    )
    return NamedSplit(splits[0], others)


def split_of(text: str) -> SplitName | None:
    """Return the split that ``text`` names and nothing else, or None."""
    named = parse_split(text)
    return named.split if named is not None and not named.others else None


def group_splits(names: Iterable[str]) -> dict[SplitName, list[str]]:
    """Return the names by split if they name at least two splits; else nothing.

    Names belong together if their other words are the same: ``seg_train`` and ``seg_test``, and not
    ``training shoes`` and ``test tube``.
    """
    groups: dict[tuple[str, ...], dict[SplitName, list[str]]] = {}
    for name in names:
        if (named := parse_split(name)) is not None:
            groups.setdefault(named.others, {}).setdefault(named.split, []).append(name)
    several = [(others, group) for others, group in groups.items() if len(group) > 1]
    best = min(several, key=lambda item: ("train" not in item[1], len(item[0])), default=None)
    return best[1] if best is not None else {}


def _is_year(token: str) -> bool:
    return len(token) == 4 and token.startswith(("19", "20"))
