"""Names of the classes that came with a classifier. They go with the classifier's own module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .classifier import find_classifier

_LABELS = "_headkit_label_names"


def set_label_names(model: nn.Module, names: Sequence[str] | None) -> None:
    """Name the classes of the classifier that ``model`` has now; None removes the names."""
    classifier = find_classifier(model)
    for path in classifier.paths if classifier.num_classes else ():
        fitting = names is not None and len(names) == classifier.num_classes
        vars(model.get_submodule(path))[_LABELS] = tuple(map(str, names or ())) if fitting else None


def label_names_of(model: nn.Module) -> tuple[str, ...] | None:
    """Return the names of the classes of the classifier that ``model`` has now, or None.

    A classifier that replaced the one that was loaded has none.
    """
    classifier = find_classifier(model)
    if not classifier.num_classes:
        return None
    names: tuple[str, ...] | None = vars(model.get_submodule(classifier.paths[0])).get(_LABELS)
    return names if names and len(names) == classifier.num_classes else None
